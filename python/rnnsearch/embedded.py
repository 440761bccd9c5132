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

    def at_places(self, product: Callable[[Tensor], Tensor]) -> Tensor:
        """``product`` (…, E) -> (…, O), which treats every row alike, at all positions: (B, T, O)."""
        rows = product(self.rows)
        return rows if self.places is None else nn.functional.embedding(self.places, rows)


def embed(embedding: nn.Embedding, tokens: Tensor, dropout: nn.Dropout) -> Embedded:
    """The embeddings of tokens (B, T), those of different ones alone where they are at most 0.8 of all.

    Then ``embedding`` and its hooks see each token once, and nothing is left for ``dropout`` to do.
    """
    if _may_share(embedding, tokens, dropout):
        different, places = torch.unique(tokens, return_inverse=True)
        if 0 < different.numel() <= _DIFFERENT * tokens.numel():
            return Embedded(embedding(different), places)
    return Embedded(dropout(embedding(tokens)))


def _may_share(embedding: nn.Embedding, tokens: Tensor, dropout: nn.Dropout) -> bool:
    """Not where positions differ, by dropout or a module of another kind, or are counted, for their gradient; not on a
    GPU, which would be waited for until it has counted the tokens, nor in a graph, which would have their number for a
    size; and in float32 and float64 only: the gradients of a token's positions are summed in the products' type.
    """
    return (
        type(embedding) is nn.Embedding
        and not embedding.scale_grad_by_freq
        and not (dropout.training and dropout.p > 0)
        and type(tokens) is Tensor
        and tokens.device.type == "cpu"
        and embedding.weight.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
