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


class Ends(NamedTuple):
    """The ends of sentence that the rows of one step offer: `width` rows for each active sentence."""

    sentences: Tensor  # (active,)
    scores: Tensor  # (active, width) under the penalties; -inf is no hypothesis
    token_scores: Tensor  # (active, width) of the end


class Cut(NamedTuple):
    """Continuations that reached the greatest length at one step."""

    sentences: Tensor  # (active,)
    scores: Tensor  # (active, width) under the penalties; -inf is no hypothesis
    token_scores: Tensor  # (active, width) of their last token
    rows: Tensor  # (active, width) the row of the step that they continue
    tokens: Tensor  # (active, width) their last token
    length: int


class Closed(NamedTuple):
    """Hypotheses that grow no more, (R,) each."""

    scores: Tensor
    sentences: Tensor
    rows: Tensor  # the row of step `lengths` that they end at
    tokens: Tensor  # their last token
    token_scores: Tensor
    lengths: Tensor
    finished: Tensor


class History:
    """Filled step by step with references alone; everything is worked out in :meth:`output`."""

    def __init__(self, *, eos_id: int, n_best: int, sentence_count: int, device: torch.device) -> None:
        self.eos_id, self.n_best, self.sentence_count, self.device = eos_id, n_best, sentence_count, device
        self._steps: list[_Step] = []
        self._ends: list[Ends] = []
        self._cuts: list[Cut] = []
        self._closed: list[Closed] = []

    def finish(self, ends: Ends) -> None:
        self._ends.append(ends)

    def cut(self, cut: Cut) -> None:
        self._cuts.append(cut)

    def close(self, closed: Closed) -> None:
        self._closed.append(closed)

    def advance(self, parents: Tensor, tokens: Tensor, token_scores: Tensor, attn_weights: Tensor | None) -> None:
        self._steps.append(_Step(parents, tokens, token_scores, attn_weights))

    def output(self) -> BeamSearchOutput:
        best, place = self._best()
        shape = (self.sentence_count, self.n_best)
        lengths = _fill(shape, place, best.lengths, 0)
        tokens, token_scores, attn_weights = self._trace(
            lengths=lengths.view(-1),
            rows=_fill(shape, place, best.rows, 0).view(-1),
            last_tokens=_fill(shape, place, best.tokens, self.eos_id).view(-1),
            last_scores=_fill(shape, place, best.token_scores, 0.0).view(-1),
        )
        return BeamSearchOutput(
            tokens=tokens.view(*shape, -1),
            scores=_fill(shape, place, best.scores, -math.inf),
            lengths=lengths,
            token_scores=token_scores.view(*shape, -1),
            finished=_fill(shape, place, best.finished, False),
            attn_weights=None if attn_weights is None else attn_weights.view(*shape, *attn_weights.shape[1:]),
        )

    def _best(self) -> tuple[Closed, Tensor]:
        """The n best closed hypotheses of every sentence, and where each stands in (B * n_best)."""
        groups = [*self._closed, *(self._unfinished(cut) for cut in self._cuts)]
        if self._ends:
            groups.insert(0, self._finished())
        closed = Closed(*(torch.cat(column) for column in zip(*groups, strict=True)))
        if closed.scores.isnan().any():
            sentence = int(closed.sentences[closed.scores.isnan()][0])
            raise ValueError(f"`step` returned a NaN log-probability for sentence {sentence}")
        # By sentence, then finished before cut, then best score, then first found: stable sorts, least first.
        order = closed.scores.argsort(descending=True, stable=True)
        order = order[closed.finished[order].logical_not().to(torch.int8).argsort(stable=True)]
        order = order[closed.sentences[order].argsort(stable=True)]
        sentences = closed.sentences[order]
        counts = torch.bincount(sentences, minlength=self.sentence_count)
        rank = torch.arange(order.numel(), device=self.device) - (counts.cumsum(0) - counts)[sentences]
        kept = rank < self.n_best
        return Closed(*(column[order[kept]] for column in closed)), sentences[kept] * self.n_best + rank[kept]

    def _finished(self) -> Closed:
        """Every end of every step, without a Python step for each."""
        scores = torch.cat([ends.scores.view(-1) for ends in self._ends])
        kept = (scores != -math.inf).nonzero().squeeze(1)
        counts, widths, actives = (
            torch.tensor(values, device=self.device)
            for values in zip(
                *((e.scores.numel(), e.scores.shape[1], e.scores.shape[0]) for e in self._ends), strict=True
            )
        )
        step = torch.bucketize(kept, counts.cumsum(0), right=True)
        rows = kept - (counts.cumsum(0) - counts)[step]
        places = (actives.cumsum(0) - actives)[step] + rows // widths[step]
        return Closed(
            scores=scores[kept],
            sentences=torch.cat([ends.sentences for ends in self._ends])[places],
            rows=rows,
            tokens=torch.full_like(rows, self.eos_id),
            token_scores=torch.cat([ends.token_scores.view(-1) for ends in self._ends])[kept],
            lengths=step + 1,
            finished=torch.ones_like(rows, dtype=torch.bool),
        )

    def _unfinished(self, cut: Cut) -> Closed:
        kept = cut.scores != -math.inf
        rows = cut.rows[kept]
        return Closed(
            scores=cut.scores[kept],
            sentences=cut.sentences.unsqueeze(1).expand_as(kept)[kept],
            rows=rows,
            tokens=cut.tokens[kept],
            token_scores=cut.token_scores[kept],
            lengths=torch.full_like(rows, cut.length),
            finished=torch.zeros_like(rows, dtype=torch.bool),
        )

    def _trace(
        self, *, lengths: Tensor, rows: Tensor, last_tokens: Tensor, last_scores: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Follow the back-pointers of R hypotheses from their last step to their first."""
        count = int(lengths.max())
        steps = self._steps[:count]
        if not count:
            empty, first = last_scores.new_empty(len(rows), 0), self._steps[0].attn_weights
            return empty.long(), empty, None if first is None else first.new_empty(len(rows), 0, first.shape[1])
        last = lengths == torch.arange(1, count + 1, device=self.device).unsqueeze(1)  # (T, R)
        # Where a hypothesis is not yet entered it follows row 0 of any step; that is masked below.
        row = torch.zeros_like(rows)
        following, attn_weights = [], []
        for step, entered in zip(reversed(steps), reversed(last), strict=True):
            following.append(row)  # its row of the next step, which `tokens` and `parents` are indexed by
            row = torch.where(entered, rows, step.parents[row] if step.parents.numel() else row)
            if step.attn_weights is not None:
                attn_weights.append(step.attn_weights.index_select(0, row))
        sizes = torch.tensor([len(step.tokens) for step in steps], device=self.device)
        index = torch.stack(following[::-1]) + (sizes.cumsum(0) - sizes).unsqueeze(1)
        # One more place, since the last step of a search has no next row for the index to point at.
        all_tokens = torch.cat([*(step.tokens for step in steps), last_tokens[:1]])
        all_scores = torch.cat([*(step.token_scores for step in steps), last_scores[:1]])
        past = (torch.arange(count, device=self.device) >= lengths.unsqueeze(1)).view(len(rows), count)
        tokens = torch.where(last, last_tokens, all_tokens[index]).t().masked_fill(past, self.eos_id)
        token_scores = torch.where(last, last_scores, all_scores[index]).t().masked_fill(past, 0.0)
        if not attn_weights:
            return tokens, token_scores, None
        aligned = torch.stack(attn_weights[::-1], dim=1).masked_fill(past.unsqueeze(-1), 0.0)
        return tokens, token_scores, aligned


def _fill(shape: tuple[int, int], place: Tensor, values: Tensor, otherwise: float) -> Tensor:
    filled = torch.full((shape[0] * shape[1],), otherwise, dtype=values.dtype, device=values.device)
    filled[place] = values
    return filled.view(shape)
