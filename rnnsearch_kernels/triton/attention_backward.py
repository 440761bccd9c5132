"""The backward pass of additive attention; the forward pass is attention.py.

    dα_j   = outside_j + grad_output · values_j
    de_j   = α_j (dα_j − Σ_i α_i dα_i)
    dquery = score_weight ∘ Σ_j de_j (1 − tanh²(query + keys_j))

As there, a program has BLOCK_S positions of one row, and one launch is all where that is the whole source. Programs
that share a longer source cannot know Σ_i α_i dα_i. Each takes the mean over its own positions, μ_c = Σ α dα / Σ α, and
leaves p_c = Σ α (dα − μ_c) (1 − tanh²) and q_c = Σ α (1 − tanh²); a second launch merges them in their order:

    dquery = score_weight ∘ Σ_c (p_c + (μ_c − Σ_i α_i dα_i) q_c)

Where one position has nearly all the weight both differences vanish, as they do in one program.

The tanh is computed again: nothing of size rows · S · A is stored. No sum uses atomics. The keys' gradients are
attention_keys.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import of_values, padding_of
from .attention_keys import keys_backward
from .attention_parts import OF_A_STEP, VARIABLE, is_over, load_positions, real_positions, row_start
from .configs import ATTEND_BACKWARD, MERGE
from .launch import blocks, config_of, ends_contiguous, rows_for, sharing
from .tanh import tile_tanh_and_slope


@triton.jit(do_not_specialize=VARIABLE, do_not_specialize_on_alignment=OF_A_STEP)
def attend_backward_kernel(
    outside_ptr,  # (B, S): the part of the weights' gradient that comes from elsewhere
    outside_stride,
    grad_output_ptr,  # (B, W)
    grad_output_stride,
    values_ptr,  # (B, S, W)
    values_stride_b,
    attn_weights_ptr,  # (B, S)
    attn_weights_stride,
    query_ptr,  # (B, A)
    query_stride,
    keys_ptr,  # (B, S, A)
    keys_stride_b,
    score_weight_ptr,  # (A,)
    padding_ptr,  # (B, S) or None
    padding_stride,
    within_ptr,  # (B,) or None, as in attention.py
    grad_scores_ptr,  # (B, S); of a source that is split dα, from which Σ α dα is still to be taken
    grad_scores_stride,
    grad_query_ptr,  # (B, A), or None where the source is split
    grad_query_stride,
    sums_ptr,  # (B, chunks) of a source that is split, else None: Σ α dα
    means_ptr,  # (B, chunks) of a source that is split, else None: μ
    grad_query_parts_ptr,  # (B, chunks, 2, A) of a source that is split, else None
    source,
    A: tl.constexpr,
    W: tl.constexpr,
    KEYS_STRIDE: tl.constexpr,
    KEYS_ALIGN: tl.constexpr,
    VALUES_STRIDE: tl.constexpr,
    VALUES_ALIGN: tl.constexpr,
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
    position = first_position + tl.arange(0, BLOCK_S)
    real = real_positions(padding_ptr, padding_stride, row, position, source)

    values = row_start(values_ptr, row, values_stride_b, first_position, VALUES_STRIDE, VALUES_ALIGN)
    terms = tl.zeros((BLOCK_S, BLOCK_W), tl.float32)
    for first in tl.range(0, W, BLOCK_W, num_stages=STAGES):
        column = first + tl.arange(0, BLOCK_W)
        exists = column < W
        value = load_positions(values, real, column, exists, VALUES_STRIDE, BLOCK_S)
        grad_output = tl.load(grad_output_ptr + row * grad_output_stride + column, mask=exists, other=0.0)
        terms += grad_output.to(tl.float32)[None, :] * value
    grad_weights = tl.sum(terms, axis=1) + tl.load(outside_ptr + row * outside_stride + position, mask=real, other=0.0)
    grad_weights = tl.where(real, grad_weights, 0.0)
    attn_weights = tl.load(attn_weights_ptr + row * attn_weights_stride + position, mask=real, other=0.0)
    mean = tl.sum(attn_weights * grad_weights, axis=0)
    grad_scores = grad_scores_ptr + row * grad_scores_stride + position
    part = row * tl.num_programs(1) + tl.program_id(1)
    if means_ptr is not None:
        weight = tl.sum(attn_weights, axis=0)
        if tl.program_id(2) == 0:
            tl.store(grad_scores, grad_weights, mask=position < source)
            tl.store(sums_ptr + part, mean)
        mean = tl.where(weight == 0.0, 0.0, mean / tl.where(weight == 0.0, 1.0, weight))
        if tl.program_id(2) == 0:
            tl.store(means_ptr + part, mean)
    weighted = attn_weights * (grad_weights - mean)
    if means_ptr is None:
        tl.store(grad_scores, weighted, mask=(position < source) & (tl.program_id(2) == 0))

    keys = row_start(keys_ptr, row, keys_stride_b, first_position, KEYS_STRIDE, KEYS_ALIGN)
    for first in tl.range(tl.program_id(2) * BLOCK_A, A, BLOCK_A * tl.num_programs(2), num_stages=STAGES):
        feature = first + tl.arange(0, BLOCK_A)
        exists = feature < A
        key = load_positions(keys, real, feature, exists, KEYS_STRIDE, BLOCK_S)
        query = tl.load(query_ptr + row * query_stride + feature, mask=exists, other=0.0).to(tl.float32)
        slope = tile_tanh_and_slope(query[None, :] + key, TANH)[1]
        grad_query = tl.sum(weighted[:, None] * slope, axis=0)
        if means_ptr is None:
            grad_query *= tl.load(score_weight_ptr + feature, mask=exists, other=0.0).to(tl.float32)
            grad_query = grad_query.to(grad_query_ptr.dtype.element_ty)
            tl.store(grad_query_ptr + row * grad_query_stride + feature, grad_query, mask=exists)
        else:
            parts = grad_query_parts_ptr + part * (2 * A) + feature
            tl.store(parts, grad_query, mask=exists)
            tl.store(parts + A, tl.sum(attn_weights[:, None] * slope, axis=0), mask=exists)


@triton.jit(do_not_specialize=VARIABLE, do_not_specialize_on_alignment=OF_A_STEP)
def merge_backward_kernel(
    sums_ptr,  # (B, chunks)
    means_ptr,  # (B, chunks)
    grad_query_parts_ptr,  # (B, chunks, 2, A)
    score_weight_ptr,  # (A,)
    within_ptr,  # (B,) or None
    grad_query_ptr,  # (B, A)
    grad_query_stride,
    mean_ptr,  # (B,)
    chunks,
    A: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if is_over(within_ptr, row):
        return
    feature = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    exists = feature < A
    sums = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, chunks, BLOCK_C):
        chunk = first + tl.arange(0, BLOCK_C)
        sums += tl.load(sums_ptr + row * chunks + chunk, mask=chunk < chunks, other=0.0)
    mean = tl.sum(sums, axis=0)
    if tl.program_id(1) == 0:
        tl.store(mean_ptr + row, mean)
    parts = grad_query_parts_ptr + row * chunks * (2 * A) + feature[None, :]
    grad_query = tl.zeros((BLOCK_W,), tl.float32)
    for first in range(0, chunks, BLOCK_C):
        chunk = first + tl.arange(0, BLOCK_C)
        apart = tl.load(means_ptr + row * chunks + chunk, mask=chunk < chunks, other=0.0) - mean
        mask = (chunk < chunks)[:, None] & exists[None, :]
        of_differences = tl.load(parts + chunk[:, None] * (2 * A), mask=mask, other=0.0)
        of_weights = tl.load(parts + chunk[:, None] * (2 * A) + A, mask=mask, other=0.0)
        grad_query += tl.sum(of_differences + apart[:, None] * of_weights, axis=0)
    grad_query *= tl.load(score_weight_ptr + feature, mask=exists, other=0.0).to(tl.float32)
    grad_query = grad_query.to(grad_query_ptr.dtype.element_ty)
    tl.store(grad_query_ptr + row * grad_query_stride + feature, grad_query, mask=exists)


def attend_backward(
    outside: Tensor,
    grad_output: Tensor,
    values: Tensor,
    query: Tensor,
    keys: Tensor,
    score_weight: Tensor,
    key_padding_mask: Tensor | None,
    within: Tensor | None,
    attn_weights: Tensor,
    grad_scores: Tensor,
    grad_query: Tensor,
    mean: Tensor,
) -> None:
    """Writes ``grad_query`` (B, A); and, where ``is_split``, dα to ``grad_scores`` (B, S) and Σ α dα to ``mean`` (B,),
    from which :func:`finish_scores` makes the scores' gradients of all steps at once. Rows that are not ``within`` (B,)
    are left as they are."""
    (rows, source, width), features = values.shape, keys.shape[2]
    padding, padding_stride = padding_of(key_padding_mask)
    config = config_of(ATTEND_BACKWARD, keys, features)
    chunks = blocks(source, config["BLOCK_S"])
    sums = rows_for(keys, rows, chunks) if chunks > 1 else None
    means = rows_for(keys, rows, chunks) if chunks > 1 else None
    parts = rows_for(keys, rows, chunks, 2, features) if chunks > 1 else None
    attend_backward_kernel[(rows, chunks, sharing(keys.device, rows * chunks, blocks(features, config["BLOCK_A"])))](
        outside_ptr=outside,
        outside_stride=outside.stride(0),
        grad_output_ptr=grad_output,
        grad_output_stride=grad_output.stride(0),
        **of_values("values", values),
        attn_weights_ptr=attn_weights,
        attn_weights_stride=attn_weights.stride(0),
        query_ptr=query,
        query_stride=query.stride(0),
        **of_values("keys", keys),
        score_weight_ptr=score_weight,
        padding_ptr=padding,
        padding_stride=padding_stride,
        within_ptr=within,
        grad_scores_ptr=grad_scores,
        grad_scores_stride=grad_scores.stride(0),
        grad_query_ptr=grad_query if chunks == 1 else None,
        grad_query_stride=grad_query.stride(0),
        sums_ptr=sums,
        means_ptr=means,
        grad_query_parts_ptr=parts,
        source=source,
        A=features,
        W=width,
        **config,
    )
    if chunks > 1:
        config = config_of(MERGE, keys, features)
        merge_backward_kernel[(rows, blocks(features, config["BLOCK_W"]))](
            sums_ptr=sums,
            means_ptr=means,
            grad_query_parts_ptr=parts,
            score_weight_ptr=score_weight,
            within_ptr=within,
            grad_query_ptr=grad_query,
            grad_query_stride=grad_query.stride(0),
            mean_ptr=mean,
            chunks=chunks,
            A=features,
            BLOCK_C=config["BLOCK_C"],
            BLOCK_W=config["BLOCK_W"],
            num_warps=config["num_warps"],
        )


def is_split(keys: Tensor) -> bool:
    """Whether the way back splits the source over programs."""
    return keys.shape[1] > config_of(ATTEND_BACKWARD, keys, keys.shape[2])["BLOCK_S"]


def finish_scores(keys: Tensor, attn_weights: Tensor, grad_scores: Tensor, mean: Tensor) -> None:
    """de = α (dα − Σ α dα) in the place of dα, where the source was split."""
    if is_split(keys):
        grad_scores.sub_(mean[..., None]).mul_(attn_weights)


def additive_attention_backward(
    grad_context: Tensor,
    grad_attn_weights: Tensor,
    query: Tensor,
    keys: Tensor,
    memory: Tensor,
    score_weight: Tensor,
    key_padding_mask: Tensor | None,
    attn_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, keys, memory = ends_contiguous(query), ends_contiguous(keys), ends_contiguous(memory)
    attn_weights, score_weight = ends_contiguous(attn_weights), score_weight.contiguous()
    grad_scores = torch.empty_like(attn_weights, memory_format=torch.contiguous_format)
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    mean = rows_for(keys, keys.shape[0])
    attend_backward(
        ends_contiguous(grad_attn_weights),
        ends_contiguous(grad_context),
        memory,
        query,
        keys,
        score_weight,
        key_padding_mask,
        None,
        attn_weights,
        grad_scores,
        grad_query,
        mean,
    )
    finish_scores(keys, attn_weights, grad_scores, mean)
    grad_keys, grad_score_weight = keys_backward(
        grad_scores[:, None], query[:, None], keys, score_weight, key_padding_mask, None
    )
    grad_memory = (attn_weights[..., None] * grad_context[:, None]).to(memory.dtype)
    return grad_query, grad_keys, grad_memory, grad_score_weight
