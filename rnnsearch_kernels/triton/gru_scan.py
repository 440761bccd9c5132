"""``gru_scan``: a launch a step (two where the reset comes before the product).

Every program holds some units of some rows; it multiplies the rows' old state with the units' rows of the weight (r, z,
n) and goes on to the gates and the new state.

A row's step t stands at place t, or, in reverse, at place length - 1 - t. Nothing is read or written past a row's
length; what stands there was zeroed before the loop. H and the weight's stride are constants of the kernels: only then
are rows known to be aligned, loads wide and copied ahead of the products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import GRU_SCAN
from .gru import gru_new_state, sigmoid
from .launch import blocks, compute_type, config_of, contiguous, ends_contiguous, operand_dtype, precision

# One binary for every step and every batch: no compilation in the middle of a loop, and a row's bits do not depend on
# the rows beside it.
NOT_SPECIALIZED = ("step", "steps", "rows")


@triton.jit
def rows_of(lengths_ptr, rows, steps, BLOCK_B: tl.constexpr):
    """This program's rows (64-bit, since places are multiplied with them), which of them exist, their lengths."""
    row = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    exists = row < rows
    length = tl.full((BLOCK_B,), 0, tl.int64) + steps
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + row, mask=exists, other=0)
    return row, exists, length


@triton.jit
def place_of(row, length, step, steps, REVERSE: tl.constexpr):
    """Where the rows' step ``step`` stands among the (B·T) places."""
    place = row * steps + step
    if REVERSE:
        place = row * steps + (length - 1 - step)
    return place


@triton.jit
def load_old_state(state_ptr, states_ptr, row, length, unit, mask, step, steps, H: tl.constexpr, REVERSE: tl.constexpr):
    if step == 0:
        old_state = tl.load(state_ptr + row[:, None] * H + unit[None, :], mask=mask, other=0.0)
    else:
        place = place_of(row, length, step - 1, steps, REVERSE)
        old_state = tl.load(states_ptr + place[:, None] * H + unit[None, :], mask=mask, other=0.0)
    return old_state


@triton.jit
def load_entering(old_state, state_mask_ptr, row, unit, mask, H: tl.constexpr):
    """The old state as it enters a product."""
    entering = old_state
    if state_mask_ptr is not None:
        entering = entering * tl.load(state_mask_ptr + row[:, None] * H + unit[None, :], mask=mask, other=0.0)
    return entering


