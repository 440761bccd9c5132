"""The gradients of the keys and of the score weight for all steps at once: after a scan's loop, or alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import of_values, padding_of
from .attention_parts import VARIABLE, load_positions, real_positions, row_start
from .configs import GRAD_KEYS
from .launch import blocks, config_of, rows_for
from .tanh import tile_tanh_and_slope


@triton.jit(do_not_specialize=("steps", "queries_stride_b", *VARIABLE))
def grad_keys_kernel(
    grad_scores_ptr,  # (B, T, S)
    queries_ptr,  # (B, T, A)
    queries_stride_b,
    keys_ptr,  # (B, S, A)
    keys_stride_b,
    score_weight_ptr,  # (A,)
    padding_ptr,  # (B, S) or None
    padding_stride,
    lengths_ptr,  # (B,) or None: the steps that have gradients
    grad_keys_ptr,  # (B, S, A)
    grad_score_weight_ptr,  # (B, blocks of S, A): what each block of positions adds
    steps,
    source,
    A: tl.constexpr,
    QUERIES_STRIDE: tl.constexpr,
    KEYS_STRIDE: tl.constexpr,
    KEYS_ALIGN: tl.constexpr,
    TANH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    """dkeys_j = score_weight ∘ Σ_t de_tj (1 − tanh²(query_t + keys_j)); dscore_weight = Σ_tj de_tj tanh."""
    row = tl.program_id(0).to(tl.int64)
    first_position = tl.program_id(1) * BLOCK_S
    position = first_position + tl.arange(0, BLOCK_S)
    feature = tl.program_id(2) * BLOCK_A + tl.arange(0, BLOCK_A)
    exists, exists_s = feature < A, position < source
    real = real_positions(padding_ptr, padding_stride, row, position, source)
    keys = row_start(keys_ptr, row, keys_stride_b, first_position, KEYS_STRIDE, KEYS_ALIGN)
    key = load_positions(keys, real, feature, exists, KEYS_STRIDE, BLOCK_S)
    grad_keys = tl.zeros((BLOCK_S, BLOCK_A), tl.float32)
    of_weight = tl.zeros((BLOCK_S, BLOCK_A), tl.float32)
    query_at_step = queries_ptr + row * queries_stride_b + feature
    scores_at_step = grad_scores_ptr + row * steps * source + position
    if lengths_ptr is not None:
        steps = tl.load(lengths_ptr + row).to(tl.int32)
    for _ in range(steps):
        query = tl.load(query_at_step, mask=exists, other=0.0).to(tl.float32)
        grad_scores = tl.load(scores_at_step, mask=exists_s, other=0.0)
        query_at_step += QUERIES_STRIDE
        scores_at_step += source
        activation, slope = tile_tanh_and_slope(query[None, :] + key, TANH)
        grad_keys += grad_scores[:, None] * slope
        of_weight += grad_scores[:, None] * activation
    weight = tl.load(score_weight_ptr + feature, mask=exists, other=0.0).to(tl.float32)
    grad_keys = (grad_keys * weight[None, :]).to(grad_keys_ptr.dtype.element_ty)
    place = tl.arange(0, BLOCK_S)[:, None] * A + feature[None, :]
    start = grad_keys_ptr + (row * source + first_position) * A
    tl.store(start + place, grad_keys, mask=exists_s[:, None] & exists[None, :])
    part = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(grad_score_weight_ptr + part * A + feature, tl.sum(of_weight, axis=0), mask=exists)


def keys_backward(
    grad_scores: Tensor,
    queries: Tensor,
    keys: Tensor,
    score_weight: Tensor,
    key_padding_mask: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the keys and of the score weight from ``grad_scores`` (B, T, S) of all steps, or of ``lengths``."""
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
        QUERIES_STRIDE=queries.stride(1),
        **of_values("keys", keys),
        score_weight_ptr=score_weight,
        padding_ptr=padding,
        padding_stride=padding_stride,
        lengths_ptr=lengths,
        grad_keys_ptr=grad_keys,
        grad_score_weight_ptr=grad_score_weight,
        steps=steps,
        source=source,
        A=features,
        **config,
    )
    return grad_keys, grad_score_weight.sum(0).to(score_weight.dtype)
