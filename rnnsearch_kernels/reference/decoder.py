"""The attention decoder, one step and teacher-forced over T:

    query_t   = query_weight s_{t-1} + query_bias
    context_t = attention over the memory (see attention.py)
    g_t       = input_gates_t + context_weight context_t
    s_t       = GRU(g_t, s_{t-1}) (see gru.py)

With a ``state_mask`` the query too is made from state_mask ∘ s_{t-1}.

Bahdanau et al. 2014, appendix A.1.2 and A.2.2; ``input_gates`` is their W E y_{i-1} for the three gates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .attention import attend, sentence_of_row, softmax_backward, zero_padding
from .dtypes import accumulate_dtype
from .gru import (
    from_last_to_first,
    gru_cell,
    gru_cell_backward,
    hidden_weight_grad,
    masked,
    of_every_step,
    steps_within,
    zero_outside,
)
from .linear import linear


def _advance(
    g: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    keys: Tensor,
    memory: Tensor,
    memory_gates: Tensor | None,
    key_padding_mask: Tensor | None,
    score_weight: Tensor,
    query_weight: Tensor,
    query_bias: Tensor | None,
    context_weight: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    reset_after: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step on accumulate tensors with zeroed padding, one sentence a row."""
    query = linear(masked(state, state_mask), query_weight, query_bias)
    context, attn_weights = attend(query, keys, memory, score_weight, key_padding_mask)
    if memory_gates is None:
        assert context_weight is not None
        context_gates = linear(context, context_weight, None)
    else:
        context_gates = torch.bmm(attn_weights[:, None], memory_gates)[:, 0]
    new_state, gates = gru_cell(g + context_gates, state, state_mask, hidden_weight, hidden_bias, reset_after)
    return new_state, context, attn_weights, gates


