"""A progress bar on stderr."""

from __future__ import annotations

import sys
from typing import Any, Literal

from tqdm import tqdm


def progress_bar(total: int, when: Literal["auto", "always", "never"], unit: str = " lines") -> Any:
    """tqdm's. ``"auto"``: where stderr is a terminal and what is written goes elsewhere."""
    shown = when == "always" or (when == "auto" and sys.stderr.isatty())
    return tqdm(total=total, unit=unit, disable=not shown, file=sys.stderr, smoothing=0.1)
