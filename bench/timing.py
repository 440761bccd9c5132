"""How things are timed: interleaved, medians with their spread, beside floors measured on the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]

# A sample is at least this long: the clock, the events and their overhead stay below a thousandth of it.
SAMPLE_MS = 0.5
# A call as long as this has outlived what was in the caches before it; one as long as PASSES_MS nearly has.
LOOP_MS = 200.0
PASSES_MS = 20.0
# Bytes; see `read_ms`.
SMALLEST = 2**20
# Fixed work whose quartiles, or whose medians before and after, are further apart than this makes a machine noisy.
NOISY = 0.10


@dataclass(frozen=True)
class Timing:
    median_ms: float
    p25_ms: float
    p75_ms: float
    best_ms: float

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(middle, low, high, min(samples))

    @property
    def spread(self) -> float:
        return (self.p75_ms - self.p25_ms) / self.median_ms


def sample(call: Call, repeats: int, device: torch.device) -> float:
    """Milliseconds of one call, as the mean of ``repeats``: wall clock on a CPU, events on a GPU."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) * 1e3 / repeats


def interleaved(
    calls: Mapping[str, Call], device: torch.device, *, budget_s: float, least: int = 5, most: int = 60
) -> dict[str, Timing]:
    """Time every call in turn, round after round, so that whatever the machine does it does to all of them.

    Each is warmed up first; a short one is called so often that a sample lasts. Before every sample come a few calls
    that are not measured: weights of many megabytes need several passes until they lie where a decoding loop finds
    them, and the other contenders have just driven them out. Calls that are long loops themselves go without. Rounds
    end when ``budget_s`` is spent, but not before ``least`` nor after ``most``.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    repeats, passes = {}, {}
    for name, call in calls.items():
        once = sample(call, 1, device)
        if once < 20 * SAMPLE_MS:
            once = sample(call, 3, device)
        repeats[name] = max(1, min(1000, round(SAMPLE_MS / max(once, 1e-4))))
        passes[name] = 0 if once > LOOP_MS else max(1, min(4, round(PASSES_MS / max(once, 1e-4))))
    names, begin = list(calls), time.perf_counter()
    for round_ in range(most):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            for _ in range(passes[name]):
                calls[name]()
            samples[name].append(sample(calls[name], repeats[name], device))
        if round_ + 1 >= least and time.perf_counter() - begin > budget_s:
            break
    return {name: Timing.of(values) for name, values in samples.items()}


# The library's matrix products, as the profiler names them.
PRODUCTS = frozenset(f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm"))


def outside_products(call: Call) -> float:
    """The share of a call's time on the CPU that is not spent in the library's matrix products."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        begin = time.perf_counter()
        call()
        together_us = (time.perf_counter() - begin) * 1e6
    inside_us = sum(event.cpu_time_total for event in profile.key_averages() if event.key in PRODUCTS)
    return 1 - inside_us / together_us


def peak_mb(call: Call, device: torch.device) -> float:
    """Megabytes (10⁶ bytes) that a call has allocated through PyTorch at its highest, above where it started."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        call()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    now = peak = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        now += change
        peak = max(peak, now)
    return peak / 1e6


def saved_mb(forward: Call, leaves: Sequence[Tensor]) -> float:
    """Megabytes that a forward pass keeps for its backward pass, in tensors that do not share a leaf's memory."""
    theirs = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in theirs:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        results = forward()  # they hold what was saved, so that no address comes twice
    del results
    return sum(kept.values()) / 1e6


class NoiseProbe:
    """The same product again and again: what differs between its times is the machine's doing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        size = 320 if device.type == "cpu" else 4096
        self._matrix = torch.rand(size, size, device=device)
        self._before = 0.0
        self.worst = 0.0
        sample(self._work, 20, device)
        self.check()

    def _work(self) -> None:
        torch.mm(self._matrix, self._matrix)

    def check(self) -> float:
        """How far apart the quartiles lie, or the median from that of the check before; relative."""
        timing = Timing.of([sample(self._work, 4, self.device) for _ in range(15)])
        low, high = sorted((timing.median_ms, self._before or timing.median_ms))
        noise = max(timing.spread, high / low - 1)
        self._before = timing.median_ms
        self.worst = max(self.worst, noise)
        return noise


def read_ms(size: float, device: torch.device) -> float:
    """The least milliseconds in which ``size`` bytes are read, of several passes in a row.

    Below 1 MB a call costs more than the reading: such sizes are taken to be read at the rate of 1 MB.
    """
    buffer = torch.ones(round(max(size, SMALLEST)) // 4, device=device)
    times = [sample(lambda: torch.dot(buffer, buffer), 1, device) for _ in range(10)]
    return min(times) * min(1.0, size / SMALLEST)


@cache
def arithmetic(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Floating-point operations a second of a large product in ``dtype``, at its best."""
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    timing = interleaved({"mm": lambda: left @ right}, device, budget_s=0.3, least=5, most=30)["mm"]
    return 2 * size**3 / (timing.best_ms / 1e3)


@dataclass(frozen=True)
class Cost:
    """What a call must do at the least: values read once, and floating-point operations.

    Products may run at the rate of the storage dtype (tensor cores, AMX); the rest runs at float32's.
    """

    values: float
    products: float
    elementwise: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.values + other.values, self.products + other.products, self.elementwise + other.elementwise)

    def compute_ms(self, dtype: torch.dtype, device: torch.device, threads: int) -> float:
        """The milliseconds of its arithmetic at the measured rates."""
        seconds = self.products / arithmetic(dtype, device, threads)
        return (seconds + self.elementwise / arithmetic(torch.float32, device, threads)) * 1e3
