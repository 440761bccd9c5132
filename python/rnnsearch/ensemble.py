"""Several models as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from rnnsearch.model import RNNSearch
from rnnsearch.translation import TranslationModel
from rnnsearch.vocabulary import Vocabulary
from rnnsearch_kernels import PreparedMemory


class EnsembleMemory(NamedTuple):
    """The prepared memory of each model, and what the search reads of one: shape and padding, alike in all."""

    parts: tuple[PreparedMemory, ...]
    memory: Tensor
    key_padding_mask: Tensor | None


class Ensemble(TranslationModel):
    """Models with the same vocabularies, whatever their sizes, that decide every token together:

        p(y_i | y_<i, x) = 1/n sum_m p_m(y_i | y_<i, x)

    the mean of probabilities (not of log-probabilities), so that it is a distribution again. The attention weights are
    the mean of the models' too.

    Raises:
        ValueError: there is no model, or two have different vocabularies.
    """

    def __init__(self, models: Sequence[RNNSearch]) -> None:
        super().__init__()
        if not models:
            raise ValueError("an ensemble needs at least one model")
        first = models[0]
        for number, other in enumerate(models[1:], 2):
            for side in ("source", "target"):
                mine, theirs = (getattr(model, f"{side}_vocabulary") for model in (first, other))
                if why := _difference(mine, theirs):
                    raise ValueError(
                        f"the models of an ensemble must have the same {side} vocabulary; number 1 and number {number} "
                        f"differ: {why}"
                    )
        self.models = nn.ModuleList(models)
        self.config = first.config
        self.source_vocabulary, self.target_vocabulary = first.source_vocabulary, first.target_vocabulary

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> tuple[EnsembleMemory, tuple[Tensor, ...]]:
        memories, states = zip(*(model.encode(source, source_lengths) for model in self._models()), strict=True)
        return EnsembleMemory(memories, memories[0].memory, memories[0].key_padding_mask), states

    def log_probs(
        self,
        tokens: Tensor,
        state: tuple[Tensor, ...],
        memory: EnsembleMemory,
        memory_index: Tensor,
        *,
        token_table: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """A step of N hypotheses with the log-probabilities (N, V) of every token."""
        models = self._models()
        tables: Sequence[Tensor | None] = token_table or [None] * len(models)
        found = [
            model.log_probs(tokens, part, prepared, memory_index, token_table=table)
            for model, part, prepared, table in zip(models, state, memory.parts, tables, strict=True)
        ]
        log_probs, states, attn_weights = zip(*found, strict=True)
        mean = torch.stack(log_probs).logsumexp(dim=0) - math.log(len(found))
        # Rounding could put a certain token above 0, where no log-probability is.
        return mean.clamp_(max=0.0), states, torch.stack([weights.float() for weights in attn_weights]).mean(dim=0)

    step = log_probs

    def token_table(self) -> tuple[Tensor, ...]:
        """That of each model."""
        return tuple(model.token_table() for model in self._models())

    def _table_bytes(self) -> int:
        return sum(model._table_bytes() for model in self._models())

    def _together(self, length: int, other: int) -> bool:
        return all(model._together(length, other) for model in self._models())

    def _models(self) -> list[RNNSearch]:
        return cast("list[RNNSearch]", list(self.models))


def _difference(mine: Vocabulary | None, theirs: Vocabulary | None) -> str:
    if mine is None or theirs is None:
        return "" if mine is theirs else "one has none"
    if len(mine) != len(theirs):
        return f"{len(mine)} and {len(theirs)} tokens"
    pairs = enumerate(zip(mine.tokens, theirs.tokens, strict=True))
    return next((f"token {id} is {left!r} and {right!r}" for id, (left, right) in pairs if left != right), "")
