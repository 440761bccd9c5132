"""The decoder's way back: in the loop only what the recurrence needs, everything else for all steps at once.

A step's launches: the gates; the weights' gradient from memory_gates, or a product and the gradient from memory; the
query's gradient, which recomputes the tanh; one product with the joined weights for the state's. A reset before the
product needs two more. After the loop: the keys' gradient over all steps, and one product for each weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_backward import attend_backward, keys_backward
from .configs import GATES
from .decoder import gates_of_memory, joined, load_entering, real_memory, steps_within
from .gru import gru_new_state_backward, gru_reset_backward
from .launch import batched_product, blocks, config_of, contiguous, ends_contiguous, rows_for
from .product import linear


@triton.jit
def gates_backward_kernel(
    carried_ptr,  # (B, H): of the new state's gradient what went past the products; then of the old state's
    through_ptr,  # (B, H): the part of it that came through the products, before the state mask
    grad_state_ptr,  # (B, H): the part of it that comes from outside
    grad_state_stride,
    old_state_ptr,  # (B, H)
    old_state_stride,
    state_mask_ptr,  # (B, H) or None
    gates_ptr,  # (B, 4H)
    gates_stride,
    within_ptr,  # (B,) or None
    grad_input_ptr,  # (B, 3H)
    grad_hidden_ptr,  # (B, 3H): of u
    grad_hidden_stride,
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
    carried = carried_ptr + row * hidden + unit
    through = load_entering(through_ptr, hidden, state_mask_ptr, row, unit, exists, hidden)
    later = tl.load(carried, mask=exists, other=0.0) + through
    grad_state = later + tl.load(grad_state_ptr + row * grad_state_stride + unit, mask=mask, other=0.0)
    old_state = tl.load(old_state_ptr + row * old_state_stride + unit, mask=mask, other=0.0)
    gates = gates_ptr + row * gates_stride + unit
    r = tl.load(gates, mask=mask, other=0.0)
    z = tl.load(gates + hidden, mask=mask, other=0.0)
    n = tl.load(gates + 2 * hidden, mask=mask, other=0.0)
    u_n = tl.load(gates + 3 * hidden, mask=mask, other=0.0)
    grad_r, grad_z, grad_n, grad_u_n, grad_old = gru_new_state_backward(
        grad_state, r, z, n, u_n, old_state, RESET_AFTER
    )
    grad_input = grad_input_ptr + row * 3 * hidden + unit
    tl.store(grad_input, tl.where(mask, grad_r, 0.0), mask=exists)
    tl.store(grad_input + hidden, tl.where(mask, grad_z, 0.0), mask=exists)
    tl.store(grad_input + 2 * hidden, tl.where(mask, grad_n, 0.0), mask=exists)
    grad_hidden = grad_hidden_ptr + row * grad_hidden_stride + unit
    tl.store(grad_hidden, tl.where(mask, grad_r, 0.0), mask=exists)
    tl.store(grad_hidden + hidden, tl.where(mask, grad_z, 0.0), mask=exists)
    tl.store(grad_hidden + 2 * hidden, tl.where(mask, grad_u_n, 0.0), mask=exists)
    tl.store(carried, tl.where(mask, grad_old, later), mask=exists)


@triton.jit
def reset_backward_kernel(
    grad_reset_state_ptr,  # (B, H): of r ∘ e
    old_state_ptr,  # (B, H)
    old_state_stride,
    state_mask_ptr,  # (B, H) or None
    gates_ptr,  # (B, 4H)
    gates_stride,
    within_ptr,  # (B,) or None
    carried_ptr,  # (B, H)
    grad_input_ptr,  # (B, 3H)
    grad_hidden_ptr,  # (B, 3H)
    grad_hidden_stride,
    hidden,
    BLOCK_H: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = unit < hidden
    if within_ptr is not None:
        mask = mask & (tl.load(within_ptr + row) != 0)
    grad_reset_state = tl.load(grad_reset_state_ptr + row * hidden + unit, mask=mask, other=0.0)
    r = tl.load(gates_ptr + row * gates_stride + unit, mask=mask, other=0.0)
    entering = load_entering(old_state_ptr, old_state_stride, state_mask_ptr, row, unit, mask, hidden)
    grad_r, grad_entering = gru_reset_backward(grad_reset_state, r, entering)
    if state_mask_ptr is not None:
        grad_entering = grad_entering * tl.load(state_mask_ptr + row * hidden + unit, mask=mask, other=0.0)
    carried = carried_ptr + row * hidden + unit
    tl.store(carried, tl.load(carried, mask=mask, other=0.0) + grad_entering, mask=mask)
    tl.store(grad_input_ptr + row * 3 * hidden + unit, grad_r, mask=mask)
    tl.store(grad_hidden_ptr + row * grad_hidden_stride + unit, grad_r, mask=mask)


def gates_backward(
    carried: Tensor,
    through: Tensor,
    grad_state: Tensor,
    old_state: Tensor,
    state_mask: Tensor | None,
    gates: Tensor,
    within: Tensor | None,
    candidate_weight: Tensor,
    reset_after: bool,
    grad_input: Tensor,
    grad_hidden: Tensor,
) -> None:
    """Writes ``grad_input``, ``grad_hidden`` (B, 3H) and ``carried``. ``candidate_weight`` is U_nᵀ."""
    rows, hidden = old_state.shape
    config = config_of(GATES, candidate_weight, hidden)
    grid = (rows, blocks(hidden, config["BLOCK_H"]))
    shared = {
        "carried_ptr": carried,
        "old_state_ptr": old_state,
        "old_state_stride": old_state.stride(0),
        "state_mask_ptr": state_mask,
        "gates_ptr": gates,
        "gates_stride": gates.stride(0),
        "within_ptr": within,
        "grad_input_ptr": grad_input,
        "grad_hidden_ptr": grad_hidden,
        "grad_hidden_stride": grad_hidden.stride(0),
        "hidden": hidden,
        **config,
    }
    gates_backward_kernel[grid](
        through_ptr=through,
        grad_state_ptr=grad_state,
        grad_state_stride=grad_state.stride(0),
        RESET_AFTER=reset_after,
        **shared,
    )
    if not reset_after:
        grad_reset_state = linear(grad_hidden[:, 2 * hidden :], candidate_weight, None)
        reset_backward_kernel[grid](grad_reset_state_ptr=grad_reset_state, **shared)


def decoder_scan_backward(
    grad_states: Tensor,
    grad_contexts: Tensor,
    grad_attn_weights: Tensor,
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
    key_padding_mask: Tensor | None,
    input_lengths: Tensor | None,
    states: Tensor,
    contexts: Tensor,
    attn_weights: Tensor,
    gates: Tensor,
    reset_after: bool,
) -> tuple[Tensor, ...]:
    (rows, steps, hidden), source, features = states.shape, memory.shape[1], keys.shape[2]
    storage = memory.dtype
    keys, score_weight, state_mask = ends_contiguous(keys), score_weight.contiguous(), contiguous(state_mask)
    attn_weights, gates, grad_states = (ends_contiguous(values) for values in (attn_weights, gates, grad_states))
    within = steps_within(input_lengths, steps)
    if within is not None:
        outside = ~within.t()[..., None]
        grad_contexts = grad_contexts.masked_fill(outside, 0)
        grad_attn_weights = grad_attn_weights.masked_fill(outside, 0)
    real = real_memory(ends_contiguous(memory), key_padding_mask)
    memory_gates = gates_of_memory(real, context_weight, steps)

    # For all steps: the old states as they entered, the queries, and what reaches the weights from outside the loop.
    old_states = torch.cat([state[:, None], states[:, :-1]], 1)
    entering = old_states if state_mask is None else old_states * state_mask[:, None]
    queries = linear(entering.flatten(0, 1), query_weight, query_bias).unflatten(0, (rows, steps))
    grad_from_outside = batched_product(grad_contexts, real.mT) + grad_attn_weights

    # The weights as the way back multiplies with them: transposed, once.
    joined_weight = joined(query_weight, None, hidden_weight, None, reset_after)[0].t().contiguous()
    candidate_weight = hidden_weight[2 * hidden :].t().contiguous()
    context_back = context_weight.t().contiguous()

    # Step by step, as in decoder_scan. Of query | r | z | n the product takes the joined weights' columns.
    grad_joined = rows_for(state, steps, rows, features + 3 * hidden)
    grad_input = rows_for(state, steps, rows, 3 * hidden)
    grad_scores = rows_for(state, rows, steps, source)
    carried, through = rows_for(state, rows, hidden).zero_(), rows_for(state, rows, hidden).zero_()
    for t in reversed(range(steps)):
        grad_query, grad_hidden = grad_joined[t, :, :features], grad_joined[t, :, features:]
        gates_backward(
            carried,
            through,
            grad_states[:, t],
            old_states[:, t],
            state_mask,
            gates[:, t],
            None if within is None else within[t],
            candidate_weight,
            reset_after,
            grad_input[t],
            grad_hidden,
        )
        grad_output = linear(grad_input[t], context_back, None) if memory_gates is None else grad_input[t]
        attend_backward(
            grad_from_outside[:, t],
            grad_output,
            real if memory_gates is None else memory_gates,
            queries[:, t],
            keys,
            score_weight,
            key_padding_mask,
            attn_weights[:, t],
            grad_scores[:, t],
            grad_query,
        )
        through = linear(grad_joined[t, :, : joined_weight.shape[1]], joined_weight, None)
    grad_state = carried + (through if state_mask is None else through * state_mask)

    grad_keys, grad_score_weight = keys_backward(grad_scores, queries, keys, score_weight, key_padding_mask)
    grad_all_contexts = linear(grad_input.flatten(0, 1), context_back, None).unflatten(0, (steps, rows)).transpose(0, 1)
    grad_all_contexts = grad_all_contexts + grad_contexts
    grad_memory = batched_product(attn_weights.mT, grad_all_contexts.to(storage))

    # One product for each weight, over all steps and rows.
    def of_steps(values: Tensor) -> Tensor:
        return values.transpose(0, 1).flatten(0, 1)[None]

    def weight_grad(grad: Tensor, factor: Tensor) -> Tensor:
        return batched_product(grad.flatten(0, 1).t()[None], of_steps(factor).to(storage))[0].to(storage)

    grad_queries, grad_hiddens = grad_joined.split([features, 3 * hidden], 2)
    if reset_after:
        grad_hidden_weight = weight_grad(grad_hiddens, entering)
    else:
        reset_states = gates[..., :hidden] * entering
        grad_hidden_weight = torch.cat(
            [
                weight_grad(grad_hiddens[..., : 2 * hidden], entering),
                weight_grad(grad_hiddens[..., 2 * hidden :], reset_states),
            ]
        )
    return (
        grad_input.transpose(0, 1).to(input_gates.dtype).contiguous(),
        grad_state,
        grad_keys,
        grad_memory.to(storage),
        grad_score_weight,
        weight_grad(grad_queries, entering),
        grad_queries.sum((0, 1)).to(storage),
        weight_grad(grad_input, contexts),
        grad_hidden_weight,
        grad_hiddens.sum((0, 1)).to(storage),
    )
