"""What a command says on stderr while it works: lines and a bar."""

from __future__ import annotations

import sys
from typing import Any, Literal

from tqdm import tqdm


def progress_bar(total: int, when: Literal["auto", "always", "never"], unit: str = " lines") -> Any:
    """tqdm's. ``"auto"``: where stderr is a terminal and what is written goes elsewhere."""
    shown = when == "always" or (when == "auto" and sys.stderr.isatty())
    return tqdm(total=total, unit=unit, disable=not shown, file=sys.stderr, smoothing=0.1)


def say(text: str) -> None:
    """A line on stderr, above the bar where there is one."""
    tqdm.write(f"rnnsearch: {text}", file=sys.stderr)
