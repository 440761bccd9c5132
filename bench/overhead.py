"""What one small step costs outside its kernels: Python, checks, dispatch, allocation.

How it is measured. ``total`` is ``FusedBahdanauDecoder.step`` in inference mode on one row. The two ops that it
calls are then called directly, one after the other as the step does it, so that each finds in the caches what the
other has left there; once with the very tensors that the module hands to them, and once with tensors whose every
size is 1, where there is nothing to compute. The difference is the time in the kernels; what even the smallest call
costs (the dispatcher, boxing, output allocation, the launcher) counts as outside. So

    dispatch = time of the two ops at size 1
    kernel   = time of the two ops at full size - dispatch
    outside  = total - kernel, so with the dispatch in it
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timing import Call, Timing, interleaved
from torch import Tensor
from weights import Weights

from rnnsearch_kernels.schema import BY_NAME, Arg

ROUNDS = 60


def overload(name: str, backend: str, values: Mapping[str, Any]) -> tuple[Call, Call]:
    """The op at its real size and at size 1, called as the dispatcher is, by position."""
    op = getattr(getattr(torch.ops.rnnsearch, name), backend)
    real, smallest = [], []
    for arg in BY_NAME[name].args:
        value = values.get(arg.name)
        real.append(value)
        if isinstance(arg, Arg) and isinstance(value, Tensor):
            # "3H" is three times H, which is 1.
            shape = [int(size[0]) if size[0].isdigit() else 1 for size in arg.shape]
            value = torch.zeros(shape, dtype=value.dtype, device=value.device)
        smallest.append(value)
    return partial(op, *real), partial(op, *smallest)


def step_overhead(weights: Weights, backend: str) -> dict[str, Timing]:
    """``total``, ``kernel``, ``dispatch`` and ``outside`` of one step, as timings."""
    w = weights.workload
    decoder = weights.model(backend, torch.float32).decoder
    memory = decoder.prepare_memory(weights.randn(w.batch, w.source_length, w.memory_size))
    input_t, state = weights.randn(w.batch, w.input_size), torch.tanh(weights.randn(w.batch, w.hidden_size))
    cell = decoder.cell
    input_weight, context_weight = cell.weight_ih.split([w.input_size, w.memory_size], 1)
    linear = {"input": input_t, "weight": input_weight, "bias": cell.bias_ih}
    step = {
        "input_gates": torch.nn.functional.linear(input_t, input_weight, cell.bias_ih),
        "state": state,
        **memory._asdict(),
        "score_weight": decoder.score.weight[0],
        "query_weight": decoder.query_proj.weight,
        "context_weight": context_weight,
        "hidden_weight": cell.weight_hh,
        "hidden_bias": cell.bias_hh,
        "reset_after": True,
    }
    pairs = [overload("linear", backend, linear), overload("decoder_step", backend, step)]
    timings = interleaved(
        {
            "total": partial(decoder.step, input_t, state, memory),
            "ops": lambda: [real() for real, _ in pairs],
            "dispatch": lambda: [smallest() for _, smallest in pairs],
        },
        weights.settings.device,
        budget_s=2.0,
        least=ROUNDS,
        most=ROUNDS,
    )
    total, ops, dispatch = timings["total"], timings["ops"], timings["dispatch"]
    kernel = _difference(ops, dispatch)
    return {"total": total, "kernel": kernel, "dispatch": dispatch, "outside": _difference(total, kernel)}


def _difference(left: Timing, right: Timing) -> Timing:
    """Of medians; the quartiles are put as far apart as they can be."""
    return Timing(
        median_ms=left.median_ms - right.median_ms,
        p25_ms=left.p25_ms - right.p75_ms,
        p75_ms=left.p75_ms - right.p25_ms,
        best_ms=left.best_ms - right.best_ms,
    )
