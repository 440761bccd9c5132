"""The decoder's step and its scan.

    e         = state_mask ∘ s_{t-1}
    query | u = e [query_weight ; hidden_weight]ᵀ + biases
    g_t       = input_gates_t + Σ_j α_tj memory_gates_j         or input_gates_t + context_weight Σ_j α_tj memory_j
    s_t       = GRU(g_t, u, s_{t-1})                            (gru.py)

Launches of a step: one product makes query and u, and one kernel everything else (attention.py): two. Others come on
top where a program needs what others make:

    a source longer than a block of ATTEND's (configs.py)     the merge of its parts
    no memory_gates                                           context_weight times the context
    a reset before the product                                U_n times (r ∘ e)

The latter two are products over all units of a row that other programs have just made: no kernel without a barrier over
the whole grid can have both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention import attend
from .configs import LINEAR, PROJECTION
from .decoder_products import finish_candidate, gates_of_context
from .decoder_projection import project_state
from .launch import batched_product, contiguous, ends_contiguous, operand_dtype, rows_for


def gates_arguments(
    input_gates: Tensor,
    hidden_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    new_state: Tensor,
    gates: Tensor,
    carried: Tensor | None,
    entering: Tensor | None,
    reset_state: Tensor | None,
) -> dict[str, Any]:
    """What ``decoder_gates.advance`` reads and writes, by the names of the kernels' arguments."""
    return {
        "input_gates_ptr": input_gates,
        "input_gates_stride": input_gates.stride(0),
        "hidden_gates_ptr": hidden_gates,
        "state_ptr": state,
        "state_stride": state.stride(0),
        "state_mask_ptr": state_mask,
        "new_state_ptr": new_state,
        "new_state_stride": new_state.stride(0),
        "gates_ptr": gates,
        "gates_stride": gates.stride(0),
        "carried_ptr": carried,
        "entering_ptr": entering,
        "reset_state_ptr": reset_state,
        "RESET_AFTER": reset_state is None,
    }


def decoder_step(
    input_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    keys: Tensor,
    memory: Tensor,
    score_weight: Tensor,
    query_weight: Tensor,
    query_bias: Tensor | None,
    context_weight: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    memory_index: Tensor | None,
    memory_gates: Tensor | None,
    reset_after: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, hidden = state.shape
    input_gates, state, state_mask = ends_contiguous(input_gates), ends_contiguous(state), contiguous(state_mask)
    keys, memory, memory_gates = ends_contiguous(keys), ends_contiguous(memory), ends_contiguous(memory_gates)
    query_weight, hidden_weight = ends_contiguous(query_weight), ends_contiguous(hidden_weight)
    query_bias, hidden_bias = contiguous(query_bias), contiguous(hidden_bias)
    entering = state if state_mask is None else state * state_mask
    query, hidden_gates = project_state(
        entering, query_weight, query_bias, hidden_weight, hidden_bias, reset_after, None, LINEAR
    )
    attn_weights, context = rows_for(state, rows, memory.shape[1]), memory.new_empty((rows, memory.shape[2]))
    new_state, gates = rows_for(state, rows, hidden), rows_for(state, rows, 4 * hidden)
    reset_state = None if reset_after else state.new_empty((rows, hidden), dtype=operand_dtype(memory.dtype))
    of_gates = gates_arguments(input_gates, hidden_gates, state, state_mask, new_state, gates, None, None, reset_state)
    attend(
        query,
        keys,
        score_weight.contiguous(),
        key_padding_mask,
        contiguous(memory_index),
        None,
        attn_weights,
        memory=memory,
        context=context,
        memory_gates=memory_gates,
        gates=of_gates,
    )
    if memory_gates is None:
        assert context_weight is not None
        gates_of_context(context, context_weight, None, of_gates)
    if not reset_after:
        finish_candidate(hidden_weight, hidden_bias, None, of_gates)
    return new_state, context, attn_weights, gates


def steps_within(lengths: Tensor | None, steps: int) -> Tensor | None:
    """(T, B): whether step t lies within the row's length."""
    if lengths is None:
        return None
    return torch.arange(steps, device=lengths.device)[:, None] < lengths[None, :]


def real_memory(memory: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """``memory`` with padding zeroed: 0 · NaN is NaN."""
    return memory if key_padding_mask is None else memory.masked_fill(key_padding_mask[..., None], 0)


def gates_of_memory(memory: Tensor, context_weight: Tensor, steps: int) -> Tensor | None:
    """memory_gates where they save work: one product a position in place of one a step."""
    if memory.shape[1] > steps:
        return None
    return torch.nn.functional.linear(memory, context_weight)


def decoder_scan(
    input_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    keys: Tensor,
    memory: Tensor,
    score_weight: Tensor,
    query_weight: Tensor,
    query_bias: Tensor | None,
    context_weight: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    input_lengths: Tensor | None,
    reset_after: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (rows, steps, _), (source, width), hidden = input_gates.shape, memory.shape[1:], state.shape[1]
    input_gates, state_mask = ends_contiguous(input_gates), contiguous(state_mask)
    keys, memory, score_weight = ends_contiguous(keys), ends_contiguous(memory), score_weight.contiguous()
    query_weight, hidden_weight = ends_contiguous(query_weight), ends_contiguous(hidden_weight)
    query_bias, hidden_bias = contiguous(query_bias), contiguous(hidden_bias)
    within = steps_within(input_lengths, steps)
    memory_gates = gates_of_memory(memory, context_weight, steps)

    # Zeros where a length may leave something unwritten.
    new = memory.new_empty if within is None else memory.new_zeros
    states, gates = (new((rows, steps, size), dtype=state.dtype) for size in (hidden, 4 * hidden))
    attn_weights = new((rows, steps, source), dtype=state.dtype)
    # Step by step, so that the stride of a product's rows, a constant of its kernel, does not depend on T.
    by_step = new((steps if memory_gates is None else 0, rows, width))
    operand = operand_dtype(memory.dtype)
    carried = state.clone(memory_format=torch.contiguous_format)
    entering = (carried if state_mask is None else carried * state_mask).to(operand, copy=True)
    reset_state = None if reset_after else torch.zeros_like(entering)
    for t in range(steps):
        within_t = None if within is None else within[t]
        query, hidden_gates = project_state(
            entering, query_weight, query_bias, hidden_weight, hidden_bias, reset_after, within_t, PROJECTION
        )
        of_gates = gates_arguments(
            input_gates[:, t],
            hidden_gates,
            carried,
            state_mask,
            states[:, t],
            gates[:, t],
            carried,
            entering,
            reset_state,
        )
        attend(
            query,
            keys,
            score_weight,
            key_padding_mask,
            None,
            within_t,
            attn_weights[:, t],
            memory=memory if memory_gates is None else None,
            context=by_step[t] if memory_gates is None else None,
            memory_gates=memory_gates,
            gates=of_gates,
        )
        if memory_gates is None:
            gates_of_context(by_step[t], context_weight, within_t, of_gates)
        if not reset_after:
            finish_candidate(hidden_weight, hidden_bias, within_t, of_gates)
    if memory_gates is not None:
        contexts = batched_product(attn_weights, real_memory(memory, key_padding_mask)).to(memory.dtype)
        if within is not None:  # weights of zero, and yet a NaN in a real position would come through
            contexts.masked_fill_(~within.t()[..., None], 0)
    else:
        contexts = by_step.transpose(0, 1).contiguous()
    return states, contexts, attn_weights, gates
