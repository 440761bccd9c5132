"""The decoder's step and its scan.

A step's launches: one product of the old state with the joined weights of query and hidden gates; the scores; the sum
over memory_gates, or over memory and one more product; the gates. A reset before the product needs two more.

    e         = state_mask ∘ s_{t-1}
    query | u = e [query_weight ; hidden_weight]ᵀ + biases
    g_t       = input_gates_t + Σ_j α_tj memory_gates_j         or input_gates_t + context_weight Σ_j α_tj memory_j
    s_t       = GRU(g_t, u, s_{t-1})                            (gru.py)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import reduce, score
from .configs import GATES
from .gru import gru_new_state, sigmoid
from .launch import batched_product, blocks, config_of, contiguous, ends_contiguous, rows_for
from .product import linear


@triton.jit
def load_entering(state_ptr, state_stride, state_mask_ptr, row, unit, mask, hidden):
    """The old state as it enters a product."""
    entering = tl.load(state_ptr + row * state_stride + unit, mask=mask, other=0.0)
    if state_mask_ptr is not None:
        entering = entering * tl.load(state_mask_ptr + row * hidden + unit, mask=mask, other=0.0)
    return entering


@triton.jit
def load_gates(ptr, stride, context_gates_ptr, row, unit, mask, hidden, PART: tl.constexpr):
    """Part r, z or n of the gates' input: the step's own and the context's."""
    own = tl.load(ptr + row * stride + PART * hidden + unit, mask=mask, other=0.0).to(tl.float32)
    return own + tl.load(context_gates_ptr + row * 3 * hidden + PART * hidden + unit, mask=mask, other=0.0)


