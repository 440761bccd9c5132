"""Embedded tokens, of which a CPU multiplies each different one once: what stands often in a minibatch costs once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Where a larger share of the tokens differs, handing products out costs about what it saves.
_DIFFERENT = 0.8


class Embedded(NamedTuple):
    """Embeddings of tokens (B, T): ``rows`` (U, E), one for each different token, and ``places`` (B, T) int64, the row
    of each position; without ``places``, ``rows`` are those of all positions (B, T, E).
    """

    rows: Tensor
    places: Tensor | None = None

    def each(self, product: Callable[[Tensor], Tensor]) -> Tensor:
        """``product`` (…, E) -> (…, O), which treats every row alike, at all positions: (B, T, O)."""
        rows = product(self.rows)
        return rows if self.places is None else nn.functional.embedding(self.places, rows)


def embed(embedding: nn.Embedding, tokens: Tensor, dropout: nn.Dropout) -> Embedded:
    """The embeddings of tokens (B, T), those of different ones alone where they are at most 0.8 of all.

    Not on a GPU, which would be waited for until it has counted them, nor in a compiled or exported graph, which would
    have their number for a size; not where dropout makes each position differ; and in float32 and float64 only: the
    gradients of a token's positions are summed in the products' type.
    """
    if _may_count(embedding.weight) and not (dropout.training and dropout.p > 0):
        different, places = torch.unique(tokens, return_inverse=True)
        if different.numel() <= _DIFFERENT * tokens.numel():
            return Embedded(embedding(different), places)
    return Embedded(dropout(embedding(tokens)))


def _may_count(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
