"""Additive attention (Bahdanau et al. 2014, appendix A.1.2, equations for α and c):

score_j      = score_weight · tanh(query + keys_j)
attn_weights = softmax over the real j of score
context      = Σ_j attn_weights_j memory_j
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dtypes import accumulate_dtype


def zero_padding(values: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """``values`` (B, S, …) in the accumulate dtype, zero where padded: 0 · NaN would be NaN."""
    values = values.to(accumulate_dtype(values.dtype))
    return values if key_padding_mask is None else values.masked_fill(key_padding_mask[..., None], 0)


def sentence_of_row(values: Tensor | None, memory_index: Tensor | None) -> Tensor | None:
    """The sentence's values for every row that attends to it."""
    if values is None or memory_index is None:
        return values
    return values.index_select(0, memory_index)


def masked_softmax(scores: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension; padded positions get exactly 0, and so does a row without a real one."""
    if key_padding_mask is None:
        return torch.softmax(scores, -1)
    weights = torch.softmax(scores.masked_fill(key_padding_mask, -torch.inf), -1)
    return weights.masked_fill(key_padding_mask, 0)


def attend(
    query: Tensor, keys: Tensor, memory: Tensor, score_weight: Tensor, key_padding_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The equations above on accumulate tensors with zeroed padding, one sentence a row."""
    scores = torch.tanh(query[:, None] + keys) @ score_weight
    attn_weights = masked_softmax(scores, key_padding_mask)
    context = torch.bmm(attn_weights[:, None], memory)[:, 0]
    return context, attn_weights


def additive_attention(
    query: Tensor,
    keys: Tensor,
    memory: Tensor,
    score_weight: Tensor,
    key_padding_mask: Tensor | None,
    memory_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    accumulate = accumulate_dtype(memory.dtype)
    rows: list[Any] = [
        sentence_of_row(values, memory_index)
        for values in (zero_padding(keys, key_padding_mask), zero_padding(memory, key_padding_mask), key_padding_mask)
    ]
    context, attn_weights = attend(query.to(accumulate), rows[0], rows[1], score_weight.to(accumulate), rows[2])
    return context.to(memory.dtype), attn_weights


def softmax_backward(grad_weights: Tensor, weights: Tensor) -> Tensor:
    """de = α ∘ (dα − Σ_j α_j dα_j)."""
    return weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))


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
    accumulate = accumulate_dtype(memory.dtype)
    real_keys, real_memory = zero_padding(keys, key_padding_mask), zero_padding(memory, key_padding_mask)
    grad_context = grad_context.to(accumulate)
    grad_weights = grad_attn_weights + torch.bmm(real_memory, grad_context[..., None])[..., 0]
    if key_padding_mask is not None:
        grad_weights = grad_weights.masked_fill(key_padding_mask, 0)
    grad_scores = softmax_backward(grad_weights, attn_weights)

    activation = torch.tanh(query.to(accumulate)[:, None] + real_keys)
    grad_keys = grad_scores[..., None] * score_weight.to(accumulate) * (1 - activation * activation)
    grad_memory = attn_weights[..., None] * grad_context[:, None]
    grad_score_weight = (grad_scores[..., None] * activation).sum((0, 1))
    return (
        grad_keys.sum(1).to(query.dtype),
        grad_keys.to(keys.dtype),
        grad_memory.to(memory.dtype),
        grad_score_weight.to(score_weight.dtype),
    )
