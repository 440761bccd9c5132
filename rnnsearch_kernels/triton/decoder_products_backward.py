"""The way back's products: the gradient of the state that entered a step's products, going on to the gates before it.

    d(s_{t-1}) = carried + state_mask ∘ (dquery query_weight + du hidden_weight)

Where the reset comes before the product, du is that of r and z alone there, and d(r ∘ e) = du_n U_n follows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_parts import OF_A_STEP, VARIABLE, all_over, step_but
from .configs import DECODER_BACKWARD
from .decoder_gates import masked
from .decoder_products import grid_of, tile_of
from .gru import gru_new_state_backward, gru_reset_backward
from .launch import compute_type, config_of, precision


@triton.jit
def add_product(
    product,
    input_ptr,
    row,
    row_exists,
    weight_ptr,
    unit,
    unit_exists,
    INNER: tl.constexpr,
    INPUT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``product`` + input rows (R, INNER) times columns ``unit`` of a weight (INNER, H)."""
    for first in range(0, INNER, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        exists = inner < INNER
        input = tl.load(
            input_ptr + row[:, None] * INPUT_STRIDE + inner[None, :],
            mask=row_exists[:, None] & exists[None, :],
            other=0.0,
        )
        weight = tl.load(
            weight_ptr + inner.to(tl.int64)[:, None] * WEIGHT_STRIDE + unit[None, :],
            mask=exists[:, None] & unit_exists[None, :],
            other=0.0,
        )
        product = tl.dot(input.to(COMPUTE), weight.to(COMPUTE), product, input_precision=PRECISION)
    return product


@triton.jit(do_not_specialize=("rows", *VARIABLE), do_not_specialize_on_alignment=step_but("grad_query_ptr"))
def state_backward_kernel(
    grad_query_ptr,  # (B, A) of the step after this one, in the products' dtype; None at the last step
    grad_hidden_ptr,  # (B, 3H) of the step after this one, in the products' dtype: of u; None at the last step
    query_weight_ptr,  # (A, H)
    hidden_weight_ptr,  # (3H, H)
    carried_ptr,  # (B, H): of the new state's gradient what went past the products; then of the old state's
    grad_state_ptr,  # (B, H): the part of it that comes from outside
    grad_state_stride,
    old_state_ptr,  # (B, H)
    old_state_stride,
    state_mask_ptr,  # (B, H) or None
    gates_ptr,  # (B, 4H); None before the first step, where the state's gradient is all that is wanted
    gates_stride,
    within_ptr,  # (B,) or None
    grad_input_ptr,  # (B, 3H)
    grad_u_ptr,  # (B, 3H) of this step, in the products' dtype
    rows,
    A: tl.constexpr,
    H: tl.constexpr,
    QUERY_WEIGHT_STRIDE: tl.constexpr,
    HIDDEN_WEIGHT_STRIDE: tl.constexpr,
    RESET_AFTER: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the gradients of a step's query and u to those of the gates of the step before, r's with RESET_AFTER."""
    if all_over(within_ptr, tl.program_id(1), rows, BLOCK_B):  # and so was the step after: nothing has come from it
        return
    row, row_exists, unit, unit_exists, exists, mask = tile_of(rows, within_ptr, H, BLOCK_B, BLOCK_H)
    place = row[:, None] * H + unit[None, :]
    later = tl.load(carried_ptr + place, mask=exists, other=0.0)
    if grad_query_ptr is not None:
        through: tl.constexpr = 3 * H if RESET_AFTER else 2 * H
        product = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
        product = add_product(
            product,
            grad_query_ptr,
            row,
            row_exists,
            query_weight_ptr,
            unit,
            unit_exists,
            A,
            A,
            QUERY_WEIGHT_STRIDE,
            BLOCK_K,
            COMPUTE,
            PRECISION,
        )
        product = add_product(
            product,
            grad_hidden_ptr,
            row,
            row_exists,
            hidden_weight_ptr,
            unit,
            unit_exists,
            through,
            3 * H,
            HIDDEN_WEIGHT_STRIDE,
            BLOCK_K,
            COMPUTE,
            PRECISION,
        )
        later += masked(product, state_mask_ptr, row[:, None], unit[None, :], exists, H)
    if gates_ptr is None:
        tl.store(carried_ptr + place, later, mask=exists)
    else:
        outside = grad_state_ptr + row[:, None] * grad_state_stride + unit[None, :]
        grad_state = later + tl.load(outside, mask=mask, other=0.0)
        old_state = tl.load(old_state_ptr + row[:, None] * old_state_stride + unit[None, :], mask=mask, other=0.0)
        gates = gates_ptr + row[:, None] * gates_stride + unit[None, :]
        r = tl.load(gates, mask=mask, other=0.0)
        z = tl.load(gates + H, mask=mask, other=0.0)
        n = tl.load(gates + 2 * H, mask=mask, other=0.0)
        u_n = tl.load(gates + 3 * H, mask=mask, other=0.0)
        grad_r, grad_z, grad_n, grad_u_n, grad_old = gru_new_state_backward(
            grad_state, r, z, n, u_n, old_state, RESET_AFTER
        )
        grad_input = grad_input_ptr + row[:, None] * (3 * H) + unit[None, :]
        grad_u = grad_u_ptr + row[:, None] * (3 * H) + unit[None, :]
        if RESET_AFTER:
            tl.store(grad_input, tl.where(mask, grad_r, 0.0), mask=exists)
            tl.store(grad_u, tl.where(mask, grad_r, 0.0).to(COMPUTE), mask=exists)
        tl.store(grad_input + H, tl.where(mask, grad_z, 0.0), mask=exists)
        tl.store(grad_u + H, tl.where(mask, grad_z, 0.0).to(COMPUTE), mask=exists)
        tl.store(grad_input + 2 * H, tl.where(mask, grad_n, 0.0), mask=exists)
        tl.store(grad_u + 2 * H, tl.where(mask, grad_u_n, 0.0).to(COMPUTE), mask=exists)
        tl.store(carried_ptr + place, tl.where(mask, grad_old, later), mask=exists)


@triton.jit(do_not_specialize=("rows", *VARIABLE), do_not_specialize_on_alignment=OF_A_STEP)
def reset_backward_kernel(
    hidden_weight_ptr,
    carried_ptr,
    old_state_ptr,
    old_state_stride,
    state_mask_ptr,
    gates_ptr,
    gates_stride,
    within_ptr,
    grad_input_ptr,
    grad_u_ptr,
    rows,
    H: tl.constexpr,
    HIDDEN_WEIGHT_STRIDE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Where the reset comes before the product: the gradient of what enters r."""
    if all_over(within_ptr, tl.program_id(1), rows, BLOCK_B):
        return
    row, row_exists, unit, unit_exists, exists, mask = tile_of(rows, within_ptr, H, BLOCK_B, BLOCK_H)
    candidate: tl.constexpr = 2 * H * HIDDEN_WEIGHT_STRIDE
    grad_reset_state = add_product(
        tl.zeros((BLOCK_B, BLOCK_H), tl.float32),
        grad_u_ptr + 2 * H,
        row,
        row_exists,
        hidden_weight_ptr + candidate,
        unit,
        unit_exists,
        H,
        3 * H,
        HIDDEN_WEIGHT_STRIDE,
        BLOCK_K,
        COMPUTE,
        PRECISION,
    )
    r = tl.load(gates_ptr + row[:, None] * gates_stride + unit[None, :], mask=mask, other=0.0)
    old_state = tl.load(old_state_ptr + row[:, None] * old_state_stride + unit[None, :], mask=mask, other=0.0)
    entering = masked(old_state, state_mask_ptr, row[:, None], unit[None, :], mask, H)
    grad_r, grad_entering = gru_reset_backward(grad_reset_state, r, entering)
    grad_r = tl.where(mask, grad_r, 0.0)
    place = row[:, None] * (3 * H) + unit[None, :]
    tl.store(grad_input_ptr + place, grad_r, mask=exists)
    tl.store(grad_u_ptr + place, grad_r.to(COMPUTE), mask=exists)
    carried = carried_ptr + row[:, None] * H + unit[None, :]
    grad_old = tl.load(carried, mask=mask, other=0.0)
    grad_old += masked(grad_entering, state_mask_ptr, row[:, None], unit[None, :], mask, H)
    tl.store(carried, grad_old, mask=mask)


def state_backward(
    following: tuple[Tensor, Tensor] | None,
    query_weight: Tensor,
    hidden_weight: Tensor,
    carried: Tensor,
    state_mask: Tensor | None,
    reset_after: bool,
    grad_state: Tensor | None = None,
    old_state: Tensor | None = None,
    gates: Tensor | None = None,
    within: Tensor | None = None,
    grad_input: Tensor | None = None,
    grad_u: Tensor | None = None,
) -> None:
    """``following`` are the gradients of the query and of u of the step after. Writes ``grad_input``, ``grad_u``
    (B, 3H), which where ``within`` (B,) is False hold zeros before, and ``carried``; without the arguments that have
    defaults only the first state's gradient, to ``carried``."""
    rows, hidden = carried.shape
    grad_query, grad_hidden = following or (None, None)
    config = config_of(DECODER_BACKWARD, hidden_weight, hidden)
    common: dict[str, Any] = {
        "hidden_weight_ptr": hidden_weight,
        "carried_ptr": carried,
        "old_state_ptr": old_state,
        "old_state_stride": _row_stride(old_state),
        "state_mask_ptr": state_mask,
        "gates_ptr": gates,
        "gates_stride": _row_stride(gates),
        "within_ptr": within,
        "grad_input_ptr": grad_input,
        "grad_u_ptr": grad_u,
        "rows": rows,
        "H": hidden,
        "HIDDEN_WEIGHT_STRIDE": hidden_weight.stride(0),
        "COMPUTE": compute_type(hidden_weight.dtype),
        "PRECISION": precision(),
        **config,
    }
    state_backward_kernel[grid_of(rows, hidden, config)](
        grad_query_ptr=grad_query,
        grad_hidden_ptr=grad_hidden,
        query_weight_ptr=query_weight,
        grad_state_ptr=grad_state,
        grad_state_stride=_row_stride(grad_state),
        A=query_weight.shape[0],
        QUERY_WEIGHT_STRIDE=query_weight.stride(0),
        RESET_AFTER=reset_after,
        **common,
    )
    if gates is not None and not reset_after:
        reset_backward_kernel[grid_of(rows, hidden, config)](**common)


def _row_stride(values: torch.Tensor | None) -> int:
    return 0 if values is None else values.stride(0)
