"""What a decoder takes and gives: named tuples, which nothing changes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DecoderOutput(NamedTuple):
    """What a decoder gives: (B, T, …) from ``forward``, (N, …) from ``step``.

    output        the states in the input's dtype, or the keys' where input_gates are given: (B, T, H) or (N, H)
    context       what was attended to: (B, T, M) or (N, M)
    attn_weights  where it was: (B, T, S) or (N, S) in the accumulate dtype; None if not asked for
    state         the state to go on from, (B, H) or (N, H) in the accumulate dtype
    """

    output: Tensor
    context: Tensor
    attn_weights: Tensor | None
    state: Tensor


class DecoderWeights(NamedTuple):
    """A decoder's parameters as the ops take them: views, not copies."""

    input_weight: Tensor  # (3H, E)
    input_bias: Tensor | None  # (3H,)
    score_weight: Tensor  # (A,)
    query_weight: Tensor  # (A, H)
    query_bias: Tensor | None  # (A,)
    context_weight: Tensor  # (3H, M)
    hidden_weight: Tensor  # (3H, H)
    hidden_bias: Tensor | None  # (3H,)


class PreparedMemory(NamedTuple):
    """A memory made ready for stepping, once a sentence; a value, never changed.

    memory            (B, S, M), padding zeroed
    keys              (B, S, A), key_proj(memory)
    memory_gates      (B, S, 3H), memory · context_weightᵀ, where that makes a step cheaper; a step with gradients takes
                      that product of memory itself
    key_padding_mask  (B, S) bool, True = ignore
    weights           the parameters of the decoder that prepared it, for steps without gradients; without them the
                      step looks its own up
    values            (B, S, anything): what a step sums under its weights and returns as the context, in the place of
                      memory; beside memory_gates, or with ``attend_after``, which has none; without gradients only, and
                      never from ``prepare_memory``
    """

    memory: Tensor
    keys: Tensor
    memory_gates: Tensor | None
    key_padding_mask: Tensor | None
    weights: DecoderWeights | None = None
    values: Tensor | None = None
