"""Additive attention; its backward pass is attention_backward.py.

    score_j      = score_weight · tanh(query + keys_j)
    attn_weights = softmax over the real j of score
    output       = Σ_j attn_weights_j values_j              values: memory, memory_gates, or both

A program scores BLOCK_S positions of one row and sums their values. Where that is the whole source it is all: one
launch, and with memory_gates the decoder's gates are made in it (decoder_gates.py). A longer source is split over
programs: each leaves its largest score m, Σ exp(score - m) and Σ exp(score - m) values, and a second launch merges them
(attention_merge.py). A block without a real position adds exactly nothing to that, so a row comes out alike however far
its batch is padded. Where rows and blocks are fewer than multiprocessors, several programs share the columns of one
block, and each scores it anew: that takes no longer, and no launch.

Sizes and strides of features are constants of the kernels: only then are rows known to be aligned, and loads wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .attention_merge import merge_kernel
from .attention_parts import (
    OF_A_STEP,
    VARIABLE,
    is_over,
    real_positions,
    row_start,
    scores_of,
    sentence_of,
    weighted_sum,
)
from .configs import ATTEND, MERGE
from .decoder_gates import advance
from .launch import alignment, blocks, config_of, contiguous, ends_contiguous, rows_for, sharing


@triton.jit(do_not_specialize=VARIABLE, do_not_specialize_on_alignment=OF_A_STEP)
def attend_kernel(
    query_ptr,  # (N, A)
    query_stride,
    keys_ptr,  # (B, S, A)
    keys_stride_b,
    score_weight_ptr,  # (A,)
    padding_ptr,  # (B, S) or None
    padding_stride,
    index_ptr,  # (N,) or None
    within_ptr,  # (N,) or None: rows that still have steps; of the others nothing is read or written
    memory_ptr,  # (B, S, M) or None
    memory_stride_b,
    memory_gates_ptr,  # (B, S, 3H) or None
    memory_gates_stride_b,
    attn_weights_ptr,  # (N, S); the scores, -inf where padded, of a source that is split
    attn_weights_stride,
    context_ptr,  # (N, M); (N, chunks, M) of a source that is split
    context_stride,
    context_gates_ptr,  # (N, chunks, 3H) of a source that is split, else None
    maxima_ptr,  # (N, chunks) of a source that is split, else None
    totals_ptr,
    source,
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
    A: tl.constexpr,
    M: tl.constexpr,
    H: tl.constexpr,
    KEYS_STRIDE: tl.constexpr,
    KEYS_ALIGN: tl.constexpr,
    MEMORY_STRIDE: tl.constexpr,
    MEMORY_ALIGN: tl.constexpr,
    MEMORY_GATES_STRIDE: tl.constexpr,
    MEMORY_GATES_ALIGN: tl.constexpr,
    RESET_AFTER: tl.constexpr,
    TANH: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if is_over(within_ptr, row):
        return
    first_position = tl.program_id(1) * BLOCK_S
    sentence = sentence_of(index_ptr, row)
    position = first_position + tl.arange(0, BLOCK_S)
    real = real_positions(padding_ptr, padding_stride, sentence, position, source)
    scores = scores_of(
        query_ptr + row * query_stride,
        row_start(keys_ptr, sentence, keys_stride_b, first_position, KEYS_STRIDE, KEYS_ALIGN),
        score_weight_ptr,
        real,
        A,
        KEYS_STRIDE,
        TANH,
        STAGES,
        BLOCK_S,
        BLOCK_A,
    )
    maximum = tl.max(scores, axis=0)
    weights = tl.exp(scores - tl.where(maximum == float("-inf"), 0.0, maximum))
    total = tl.sum(weights, axis=0)
    attn_weights = attn_weights_ptr + row * attn_weights_stride + position
    part = row * tl.num_programs(1) + tl.program_id(1)
    if maxima_ptr is None:
        total = tl.where(total == 0.0, 1.0, total)
        if tl.program_id(2) == 0:
            tl.store(attn_weights, weights / total, mask=position < source)
    elif tl.program_id(2) == 0:
        tl.store(attn_weights, scores, mask=position < source)
        tl.store(maxima_ptr + part, maximum)
        tl.store(totals_ptr + part, total)

    skip = BLOCK_W * tl.num_programs(2)
    if memory_ptr is not None:
        values = row_start(memory_ptr, sentence, memory_stride_b, first_position, MEMORY_STRIDE, MEMORY_ALIGN)
        for first in tl.range(tl.program_id(2) * BLOCK_W, M, skip, num_stages=STAGES):
            column = first + tl.arange(0, BLOCK_W)
            context = weighted_sum(weights, values, real, column, column < M, MEMORY_STRIDE, BLOCK_S)
            if maxima_ptr is None:
                context = (context / total).to(context_ptr.dtype.element_ty)
                tl.store(context_ptr + row * context_stride + column, context, mask=column < M)
            else:
                tl.store(context_ptr + part * M + column, context, mask=column < M)
    if memory_gates_ptr is not None:
        values = row_start(
            memory_gates_ptr, sentence, memory_gates_stride_b, first_position, MEMORY_GATES_STRIDE, MEMORY_GATES_ALIGN
        )
        for first in tl.range(tl.program_id(2) * BLOCK_W, H, skip, num_stages=STAGES):
            unit = first + tl.arange(0, BLOCK_W)
            exists = unit < H
            context_r = weighted_sum(weights, values, real, unit, exists, MEMORY_GATES_STRIDE, BLOCK_S)
            context_z = weighted_sum(weights, values + H, real, unit, exists, MEMORY_GATES_STRIDE, BLOCK_S)
            context_n = weighted_sum(weights, values + 2 * H, real, unit, exists, MEMORY_GATES_STRIDE, BLOCK_S)
            if maxima_ptr is None:
                advance(
                    context_r / total,
                    context_z / total,
                    context_n / total,
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
            else:
                context_gates = context_gates_ptr + part * (3 * H) + unit
                tl.store(context_gates, context_r, mask=exists)
                tl.store(context_gates + H, context_z, mask=exists)
                tl.store(context_gates + 2 * H, context_n, mask=exists)


# The gates' arguments of both kernels, where there are no gates.
NO_GATES: dict[str, Any] = {
    **dict.fromkeys(
        (
            "input_gates_ptr",
            "hidden_gates_ptr",
            "state_ptr",
            "state_mask_ptr",
            "new_state_ptr",
            "gates_ptr",
            "carried_ptr",
            "entering_ptr",
            "reset_state_ptr",
        )
    ),
    **dict.fromkeys(("input_gates_stride", "state_stride", "new_state_stride", "gates_stride"), 0),
    "RESET_AFTER": True,
}


def padding_of(key_padding_mask: Tensor | None) -> tuple[Tensor | None, int]:
    mask = ends_contiguous(key_padding_mask)
    return mask, 0 if mask is None else mask.stride(0)


def of_values(name: str, values: Tensor | None) -> dict[str, Any]:
    """Values (B, S, W) as arguments of a kernel."""
    if values is None:
        return {f"{name}_ptr": None, f"{name}_stride_b": 0, f"{name.upper()}_STRIDE": 0, f"{name.upper()}_ALIGN": 1}
    return {
        f"{name}_ptr": values,
        f"{name}_stride_b": values.stride(0),
        f"{name.upper()}_STRIDE": values.stride(1),
        f"{name.upper()}_ALIGN": alignment(values),
    }


def attend(
    query: Tensor,
    keys: Tensor,
    score_weight: Tensor,
    key_padding_mask: Tensor | None,
    memory_index: Tensor | None,
    within: Tensor | None,
    attn_weights: Tensor,
    memory: Tensor | None = None,
    context: Tensor | None = None,
    memory_gates: Tensor | None = None,
    gates: Mapping[str, Any] = NO_GATES,
) -> None:
    """Writes ``attn_weights`` (N, S); from ``memory`` its ``context`` (N, M); from ``memory_gates`` the decoder's
    gates, by what ``gates`` names. Rows that are not ``within`` (N,) are left as they are. The last dimension of every
    argument is contiguous."""
    (rows, features), source = query.shape, keys.shape[1]
    padding, padding_stride = padding_of(key_padding_mask)
    config = config_of(ATTEND, keys, features)
    width, hidden = 0 if memory is None else memory.shape[2], 0 if memory_gates is None else memory_gates.shape[2] // 3
    chunks = blocks(source, config["BLOCK_S"])
    context_blocks, unit_blocks = blocks(width, config["BLOCK_W"]), blocks(hidden, config["BLOCK_W"])
    parts: dict[str, Any] = dict.fromkeys(("maxima_ptr", "totals_ptr", "context_gates_ptr"))
    context_parts = None
    if chunks > 1:
        parts = {
            "maxima_ptr": rows_for(keys, rows, chunks),
            "totals_ptr": rows_for(keys, rows, chunks),
            "context_gates_ptr": rows_for(keys, rows, chunks, 3 * hidden) if hidden else None,
        }
        context_parts = rows_for(keys, rows, chunks, width) if width else None
    common = {
        "within_ptr": within,
        "attn_weights_ptr": attn_weights,
        "attn_weights_stride": attn_weights.stride(0),
        "context_stride": 0 if context is None else context.stride(0),
        "source": source,
        "M": width,
        "H": hidden,
        **parts,
        **(gates if hidden else NO_GATES),
    }
    attend_kernel[(rows, chunks, sharing(keys.device, rows * chunks, max(context_blocks, unit_blocks)))](
        query_ptr=query,
        query_stride=query.stride(0),
        **of_values("keys", keys),
        **of_values("memory", memory),
        **of_values("memory_gates", memory_gates),
        score_weight_ptr=score_weight,
        padding_ptr=padding,
        padding_stride=padding_stride,
        index_ptr=memory_index,
        context_ptr=context if chunks == 1 else context_parts,
        A=features,
        **common,
        **config,
    )
    if chunks > 1:
        config = config_of(MERGE, keys, features)
        programs = blocks(width, config["BLOCK_W"]) + blocks(hidden, config["BLOCK_W"])
        merge_kernel[(rows, programs)](
            chunks=chunks, context_parts_ptr=context_parts, context_ptr=context, **common, **config
        )


def additive_attention(
    query: Tensor,
    keys: Tensor,
    memory: Tensor,
    score_weight: Tensor,
    key_padding_mask: Tensor | None,
    memory_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    query, keys, memory = ends_contiguous(query), ends_contiguous(keys), ends_contiguous(memory)
    rows = query.shape[0]
    attn_weights = rows_for(memory, rows, memory.shape[1])
    context = memory.new_empty((rows, memory.shape[2]))
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
    )
    return context, attn_weights