@triton.jit
def load_gate_bias(bias_ptr, unit, H: tl.constexpr, part: tl.constexpr):
    bias = tl.zeros(unit.shape, tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + part * H + unit, mask=unit < H, other=0.0).to(tl.float32)
    return bias[None, :]


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def gru_step_kernel(
    entering_ptr,  # (B, H) in the products' dtype
    weight_ptr,  # (3H, H)
    bias_ptr,  # (3H,) or None
    input_gates_ptr,  # (B, T, 3H)
    state_ptr,  # (B, H)
    state_mask_ptr,  # (B, H) or None
    lengths_ptr,  # (B,) or None
    states_ptr,  # (B, T, H)
    gates_ptr,  # (B, T, 4H)
    next_ptr,  # (B, H) in the products' dtype: the new state as it enters the next step, or r ∘ entering
    step,
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
    """A whole step with RESET_AFTER; otherwise its gates r and z."""
    row, exists, length = rows_of(lengths_ptr, rows, steps, BLOCK_B)
    within = exists & (step < length)
    if tl.max(within.to(tl.int32), axis=0) == 0:
        return
    unit = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    unit_exists = unit < H
    row_r = weight_ptr + unit.to(tl.int64)[None, :] * WEIGHT_STRIDE
    row_z = weight_ptr + (H + unit.to(tl.int64))[None, :] * WEIGHT_STRIDE
    row_n = weight_ptr + (2 * H + unit.to(tl.int64))[None, :] * WEIGHT_STRIDE
    u_r = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    u_z = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    u_n = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    for first in range(0, H, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        inner_exists = inner < H
        # Of rows within their length only: what the others last had may never have been written.
        entering = tl.load(
            entering_ptr + row[:, None] * H + inner[None, :], mask=within[:, None] & inner_exists[None, :], other=0.0
        )
        weight_mask = inner_exists[:, None] & unit_exists[None, :]
        weight_r = tl.load(row_r + inner[:, None], mask=weight_mask, other=0.0).to(COMPUTE)
        weight_z = tl.load(row_z + inner[:, None], mask=weight_mask, other=0.0).to(COMPUTE)
        u_r = tl.dot(entering, weight_r, u_r, input_precision=PRECISION)
        u_z = tl.dot(entering, weight_z, u_z, input_precision=PRECISION)
        if RESET_AFTER:
            weight_n = tl.load(row_n + inner[:, None], mask=weight_mask, other=0.0).to(COMPUTE)
            u_n = tl.dot(entering, weight_n, u_n, input_precision=PRECISION)

    mask = within[:, None] & unit_exists[None, :]
    place = place_of(row, length, step, steps, REVERSE)[:, None]
    g = input_gates_ptr + place * (3 * H) + unit[None, :]
    g_r = tl.load(g, mask=mask, other=0.0).to(tl.float32)
    g_z = tl.load(g + H, mask=mask, other=0.0).to(tl.float32)
    r = sigmoid(g_r + (u_r + load_gate_bias(bias_ptr, unit, H, 0)))
    z = sigmoid(g_z + (u_z + load_gate_bias(bias_ptr, unit, H, 1)))
    gates = gates_ptr + place * (4 * H) + unit[None, :]
    tl.store(gates, r, mask=mask)
    tl.store(gates + H, z, mask=mask)
    old_state = load_old_state(state_ptr, states_ptr, row, length, unit, mask, step, steps, H, REVERSE)
    if RESET_AFTER:
        g_n = tl.load(g + 2 * H, mask=mask, other=0.0).to(tl.float32)
        u_n += load_gate_bias(bias_ptr, unit, H, 2)
        n, new_state = gru_new_state(g_n, u_n, r, z, old_state, RESET_AFTER)
        tl.store(gates + 2 * H, n, mask=mask)
        tl.store(gates + 3 * H, u_n, mask=mask)
        tl.store(states_ptr + place * H + unit[None, :], new_state, mask=mask)
        following = load_entering(new_state, state_mask_ptr, row, unit, mask, H)
    else:
        following = r * load_entering(old_state, state_mask_ptr, row, unit, mask, H)
    tl.store(next_ptr + row[:, None] * H + unit[None, :], following.to(COMPUTE), mask=mask)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def gru_candidate_kernel(
    reset_state_ptr,  # (B, H) in the products' dtype: r ∘ entering
    weight_ptr,
    bias_ptr,
    input_gates_ptr,
    state_ptr,
    state_mask_ptr,
    lengths_ptr,
    states_ptr,
    gates_ptr,
    next_ptr,
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
    """The second half of a step whose reset comes before the product: the candidate and the new state."""
    row, exists, length = rows_of(lengths_ptr, rows, steps, BLOCK_B)
    within = exists & (step < length)
    if tl.max(within.to(tl.int32), axis=0) == 0:
        return
    unit = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    unit_exists = unit < H
    unit_rows = weight_ptr + (2 * H + unit.to(tl.int64))[None, :] * WEIGHT_STRIDE
    u_n = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    for first in range(0, H, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        inner_exists = inner < H
        reset_state = tl.load(
            reset_state_ptr + row[:, None] * H + inner[None, :],
            mask=within[:, None] & inner_exists[None, :],
            other=0.0,
        )
        weight_n = tl.load(unit_rows + inner[:, None], mask=inner_exists[:, None] & unit_exists[None, :], other=0.0)
        u_n = tl.dot(reset_state, weight_n.to(COMPUTE), u_n, input_precision=PRECISION)

    mask = within[:, None] & unit_exists[None, :]
    place = place_of(row, length, step, steps, REVERSE)[:, None]
    g_n = tl.load(input_gates_ptr + place * (3 * H) + 2 * H + unit[None, :], mask=mask, other=0.0)
    gates = gates_ptr + place * (4 * H) + unit[None, :]
    z = tl.load(gates + H, mask=mask, other=0.0)
    old_state = load_old_state(state_ptr, states_ptr, row, length, unit, mask, step, steps, H, REVERSE)
    u_n += load_gate_bias(bias_ptr, unit, H, 2)
    n, new_state = gru_new_state(g_n.to(tl.float32), u_n, z, z, old_state, False)
    tl.store(gates + 2 * H, n, mask=mask)
    tl.store(gates + 3 * H, u_n, mask=mask)
    tl.store(states_ptr + place * H + unit[None, :], new_state, mask=mask)
    entering = load_entering(new_state, state_mask_ptr, row, unit, mask, H)
    tl.store(next_ptr + row[:, None] * H + unit[None, :], entering.to(COMPUTE), mask=mask)


def gru_scan(
    input_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    reset_after: bool,
) -> tuple[Tensor, Tensor]:
    """T steps: states (B, T, H) and gates (B, T, 4H), float32; zero past ``lengths``."""
    input_gates, state, state_mask = contiguous(input_gates), contiguous(state), contiguous(state_mask)
    hidden_weight, hidden_bias = ends_contiguous(hidden_weight), contiguous(hidden_bias)
    lengths = contiguous(lengths)
    rows, steps, hidden = *input_gates.shape[:2], state.shape[1]
    # Zeros where a length may leave something unwritten.
    new = state.new_empty if lengths is None else state.new_zeros
    states, gates = new((rows, steps, hidden)), new((rows, steps, 4 * hidden))
    operand = operand_dtype(hidden_weight.dtype)
    first = state if state_mask is None else state * state_mask
    entering = [first.to(operand, copy=True).contiguous(), state.new_empty((rows, hidden), dtype=operand)]
    config = config_of(GRU_SCAN, hidden_weight, hidden)
    common = {
        "weight_ptr": hidden_weight,
        "WEIGHT_STRIDE": hidden_weight.stride(0),
        "bias_ptr": hidden_bias,
        "input_gates_ptr": input_gates,
        "state_ptr": state,
        "state_mask_ptr": state_mask,
        "lengths_ptr": lengths,
        "states_ptr": states,
        "gates_ptr": gates,
        "steps": steps,
        "rows": rows,
        "H": hidden,
        "REVERSE": reverse,
        "COMPUTE": compute_type(hidden_weight.dtype),
        "PRECISION": precision(),
        **config,
    }
    grid = (blocks(hidden, config["BLOCK_H"]), blocks(rows, config["BLOCK_B"]))
    reset_state = None if reset_after else torch.empty_like(entering[1])
    for step in range(steps):
        now, following = entering[step % 2], entering[(step + 1) % 2]
        if reset_after:
            gru_step_kernel[grid](entering_ptr=now, next_ptr=following, step=step, RESET_AFTER=True, **common)
        else:
            gru_step_kernel[grid](entering_ptr=now, next_ptr=reset_state, step=step, RESET_AFTER=False, **common)
            gru_candidate_kernel[grid](reset_state_ptr=reset_state, next_ptr=following, step=step, **common)
    return states, gates
