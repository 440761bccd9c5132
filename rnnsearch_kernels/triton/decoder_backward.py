"""The decoder's way back: in the loop only what the recurrence needs, everything else for all steps at once.

A step's launches: the products that bring the gradient of the state, which go on to the gates; and the attention's
gradient (attention_backward.py), which recomputes the tanh: two. A source longer than a block of ATTEND_BACKWARD's
needs the merge of its parts; without memory_gates the context's gradient is a product, dg context_weight; a reset
before the product needs d(r ∘ e) (decoder.py says why). After the loop: the keys' gradient over all steps, and one
product for each weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_backward import attend_backward, finish_scores
from .attention_keys import keys_backward
from .configs import PROJECTION
from .decoder import gates_of_memory, real_memory, steps_within
from .decoder_products_backward import state_backward
from .launch import batched_product, contiguous, ends_contiguous, operand_dtype
from .product import linear


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
    (rows, steps, hidden), source, features = states.shape, memory.shape[1], keys.shape[2]
    storage = memory.dtype
    keys, score_weight, state_mask = ends_contiguous(keys), score_weight.contiguous(), contiguous(state_mask)
    query_weight, hidden_weight = ends_contiguous(query_weight), ends_contiguous(hidden_weight)
    attn_weights, gates, grad_states = (ends_contiguous(values) for values in (attn_weights, gates, grad_states))
    within = steps_within(input_lengths, steps)
    if within is not None:
        outside = ~within.t()[..., None]
        grad_contexts = grad_contexts.masked_fill(outside, 0)
        grad_attn_weights = grad_attn_weights.masked_fill(outside, 0)
    real = real_memory(ends_contiguous(memory), key_padding_mask)
    memory_gates = gates_of_memory(real, context_weight, steps)

    # For all steps: the old states as they entered, the queries, and what reaches the weights from outside the loop.
    old_states = torch.cat([state[:, None], states[:, :-1]], 1)
    entering = old_states if state_mask is None else old_states * state_mask[:, None]
    queries = batched_product(entering.flatten(0, 1)[None], query_weight.t()[None])[0].unflatten(0, (rows, steps))
    if query_bias is not None:
        queries += query_bias
    grad_from_outside = batched_product(grad_contexts, real.mT) + grad_attn_weights

    # Step by step, and zeros, as in decoder_scan; what the products take is in their dtype.
    new, operand = memory.new_empty if within is None else memory.new_zeros, operand_dtype(storage)
    grad_queries = new((steps, rows, features), dtype=operand)
    grad_hiddens = new((steps, rows, 3 * hidden), dtype=operand)
    grad_input = new((steps, rows, 3 * hidden), dtype=state.dtype)
    grad_scores, means = new((rows, steps, source), dtype=state.dtype), new((steps, rows), dtype=state.dtype)
    carried = torch.zeros_like(state, memory_format=torch.contiguous_format)
    context_back = context_weight.t().contiguous() if memory_gates is None else None
    following = None
    for t in reversed(range(steps)):
        within_t = None if within is None else within[t]
        state_backward(
            following,
            query_weight,
            hidden_weight,
            carried,
            state_mask,
            reset_after,
            grad_states[:, t],
            old_states[:, t],
            gates[:, t],
            within_t,
            grad_input[t],
            grad_hiddens[t],
        )
        attend_backward(
            grad_from_outside[:, t],
            grad_input[t] if context_back is None else linear(grad_input[t], context_back, None, PROJECTION),
            real if memory_gates is None else memory_gates,
            queries[:, t],
            keys,
            score_weight,
            key_padding_mask,
            within_t,
            attn_weights[:, t],
            grad_scores[:, t],
            grad_queries[t],
            means[t],
        )
        following = grad_queries[t], grad_hiddens[t]
    state_backward(following, query_weight, hidden_weight, carried, state_mask, reset_after)

    finish_scores(keys, attn_weights, grad_scores, means.t())
    grad_keys, grad_score_weight = keys_backward(
        grad_scores, queries, keys, score_weight, key_padding_mask, contiguous(input_lengths)
    )
    grad_all_contexts = batched_product(grad_input.flatten(0, 1)[None], context_weight[None])[0]
    grad_all_contexts = grad_all_contexts.unflatten(0, (steps, rows)).transpose(0, 1) + grad_contexts
    grad_memory = batched_product(attn_weights.mT, grad_all_contexts.to(storage))

    # One product for each weight, over all steps and rows.
    def of_steps(values: Tensor) -> Tensor:
        return values.transpose(0, 1).flatten(0, 1)[None]

    def weight_grad(grad: Tensor, factor: Tensor) -> Tensor:
        return batched_product(grad.flatten(0, 1).t()[None], of_steps(factor).to(storage))[0].to(storage)

    if reset_after:
        grad_hidden_weight = weight_grad(grad_hiddens, entering)
    else:
        reset_states = gates[..., :hidden] * entering
        grad_hidden_weight = torch.cat(
            [
                weight_grad(grad_hiddens[..., : 2 * hidden], entering),
                weight_grad(grad_hiddens[..., 2 * hidden :], reset_states),
            ]
        )
    return (
        grad_input.transpose(0, 1).to(input_gates.dtype).contiguous(),
        carried,
        grad_keys,
        grad_memory.to(storage),
        grad_score_weight,
        weight_grad(grad_queries, entering),
        grad_queries.sum((0, 1), dtype=torch.float32).to(storage),
        weight_grad(grad_input, contexts),
        grad_hidden_weight,
        grad_hiddens.sum((0, 1), dtype=torch.float32).to(storage),
    )
