"""The way back through ``gru_scan``: a launch a step (two where the reset comes before the product).

The product brings the gradient of the state after step t, and the program goes on to the gradients of step t's gates.
Beside them the old states are kept as they entered the products, so that the weight's gradient is one product after
the loop.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import GRU_SCAN
from .gru import gru_new_state_backward, gru_reset_backward
from .gru_scan import NOT_SPECIALIZED, load_entering, load_old_state, place_of, rows_of
from .launch import (
    batched_product,
    blocks,
    compute_type,
    config_of,
    contiguous,
    ends_contiguous,
    operand_dtype,
    precision,
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def gru_step_backward_kernel(
    weight_ptr,  # (3H, H)
    grad_states_ptr,  # (B, T, H)
    state_ptr,  # (B, H)
    state_mask_ptr,  # (B, H) or None
    lengths_ptr,  # (B,) or None
    states_ptr,  # (B, T, H)
    gates_ptr,  # (B, T, 4H)
    grad_input_gates_ptr,  # (B, T, 3H)
    grad_hidden_ptr,  # (B, T, 3H) in the products' dtype: gradient of u
    entering_ptr,  # (B, T, H) in the products' dtype: the old states as they entered, for the weight's gradient
    grad_carried_ptr,  # (B, H): the part of the old state's gradient that went past the last product
    step,  # T-1 to 0; -1 for the gradient of the state before the first step, which then is in grad_carried
    steps,
    rows,
    H: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    REVERSE: tl.constexpr,
    RESET_AFTER: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the gradient of step+1's u to the gradients of step's gates (r's only with RESET_AFTER)."""
    row, exists, length = rows_of(lengths_ptr, rows, steps, BLOCK_B)
    unit = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    unit_exists = unit < H
    followed = exists & (step + 1 < length)
    followed_mask = followed[:, None] & unit_exists[None, :]
    product = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    if tl.max(followed.to(tl.int32), axis=0) > 0:
        next_place = place_of(row, length, step + 1, steps, REVERSE)
        through: tl.constexpr = 3 * H if RESET_AFTER else 2 * H
        for first in range(0, through, BLOCK_K):
            inner = first + tl.arange(0, BLOCK_K)
            inner_exists = inner < through
            grad_hidden = tl.load(
                grad_hidden_ptr + next_place[:, None] * (3 * H) + inner[None, :],
                mask=followed[:, None] & inner_exists[None, :],
                other=0.0,
            )
            weight = tl.load(
                weight_ptr + inner.to(tl.int64)[:, None] * WEIGHT_STRIDE + unit[None, :],
                mask=inner_exists[:, None] & unit_exists[None, :],
                other=0.0,
            )
            product = tl.dot(grad_hidden, weight.to(COMPUTE), product, input_precision=PRECISION)
    carried = grad_carried_ptr + row[:, None] * H + unit[None, :]
    grad_state = tl.load(carried, mask=followed_mask, other=0.0)
    grad_state += load_entering(product, state_mask_ptr, row, unit, followed_mask, H)

    if step < 0:
        tl.store(carried, grad_state, mask=exists[:, None] & unit_exists[None, :])
    else:
        mask = (exists & (step < length))[:, None] & unit_exists[None, :]
        place = place_of(row, length, step, steps, REVERSE)[:, None]
        grad_state += tl.load(grad_states_ptr + place * H + unit[None, :], mask=mask, other=0.0)
        gates = gates_ptr + place * (4 * H) + unit[None, :]
        r = tl.load(gates, mask=mask, other=0.0)
        z = tl.load(gates + H, mask=mask, other=0.0)
        n = tl.load(gates + 2 * H, mask=mask, other=0.0)
        u_n = tl.load(gates + 3 * H, mask=mask, other=0.0)
        old_state = load_old_state(state_ptr, states_ptr, row, length, unit, mask, step, steps, H, REVERSE)
        grad_r, grad_z, grad_n, grad_u_n, grad_old = gru_new_state_backward(
            grad_state, r, z, n, u_n, old_state, RESET_AFTER
        )
        grad_input = grad_input_gates_ptr + place * (3 * H) + unit[None, :]
        grad_hidden = grad_hidden_ptr + place * (3 * H) + unit[None, :]
        if RESET_AFTER:
            tl.store(grad_input, grad_r, mask=mask)
            tl.store(grad_hidden, grad_r.to(COMPUTE), mask=mask)
        tl.store(grad_input + H, grad_z, mask=mask)
        tl.store(grad_hidden + H, grad_z.to(COMPUTE), mask=mask)
        tl.store(grad_input + 2 * H, grad_n, mask=mask)
        tl.store(grad_hidden + 2 * H, grad_u_n.to(COMPUTE), mask=mask)
        entering = load_entering(old_state, state_mask_ptr, row, unit, mask, H)
        tl.store(entering_ptr + place * H + unit[None, :], entering.to(COMPUTE), mask=mask)
        tl.store(carried, grad_old, mask=mask)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def gru_reset_backward_kernel(
    weight_ptr,
    state_ptr,
    state_mask_ptr,
    lengths_ptr,
    states_ptr,
    gates_ptr,
    grad_input_gates_ptr,
    grad_hidden_ptr,
    reset_states_ptr,  # (B, T, H) in the products' dtype: r ∘ entering, for the weight's gradient
    grad_carried_ptr,
    step,
    steps,
    rows,
    H: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The second half of a step whose reset comes before the product: the gradient of what enters r."""
    row, exists, length = rows_of(lengths_ptr, rows, steps, BLOCK_B)
    within = exists & (step < length)
    if tl.max(within.to(tl.int32), axis=0) == 0:
        return
    unit = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    unit_exists = unit < H
    place = place_of(row, length, step, steps, REVERSE)[:, None]
    grad_hidden_rows = grad_hidden_ptr + place * (3 * H)
    grad_reset_state = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    for first in range(0, H, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        inner_exists = inner < H
        grad_n = tl.load(
            grad_hidden_rows + 2 * H + inner[None, :], mask=within[:, None] & inner_exists[None, :], other=0.0
        )
        weight_n = tl.load(
            weight_ptr + (2 * H + inner.to(tl.int64))[:, None] * WEIGHT_STRIDE + unit[None, :],
            mask=inner_exists[:, None] & unit_exists[None, :],
            other=0.0,
        )
        grad_reset_state = tl.dot(grad_n, weight_n.to(COMPUTE), grad_reset_state, input_precision=PRECISION)

    mask = within[:, None] & unit_exists[None, :]
    r = tl.load(gates_ptr + place * (4 * H) + unit[None, :], mask=mask, other=0.0)
    old_state = load_old_state(state_ptr, states_ptr, row, length, unit, mask, step, steps, H, REVERSE)
    entering = load_entering(old_state, state_mask_ptr, row, unit, mask, H)
    grad_r, grad_entering = gru_reset_backward(grad_reset_state, r, entering)
    tl.store(grad_input_gates_ptr + place * (3 * H) + unit[None, :], grad_r, mask=mask)
    tl.store(grad_hidden_rows + unit[None, :], grad_r.to(COMPUTE), mask=mask)
    tl.store(reset_states_ptr + place * H + unit[None, :], (r * entering).to(COMPUTE), mask=mask)
    carried = grad_carried_ptr + row[:, None] * H + unit[None, :]
    grad_old = tl.load(carried, mask=mask, other=0.0)
    grad_old += load_entering(grad_entering, state_mask_ptr, row, unit, mask, H)
    tl.store(carried, grad_old, mask=mask)


def gru_scan_backward(
    grad_states: Tensor,
    input_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    hidden_weight: Tensor,
    lengths: Tensor | None,
    states: Tensor,
    gates: Tensor,
    reverse: bool,
    reset_after: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input_gates (B, T, 3H), state (B, H), hidden_weight (3H, H) and hidden_bias (3H,)."""
    grad_states, states, gates = contiguous(grad_states), contiguous(states), contiguous(gates)
    state, state_mask, lengths = contiguous(state), contiguous(state_mask), contiguous(lengths)
    hidden_weight = ends_contiguous(hidden_weight)
    rows, steps, hidden = states.shape
    new = state.new_empty if lengths is None else state.new_zeros
    operand = operand_dtype(hidden_weight.dtype)
    grad_input_gates = new((rows, steps, 3 * hidden), dtype=input_gates.dtype)
    grad_hidden = new((rows, steps, 3 * hidden), dtype=operand)
    entering = new((rows, steps, hidden), dtype=operand)
    reset_states = entering if reset_after else new((rows, steps, hidden), dtype=operand)
    grad_carried = torch.empty_like(state)
    config = config_of(GRU_SCAN, hidden_weight, hidden)
    common = {
        "weight_ptr": hidden_weight,
        "WEIGHT_STRIDE": hidden_weight.stride(0),
        "state_ptr": state,
        "state_mask_ptr": state_mask,
        "lengths_ptr": lengths,
        "states_ptr": states,
        "gates_ptr": gates,
        "grad_input_gates_ptr": grad_input_gates,
        "grad_hidden_ptr": grad_hidden,
        "grad_carried_ptr": grad_carried,
        "steps": steps,
        "rows": rows,
        "H": hidden,
        "REVERSE": reverse,
        "COMPUTE": compute_type(hidden_weight.dtype),
        "PRECISION": precision(),
        **config,
    }
    grid = (blocks(hidden, config["BLOCK_H"]), blocks(rows, config["BLOCK_B"]))
    for step in reversed(range(-1, steps)):
        gru_step_backward_kernel[grid](
            grad_states_ptr=grad_states, entering_ptr=entering, step=step, RESET_AFTER=reset_after, **common
        )
        if not reset_after and step >= 0:
            gru_reset_backward_kernel[grid](reset_states_ptr=reset_states, step=step, **common)

    # Summed in float32 and rounded once: a 16-bit product may add parts of its sum up in 16 bits.
    storage = hidden_weight.dtype
    grad_rows = grad_hidden.flatten(0, 1)
    parts = [(grad_rows, entering)]
    if not reset_after:
        parts = [(grad_rows[:, : 2 * hidden], entering), (grad_rows[:, 2 * hidden :], reset_states)]
    grad_weight = torch.cat([batched_product(grad.t()[None], factor.flatten(0, 1)[None])[0] for grad, factor in parts])
    grad_bias = grad_rows.sum(0, dtype=torch.float32)
    return grad_input_gates, grad_carried, grad_weight.to(storage), grad_bias.to(storage)
