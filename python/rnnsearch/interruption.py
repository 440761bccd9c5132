"""Signals that ask a run to end become a flag that it reads where it can save."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible(signals: tuple[signal.Signals, ...]) -> Iterator[Callable[[], int]]:
    """The number of the signal that has come, or 0. A second one of the same kind acts as it would have without this.

    Only the main thread can; elsewhere the answer stays 0.
    """
    number = 0
    previous = {which: signal.getsignal(which) for which in signals}

    def handler(which: int, frame: Any) -> None:
        nonlocal number
        number = which
        signal.signal(which, previous[signal.Signals(which)])

    try:
        for which in signals:
            signal.signal(which, handler)
    except ValueError:
        yield lambda: 0
        return
    try:
        yield lambda: number
    finally:
        for which in signals:
            signal.signal(which, previous[which])
