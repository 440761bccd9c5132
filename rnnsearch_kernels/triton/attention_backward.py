"""The backward pass of additive attention; the forward pass is attention.py.

The tanh is computed again: nothing of size rows · S · A is stored. No sum uses atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import padding_of, real_positions
from .configs import GRAD_KEYS, GRAD_QUERY, GRAD_WEIGHTS
from .gru import tanh
from .launch import blocks, config_of, ends_contiguous, rows_for


@triton.jit
def grad_weights_kernel(
    outside_ptr,  # (B, S): the part of the gradient that comes from elsewhere
    outside_stride,
    grad_output_ptr,  # (B, W)
    grad_output_stride,
    values_ptr,  # (B, S, W)
    values_stride_b,
    values_stride_s,
    padding_ptr,  # (B, S) or None
    padding_stride,
    grad_weights_ptr,  # (B, S), zero where padded
    source,
    width,
    BLOCK_S: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """grad_weights_j = outside_j + grad_output · values_j."""
    row = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    real = real_positions(padding_ptr, padding_stride, row, position, source)
    values = values_ptr + row * values_stride_b + position[:, None] * values_stride_s
    products = tl.zeros((BLOCK_S,), tl.float32)
    for first in range(0, width, BLOCK_W):
        column = first + tl.arange(0, BLOCK_W)
        exists = column < width
        grad = tl.load(grad_output_ptr + row * grad_output_stride + column, mask=exists, other=0.0).to(tl.float32)
        value = tl.load(values + column[None, :], mask=real[:, None] & exists[None, :], other=0.0).to(tl.float32)
        products += tl.sum(grad[None, :] * value, axis=1)
    outside = tl.load(outside_ptr + row * outside_stride + position, mask=real, other=0.0)
    grad_weights = tl.where(real, outside + products, 0.0)
    tl.store(grad_weights_ptr + row * source + position, grad_weights, mask=position < source)


@triton.jit
def grad_query_kernel(
    grad_weights_ptr,  # (B, S)
    attn_weights_ptr,  # (B, S)
    attn_weights_stride,
    query_ptr,  # (B, A)
    query_stride,
    keys_ptr,  # (B, S, A)
    keys_stride_b,
    keys_stride_s,
    score_weight_ptr,  # (A,)
    padding_ptr,  # (B, S) or None
    padding_stride,
    grad_scores_ptr,  # (B, S)
    grad_scores_stride,
    grad_query_ptr,  # (B, A)
    grad_query_stride,
    source,
    features,
    BLOCK_S: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    """de = α ∘ (dα − Σ_j α_j dα_j), then dquery = Σ_j de_j score_weight ∘ (1 − tanh²)."""
    row = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1).to(tl.int64) * BLOCK_A + tl.arange(0, BLOCK_A)
    exists = feature < features
    grad_weights = grad_weights_ptr + row * source
    attn_weights = attn_weights_ptr + row * attn_weights_stride
    sums = tl.zeros((BLOCK_S,), tl.float32)
    for first in range(0, source, BLOCK_S):
        position = first + tl.arange(0, BLOCK_S)
        exists_s = position < source
        sums += tl.load(grad_weights + position, mask=exists_s, other=0.0) * tl.load(
            attn_weights + position, mask=exists_s, other=0.0
        )
    mean = tl.sum(sums, axis=0)
    query = tl.load(query_ptr + row * query_stride + feature, mask=exists, other=0.0).to(tl.float32)
    weight = tl.load(score_weight_ptr + feature, mask=exists, other=0.0).to(tl.float32)
    keys = keys_ptr + row * keys_stride_b + feature[None, :]
    grad_query = tl.zeros((BLOCK_A,), tl.float32)
    for first in range(0, source, BLOCK_S):
        position = first + tl.arange(0, BLOCK_S).to(tl.int64)
        exists_s = position < source
        real = real_positions(padding_ptr, padding_stride, row, position, source)
        alpha = tl.load(attn_weights + position, mask=exists_s, other=0.0)
        grad_scores = alpha * (tl.load(grad_weights + position, mask=exists_s, other=0.0) - mean)
        if tl.program_id(1) == 0:
            tl.store(grad_scores_ptr + row * grad_scores_stride + position, grad_scores, mask=exists_s)
        key = tl.load(keys + position[:, None] * keys_stride_s, mask=real[:, None] & exists[None, :], other=0.0)
        activation = tanh(query[None, :] + key.to(tl.float32))
        grad_query += tl.sum(grad_scores[:, None] * (1.0 - activation * activation), axis=0)
    grad_query = (grad_query * weight).to(grad_query_ptr.dtype.element_ty)
    tl.store(grad_query_ptr + row * grad_query_stride + feature, grad_query, mask=exists)


@triton.jit(do_not_specialize=("steps",))
def grad_keys_kernel(
    grad_scores_ptr,  # (B, T, S)
    queries_ptr,  # (B, T, A)
    queries_stride_b,
    queries_stride_t,
    keys_ptr,  # (B, S, A)
    keys_stride_b,
    keys_stride_s,
    score_weight_ptr,  # (A,)
    padding_ptr,  # (B, S) or None
    padding_stride,
    grad_keys_ptr,  # (B, S, A)
    grad_score_weight_ptr,  # (B, blocks of S, A): what each block of positions adds
    steps,
    source,
    features,
    BLOCK_S: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    """dkeys_j = score_weight ∘ Σ_t de_tj (1 − tanh²(query_t + keys_j)); dscore_weight = Σ_tj de_tj tanh."""
    row = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    feature = tl.program_id(2).to(tl.int64) * BLOCK_A + tl.arange(0, BLOCK_A)
    exists = feature < features
    exists_s = position < source
    real = real_positions(padding_ptr, padding_stride, row, position, source)
    tile = row * keys_stride_b + position[:, None] * keys_stride_s + feature[None, :]
    key = tl.load(keys_ptr + tile, mask=real[:, None] & exists[None, :], other=0.0).to(tl.float32)
    grad_keys = tl.zeros((BLOCK_S, BLOCK_A), tl.float32)
    grad_score_weight = tl.zeros((BLOCK_A,), tl.float32)
    query_at_step = queries_ptr + row * queries_stride_b + feature
    for step in range(steps):
        query = tl.load(query_at_step, mask=exists, other=0.0).to(tl.float32)
        query_at_step += queries_stride_t
        grad_scores = tl.load(grad_scores_ptr + (row * steps + step) * source + position, mask=exists_s, other=0.0)
        activation = tanh(query[None, :] + key)
        grad_keys += grad_scores[:, None] * (1.0 - activation * activation)
        grad_score_weight += tl.sum(grad_scores[:, None] * activation, axis=0)
    weight = tl.load(score_weight_ptr + feature, mask=exists, other=0.0).to(tl.float32)
    grad_keys = (grad_keys * weight[None, :]).to(grad_keys_ptr.dtype.element_ty)
    place = (row * source + position[:, None]) * features + feature[None, :]
    tl.store(grad_keys_ptr + place, grad_keys, mask=exists_s[:, None] & exists[None, :])
    part = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(grad_score_weight_ptr + part * features + feature, grad_score_weight, mask=exists)


def attend_backward(
    outside: Tensor,
    grad_output: Tensor,
    values: Tensor,
    query: Tensor,
    keys: Tensor,
    score_weight: Tensor,
    key_padding_mask: Tensor | None,
    attn_weights: Tensor,
    grad_scores: Tensor,
    grad_query: Tensor,
) -> None:
    """Writes ``grad_scores`` (B, S) and ``grad_query`` (B, A)."""
    (rows, source, width), features = values.shape, keys.shape[2]
    padding, padding_stride = padding_of(key_padding_mask)
    grad_weights = rows_for(values, rows, source)
    config = config_of(GRAD_WEIGHTS, values, width)
    grad_weights_kernel[(rows, blocks(source, config["BLOCK_S"]))](
        outside_ptr=outside,
        outside_stride=outside.stride(0),
        grad_output_ptr=grad_output,
        grad_output_stride=grad_output.stride(0),
        values_ptr=values,
        values_stride_b=values.stride(0),
        values_stride_s=values.stride(1),
        padding_ptr=padding,
        padding_stride=padding_stride,
        grad_weights_ptr=grad_weights,
        source=source,
        width=width,
        **config,
    )
    config = config_of(GRAD_QUERY, keys, features)
    grad_query_kernel[(rows, blocks(features, config["BLOCK_A"]))](
        grad_weights_ptr=grad_weights,
        attn_weights_ptr=attn_weights,
        attn_weights_stride=attn_weights.stride(0),
        query_ptr=query,
        query_stride=query.stride(0),
        keys_ptr=keys,
        keys_stride_b=keys.stride(0),
        keys_stride_s=keys.stride(1),
        score_weight_ptr=score_weight,
        padding_ptr=padding,
        padding_stride=padding_stride,
        grad_scores_ptr=grad_scores,
        grad_scores_stride=grad_scores.stride(0),
        grad_query_ptr=grad_query,
        grad_query_stride=grad_query.stride(0),
        source=source,
        features=features,
        **config,
    )


def keys_backward(
    grad_scores: Tensor, queries: Tensor, keys: Tensor, score_weight: Tensor, key_padding_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the keys and of the score weight from ``grad_scores`` (B, T, S) of all steps."""
    (rows, source, features), steps = keys.shape, queries.shape[1]
    padding, padding_stride = padding_of(key_padding_mask)
    config = config_of(GRAD_KEYS, keys, features)
    position_blocks = blocks(source, config["BLOCK_S"])
    grad_keys = torch.empty_like(keys, memory_format=torch.contiguous_format)
    grad_score_weight = rows_for(keys, rows * position_blocks, features)
    grad_keys_kernel[(rows, position_blocks, blocks(features, config["BLOCK_A"]))](
        grad_scores_ptr=grad_scores,
        queries_ptr=queries,
        queries_stride_b=queries.stride(0),
        queries_stride_t=queries.stride(1),
        keys_ptr=keys,
        keys_stride_b=keys.stride(0),
        keys_stride_s=keys.stride(1),
        score_weight_ptr=score_weight,
        padding_ptr=padding,
        padding_stride=padding_stride,
        grad_keys_ptr=grad_keys,
        grad_score_weight_ptr=grad_score_weight,
        steps=steps,
        source=source,
        features=features,
        **config,
    )
    return grad_keys, grad_score_weight.sum(0).to(score_weight.dtype)


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
    attend_backward(
        ends_contiguous(grad_attn_weights),
        ends_contiguous(grad_context),
        memory,
        query,
        keys,
        score_weight,
        key_padding_mask,
        attn_weights,
        grad_scores,
        grad_query,
    )
    grad_keys, grad_score_weight = keys_backward(
        grad_scores[:, None], query[:, None], keys, score_weight, key_padding_mask
    )
    grad_memory = (attn_weights[..., None] * grad_context[:, None]).to(memory.dtype)
    return grad_query, grad_keys, grad_memory, grad_score_weight