def decoder_step(
    input_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    keys: Tensor,
    memory: Tensor,
    score_weight: Tensor,
    query_weight: Tensor,
    query_bias: Tensor | None,
    context_weight: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    memory_index: Tensor | None,
    memory_gates: Tensor | None,
    reset_after: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    accumulate = accumulate_dtype(memory.dtype)
    zeroed = (
        None if values is None else zero_padding(values, key_padding_mask) for values in (keys, memory, memory_gates)
    )
    rows = (sentence_of_row(values, memory_index) for values in (*zeroed, key_padding_mask))
    weights = (score_weight, query_weight, query_bias, context_weight, hidden_weight, hidden_bias)
    prepared: tuple[Any, ...] = (*rows, *_in_dtype(accumulate, weights), reset_after)
    new_state, context, attn_weights, gates = _advance(input_gates.to(accumulate), state, state_mask, *prepared)
    return new_state, context.to(memory.dtype), attn_weights, gates


def _in_dtype(dtype: torch.dtype, tensors: Iterable[Tensor | None]) -> Iterator[Any]:
    return (None if tensor is None else tensor.to(dtype) for tensor in tensors)


def decoder_scan(
    input_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    keys: Tensor,
    memory: Tensor,
    score_weight: Tensor,
    query_weight: Tensor,
    query_bias: Tensor | None,
    context_weight: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    input_lengths: Tensor | None,
    reset_after: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    accumulate = accumulate_dtype(memory.dtype)
    within = steps_within(input_lengths, input_gates.shape[1])
    g = zero_outside(input_gates.to(accumulate), within)
    prepared: tuple[Any, ...] = (
        zero_padding(keys, key_padding_mask),
        zero_padding(memory, key_padding_mask),
        None,
        key_padding_mask,
        *_in_dtype(accumulate, (score_weight, query_weight, query_bias, context_weight, hidden_weight, hidden_bias)),
        reset_after,
    )
    steps = []
    for t in range(g.shape[1]):
        new_state, *others = _advance(g[:, t], state, state_mask, *prepared)
        state = new_state if within is None else torch.where(within[:, t], new_state, state)
        steps.append((state, *others))
    states, contexts, attn_weights, gates = (
        zero_outside(torch.stack(parts, 1), within) for parts in zip(*steps, strict=True)
    )
    return states, contexts.to(memory.dtype), attn_weights, gates


def decoder_scan_backward(
    grad_states: Tensor,
    grad_contexts: Tensor,
    grad_attn_weights: Tensor,
    input_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    keys: Tensor,
    memory: Tensor,
    score_weight: Tensor,
    query_weight: Tensor,
    query_bias: Tensor | None,
    context_weight: Tensor,
    hidden_weight: Tensor,
    key_padding_mask: Tensor | None,
    input_lengths: Tensor | None,
    states: Tensor,
    contexts: Tensor,
    attn_weights: Tensor,
    gates: Tensor,
    reset_after: bool,
) -> tuple[Tensor, ...]:
    accumulate, storage = accumulate_dtype(memory.dtype), memory.dtype
    steps = states.shape[1]
    within = steps_within(input_lengths, steps)
    real_keys, real_memory = zero_padding(keys, key_padding_mask), zero_padding(memory, key_padding_mask)
    v, to_query, from_context, to_hidden = (
        weight.to(accumulate) for weight in (score_weight, query_weight, context_weight, hidden_weight)
    )
    grad_states = zero_outside(grad_states, within)
    grad_contexts = zero_outside(grad_contexts.to(accumulate), within)
    old_states = torch.cat([state[:, None], states[:, :-1]], 1)
    entering = masked(old_states, of_every_step(state_mask))
    queries = linear(entering, query_weight, query_bias)

    # The part of the weights' gradient that does not depend on later steps, for all t at once.
    outside = zero_outside(grad_attn_weights, within) + torch.bmm(grad_contexts, real_memory.mT)
    if key_padding_mask is not None:
        outside = outside.masked_fill(key_padding_mask[:, None], 0)

    grads_input: list[Tensor] = []
    grads_hidden: list[Tensor] = []
    grads_queries: list[Tensor] = []
    grad_keys, grad_v = torch.zeros_like(real_keys), torch.zeros_like(v)
    grad_state = torch.zeros_like(state)
    for t in reversed(range(steps)):
        total = grad_state + grad_states[:, t]
        grad_g, grad_u, grad_old = gru_cell_backward(
            total, old_states[:, t], state_mask, gates[:, t], to_hidden, reset_after
        )
        if within is not None:
            grad_g, grad_u = zero_outside(grad_g, within[:, t]), zero_outside(grad_u, within[:, t])
            grad_old = torch.where(within[:, t], grad_old, grad_state)
        grad_weights = outside[:, t] + torch.bmm(real_memory, (grad_g @ from_context)[..., None])[..., 0]
        grad_score = softmax_backward(grad_weights, attn_weights[:, t])
        activation = torch.tanh(queries[:, t, None] + real_keys)
        grad_key = grad_score[..., None] * v * (1 - activation * activation)
        grad_query = grad_key.sum(1)
        grad_keys = grad_keys + grad_key
        grad_v = grad_v + (grad_score[..., None] * activation).sum((0, 1))
        grads_input.append(grad_g)
        grads_hidden.append(grad_u)
        grads_queries.append(grad_query)
        grad_state = grad_old + masked(grad_query @ to_query, state_mask)

    grad_input, grad_hidden = from_last_to_first(grads_input), from_last_to_first(grads_hidden)
    grad_queries = from_last_to_first(grads_queries)
    grad_context = grad_contexts + grad_input @ from_context
    return (
        grad_input.to(input_gates.dtype),
        grad_state,
        grad_keys.to(storage),
        torch.bmm(attn_weights.mT, grad_context).to(storage),
        grad_v.to(storage),
        (grad_queries.flatten(0, 1).t() @ entering.flatten(0, 1)).to(storage),
        grad_queries.sum((0, 1)).to(storage),
        (grad_input.flatten(0, 1).t() @ contexts.flatten(0, 1).to(accumulate)).to(storage),
        hidden_weight_grad(grad_hidden, entering, gates, reset_after).to(storage),
        grad_hidden.sum((0, 1)).to(storage),
    )
