"""The second launch of attention over a source that was split over programs: their partial sums, merged.

    m = max_c m_c,   output = Σ_c exp(m_c - m) output_c / Σ_c exp(m_c - m) total_c

The sums go over the blocks of positions in their order, in tiles of BLOCK_C: blocks of padding behind a row's end add
exactly nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_parts import OF_A_STEP, VARIABLE, is_over
from .decoder_gates import advance


@triton.jit
def merged_statistics(maxima, totals, chunks, BLOCK_C: tl.constexpr):
    """The largest of a row's scores, 0 where all are padded, and Σ exp(score - largest), 1 there."""
    largest = tl.full((BLOCK_C,), float("-inf"), tl.float32)
    for first in range(0, chunks, BLOCK_C):
        chunk = first + tl.arange(0, BLOCK_C)
        largest = tl.maximum(largest, tl.load(maxima + chunk, mask=chunk < chunks, other=float("-inf")))
    maximum = tl.max(largest, axis=0)
    maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    sums = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, chunks, BLOCK_C):
        chunk = first + tl.arange(0, BLOCK_C)
        scale = tl.exp(tl.load(maxima + chunk, mask=chunk < chunks, other=float("-inf")) - maximum)
        sums += scale * tl.load(totals + chunk, mask=chunk < chunks, other=0.0)
    total = tl.sum(sums, axis=0)
    return maximum, tl.where(total == 0.0, 1.0, total)


@triton.jit
def merged_sum(parts, maxima, maximum, chunks, column, exists, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """Σ_c exp(m_c - m) parts_c of a block of columns."""
    merged = tl.zeros(column.shape, tl.float32)
    for first in range(0, chunks, BLOCK_C):
        chunk = first + tl.arange(0, BLOCK_C)
        scale = tl.exp(tl.load(maxima + chunk, mask=chunk < chunks, other=float("-inf")) - maximum)
        mask = (chunk < chunks)[:, None] & exists[None, :]
        part = tl.load(parts + chunk[:, None] * WIDTH + column[None, :], mask=mask, other=0.0)
        merged += tl.sum(scale[:, None] * part, axis=0)
    return merged


@triton.jit(do_not_specialize=VARIABLE, do_not_specialize_on_alignment=OF_A_STEP)
def merge_kernel(
    maxima_ptr,  # (N, chunks)
    totals_ptr,
    context_parts_ptr,  # (N, chunks, M) or None
    context_gates_ptr,  # (N, chunks, 3H) or None
    attn_weights_ptr,  # (N, S): scores, which become weights
    attn_weights_stride,
    context_ptr,  # (N, M)
    context_stride,
    within_ptr,
    source,
    chunks,
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
    RESET_AFTER: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """A block of columns a program, of the context first, then of the gates; the weights are shared out among them."""
    row = tl.program_id(0).to(tl.int64)
    if is_over(within_ptr, row):
        return
    block = tl.program_id(1)
    maxima = maxima_ptr + row * chunks
    maximum, total = merged_statistics(maxima, totals_ptr + row * chunks, chunks, BLOCK_C)
    for first in range(block * BLOCK_S, source, tl.num_programs(1) * BLOCK_S):
        position = first + tl.arange(0, BLOCK_S)
        weights = attn_weights_ptr + row * attn_weights_stride + position
        score = tl.load(weights, mask=position < source, other=float("-inf"))
        tl.store(weights, tl.exp(score - maximum) / total, mask=position < source)

    context_blocks = 0
    if context_parts_ptr is not None:
        context_blocks = tl.cdiv(M, BLOCK_W)
        column = block * BLOCK_W + tl.arange(0, BLOCK_W)
        if block < context_blocks:
            parts = context_parts_ptr + row * chunks * M
            context = merged_sum(parts, maxima, maximum, chunks, column, column < M, M, BLOCK_C) / total
            context = context.to(context_ptr.dtype.element_ty)
            tl.store(context_ptr + row * context_stride + column, context, mask=column < M)
    if context_gates_ptr is not None:
        unit = (block - context_blocks) * BLOCK_W + tl.arange(0, BLOCK_W)
        exists = unit < H
        if block >= context_blocks:
            parts = context_gates_ptr + row * chunks * (3 * H)
            advance(
                merged_sum(parts, maxima, maximum, chunks, unit, exists, 3 * H, BLOCK_C) / total,
                merged_sum(parts + H, maxima, maximum, chunks, unit, exists, 3 * H, BLOCK_C) / total,
                merged_sum(parts + 2 * H, maxima, maximum, chunks, unit, exists, 3 * H, BLOCK_C) / total,
                row,
                unit,
                exists,
                exists,
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
