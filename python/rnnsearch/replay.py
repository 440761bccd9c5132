"""Work that is recorded once and replayed, and a look at the device that does not make the host wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rnnsearch_kernels import graphs

Work = Callable[[], None]


class Captured(NamedTuple):
    """Work to replay, and the bytes that are held for it."""

    replay: Work
    nbytes: int


Capture = Callable[[Work], Captured]
Flag = Callable[[Tensor], bool]

# The first call makes buffers, the second is the first that only reuses them; kernels compile and libraries get ready.
WARM_UP = 2
# So many copies may be under way; then the host waits for the oldest, and does not run further ahead.
IN_FLIGHT = 2


class Replayed:
    """Work called ``WARM_UP`` times as it is, then captured, and from then on replayed. Where memory does not suffice
    for that, ``give_up`` is told, and the work is called on as it is."""

    def __init__(self, work: Work, capture: Capture, give_up: Work = graphs.KEPT.give_up) -> None:
        self._work, self._capture, self._give_up = work, capture, give_up
        self._calls = 0
        self._replay: Work | None = None
        self.captured, self.nbytes = False, 0

    def __call__(self) -> None:
        if self._calls < WARM_UP:
            self._calls += 1
            self._work()
            return
        if self._replay is None:
            try:
                self._replay, self.nbytes = self._capture(self._work)
                self.captured = True
            except torch.OutOfMemoryError:
                self._give_up()
                self._replay = self._work
        self._replay()


def cuda_capture(work: Work) -> Captured:
    """``work`` as a CUDA graph; its replay runs on the stream that is current then.

    ``torch.cuda.graph`` would wait for the device and empty the allocator's cache first; nothing here needs that.
    """
    current, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    stream = graphs.capture_stream(current.device, current.cuda_stream)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        # What a capture takes comes from a pool of its own.
        before = torch.cuda.memory_reserved(current.device)
        # Other threads may go on allocating and waiting.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        except Exception as error:
            with suppress(RuntimeError):  # a capture that was broken cannot be ended either, and says so again
                graph.capture_end()
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise RuntimeError(
                "`step` cannot be captured as a CUDA graph: it must not wait for the device nor depend on its values; "
                f"`engine`='fixed' runs it without one ({error})"
            ) from error
        graph.capture_end()
    current.wait_stream(stream)
    return Captured(graph.replay, torch.cuda.memory_reserved(current.device) - before)


class HostCopy(Protocol):
    """A flag of the device on its way to the host."""

    def arrived(self) -> bool: ...

    def wait(self) -> bool:
        """Its value, waited for."""


class _PinnedCopy:
    def __init__(self, flag: Tensor) -> None:
        self._flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._flag.copy_(flag, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(flag.device))

    def arrived(self) -> bool:
        return self._event.query()

    def wait(self) -> bool:
        self._event.synchronize()
        return bool(self._flag)


class LateFlag:
    """Whether everything was done by some earlier call: the newest copy is never waited for nor looked at."""

    def __init__(self, copy: Callable[[Tensor], HostCopy] = _PinnedCopy) -> None:
        self._copy = copy
        self._under_way: deque[HostCopy] = deque()

    def __call__(self, done: Tensor) -> bool:
        self._under_way.append(self._copy(done.all()))
        while len(self._under_way) > 1:
            if len(self._under_way) <= IN_FLIGHT and not self._under_way[0].arrived():
                return False
            if self._under_way.popleft().wait():
                return True
        return False


def device_flag(device: torch.device) -> Flag:
    """On a CPU there is nothing to wait for."""
    return LateFlag() if device.type == "cuda" else lambda done: bool(done.all())
