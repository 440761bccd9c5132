"""A loop's launches as one CUDA graph.

A loop seen for the second time with the same shapes is captured, and from then on its arguments are copied into the
graph's own and the graph is replayed; the first time runs plainly, which also compiles the kernels. A loop whose
shapes never come back is never captured. ``LIMIT`` graphs are kept, those used last; each holds a copy of the loop's
arguments, results and temporaries. Capturing one synchronises the device once; replaying never does.

torch.compile leaves the loops out of graphs of its own (``Backend.captures``): its warm-up takes all memory from a pool
that it uses again, ours with it.

``RNNSEARCH_CUDA_GRAPHS=0`` turns this off, at any time. Inside somebody else's capture the launches are plain.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

Results = tuple[Tensor, ...]
Replay = Callable[[Sequence[Any]], Results]

LIMIT = 8
REMEMBERED = 64  # shapes seen once


@cache
def capture_stream(device: torch.device, stream: int) -> torch.cuda.Stream:
    """Where what will be replayed on ``stream`` is captured. torch's own choice is one stream, on one device; and with
    the stream goes cuBLAS's workspace, which graphs that run side by side must not share."""
    return torch.cuda.Stream(device)


def capture(function: Callable[..., Results], args: Sequence[Any]) -> Replay:
    """``function`` on copies of ``args``, captured, as a function of other arguments of the same shapes."""
    own = [arg.clone(memory_format=torch.contiguous_format) if isinstance(arg, Tensor) else arg for arg in args]
    # A capture can load neither kernels (others, where the copies have other strides) nor this thread's cuBLAS.
    function(*own)
    current = torch.cuda.current_stream()
    stream = capture_stream(current.device, current.cuda_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        results = function(*own)

    def replay(args: Sequence[Any]) -> Results:
        for mine, theirs in zip(own, args, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(theirs)
        graph.replay()
        return tuple(result.clone() for result in results)

    return replay


def usable(device: torch.device) -> bool:
    """Whether a loop on ``device`` may be captured now."""
    if device.type != "cuda" or os.environ.get("RNNSEARCH_CUDA_GRAPHS") == "0":
        return False
    return not torch.cuda.is_current_stream_capturing()


def surroundings(device: torch.device) -> Hashable:
    """What a graph depends on beside its arguments: its buffers are safe on one stream, its products of one kind."""
    return torch.cuda.current_stream(device).cuda_stream, torch.backends.cuda.matmul.fp32_precision


class Graphs:
    """The graphs kept, the one used last at the end. What needs a GPU comes in as arguments."""

    def __init__(
        self,
        limit: int = LIMIT,
        capture: Callable[[Callable[..., Results], Sequence[Any]], Replay] = capture,
        usable: Callable[[torch.device], bool] = usable,
        surroundings: Callable[[torch.device], Hashable] = surroundings,
    ) -> None:
        self.limit, self.capture, self.usable, self.surroundings = limit, capture, usable, surroundings
        self.kept: OrderedDict[Hashable, Replay] = OrderedDict()
        self.seen: OrderedDict[Hashable, None] = OrderedDict()
        self.lock = threading.Lock()

    def run(self, name: str, function: Callable[..., Results], args: Sequence[Any]) -> Results:
        """``function(*args)``; ``name`` is the loop's."""
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        if not self.usable(device):
            return function(*args)
        key = (name, device, self.surroundings(device), *map(_described, args))
        # A graph's buffers outlive the call: made in inference mode they could not be written outside of it.
        with self.lock, torch.inference_mode(False), torch.no_grad():
            replay = self.kept.get(key)
            if replay is None:
                if key not in self.seen:
                    self.seen[key] = None
                    if len(self.seen) > REMEMBERED:
                        self.seen.popitem(last=False)
                    return function(*args)
                replay = self.kept[key] = self.capture(function, args)
                # After the capture, which has waited for all that the graph to go may still have been doing.
                if len(self.kept) > self.limit:
                    self.kept.popitem(last=False)
            self.kept.move_to_end(key)
            return replay(args)


def _described(arg: Any) -> Hashable:
    return (tuple(arg.shape), arg.dtype) if isinstance(arg, Tensor) else arg


run_loop = Graphs().run
