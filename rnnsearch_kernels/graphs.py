"""CUDA graphs that are kept and replayed: for which sizes, how many, how large, and when none is made.

Whoever makes a graph keeps it in :data:`KEPT`, under a key that says all that it depends on: its work, the sizes of its
bucket, dtypes, options, and :func:`surroundings`. What is given to it is copied into its own memory, padded to the
bucket. The environment is asked at every call:

    RNNSEARCH_CUDA_GRAPHS=0         makes no graphs
    RNNSEARCH_CUDA_GRAPHS_KEPT=N    so many are kept on a device (32), those used last
    RNNSEARCH_CUDA_GRAPHS_MB=N      so many megabytes (2²⁰ bytes) they may hold there: arguments, results and all that
                                    is made between (a tenth of the device's memory)

Where memory does not suffice to make one, all are let go and no more are made in the process; a warning says so, once.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, NamedTuple

import torch

__all__ = ["KEPT", "GraphCache", "Limits", "bucket", "capture_stream", "limits", "surroundings", "turned_on"]

COUNT = 32
SHARE = 10  # of a device's memory


def bucket(size: int) -> int:
    """The size that ``size`` is padded to: its own up to 16, then the next of eight a doubling, less than an eighth
    more."""
    step = 1 << max(0, (size - 1).bit_length() - 4)
    return -(-size // step) * step


class Limits(NamedTuple):
    """What the graphs of one device may come to."""

    kept: int
    nbytes: int


def limits(device: torch.device) -> Limits:
    count, megabytes = _number("RNNSEARCH_CUDA_GRAPHS_KEPT"), _number("RNNSEARCH_CUDA_GRAPHS_MB")
    if megabytes is None:
        return Limits(COUNT if count is None else count, torch.cuda.get_device_properties(device).total_memory // SHARE)
    return Limits(COUNT if count is None else count, megabytes << 20)


def _number(variable: str) -> int | None:
    given = os.environ.get(variable)
    if given is None:
        return None
    if not given.isdecimal():
        raise ValueError(f"{variable} must be a whole number; got {given!r}")
    return int(given)


def turned_on(device: torch.device) -> bool:
    """Whether graphs are made of work on ``device``."""
    return device.type == "cuda" and os.environ.get("RNNSEARCH_CUDA_GRAPHS") != "0"


def surroundings(device: torch.device) -> Hashable:
    """What a graph depends on beside its arguments: its buffers are safe on one stream, its products of one kind."""
    return device, torch.cuda.current_stream(device).cuda_stream, torch.backends.cuda.matmul.fp32_precision


@cache
def capture_stream(device: torch.device, stream: int) -> torch.cuda.Stream:
    """Where what will be replayed on ``stream`` is captured: one for all of it, since with a stream goes a workspace of
    cuBLAS's, which is never let go, and no other's, for graphs that run side by side must not share that."""
    return torch.cuda.Stream(device)


class _Entry(NamedTuple):
    graph: Any
    nbytes: int
    device: torch.device


class GraphCache:
    """Graphs by key, the one used last at the end. ``limits`` may be another function than the environment's."""

    def __init__(self, limits: Callable[[torch.device], Limits] = limits) -> None:
        self.limits = limits
        self.lock = threading.RLock()
        self.given_up = False
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def turned_on(self, device: torch.device) -> bool:
        """:func:`turned_on`, and memory has sufficed so far."""
        return not self.given_up and turned_on(device)

    @staticmethod
    def capturing() -> bool:
        """Whether somebody else's capture is on its way, inside of which nothing is captured or replayed."""
        return torch.cuda.is_current_stream_capturing()

    def usable(self, device: torch.device) -> bool:
        """Whether work on ``device`` may be captured or replayed now."""
        return self.turned_on(device) and not self.capturing()

    def get(self, key: Hashable) -> Any:
        """The graph of ``key``, or None."""
        with self.lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.graph

    def take(self, key: Hashable) -> Any:
        """The graph of ``key``, no longer kept: for who uses it over a time, and puts it back."""
        with self.lock:
            entry = self._entries.pop(key, None)
            return None if entry is None else entry.graph

    def put(self, key: Hashable, graph: Any, nbytes: int, device: torch.device) -> bool:
        """Keep ``graph``, and let those go that were used longest ago; False where it is too large to be kept."""
        allowed = self.limits(device)
        if nbytes > allowed.nbytes or not allowed.kept:
            return False
        with self.lock:
            self._entries[key] = _Entry(graph, nbytes, device)
            self._entries.move_to_end(key)
            here = [(other, entry.nbytes) for other, entry in self._entries.items() if entry.device == device]
            count, held = len(here), sum(size for _, size in here)
            for other, size in here:
                if count <= allowed.kept and held <= allowed.nbytes:
                    break
                del self._entries[other]
                count, held = count - 1, held - size
        return True

    def clear(self) -> bool:
        """Let all go; whether there were any."""
        with self.lock:
            there = bool(self._entries)
            self._entries.clear()
        if there and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return there

    def give_up(self) -> None:
        """There was no memory for a graph: all go, and no more are made."""
        with self.lock:
            said, self.given_up = self.given_up, True
            self.clear()
        if not said:
            warnings.warn(
                "out of memory while a CUDA graph was made: those kept are let go, no more are made in this process, "
                "and kernels are launched one by one; RNNSEARCH_CUDA_GRAPHS_MB bounds what graphs may hold, "
                "RNNSEARCH_CUDA_GRAPHS=0 turns them off",
                RuntimeWarning,
                stacklevel=3,
            )


KEPT = GraphCache()
