"""Batched beam search over any decoder that has a step.

Every step, each live hypothesis is continued by its best tokens. Of a sentence's continuations the best
``beam_size`` by summed log-probability live on; an end of sentence that ranks among them (at or above the last
of them) finishes its hypothesis. Finished hypotheses are ordered by their penalised score.

The hypotheses of a sentence share its memory through ``memory_index``; the memory is neither tiled nor
reordered. A sentence whose n best are settled leaves the batch, and its rows cost nothing from then on. What a
sentence decodes to depends on its own rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnsearch.candidates import TopK, banned_ids, row_candidates
from rnnsearch.hypotheses import BeamSearchOutput, Cut, Ends, History
from rnnsearch.penalties import Scoring

__all__ = ["BeamSearchOutput", "beam_search"]

# A maximum length that follows the source never falls under this: a very short source may have a long target.
SHORTEST_MAX_LENGTH = 16

Step = Callable[[Tensor, Any, Any, Tensor], tuple["Tensor | TopK", Any, "Tensor | None"]]


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


class _Continuations(NamedTuple):
    """A sentence's best continuations and, for each of its rows, the end of sentence."""

    scores: Tensor  # (active, width') summed, best first
    parents: Tensor  # (active, width') row
    tokens: Tensor  # (active, width')
    token_scores: Tensor  # (active, width')
    end_token_scores: Tensor  # (active, width) -inf where the row has no end among its candidates
    end_scores: Tensor  # (active, width) summed; -inf where no end, or one that ranks below the beam


