"""The products of a decoder's step that end in the gates.

    g  += context context_weightᵀ           where memory_gates were not summed
    u_n = U_n (r ∘ e) + b_n                 where the reset comes first

They go on to the gates of the rows and units that they have made: no launch in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .attention_parts import OF_A_STEP, VARIABLE, all_over, step_but
from .configs import DECODER
from .decoder_gates import advance, finish
from .launch import blocks, compute_type, config_of, ends_contiguous, precision
from .product import load_bias, rows_product


@triton.jit
def tile_of(rows, within_ptr, H: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """This program's rows (64-bit) and units, which of them exist, where both do, and where rows are within their
    length as well."""
    row = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    unit = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    row_exists, unit_exists = row < rows, unit < H
    exists = row_exists[:, None] & unit_exists[None, :]
    mask = exists
    if within_ptr is not None:
        mask = mask & (tl.load(within_ptr + row, mask=row_exists, other=0) != 0)[:, None]
    return row, row_exists, unit, unit_exists, exists, mask


@triton.jit(do_not_specialize=("rows", *VARIABLE), do_not_specialize_on_alignment=step_but("context_ptr"))
def context_gates_kernel(
    context_ptr,  # (N, M)
    context_weight_ptr,  # (3H, M)
    within_ptr,  # (N,) or None
    rows,
    input_gates_ptr,
    input_gates_stride,
    hidden_gates_ptr,
    state_ptr,
    state_stride,
    state_mask_ptr,
    new_state_ptr,
    new_state_stride,
    gates_ptr,
    gates_stride,
    carried_ptr,
    entering_ptr,
    reset_state_ptr,
    M: tl.constexpr,
    H: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    RESET_AFTER: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    if all_over(within_ptr, tl.program_id(1), rows, BLOCK_B):
        return
    row, row_exists, unit, unit_exists, exists, mask = tile_of(rows, within_ptr, H, BLOCK_B, BLOCK_H)
    weight = context_weight_ptr + unit.to(tl.int64)[None, :] * WEIGHT_STRIDE
    context_r = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    context_z = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    context_n = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    part: tl.constexpr = H * WEIGHT_STRIDE
    for first in range(0, M, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        inner_exists = inner < M
        place = context_ptr + row[:, None] * M + inner[None, :]
        context = tl.load(place, mask=row_exists[:, None] & inner_exists[None, :], other=0.0).to(COMPUTE)
        of_units = inner_exists[:, None] & unit_exists[None, :]
        weight_r = tl.load(weight + inner[:, None], mask=of_units, other=0.0).to(COMPUTE)
        weight_z = tl.load(weight + part + inner[:, None], mask=of_units, other=0.0).to(COMPUTE)
        weight_n = tl.load(weight + 2 * part + inner[:, None], mask=of_units, other=0.0).to(COMPUTE)
        context_r = tl.dot(context, weight_r, context_r, input_precision=PRECISION)
        context_z = tl.dot(context, weight_z, context_z, input_precision=PRECISION)
        context_n = tl.dot(context, weight_n, context_n, input_precision=PRECISION)
    advance(
        context_r,
        context_z,
        context_n,
        row[:, None],
        unit[None, :],
        exists,
        mask,
        input_gates_ptr,
        input_gates_stride,
        hidden_gates_ptr,
        state_ptr,
        state_stride,
        state_mask_ptr,
        new_state_ptr,
        new_state_stride,
        gates_ptr,
        gates_stride,
        carried_ptr,
        entering_ptr,
        reset_state_ptr,
        H,
        RESET_AFTER,
    )


@triton.jit(do_not_specialize=("rows", *VARIABLE), do_not_specialize_on_alignment=OF_A_STEP)
def candidate_kernel(
    reset_state_ptr,  # (N, H) in the products' dtype: r ∘ e
    hidden_weight_ptr,  # (3H, H)
    hidden_bias_ptr,  # (3H,) or None
    within_ptr,  # (N,) or None
    rows,
    state_ptr,
    state_stride,
    state_mask_ptr,
    new_state_ptr,
    new_state_stride,
    gates_ptr,  # (N, 4H): z, and g_n where n will stand
    gates_stride,
    carried_ptr,
    entering_ptr,
    H: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The second half of a step whose reset comes before the product."""
    if all_over(within_ptr, tl.program_id(1), rows, BLOCK_B):
        return
    row, row_exists, unit, unit_exists, exists, mask = tile_of(rows, within_ptr, H, BLOCK_B, BLOCK_H)
    place = 2 * H + unit.to(tl.int64)
    u_n = rows_product(
        reset_state_ptr,
        row,
        row_exists,
        hidden_weight_ptr,
        place,
        unit_exists,
        H,
        H,
        WEIGHT_STRIDE,
        BLOCK_B,
        BLOCK_H,
        BLOCK_K,
        COMPUTE,
        PRECISION,
    )
    u_n += load_bias(hidden_bias_ptr, place, unit_exists)
    gates = gates_ptr + row[:, None] * gates_stride + unit[None, :]
    z = tl.load(gates + H, mask=mask, other=0.0)
    g_n = tl.load(gates + 2 * H, mask=mask, other=0.0)
    finish(
        g_n,
        u_n,
        z,
        z,
        row[:, None],
        unit[None, :],
        exists,
        mask,
        state_ptr,
        state_stride,
        state_mask_ptr,
        new_state_ptr,
        new_state_stride,
        gates_ptr,
        gates_stride,
        carried_ptr,
        entering_ptr,
        H,
        False,
    )


def grid_of(rows: int, hidden: int, config: Mapping[str, int]) -> tuple[int, int]:
    return blocks(hidden, config["BLOCK_H"]), blocks(rows, config["BLOCK_B"])


def gates_of_context(context: Tensor, context_weight: Tensor, within: Tensor | None, gates: Mapping[str, Any]) -> None:
    """From the context (N, M) to the gates, by what ``gates`` names."""
    context_weight = ends_contiguous(context_weight)
    (rows, width), hidden = context.shape, context_weight.shape[0] // 3
    config = config_of(DECODER, context_weight, hidden)
    context_gates_kernel[grid_of(rows, hidden, config)](
        context_ptr=context,
        context_weight_ptr=context_weight,
        within_ptr=within,
        rows=rows,
        M=width,
        H=hidden,
        WEIGHT_STRIDE=context_weight.stride(0),
        COMPUTE=compute_type(context_weight.dtype),
        PRECISION=precision(),
        **gates,
        **config,
    )


def finish_candidate(
    hidden_weight: Tensor, hidden_bias: Tensor | None, within: Tensor | None, gates: Mapping[str, Any]
) -> None:
    """The second half of a step whose reset comes before the product."""
    hidden, state = hidden_weight.shape[1], gates["state_ptr"]
    config = config_of(DECODER, hidden_weight, hidden)
    needed = {name: value for name, value in gates.items() if name in candidate_kernel.arg_names}
    candidate_kernel[grid_of(state.shape[0], hidden, config)](
        hidden_weight_ptr=hidden_weight,
        hidden_bias_ptr=hidden_bias,
        within_ptr=within,
        rows=state.shape[0],
        H=hidden,
        WEIGHT_STRIDE=hidden_weight.stride(0),
        COMPUTE=compute_type(hidden_weight.dtype),
        PRECISION=precision(),
        **needed,
        **config,
    )
