"""The record of a beam search: back-pointers while it runs, hypotheses with their alignments at its end."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class BeamSearchOutput(NamedTuple):
    """The hypotheses of B sentences, best first.

    Lengths count the end of sentence. Where a sentence has fewer than ``n_best`` hypotheses, the missing ones
    have length 0 and score -inf.
    """

    tokens: Tensor  # (B, n_best, T) int64, T the greatest length; filled up with eos_id
    scores: Tensor  # (B, n_best) float32, under the penalties
    lengths: Tensor  # (B, n_best) int64
    token_scores: Tensor  # (B, n_best, T) float32 log-probabilities, 0 past the length
    finished: Tensor  # (B, n_best) bool: False where max_length cut it before an end of sentence
    attn_weights: Tensor | None  # (B, n_best, T, S): what each token attended to, 0 past the length


class _Step(NamedTuple):
    """How the rows of the next step came from the rows of this one."""

    parents: Tensor  # (N_next,) row of this step
    tokens: Tensor  # (N_next,)
    token_scores: Tensor  # (N_next,)
    attn_weights: Tensor | None  # (N, S) of this step's rows


class Closed(NamedTuple):
    """Hypotheses closed at one step: `width` for each active sentence; a score of -inf is no hypothesis."""

    sentences: Tensor  # (active,)
    scores: Tensor  # (active, width) under the penalties
    token_scores: Tensor  # (active, width) of their last token
    rows: Tensor | None  # (active, width) the row of the step that they end at; None: their own, in order
    tokens: Tensor | None  # (active, width) their last token; None: the end of sentence
    length: int
    finished: bool

    def flat(self, eos_id: int) -> tuple[Tensor, _Chosen]:
        """The sentence of each hypothesis, and what it is."""
        count, device = self.scores.numel(), self.scores.device
        chosen = _Chosen(
            scores=self.scores.reshape(-1),
            rows=torch.arange(count, device=device) if self.rows is None else self.rows.reshape(-1),
            tokens=torch.full((count,), eos_id, device=device) if self.tokens is None else self.tokens.reshape(-1),
            token_scores=self.token_scores.reshape(-1),
            lengths=torch.full((count,), self.length, device=device),
            finished=torch.full((count,), self.finished, device=device),
        )
        return self.sentences.repeat_interleave(self.scores.shape[1]), chosen


class _Chosen(NamedTuple):
    """Hypotheses, (R,) each; the fields of ``Closed``, one value a hypothesis."""

    scores: Tensor
    rows: Tensor
    tokens: Tensor
    token_scores: Tensor
    lengths: Tensor
    finished: Tensor


class History:
    def __init__(self, *, eos_id: int, n_best: int, sentence_count: int, device: torch.device) -> None:
        self.eos_id, self.n_best, self.sentence_count, self.device = eos_id, n_best, sentence_count, device
        self._steps: list[_Step] = []
        self._closed: list[Closed] = []

    def close(self, closed: Closed) -> None:
        self._closed.append(closed)

    def advance(self, parents: Tensor, tokens: Tensor, token_scores: Tensor, attn_weights: Tensor | None) -> None:
        self._steps.append(_Step(parents, tokens, token_scores, attn_weights))

    def output(self) -> BeamSearchOutput:
        best, place = self._best()
        shape = (self.sentence_count, self.n_best)
        lengths = _fill(shape, place, best.lengths, 0)
        scores = _fill(shape, place, best.scores, -math.inf)
        finished = _fill(shape, place, best.finished, False)
        tokens, token_scores, attn_weights = self._trace(
            lengths=lengths.view(-1),
            rows=_fill(shape, place, best.rows, 0).view(-1),
            last_tokens=_fill(shape, place, best.tokens, self.eos_id).view(-1),
            last_scores=_fill(shape, place, best.token_scores, 0.0).view(-1),
        )
        return BeamSearchOutput(
            tokens=tokens.view(*shape, -1),
            scores=scores,
            lengths=lengths,
            token_scores=token_scores.view(*shape, -1),
            finished=finished,
            attn_weights=None if attn_weights is None else attn_weights.view(*shape, *attn_weights.shape[1:]),
        )

    def _best(self) -> tuple[_Chosen, Tensor]:
        """The n best closed hypotheses of every sentence, and where each stands in (B * n_best)."""
        flat = [closed.flat(self.eos_id) for closed in self._closed]
        sentences = torch.cat([entry for entry, _ in flat])
        everything = _Chosen(*(torch.cat(column) for column in zip(*(entry for _, entry in flat), strict=True)))
        scores = everything.scores
        if scores.isnan().any():
            sentence = int(sentences[scores.isnan()][0])
            raise ValueError(f"`step` returned a NaN log-probability for sentence {sentence}")
        # By sentence, then finished before cut, then best score, then first found: stable sorts, least first.
        order = (scores != -math.inf).nonzero().squeeze(1)
        order = order[scores[order].argsort(descending=True, stable=True)]
        order = order[everything.finished[order].logical_not().to(torch.int8).argsort(stable=True)]
        order = order[sentences[order].argsort(stable=True)]
        counts = torch.bincount(sentences[order], minlength=self.sentence_count)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(order.numel(), device=self.device) - starts[sentences[order]]
        order, rank = order[rank < self.n_best], rank[rank < self.n_best]
        place = sentences[order] * self.n_best + rank
        return _Chosen(*(column[order] for column in everything)), place

    def _trace(
        self, *, lengths: Tensor, rows: Tensor, last_tokens: Tensor, last_scores: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Follow the back-pointers of R hypotheses from their last step to their first."""
        count = int(lengths.max()) if lengths.numel() else 0
        tokens, token_scores, attn_weights = [], [], []
        row = torch.zeros_like(rows)  # where a hypothesis is not yet entered: row 0 of any step, masked below
        for length in range(count, 0, -1):
            entry = self._steps[length - 1]
            last = lengths == length
            if entry.parents.numel():
                token, score = entry.tokens[row], entry.token_scores[row]
                row = torch.where(last, rows, entry.parents[row])
                tokens.append(torch.where(last, last_tokens, token))
                token_scores.append(torch.where(last, last_scores, score))
            else:  # the last step of the search: everything ends here
                row = torch.where(last, rows, row)
                tokens.append(last_tokens)
                token_scores.append(last_scores)
            if entry.attn_weights is not None:
                attn_weights.append(entry.attn_weights[row])
        past = torch.arange(count, device=self.device) >= lengths.unsqueeze(1)
        all_tokens = _stack(tokens, lengths).masked_fill(past, self.eos_id)
        all_scores = _stack(token_scores, last_scores).masked_fill(past, 0.0)
        if not attn_weights:
            return all_tokens, all_scores, None
        return all_tokens, all_scores, _stack(attn_weights, lengths).masked_fill(past.unsqueeze(-1), 0.0)


def _fill(shape: tuple[int, int], place: Tensor, values: Tensor, otherwise: float) -> Tensor:
    filled = torch.full((shape[0] * shape[1],), otherwise, dtype=values.dtype, device=values.device)
    filled[place] = values
    return filled.view(shape)


def _stack(reversed_steps: list[Tensor], like: Tensor) -> Tensor:
    """(R, T, ...) from the steps, last first; T = 0 where there are none."""
    if not reversed_steps:
        return like.new_empty(like.shape[0], 0)
    return torch.stack(reversed_steps[::-1], dim=1)