@torch.no_grad()
def beam_search(
    step: Step,
    state: Any,
    memory: Any,
    *,
    bos_id: int,
    eos_id: int,
    beam_size: int = 12,
    n_best: int = 1,
    max_length: int | None = None,
    max_length_factor: float = 3.0,
    min_length: int = 0,
    length_penalty: str = "none",
    alpha: float = 0.6,
    coverage_penalty: float = 0.0,
    ban_ids: Sequence[int] = (),
    no_repeat_ngram_size: int = 0,
    return_attn: bool = True,
) -> BeamSearchOutput:
    """The ``n_best`` best-scoring hypotheses of each of B sentences.

    All lengths, of results and in options, count the end of sentence.

    Args:
        step: ``step(tokens (N,), state, memory, memory_index (N,)) -> (log_probs, state, attn_weights (N, S))``.
            Row n belongs to sentence ``memory_index[n]``. ``log_probs`` is (N, V), or a function
            ``topk(k, banned_ids) -> (log_probs (N, k), token_ids (N, k))``, best first, that leaves out
            ``banned_ids`` (N, R) int64 (-1 for none), which may be None; where V is smaller it gives fewer
            columns. Log-probabilities are at most 0; -inf is never chosen. ``attn_weights`` may be None where
            neither ``return_attn`` nor ``coverage_penalty`` asks for it.
        state: a tensor whose dimension 0 is B, or a (nested) tuple of such.
        memory: handed to ``step`` as it is. ``max_length_factor`` and ``coverage_penalty`` read its ``memory``
            (B, S, M) and ``key_padding_mask``, which ``PreparedMemory`` has; nothing else does.
        beam_size: hypotheses kept for a sentence.
        n_best: hypotheses returned, at most ``beam_size``.
        max_length: tokens at most; None is ``max_length_factor`` times the sentence's source length and at
            least 16. A hypothesis that is cut there without an end has ``finished`` False and stands behind all
            that have one.
        min_length: tokens at least.
        length_penalty: a score is the summed log-probability divided by 1 (``"none"``), by the length
            (``"average"``) or by ((5 + length) / 6)^alpha (``"wu"``: Wu et al. 2016, arXiv:1609.08144, eq. 14).
        alpha: for ``"wu"``, at least 0.
        coverage_penalty: beta >= 0; the score gains beta * sum_j log(min(sum_t attn_weights_tj, 1)) over the
            real source positions j (the same equation).
        ban_ids: tokens never emitted. They keep their share of the probability.
        no_repeat_ngram_size: n > 0 lets no n-gram of tokens occur twice in a hypothesis.
        return_attn: also return every hypothesis' attention.

    Raises:
        ValueError: an option is out of range, or ``step`` returned a NaN or a wrong shape.
    """
    scoring = Scoring(length_penalty, alpha, coverage_penalty)
    _check_options(beam_size, n_best, min_length, max_length, max_length_factor, no_repeat_ngram_size)
    if eos_id in ban_ids:
        raise ValueError(f"`ban_ids` holds `eos_id` ({eos_id}): no hypothesis could end")
    first = _first_tensor(state)
    count, device = first.shape[0], first.device
    if not count:
        raise ValueError("`state` has no rows: there is no sentence to search for")
    padding = None
    if coverage_penalty or max_length is None:
        padding = _source_padding(memory, count)
    limits = _length_limits(max_length, max_length_factor, min_length, padding, count)
    bans = torch.tensor([*ban_ids, eos_id], dtype=torch.int64, device=device)
    sentences = torch.arange(count, device=device)
    live = _Live(
        tokens=torch.full((count,), bos_id, dtype=torch.int64, device=device),
        scores=torch.zeros(count, 1, device=device),
        sentences=sentences,
        memory_index=sentences,
        first_rows=sentences.unsqueeze(1),
        emitted=torch.empty(count, 0, dtype=torch.int64, device=device) if no_repeat_ngram_size else None,
        coverage=None,
        best_finished=torch.full((count, n_best), -math.inf, device=device),
        ceilings=scoring.ceilings(limits, device),
        limits=limits,
    )
    history = History(eos_id=eos_id, n_best=n_best, sentence_count=count, device=device)
    length = 0
    while live.limits:
        length += 1
        log_probs, state, attn_weights = step(live.tokens, state, memory, live.memory_index)
        _check_step(state, attn_weights, live.tokens.shape[0], bool(return_attn or coverage_penalty))
        banned = banned_ids(
            bans if length < min_length else bans[:-1], live.emitted, no_repeat_ngram_size, live.tokens.shape[0]
        )
        best = _continue(live, log_probs, banned, beam_size=beam_size, eos_id=eos_id)

        coverage = row_padding = None
        if coverage_penalty and attn_weights is not None:
            coverage = attn_weights.float() if live.coverage is None else live.coverage + attn_weights.float()
            row_padding = None if padding is None else padding.index_select(0, live.memory_index)
        end_scores = scoring(best.end_scores, length, coverage, row_padding)
        history.finish(Ends(live.sentences, end_scores, best.end_token_scores))
        best_finished = torch.cat([live.best_finished, end_scores], dim=1).topk(n_best).values

        # The n best are settled when no live hypothesis can still come before the n-th (Scoring.ceilings).
        leaving = best.scores[:, 0] * live.ceilings <= best_finished[:, -1]
        if length >= min(live.limits):
            at_limit = torch.tensor([limit <= length for limit in live.limits], device=device)
            rows = best.parents.view(-1)
            cut_scores = scoring(best.scores, length, _select(coverage, rows), _select(row_padding, rows))
            cut_scores = cut_scores.masked_fill(~at_limit.unsqueeze(1), -math.inf)
            history.cut(Cut(live.sentences, cut_scores, best.token_scores, best.parents, best.tokens, length))
            leaving = leaving | at_limit
        live, parents, token_scores = _advance(live, best, best_finished, leaving, coverage)
        history.advance(parents, live.tokens, token_scores, attn_weights if return_attn else None)
        state = _reorder(state, parents)
    return history.output()


