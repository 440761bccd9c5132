"""The two orders of a decoder's attention and its update, each as a step and as a scan, over the ops.

    before:  context_t from s_{t-1},  s_t from input_t, context_t and s_{t-1}         the paper's; one op each
    after:   s_t from input_t, context_{t-1} and s_{t-1},  context_t from s_t

Sizes and names are those of :class:`rnnsearch_kernels.FusedBahdanauDecoder`; ``gates`` are the input's part of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .functional import additive_attention, decoder_scan, decoder_step, gru_scan, linear
from .values import DecoderWeights, PreparedMemory

Step = tuple[Tensor, Tensor, Tensor]  # the new state (N, H), context (N, M), attention weights (N, S)
Scan = tuple[Tensor, Tensor, Tensor, Tensor]  # states (B, T, H), contexts, attention weights, the last state (B, H)


def step_before(
    gates: Tensor,
    state: Tensor,
    memory: PreparedMemory,
    weights: DecoderWeights,
    *,
    memory_gates: Tensor | None,
    state_mask: Tensor | None,
    memory_index: Tensor | None,
    reset_after: bool,
    backend: str,
) -> Step:
    """``memory_gates`` are those of ``memory``, or None where they are not to be taken."""
    return decoder_step(
        gates,
        state,
        memory.keys,
        memory.memory if memory.values is None else memory.values,
        weights.score_weight,
        weights.query_weight,
        weights.context_weight if memory_gates is None else None,
        weights.hidden_weight,
        state_mask=state_mask,
        query_bias=weights.query_bias,
        hidden_bias=weights.hidden_bias,
        key_padding_mask=memory.key_padding_mask,
        memory_index=memory_index,
        memory_gates=memory_gates,
        reset_after=reset_after,
        backend=backend,
    )


def step_after(
    gates: Tensor,
    state: Tensor,
    memory: PreparedMemory,
    weights: DecoderWeights,
    *,
    context: Tensor | None,
    state_mask: Tensor | None,
    memory_index: Tensor | None,
    reset_after: bool,
    backend: str,
) -> Step:
    """``context`` (N, M) is the last step's; None is zeros."""
    gates = _with_context(gates, context, weights, backend)
    new_state = _update(gates, state, weights, state_mask, reset_after, backend)
    entering = new_state if state_mask is None else state_mask * new_state
    query = linear(entering, weights.query_weight, weights.query_bias, backend=backend)
    new_context, attn_weights = additive_attention(
        query,
        memory.keys,
        memory.memory if memory.values is None else memory.values,
        weights.score_weight,
        key_padding_mask=memory.key_padding_mask,
        memory_index=memory_index,
        backend=backend,
    )
    return new_state, new_context, attn_weights


def scan_before(
    gates: Tensor,
    state: Tensor,
    keys: Tensor,
    memory: Tensor,
    weights: DecoderWeights,
    *,
    state_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    input_lengths: Tensor | None,
    reset_after: bool,
    backend: str,
) -> Scan:
    states, contexts, attn_weights = decoder_scan(
        gates,
        state,
        keys,
        memory,
        weights.score_weight,
        weights.query_weight,
        weights.context_weight,
        weights.hidden_weight,
        state_mask=state_mask,
        query_bias=weights.query_bias,
        hidden_bias=weights.hidden_bias,
        key_padding_mask=key_padding_mask,
        input_lengths=input_lengths,
        reset_after=reset_after,
        backend=backend,
    )
    return states, contexts, attn_weights, last_state(states, state, input_lengths)


def scan_after(
    gates: Tensor,
    state: Tensor,
    keys: Tensor,
    memory: Tensor,
    weights: DecoderWeights,
    *,
    context: Tensor | None,
    state_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    input_lengths: Tensor | None,
    reset_after: bool,
    backend: str,
) -> Scan:
    """The first update needs no attention. From its state on the scan attends, then updates, with the next step's
    input; the last update, whatever its input, is thrown away. No slice here is empty where T is 1, of which an
    exported graph would make a case of its own.
    """
    first_lengths = None if input_lengths is None else input_lengths.clamp(max=1)
    first = gru_scan(
        _with_context(gates[:, 0], context, weights, backend).unsqueeze(1),
        state,
        weights.hidden_weight,
        weights.hidden_bias,
        state_mask=state_mask,
        lengths=first_lengths,
        reset_after=reset_after,
        backend=backend,
    )
    state = last_state(first, state, first_lengths)
    states, contexts, attn_weights, _ = scan_before(
        gates.roll(-1, dims=1),
        state,
        keys,
        memory,
        weights,
        state_mask=state_mask,
        key_padding_mask=key_padding_mask,
        input_lengths=input_lengths,
        reset_after=reset_after,
        backend=backend,
    )
    states = torch.cat([first, states], dim=1)[:, :-1]
    if input_lengths is not None:
        states = states.masked_fill(past_end(input_lengths, states.shape[1]), 0)
    return states, contexts, attn_weights, last_state(states, state, input_lengths)


def last_state(states: Tensor, state: Tensor, lengths: Tensor | None) -> Tensor:
    """The state after each row's last step (B, H); ``state`` for a row of length 0."""
    if lengths is None:
        return states[:, -1]
    last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
    return torch.where(lengths[:, None] > 0, states.gather(1, last)[:, 0], state)


def past_end(lengths: Tensor, steps: int) -> Tensor:
    """(B, T, 1): whether a step is behind its row's last one."""
    return (torch.arange(steps, device=lengths.device) >= lengths[:, None])[..., None]


def _with_context(gates: Tensor, context: Tensor | None, weights: DecoderWeights, backend: str) -> Tensor:
    if context is None:
        return gates
    return gates + linear(context.to(weights.context_weight.dtype), weights.context_weight, backend=backend)


def _update(
    gates: Tensor, state: Tensor, weights: DecoderWeights, state_mask: Tensor | None, reset_after: bool, backend: str
) -> Tensor:
    """The GRU alone (N, H) of gates (N, 3H).

    Without gradients it is the step of a decoder that attends to one position of zeros: there is no op of one update.
    A scan packs weights, which does not pay for a single step; plain PyTorch would be a product and some eight small
    calls in the place of one.
    """
    options: dict[str, Any] = {"state_mask": state_mask, "reset_after": reset_after, "backend": backend}
    if torch.is_grad_enabled():
        return gru_scan(gates.unsqueeze(1), state, weights.hidden_weight, weights.hidden_bias, **options)[:, 0]
    hidden_size = weights.hidden_weight.shape[1]
    zeros = weights.hidden_weight.new_zeros(3 * hidden_size)
    nothing = zeros[:1].view(1, 1, 1)
    return decoder_step(
        gates,
        state,
        nothing,
        nothing,
        zeros[:1],
        zeros[:hidden_size].view(1, -1),
        None,
        weights.hidden_weight,
        hidden_bias=weights.hidden_bias,
        memory_index=torch.zeros(gates.shape[0], dtype=torch.int64, device=gates.device),
        memory_gates=zeros.view(1, 1, -1),
        **options,
    )[0]
