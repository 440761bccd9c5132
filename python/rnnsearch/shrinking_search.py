"""The search in which a sentence whose n best are settled leaves the batch: its rows cost nothing from then on.

For devices whose numbers the host can look at for nothing: it does so in every step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnsearch.candidates import banned_ids
from rnnsearch.continuations import Continuations, Search, check_step, continuations, first_tensor, reorder, select
from rnnsearch.hypotheses import BeamSearchOutput, Cut, Ends, History


class _Live(NamedTuple):
    """The live hypotheses. Row = (place of the sentence among the active ones) * width + rank in its beam."""

    tokens: Tensor  # (N,) the last token of each row
    scores: Tensor  # (active, width) summed log-probabilities, float32, best first
    sentences: Tensor  # (active,) which sentence
    memory_index: Tensor  # (N,) the same for each row
    first_rows: Tensor  # (active, 1) where each sentence's rows begin
    emitted: Tensor | None  # (N, steps so far) where n-grams are watched
    coverage: Tensor | None  # (N, S) attention summed so far, where it is penalised
    best_finished: Tensor  # (active, n_best) penalised scores, best first
    ceilings: Tensor  # (active,) see Scoring.ceilings
    limits: list[int]  # tokens at most, for each active sentence


def shrinking_search(search: Search, state: Any) -> BeamSearchOutput:
    """Run ``search`` from ``state``, whose dimension 0 is B."""
    scoring, limits = search.scoring, search.limits
    count, device = len(limits), first_tensor(state).device
    bans = torch.tensor([*search.ban_ids, search.eos_id], dtype=torch.int64, device=device)
    sentences = torch.arange(count, device=device)
    live = _Live(
        tokens=torch.full((count,), search.bos_id, dtype=torch.int64, device=device),
        scores=torch.zeros(count, 1, device=device),
        sentences=sentences,
        memory_index=sentences,
        first_rows=sentences.unsqueeze(1),
        emitted=torch.empty(count, 0, dtype=torch.int64, device=device) if search.ngram_size else None,
        coverage=None,
        best_finished=torch.full((count, search.n_best), -math.inf, device=device),
        ceilings=scoring.ceilings(limits, device),
        limits=limits,
    )
    history = History(eos_id=search.eos_id, n_best=search.n_best, sentence_count=count, device=device)
    length = 0
    while live.limits:
        length += 1
        log_probs, state, attn_weights = search.step(live.tokens, state, search.memory, live.memory_index)
        check_step(state, attn_weights, live.tokens.shape[0], search.attn_needed)
        banned = banned_ids(
            bans if length < search.min_length else bans[:-1], live.emitted, search.ngram_size, live.tokens.shape[0]
        )
        best = continuations(live.scores, live.first_rows, log_probs, banned, search)

        coverage = row_padding = None
        if scoring.coverage_penalty and attn_weights is not None:
            coverage = attn_weights.float() if live.coverage is None else live.coverage + attn_weights.float()
            row_padding = select(search.padding, live.memory_index)
        end_scores = scoring(best.end_scores, scoring.weight(length), coverage, row_padding)
        history.finish(Ends(live.sentences, end_scores, best.end_token_scores))
        best_finished = torch.cat([live.best_finished, end_scores], dim=1).topk(search.n_best).values

        # The n best are settled when no live hypothesis can still come before the n-th (Scoring.ceilings).
        leaving = best.scores[:, 0] * live.ceilings <= best_finished[:, -1]
        if length >= min(live.limits):
            at_limit = torch.tensor([limit <= length for limit in live.limits], device=device)
            rows = best.parents.view(-1)
            cut_scores = scoring(best.scores, scoring.weight(length), select(coverage, rows), select(row_padding, rows))
            cut_scores = cut_scores.masked_fill(~at_limit.unsqueeze(1), -math.inf)
            history.cut(Cut(live.sentences, cut_scores, best.token_scores, best.parents, best.tokens, length))
            leaving = leaving | at_limit
        live, parents, token_scores = _advance(live, best, best_finished, leaving, coverage)
        history.advance(parents, live.tokens, token_scores, attn_weights if search.return_attn else None)
        state = reorder(state, parents)
    return history.output()


def _advance(
    live: _Live, best: Continuations, best_finished: Tensor, leaving: Tensor, coverage: Tensor | None
) -> tuple[_Live, Tensor, Tensor]:
    """The continuations become the live hypotheses, without the sentences that leave; parents, token scores."""
    scores, parents, tokens, token_scores = best.scores, best.parents, best.tokens, best.token_scores
    sentences, memory_index, first_rows = live.sentences, live.memory_index, live.first_rows
    ceilings, limits = live.ceilings, live.limits
    changed = scores.shape != live.scores.shape
    if leaving.any():  # the one place in a step where the host waits for the device
        staying = (~leaving).nonzero().squeeze(1)
        scores, parents, tokens, token_scores = (part[staying] for part in (scores, parents, tokens, token_scores))
        sentences, ceilings, best_finished = sentences[staying], ceilings[staying], best_finished[staying]
        limits = [limits[place] for place in staying.tolist()]
        changed = True
    if changed:
        active, width = scores.shape
        memory_index = sentences.repeat_interleave(width)
        first_rows = torch.arange(0, active * width, width, device=scores.device).unsqueeze(1)
    parents, tokens = parents.reshape(-1), tokens.reshape(-1)
    emitted = live.emitted
    if emitted is not None:
        emitted = torch.cat([emitted.index_select(0, parents), tokens.unsqueeze(1)], dim=1)
    advanced = _Live(
        tokens=tokens,
        scores=scores,
        sentences=sentences,
        memory_index=memory_index,
        first_rows=first_rows,
        emitted=emitted,
        coverage=select(coverage, parents),
        best_finished=best_finished,
        ceilings=ceilings,
        limits=limits,
    )
    return advanced, parents, token_scores.reshape(-1)