def _continue(
    live: _Live, log_probs: Tensor | TopK, banned: Tensor | None, *, beam_size: int, eos_id: int
) -> _Continuations:
    active, width = live.scores.shape
    # beam_size + 1 candidates of a row are enough: one may be its end, and an end that ranks among the
    # sentence's best beam_size continuations has fewer than beam_size of its own row before it.
    row_log_probs, token_ids = row_candidates(log_probs, beam_size + 1, banned, active * width)
    columns = token_ids.shape[1]
    is_end = token_ids == eos_id
    candidates = (row_log_probs + live.scores.view(-1, 1)).masked_fill(is_end, -math.inf)
    scores, chosen = candidates.view(active, -1).topk(min(beam_size, width * columns))
    end_token_scores = torch.where(is_end, row_log_probs, -math.inf).amax(dim=1).view(active, width)
    # Where fewer than beam_size continuations exist, the last of `scores` is the -inf of an end's own column.
    end_scores = end_token_scores + live.scores
    end_scores = end_scores.masked_fill(end_scores < scores[:, -1:], -math.inf)
    return _Continuations(
        scores=scores,
        parents=chosen.div(columns, rounding_mode="floor") + live.first_rows,
        tokens=token_ids.view(active, -1).gather(1, chosen),
        token_scores=row_log_probs.view(active, -1).gather(1, chosen),
        end_token_scores=end_token_scores,
        end_scores=end_scores,
    )


def _advance(
    live: _Live, best: _Continuations, best_finished: Tensor, leaving: Tensor, coverage: Tensor | None
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
        coverage=_select(coverage, parents),
        best_finished=best_finished,
        ceilings=ceilings,
        limits=limits,
    )
    return advanced, parents, token_scores.reshape(-1)


def _check_options(
    beam_size: int, n_best: int, min_length: int, max_length: int | None, factor: float, ngram_size: int
) -> None:
    for name, value, least in (("beam_size", beam_size, 1), ("n_best", n_best, 1), ("min_length", min_length, 0)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}")
    if n_best > beam_size:
        raise ValueError(f"`n_best` must be at most `beam_size` = {beam_size}; got {n_best}")
    if max_length is not None and max_length < max(1, min_length):
        raise ValueError(f"`max_length` must be at least 1 and `min_length` = {min_length}; got {max_length}")
    if not (factor > 0 and math.isfinite(factor)):
        raise ValueError(f"`max_length_factor` must be finite and above 0; got {factor}")
    if ngram_size < 0:
        raise ValueError(f"`no_repeat_ngram_size` must be at least 0; got {ngram_size}")


def _check_step(state: Any, attn_weights: Tensor | None, rows: int, attn_needed: bool) -> None:
    if attn_weights is None:
        if attn_needed:
            raise ValueError("`step` returned no attn_weights, which `return_attn` and `coverage_penalty` need")
    elif attn_weights.dim() != 2 or attn_weights.shape[0] != rows:
        raise ValueError(f"`attn_weights` of `step` must be (N, S) = ({rows}, S); got {tuple(attn_weights.shape)}")
    if _first_tensor(state).shape[0] != rows:
        raise ValueError(f"`state` of `step` must have N = {rows} rows; got {tuple(_first_tensor(state).shape)}")


def _source_padding(memory: Any, count: int) -> Tensor:
    """(B, S) bool, True where there is no source."""
    values = getattr(memory, "memory", None)
    if not isinstance(values, Tensor) or not hasattr(memory, "key_padding_mask"):
        raise ValueError(
            "the source lengths, which `max_length` = None and `coverage_penalty` need, are read from `memory.memory` "
            f"(B, S, M) and `memory.key_padding_mask`; {type(memory).__name__} has none"
        )
    if len(values) != count:
        raise ValueError(f"the memory is of {len(values)} sentences and `state` of {count}")
    mask: Tensor | None = memory.key_padding_mask
    return values.new_zeros(values.shape[:2], dtype=torch.bool) if mask is None else mask


def _length_limits(
    max_length: int | None, factor: float, min_length: int, padding: Tensor | None, count: int
) -> list[int]:
    if max_length is not None:
        return [max_length] * count
    assert padding is not None
    lengths = (~padding).sum(dim=1).tolist()
    return [max(math.ceil(factor * length), SHORTEST_MAX_LENGTH, min_length) for length in lengths]


def _first_tensor(state: Any) -> Tensor:
    if isinstance(state, Tensor):
        return state
    if isinstance(state, tuple) and state:
        return _first_tensor(state[0])
    raise ValueError(f"`state` must be a tensor or a non-empty tuple of tensors; got {type(state).__name__}")


def _reorder(state: Any, rows: Tensor) -> Any:
    if isinstance(state, tuple):
        parts = [_reorder(part, rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state.index_select(0, rows)


def _select(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values.index_select(0, rows)
