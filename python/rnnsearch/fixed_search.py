"""The search whose steps have one shape and never wait for the host: made for a GPU, right on every device.

Every sentence keeps ``beam_size`` rows from first to last. Everything that a step changes lies in buffers that it
changes in place, so that a step is the same work on the same memory each time and can be replayed as a CUDA graph.
What it leaves for the record (back-pointers, tokens, attention) goes to a ring of ``CHECK_EVERY`` steps, which the
host sets aside when it is full; then, and only then, does it ask whether all sentences are settled. A step after
that changes nothing that counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnsearch.candidates import completing_ids
from rnnsearch.continuations import Continuations, Search, check_step, continuations, first_tensor, map_state, reorder
from rnnsearch.hypotheses import BeamSearchOutput, Closed, History
from rnnsearch.replay import Capture, Flag, Replayed, Work, cuda_capture, device_flag

# The host is told of the end up to so many steps late, and for each check it makes a few small copies.
CHECK_EVERY = 8


class FixedSteps:
    """The buffers of a search, and the step that changes them. K rows a sentence, best first: row = b * K + rank.

    They are made for ``count`` sentences and lengths up to ``longest``, the search's own by default. Where those are
    more, the other sentences are settled from the start and the other lengths are reached by none.
    """

    def __init__(
        self, search: Search, state: Any, ring: int, count: int | None = None, longest: int | None = None
    ) -> None:
        count, longest = count or len(search.limits), longest or max(search.limits)
        width = search.beam_size
        device = first_tensor(state).device
        rows, n_best = count * width, search.n_best

        def full(value: float, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        # What is the same in every search.
        sentences = torch.arange(count, device=device)
        self.memory_index = sentences.unsqueeze(1).expand(count, width).reshape(-1)
        self.first_rows = (sentences * width).unsqueeze(1)
        self.rows = torch.arange(rows, device=device).view(count, width)
        weights = [search.scoring.weight(length) for length in range(1, longest + 1)]
        self.weights = torch.tensor(weights, dtype=torch.float32, device=device)
        self.bans = torch.tensor(search.ban_ids, dtype=torch.int64, device=device).expand(rows, -1)
        # What no step changes.
        self.limits = full(1, count)
        self.ceilings = full(1.0, count, dtype=torch.float32)
        padding = search.padding
        self.row_padding = None if padding is None else full(True, rows, padding.shape[1], dtype=torch.bool)
        # What every step changes.
        self.steps = full(0, 1)  # that were made
        self.tokens = full(0, rows)
        self.scores = full(0.0, count, width, dtype=torch.float32)
        self.state = map_state(lambda part: part.new_empty(rows, *part.shape[1:]), state)
        self.done = full(False, count, dtype=torch.bool)
        self.emitted = full(-1, rows, longest) if search.ngram_size else None
        self.coverage: Tensor | None = None  # (N, S), made when the first step says how wide
        self.ring_parents, self.ring_tokens = full(0, ring, rows), full(0, ring, rows)
        self.ring_scores = full(0.0, ring, rows, dtype=torch.float32)
        self.ring_attn: Tensor | None = None  # (ring, N, S)
        # The n best ends of sentence so far, best first, and what a sentence had alive when it reached its limit.
        self.best, self.cut = self._no_hypotheses(n_best, True, full), self._no_hypotheses(width, False, full)
        self.begin(search, state)

    def _no_hypotheses(self, width: int, finished: bool, full: Callable[..., Tensor]) -> Closed:
        count = len(self.limits)
        sentences = torch.arange(count, device=self.limits.device).unsqueeze(1).expand(count, width)
        return Closed(
            scores=full(0.0, count, width, dtype=torch.float32),
            sentences=sentences,
            rows=full(0, count, width),
            tokens=full(0, count, width),
            token_scores=full(0.0, count, width, dtype=torch.float32),
            lengths=full(0, count, width),
            finished=full(finished, count, width, dtype=torch.bool),
        )

    def begin(self, search: Search, state: Any) -> None:
        """Set the buffers to the start of ``search``, which is like the one that they were made for."""
        self.search, count = search, len(search.limits)
        rows = count * search.beam_size
        self.limits[:count] = torch.tensor(search.limits, device=self.limits.device)
        self.ceilings[:count] = search.scoring.ceilings(search.limits, self.limits.device)
        for values in (self.limits, self.ceilings):
            values[count:] = 1
        if self.row_padding is not None and search.padding is not None:
            self.row_padding[:rows] = search.padding.index_select(0, self.memory_index[:rows])
        for buffer, value in (
            (self.steps, 0),
            (self.tokens, search.bos_id),
            (self.scores, -math.inf),
            (self.done, True),
            (self.coverage, 0.0),
        ):
            if buffer is not None:
                buffer.fill_(value)
        self.scores[:, 0] = 0.0  # at first all rows of a sentence are alike, and one is alive
        self.done[:count] = False
        _copy_rows(self.state, state, self.memory_index[:rows])
        for hypotheses in (self.best, self.cut):
            hypotheses.scores.fill_(-math.inf)
            hypotheses.tokens.fill_(search.eos_id)
            for buffer in (hypotheses.rows, hypotheses.token_scores, hypotheses.lengths):
                buffer.zero_()

    def __call__(self) -> None:
        """One step, in place. The first one makes the buffers whose shape it tells."""
        search, scoring = self.search, self.search.scoring
        length = self.steps + 1  # (1,)
        log_probs, state, attn_weights = search.step(self.tokens, self.state, search.memory, self.memory_index)
        check_step(state, attn_weights, self.tokens.shape[0], search.attn_needed)
        best = continuations(self.scores, self.first_rows, log_probs, self._banned(length), search)

        coverage = None
        if scoring.coverage_penalty and attn_weights is not None:
            coverage = attn_weights.float() if self.coverage is None else self.coverage + attn_weights.float()
        weight = self.weights.index_select(0, self.steps.clamp(max=len(self.weights) - 1))
        end_scores = scoring(best.end_scores, weight, coverage, self.row_padding)
        self._finish(best, end_scores.masked_fill(self.done.unsqueeze(1), -math.inf), length)

        # As in the shrinking search: settled, or at the limit.
        settled = best.scores[:, 0] * self.ceilings <= self.best.scores[:, -1]
        at_limit = self.limits <= length
        self._cut(best, coverage, weight, at_limit & ~self.done, length)
        self.done |= settled | at_limit
        self._advance(best, state, coverage, attn_weights if search.return_attn else None, length)

    def _banned(self, length: Tensor) -> Tensor | None:
        search = self.search
        parts = [self.bans] if search.ban_ids else []
        if search.min_length > 1:
            end = torch.full_like(self.tokens, search.eos_id)
            parts.append(torch.where(length < search.min_length, end, -1).unsqueeze(1))
        if self.emitted is not None and self.emitted.shape[1] >= search.ngram_size:
            parts.append(completing_ids(self.emitted, search.ngram_size, self.steps))
        return torch.cat(parts, dim=1) if parts else None

    def _finish(self, best: Continuations, end_scores: Tensor, length: Tensor) -> None:
        """Merge a step's ends into the n best: by score, then first found."""
        kept = self.best
        scores = torch.cat([kept.scores, end_scores], dim=1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        kept.scores.copy_(scores[:, : self.search.n_best])
        order = order[:, : self.search.n_best]
        for buffer, ends in (
            (kept.rows, self.rows),
            (kept.token_scores, best.end_token_scores),
            (kept.lengths, length.expand_as(self.rows)),
        ):
            torch.gather(torch.cat([buffer, ends], dim=1), 1, order, out=buffer)

    def _cut(
        self, best: Continuations, coverage: Tensor | None, weight: Tensor, cut_now: Tensor, length: Tensor
    ) -> None:
        rows, padding = best.parents.view(-1), self.row_padding
        scores = self.search.scoring(
            best.scores,
            weight,
            None if coverage is None else coverage.index_select(0, rows),
            None if padding is None else padding.index_select(0, rows),
        )
        now = cut_now.unsqueeze(1)
        for buffer, values in (
            (self.cut.scores, scores),
            (self.cut.rows, best.parents),
            (self.cut.tokens, best.tokens),
            (self.cut.token_scores, best.token_scores),
            (self.cut.lengths, length.expand_as(best.tokens)),
        ):
            torch.where(now, values, buffer, out=buffer)

    def _advance(
        self, best: Continuations, state: Any, coverage: Tensor | None, attn_weights: Tensor | None, length: Tensor
    ) -> None:
        parents, tokens = best.parents.view(-1), best.tokens.reshape(-1)
        if attn_weights is not None and self.ring_attn is None:
            self.ring_attn = attn_weights.new_zeros(len(self.ring_parents), *attn_weights.shape)
        slot = self.steps % len(self.ring_parents)
        for ring, values in (
            (self.ring_parents, parents),
            (self.ring_tokens, tokens),
            (self.ring_scores, best.token_scores.reshape(-1)),
            (self.ring_attn, attn_weights),
        ):
            if ring is not None and values is not None:
                ring.index_copy_(0, slot, values.unsqueeze(0))
        if self.emitted is not None:
            here = torch.arange(self.emitted.shape[1], device=parents.device) == self.steps
            self.emitted.copy_(torch.where(here, tokens.unsqueeze(1), self.emitted.index_select(0, parents)))
        if coverage is not None:
            coverage = coverage.index_select(0, parents)
            self.coverage = coverage if self.coverage is None else self.coverage.copy_(coverage)
        self.state = _stored(self.state, reorder(state, parents))
        self.tokens.copy_(tokens)
        self.scores.copy_(best.scores)
        self.steps.copy_(length)

    def keep(self, history: History, count: int) -> None:
        """Set the last ``count`` steps aside, which the ring holds from its beginning."""
        rows = len(self.search.limits) * self.search.beam_size
        attn = None if self.ring_attn is None else self.ring_attn[:count, :rows, : self.search.positions].clone()
        parents, tokens, scores = (
            ring[:count, :rows].clone() for ring in (self.ring_parents, self.ring_tokens, self.ring_scores)
        )
        for step in range(count):
            history.advance(parents[step], tokens[step], scores[step], None if attn is None else attn[step])

    def close(self, history: History) -> None:
        """Hand over the hypotheses found; the only place that reads them."""
        for found in (self.best, self.cut):
            closed = Closed(*(column.reshape(-1) for column in found))
            kept = closed.scores != -math.inf
            history.close(Closed(*(column[kept] for column in closed)))


def run(search: Search, steps: FixedSteps, step: Work, flag: Flag) -> BeamSearchOutput:
    """Make ``step``, which is one of ``steps``, until ``flag`` says that all sentences are settled."""
    ring, longest = len(steps.ring_tokens), max(search.limits)
    device, count = steps.tokens.device, len(search.limits)
    history = History(eos_id=search.eos_id, n_best=search.n_best, sentence_count=count, device=device)
    for length in range(1, longest + 1):
        step()
        if length % ring == 0 or length == longest:
            steps.keep(history, (length - 1) % ring + 1)
            if length < longest and flag(steps.done):
                break
    steps.close(history)
    return history.output()


def fixed_search(
    search: Search,
    state: Any,
    *,
    graph: bool,
    check_every: int = CHECK_EVERY,
    capture: Capture = cuda_capture,
    flag: Callable[[torch.device], Flag] = device_flag,
) -> BeamSearchOutput:
    """Run ``search`` from ``state``, whose dimension 0 is B; ``graph`` replays what ``capture`` makes of a step."""
    steps = FixedSteps(search, state, min(check_every, max(search.limits)))
    step = Replayed(steps, capture) if graph else steps
    return run(search, steps, step, flag(first_tensor(state).device))


def _copy_rows(buffer: Any, values: Any, rows: Tensor) -> None:
    """``values`` at ``rows`` into the first rows of ``buffer``, zeros into the others."""
    if isinstance(buffer, tuple):
        for part, value in zip(buffer, values, strict=True):
            _copy_rows(part, value, rows)
        return
    buffer[: len(rows)] = values.index_select(0, rows)
    buffer[len(rows) :] = 0


def _stored(buffer: Any, values: Any) -> Any:
    """``values`` in the memory of ``buffer``; where the first step changed shape or dtype, ``values``."""
    if isinstance(buffer, tuple):
        parts = [_stored(part, value) for part, value in zip(buffer, values, strict=True)]
        return type(buffer)(*parts) if hasattr(buffer, "_fields") else tuple(parts)
    return buffer.copy_(values) if (buffer.shape, buffer.dtype) == (values.shape, values.dtype) else values