@triton.jit
def reset_kernel(
    input_gates_ptr,  # (N, 3H)
    input_gates_stride,
    context_gates_ptr,  # (N, 3H)
    hidden_gates_ptr,  # (N, 2H or more): u of r and z
    hidden_gates_stride,
    state_ptr,  # (N, H)
    state_stride,
    state_mask_ptr,  # (N, H) or None
    within_ptr,  # (N,) or None
    reset_state_ptr,  # (N, H): r ∘ e
    hidden,
    BLOCK_H: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    exists = unit < hidden
    mask = exists
    if within_ptr is not None:
        mask = mask & (tl.load(within_ptr + row) != 0)
    g_r = load_gates(input_gates_ptr, input_gates_stride, context_gates_ptr, row, unit, mask, hidden, 0)
    u_r = tl.load(hidden_gates_ptr + row * hidden_gates_stride + unit, mask=mask, other=0.0)
    entering = load_entering(state_ptr, state_stride, state_mask_ptr, row, unit, mask, hidden)
    tl.store(reset_state_ptr + row * hidden + unit, sigmoid(g_r + u_r) * entering, mask=exists)


@triton.jit
def gates_kernel(
    input_gates_ptr,  # (N, 3H)
    input_gates_stride,
    context_gates_ptr,  # (N, 3H)
    hidden_gates_ptr,  # (N, 2H or more): u of r and z
    hidden_gates_stride,
    candidate_ptr,  # (N, H): u of n
    candidate_stride,
    state_ptr,  # (N, H)
    state_stride,
    state_mask_ptr,  # (N, H) or None
    within_ptr,  # (N,) or None: elsewhere the state is frozen and the results are zero
    carried_ptr,  # (N, H) the state to go on from; may be state_ptr itself
    entering_ptr,  # (N, H) that state as it enters the next product
    new_state_ptr,  # (N, H)
    new_state_stride,
    gates_ptr,  # (N, 4H)
    gates_stride,
    hidden,
    RESET_AFTER: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    exists = unit < hidden
    mask = exists
    if within_ptr is not None:
        mask = mask & (tl.load(within_ptr + row) != 0)
    g_r = load_gates(input_gates_ptr, input_gates_stride, context_gates_ptr, row, unit, mask, hidden, 0)
    g_z = load_gates(input_gates_ptr, input_gates_stride, context_gates_ptr, row, unit, mask, hidden, 1)
    g_n = load_gates(input_gates_ptr, input_gates_stride, context_gates_ptr, row, unit, mask, hidden, 2)
    u = hidden_gates_ptr + row * hidden_gates_stride + unit
    r = sigmoid(g_r + tl.load(u, mask=mask, other=0.0))
    z = sigmoid(g_z + tl.load(u + hidden, mask=mask, other=0.0))
    u_n = tl.load(candidate_ptr + row * candidate_stride + unit, mask=mask, other=0.0)
    old_state = tl.load(state_ptr + row * state_stride + unit, mask=exists, other=0.0)
    n, new_state = gru_new_state(g_n, u_n, r, z, old_state, RESET_AFTER)

    gates = gates_ptr + row * gates_stride + unit
    tl.store(gates, tl.where(mask, r, 0.0), mask=exists)
    tl.store(gates + hidden, tl.where(mask, z, 0.0), mask=exists)
    tl.store(gates + 2 * hidden, tl.where(mask, n, 0.0), mask=exists)
    tl.store(gates + 3 * hidden, tl.where(mask, u_n, 0.0), mask=exists)
    tl.store(new_state_ptr + row * new_state_stride + unit, tl.where(mask, new_state, 0.0), mask=exists)
    carried = tl.where(mask, new_state, old_state)
    tl.store(carried_ptr + row * hidden + unit, carried, mask=exists)
    if state_mask_ptr is not None:
        carried = carried * tl.load(state_mask_ptr + row * hidden + unit, mask=exists, other=0.0)
    tl.store(entering_ptr + row * hidden + unit, carried, mask=exists)


def joined(
    query_weight: Tensor,
    query_bias: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    reset_after: bool,
) -> tuple[Tensor, Tensor | None]:
    """What the old state is multiplied with: the rows of the query, then those of the gates (r and z alone where the
    reset comes before the product)."""
    rows = hidden_weight.shape[0] if reset_after else hidden_weight.shape[0] // 3 * 2
    weight = torch.cat([query_weight, hidden_weight[:rows]])
    if query_bias is None and hidden_bias is None:
        return weight, None
    if query_bias is None:
        query_bias = weight.new_zeros(query_weight.shape[0])
    if hidden_bias is None:
        hidden_bias = weight.new_zeros(hidden_weight.shape[0])
    return weight, torch.cat([query_bias, hidden_bias[:rows]])


def advance_gates(
    input_gates: Tensor,
    context_gates: Tensor,
    hidden_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    within: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    reset_after: bool,
    carried: Tensor,
    entering: Tensor,
    new_state: Tensor,
    gates: Tensor,
) -> None:
    """The GRU; writes the last four."""
    rows, hidden = state.shape
    config = config_of(GATES, hidden_weight, hidden)
    grid = (rows, blocks(hidden, config["BLOCK_H"]))
    shared = {
        "input_gates_ptr": input_gates,
        "input_gates_stride": input_gates.stride(0),
        "context_gates_ptr": context_gates,
        "hidden_gates_ptr": hidden_gates,
        "hidden_gates_stride": hidden_gates.stride(0),
        "state_ptr": state,
        "state_stride": state.stride(0),
        "state_mask_ptr": state_mask,
        "within_ptr": within,
        "hidden": hidden,
        **config,
    }
    if reset_after:
        candidate = hidden_gates[:, 2 * hidden :]
    else:
        reset_state = rows_for(state, rows, hidden)
        reset_kernel[grid](reset_state_ptr=reset_state, **shared)
        bias = None if hidden_bias is None else hidden_bias[2 * hidden :]
        candidate = linear(reset_state, hidden_weight[2 * hidden :], bias)
    gates_kernel[grid](
        candidate_ptr=candidate,
        candidate_stride=candidate.stride(0),
        carried_ptr=carried,
        entering_ptr=entering,
        new_state_ptr=new_state,
        new_state_stride=new_state.stride(0),
        gates_ptr=gates,
        gates_stride=gates.stride(0),
        RESET_AFTER=reset_after,
        **shared,
    )


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
    index = contiguous(memory_index)
    entering = state if state_mask is None else state * state_mask
    # Joining the weights would read and write them once more: two products.
    query = linear(entering, query_weight, query_bias)
    through = 3 * hidden if reset_after else 2 * hidden
    bias = None if hidden_bias is None else hidden_bias[:through]
    hidden_gates = linear(entering, hidden_weight[:through], bias)

    attn_weights, context = rows_for(state, rows, memory.shape[1]), memory.new_empty((rows, memory.shape[2]))
    scores = score(query, keys, score_weight.contiguous(), key_padding_mask, index, None)
    reduce(scores, memory, index, attn_weights, context)
    if memory_gates is None:
        assert context_weight is not None
        context_gates = linear(context, context_weight, None)
    else:
        context_gates = rows_for(state, rows, 3 * hidden)
        reduce(scores, memory_gates, index, attn_weights, context_gates)
    new_state, gates = rows_for(state, rows, hidden), rows_for(state, rows, 4 * hidden)
    carried = torch.empty_like(new_state)
    advance_gates(
        input_gates,
        context_gates,
        hidden_gates,
        state,
        state_mask,
        None,
        hidden_weight,
        hidden_bias,
        reset_after,
        carried,
        torch.empty_like(new_state),
        new_state,
        gates,
    )
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
    (rows, steps, _), (source, width) = input_gates.shape, memory.shape[1:]
    hidden, features = state.shape[1], keys.shape[2]
    input_gates, state_mask = ends_contiguous(input_gates), contiguous(state_mask)
    keys, memory, score_weight = ends_contiguous(keys), ends_contiguous(memory), score_weight.contiguous()
    within = steps_within(input_lengths, steps)
    weight, bias = joined(query_weight, query_bias, hidden_weight, hidden_bias, reset_after)
    memory_gates = gates_of_memory(memory, context_weight, steps)

    states, gates = rows_for(state, rows, steps, hidden), rows_for(state, rows, steps, 4 * hidden)
    attn_weights = rows_for(state, rows, steps, source)
    # Step by step, so that the stride of a product's rows, a constant of its kernel, does not depend on T.
    by_step = memory.new_empty((steps if memory_gates is None else 0, rows, width))
    carried = state.clone(memory_format=torch.contiguous_format)
    entering = carried.clone() if state_mask is None else carried * state_mask
    context_gates = rows_for(state, rows, 3 * hidden)
    for t in range(steps):
        within_t = None if within is None else within[t]
        query_and_hidden = linear(entering, weight, bias)
        query, hidden_gates = query_and_hidden[:, :features], query_and_hidden[:, features:]
        scores = score(query, keys, score_weight, key_padding_mask, None, within_t)
        if memory_gates is None:
            reduce(scores, memory, None, attn_weights[:, t], by_step[t])
            context_gates = linear(by_step[t], context_weight, None)
        else:
            reduce(scores, memory_gates, None, attn_weights[:, t], context_gates)
        advance_gates(
            input_gates[:, t],
            context_gates,
            hidden_gates,
            carried,
            state_mask,
            within_t,
            hidden_weight,
            hidden_bias,
            reset_after,
            carried,
            entering,
            states[:, t],
            gates[:, t],
        )
    if memory_gates is not None:
        contexts = batched_product(attn_weights, real_memory(memory, key_padding_mask)).to(memory.dtype)
        if within is not None:  # weights of zero, and yet a NaN in a real position would come through
            contexts.masked_fill_(~within.t()[..., None], 0)
    else:
        contexts = by_step.transpose(0, 1).contiguous()
    return states, contexts, attn_weights, gates
