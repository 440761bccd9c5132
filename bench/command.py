"""What every benchmark's command line needs: files refused before the run, an end without a traceback."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def why_not_written(path: Path) -> str | None:
    """Why a file cannot be written, asked before minutes are spent on what it would hold; None where it can."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"there is no folder {folder} to write {path.name} in"
    if path.is_dir():
        return f"{path} is a folder"
    if path.exists() and not os.access(path, os.W_OK):
        return f"{path} is there and cannot be written"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"nothing can be written in {folder} ({error.strerror})"


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with what ``main`` returns; 130 after Ctrl-C, 141 where nobody reads what is printed (``| head``)."""
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # Python would flush once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status)
