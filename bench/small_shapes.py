"""Every op of every GPU backend at a few small shapes, and a beam search: what compute-sanitizer looks at.

The shapes are the self-test's, odd on purpose, with a short source and with one that is split over programs. Without a
graph: the sanitizer takes the allocator's cache away, which a capture needs; the same kernels are launched one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain

import torch
from held_out import DECODE_OPS
from rnnsearch import RNNSearch
from rnnsearch.pronunciation import MODEL_DIRECTORY

import rnnsearch_kernels
from rnnsearch_kernels.selftest import LONG, check, runs_on


def main(names: Sequence[str]) -> int:
    """Of the backends that are named, or of all."""
    if not torch.cuda.is_available():
        print("there is no CUDA device", file=sys.stderr)
        return 2
    wrong = 0
    for backend in rnnsearch_kernels.list_backends():
        if "cuda" not in backend.devices or not runs_on(backend, "cuda") or (names and backend.name not in names):
            continue  # the reference's kernels are torch's
        for outcome in chain(check(backend, "cuda"), check(backend, "cuda", LONG)):
            wrong += outcome.complaint is not None
            print(f"{backend.name} {outcome.op} {outcome.dtype}: {outcome.complaint or 'right'}", flush=True)
        if all(backend.why_not(op, "cuda", torch.float32, False) is None for op in DECODE_OPS):
            model = RNNSearch.from_pretrained(MODEL_DIRECTORY, backend=backend.name).to("cuda")
            (best,) = model.translate([list("sanitizer")], beam_size=3, engine="fixed")[0]
            print(f"{backend.name} beam search: {' '.join(best.tokens)}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
