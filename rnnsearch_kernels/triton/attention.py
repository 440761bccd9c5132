"""Additive attention; its backward pass is attention_backward.py.

    score_j      = score_weight · tanh(query + keys_j)
    attn_weights = softmax over the real j of score
    output       = Σ_j attn_weights_j values_j              values: memory, or memory_gates

Two launches. The scores are split over positions, then the sum is split over columns, and each of its programs takes
the softmax's statistics of its row anew: S numbers that are at hand, in place of partial results to merge. So a long
source and a small batch fill the machine alike, and the order of every sum depends on the row alone.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .configs import REDUCE, SCORE
from .gru import tanh
from .launch import blocks, config_of, ends_contiguous, rows_for


@triton.jit
def sentence_of(index_ptr, row):
    """The sentence that a row attends to, 64-bit."""
    sentence = row
    if index_ptr is not None:
        sentence = tl.load(index_ptr + row)
    return sentence


@triton.jit
def real_positions(padding_ptr, padding_stride, sentence, position, source):
    """Which positions exist and are not padding."""
    real = position < source
    if padding_ptr is not None:
        padding = tl.load(padding_ptr + sentence * padding_stride + position, mask=real, other=1)
        real = real & (padding == 0)
    return real


@triton.jit
def score_kernel(
    query_ptr,  # (N, A)
    query_stride,
    keys_ptr,  # (B, S, A)
    keys_stride_b,
    keys_stride_s,
    score_weight_ptr,  # (A,)
    padding_ptr,  # (B, S) or None
    padding_stride,
    index_ptr,  # (N,) or None
    within_ptr,  # (N,) or None: rows that still have steps; the others score as if all were padding
    scores_ptr,  # (N, S), -inf where padded
    source,
    features,
    BLOCK_S: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    sentence = sentence_of(index_ptr, row)
    real = real_positions(padding_ptr, padding_stride, sentence, position, source)
    if within_ptr is not None:
        real = real & (tl.load(within_ptr + row) != 0)
    keys = keys_ptr + sentence * keys_stride_b + position[:, None] * keys_stride_s
    scores = tl.zeros((BLOCK_S,), tl.float32)
    for first in range(0, features, BLOCK_A):
        feature = first + tl.arange(0, BLOCK_A)
        exists = feature < features
        query = tl.load(query_ptr + row * query_stride + feature, mask=exists, other=0.0).to(tl.float32)
        weight = tl.load(score_weight_ptr + feature, mask=exists, other=0.0).to(tl.float32)
        key = tl.load(keys + feature[None, :], mask=real[:, None] & exists[None, :], other=0.0).to(tl.float32)
        scores += tl.sum(weight[None, :] * tanh(query[None, :] + key), axis=1)
    scores = tl.where(real, scores, float("-inf"))
    tl.store(scores_ptr + row * source + position, scores, mask=position < source)


@triton.jit
def softmax_statistics(scores, source, BLOCK_S: tl.constexpr):
    """The largest of a row's scores, 0 where all are padded, and Σ exp(score - largest), 1 there."""
    largest = tl.full((BLOCK_S,), float("-inf"), tl.float32)
    for first in range(0, source, BLOCK_S):
        position = first + tl.arange(0, BLOCK_S)
        largest = tl.maximum(largest, tl.load(scores + position, mask=position < source, other=float("-inf")))
    maximum = tl.max(largest, axis=0)
    maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    sums = tl.zeros((BLOCK_S,), tl.float32)
    for first in range(0, source, BLOCK_S):
        position = first + tl.arange(0, BLOCK_S)
        sums += tl.exp(tl.load(scores + position, mask=position < source, other=float("-inf")) - maximum)
    total = tl.sum(sums, axis=0)
    return maximum, tl.where(total == 0.0, 1.0, total)


@triton.jit
def reduce_kernel(
    scores_ptr,  # (N, S), -inf where padded
    values_ptr,  # (B, S, W)
    values_stride_b,
    values_stride_s,
    index_ptr,  # (N,) or None
    attn_weights_ptr,  # (N, S)
    attn_weights_stride,
    output_ptr,  # (N, W)
    output_stride,
    source,
    width,
    BLOCK_S: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    exists = column < width
    scores = scores_ptr + row * source
    maximum, total = softmax_statistics(scores, source, BLOCK_S)
    values = values_ptr + sentence_of(index_ptr, row) * values_stride_b + column[None, :]
    output = tl.zeros((BLOCK_W,), tl.float32)
    for first in range(0, source, BLOCK_S):
        position = first + tl.arange(0, BLOCK_S).to(tl.int64)
        score = tl.load(scores + position, mask=position < source, other=float("-inf"))
        real = score != float("-inf")
        weights = tl.where(real, tl.exp(score - maximum) / total, 0.0)
        if tl.program_id(1) == 0:
            tl.store(attn_weights_ptr + row * attn_weights_stride + position, weights, mask=position < source)
        value = tl.load(values + position[:, None] * values_stride_s, mask=real[:, None] & exists[None, :], other=0.0)
        output += tl.sum(weights[:, None] * value.to(tl.float32), axis=0)
    tl.store(output_ptr + row * output_stride + column, output.to(output_ptr.dtype.element_ty), mask=exists)


def padding_of(key_padding_mask: Tensor | None) -> tuple[Tensor | None, int]:
    mask = ends_contiguous(key_padding_mask)
    return mask, 0 if mask is None else mask.stride(0)


def score(
    query: Tensor,
    keys: Tensor,
    score_weight: Tensor,
    key_padding_mask: Tensor | None,
    memory_index: Tensor | None,
    within: Tensor | None,
) -> Tensor:
    """Scores (N, S), -inf where padded; the last dimension of every argument is contiguous."""
    source, features = keys.shape[1:]
    padding, padding_stride = padding_of(key_padding_mask)
    scores = rows_for(keys, query.shape[0], source)
    config = config_of(SCORE, keys, features)
    score_kernel[(query.shape[0], blocks(source, config["BLOCK_S"]))](
        query_ptr=query,
        query_stride=query.stride(0),
        keys_ptr=keys,
        keys_stride_b=keys.stride(0),
        keys_stride_s=keys.stride(1),
        score_weight_ptr=score_weight,
        padding_ptr=padding,
        padding_stride=padding_stride,
        index_ptr=memory_index,
        within_ptr=within,
        scores_ptr=scores,
        source=source,
        features=features,
        **config,
    )
    return scores


def reduce(scores: Tensor, values: Tensor, memory_index: Tensor | None, attn_weights: Tensor, output: Tensor) -> None:
    """From ``scores`` to ``attn_weights`` (N, S) and ``output`` (N, W), the weighted sum of ``values`` (B, S, W)."""
    source, width = values.shape[1:]
    config = config_of(REDUCE, values, width)
    reduce_kernel[(scores.shape[0], blocks(width, config["BLOCK_W"]))](
        scores_ptr=scores,
        values_ptr=values,
        values_stride_b=values.stride(0),
        values_stride_s=values.stride(1),
        index_ptr=memory_index,
        attn_weights_ptr=attn_weights,
        attn_weights_stride=attn_weights.stride(0),
        output_ptr=output,
        output_stride=output.stride(0),
        source=source,
        width=width,
        **config,
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
    index = None if memory_index is None else memory_index.contiguous()
    rows = query.shape[0]
    attn_weights = rows_for(memory, rows, memory.shape[1])
    context = memory.new_empty((rows, memory.shape[2]))
    scores = score(query, keys, score_weight.contiguous(), key_padding_mask, index, None)
    reduce(scores, memory, index, attn_weights, context)
    return context, attn_weights
