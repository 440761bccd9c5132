"""Minibatches that are ready before they are asked for: read, segmented and padded in a thread of their own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """``entries`` in their order, at most ``depth`` of them read by a thread before they are asked for.

    What is raised there is raised here, in its place. Used by one thread, and closed by ``with``.
    """

    def __init__(self, entries: Iterator[T], depth: int) -> None:
        if depth < 1:
            raise ValueError(f"`depth` must be at least 1; got {depth}")
        self.waited = 0.0  # seconds in which whoever asked had to stand still
        self._entries, self._depth = entries, depth
        self._ready: deque[T] = deque()
        self._change = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for entry in self._entries:
                with self._change:
                    self._change.wait_for(lambda: self._closed or len(self._ready) < self._depth)
                    if self._closed:
                        return
                    self._ready.append(entry)
                    self._change.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        with self._change:
            if not self._ready and not self._ended:
                began = time.perf_counter()
                self._change.wait_for(lambda: self._ready or self._ended)
                self.waited += time.perf_counter() - began
            if self._ready:
                entry = self._ready.popleft()
                self._change.notify_all()
                return entry
        if self._error is not None:
            raise self._error
        raise StopIteration

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()
