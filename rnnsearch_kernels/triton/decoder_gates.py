"""A decoder step's gates where they lie in memory: read, advanced (gru.py) and written by the kernel that has just made
the context's part of them, or the last product of the step.

``row`` and ``unit`` are a row and a block of its units, or the axes of a tile, (R, 1) and (1, U). ``exists`` is where
there are such units, ``mask`` where their row also lies within its length: elsewhere the state is frozen, and results
are zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .gru import gru_new_state, sigmoid


@triton.jit
def masked(state, state_mask_ptr, row, unit, mask, H: tl.constexpr):
    """The state as it enters a product."""
    if state_mask_ptr is not None:
        state = state * tl.load(state_mask_ptr + row * H + unit, mask=mask, other=0.0)
    return state


@triton.jit
def finish(
    g_n,
    u_n,
    r,
    z,
    row,
    unit,
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
    H: tl.constexpr,
    RESET_AFTER: tl.constexpr,
):
    """The candidate and the new state; the state to go on from, and as it enters the next step's products."""
    old_state = tl.load(state_ptr + row * state_stride + unit, mask=exists, other=0.0)
    n, new_state = gru_new_state(g_n, u_n, r, z, old_state, RESET_AFTER)
    gates = gates_ptr + row * gates_stride + unit
    tl.store(gates + 2 * H, tl.where(mask, n, 0.0), mask=exists)
    tl.store(gates + 3 * H, tl.where(mask, u_n, 0.0), mask=exists)
    tl.store(new_state_ptr + row * new_state_stride + unit, tl.where(mask, new_state, 0.0), mask=exists)
    if carried_ptr is not None:
        carried = tl.where(mask, new_state, old_state)
        tl.store(carried_ptr + row * H + unit, carried, mask=exists)
        entering = masked(carried, state_mask_ptr, row, unit, exists, H)
        tl.store(entering_ptr + row * H + unit, entering.to(entering_ptr.dtype.element_ty), mask=exists)


@triton.jit
def advance(
    context_r,
    context_z,
    context_n,
    row,
    unit,
    exists,
    mask,
    input_gates_ptr,  # (N, 3H)
    input_gates_stride,
    hidden_gates_ptr,  # (N, 3H), or u of r and z alone (N, 2H)
    state_ptr,  # (N, H)
    state_stride,
    state_mask_ptr,  # (N, H) or None
    new_state_ptr,  # (N, H)
    new_state_stride,
    gates_ptr,  # (N, 4H)
    gates_stride,
    carried_ptr,  # (N, H) the state to go on from; may be state_ptr itself; None in a step by itself
    entering_ptr,  # (N, H) that state as it enters the next step's products, in their dtype; None with carried_ptr
    reset_state_ptr,  # (N, H) r ∘ e in the products' dtype; None with RESET_AFTER
    H: tl.constexpr,
    RESET_AFTER: tl.constexpr,
):
    """A whole step of the GRU with RESET_AFTER. Otherwise its first half: the gates r and z, with g_n where n will
    stand."""
    parts: tl.constexpr = 3 if RESET_AFTER else 2
    own = input_gates_ptr + row * input_gates_stride + unit
    u = hidden_gates_ptr + row * (parts * H) + unit
    g_r = tl.load(own, mask=mask, other=0.0).to(tl.float32) + context_r
    g_z = tl.load(own + H, mask=mask, other=0.0).to(tl.float32) + context_z
    g_n = tl.load(own + 2 * H, mask=mask, other=0.0).to(tl.float32) + context_n
    r = sigmoid(g_r + tl.load(u, mask=mask, other=0.0))
    z = sigmoid(g_z + tl.load(u + H, mask=mask, other=0.0))
    gates = gates_ptr + row * gates_stride + unit
    tl.store(gates, tl.where(mask, r, 0.0), mask=exists)
    tl.store(gates + H, tl.where(mask, z, 0.0), mask=exists)
    if RESET_AFTER:
        u_n = tl.load(u + 2 * H, mask=mask, other=0.0)
        finish(
            g_n,
            u_n,
            r,
            z,
            row,
            unit,
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
            RESET_AFTER,
        )
    else:
        tl.store(gates + 2 * H, g_n, mask=mask)
        old_state = tl.load(state_ptr + row * state_stride + unit, mask=mask, other=0.0)
        reset_state = tl.where(mask, r * masked(old_state, state_mask_ptr, row, unit, mask, H), 0.0)
        tl.store(reset_state_ptr + row * H + unit, reset_state.to(reset_state_ptr.dtype.element_ty), mask=exists)
