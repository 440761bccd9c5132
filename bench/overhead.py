"""What one small step costs outside its kernels: Python, checks, dispatch, allocation.

How it is measured. ``total`` is ``FusedBahdanauDecoder.step`` in inference mode on one row. For each of the two ops
it calls, the overload is called directly with the very tensors that the module hands to it, and again with tensors
whose every size is 1, where there is nothing to compute. The difference of the two is the time in the kernel; what
even the smallest call costs (the dispatcher, boxing, output allocation, the launcher) counts as outside. So

    kernel   = Σ over the ops of (time at full size - time at size 1)
    dispatch = Σ over the ops of (time at size 1)
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
    calls: dict[str, Call] = {"total": partial(decoder.step, input_t, state, memory)}
    calls["linear"], calls["no linear"] = overload("linear", backend, linear)
    calls["step"], calls["no step"] = overload("decoder_step", backend, step)
    timings = interleaved(calls, weights.settings.device, budget_s=2.0, least=ROUNDS, most=ROUNDS)

    def combined(**signs: int) -> Timing:
        """Sums and differences of medians; the quartiles' distances add up, which is more than they can."""
        parts = [(timings[name.replace("_", " ")], sign) for name, sign in signs.items()]
        median = sum(sign * timing.median_ms for timing, sign in parts)
        below = sum(timing.median_ms - timing.p25_ms for timing, _ in parts)
        above = sum(timing.p75_ms - timing.median_ms for timing, _ in parts)
        return Timing(median, median - below, median + above, median - below)

    kernel = {"linear": 1, "no_linear": -1, "step": 1, "no_step": -1}
    outside = {name: -sign for name, sign in kernel.items()}
    return {
        "total": timings["total"],
        "kernel": combined(**kernel),
        "dispatch": combined(no_linear=1, no_step=1),
        "outside": combined(total=1, **outside),
    }
