"""Does the host wait inside a beam search's steps? The profiler counts; the exit status is 0 where it never does.

Every step of a search at the paper's sizes, one sentence and a beam of 12, runs under a mark; the calls of the CUDA
runtime that wait for the device must all lie outside the marks: before the first step, in the checks, after the last.
Once the search captures its step, and once it replays the one that an earlier search has kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial

import torch
from rnnsearch import fixed_search, kept_search
from rnnsearch.beam_search import beam_search
from rnnsearch.replay import WARM_UP, Replayed
from weights import Settings, Weights
from workloads import WORKLOADS

import rnnsearch_kernels

MARK = "beam search step"
WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cuCtxSynchronize")
STEPS = 40


class Marked(Replayed):
    def __call__(self) -> None:
        if self._calls < WARM_UP:
            super().__call__()  # kernels may be compiled and loaded here
            return
        with torch.profiler.record_function(MARK):
            super().__call__()


def waits_inside(events: Iterable[tuple[str, float, float]]) -> list[str]:
    """Of (name, start, end): the names of waiting calls that begin inside a mark."""
    listed = list(events)
    marks = [(start, end) for name, start, end in listed if name == MARK]
    if not marks:
        raise ValueError(f"no event is named {MARK!r}: nothing was looked at")
    return [name for name, start, _ in listed if name in WAITS and any(begin <= start < end for begin, end in marks)]


def main() -> int:
    if not torch.cuda.is_available():
        print("there is no CUDA device", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    backends = tuple(backend.name for backend in rnnsearch_kernels.list_backends() if backend.missing is None)
    weights = Weights(WORKLOADS["paper"], Settings(device, backends, compile=False))
    w, status = weights.workload, 0
    fixed_search.Replayed = kept_search.Replayed = Marked  # type: ignore[misc]
    for backend in weights.settings.able(torch.float32, "linear", "decoder_step", "vocabulary_topk"):
        with torch.inference_mode():
            model = weights.model(backend, torch.float32)
            prepared = model.prepare(weights.randn(1, w.source_length, w.memory_size))
            state = torch.tanh(weights.randn(1, w.hidden_size))
            options = {"bos_id": 1, "eos_id": 2, "beam_size": w.beam_size, "min_length": STEPS, "max_length": STEPS}
            search = partial(beam_search, model.step, state, prepared, **options, engine="graph")
            for name, key in (("captured", None), ("kept", model._graph_key(None))):
                search(graph_key=key)
                activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
                with torch.profiler.profile(activities=activities) as profile:
                    search(graph_key=key)
                events = [(event.name, event.time_range.start, event.time_range.end) for event in profile.events()]
                marks, found = sum(event[0] == MARK for event in events), waits_inside(events)
                print(f"{backend}, {name}: {len(found)} waits inside {marks} replayed steps {sorted(set(found)) or ''}")
                status = status or int(bool(found))
    return status


if __name__ == "__main__":
    sys.exit(main())
