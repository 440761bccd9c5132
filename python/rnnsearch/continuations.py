"""What every beam search is asked for, and what it does with one step's log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnsearch.candidates import TopK, row_candidates
from rnnsearch.penalties import Scoring

Step = Callable[[Tensor, Any, Any, Tensor], tuple["Tensor | TopK", Any, "Tensor | None"]]


@dataclass(frozen=True)
class Search:
    """One search: its step, what that reads, and the options of :func:`rnnsearch.beam_search.beam_search`."""

    step: Step
    memory: Any
    bos_id: int
    eos_id: int
    beam_size: int
    n_best: int
    min_length: int
    scoring: Scoring
    ban_ids: tuple[int, ...]
    ngram_size: int
    return_attn: bool
    limits: list[int]  # tokens at most, for each sentence
    padding: Tensor | None  # (B, S) True where there is no source; None where nobody asks
    positions: int | None = None  # S, where ``memory`` was made longer for the step; None where it was not

    @property
    def attn_needed(self) -> bool:
        return bool(self.return_attn or self.scoring.coverage_penalty)


class Continuations(NamedTuple):
    """A sentence's best continuations and, for each of its rows, the end of sentence."""

    scores: Tensor  # (active, width') summed, best first
    parents: Tensor  # (active, width') row
    tokens: Tensor  # (active, width')
    token_scores: Tensor  # (active, width')
    end_token_scores: Tensor  # (active, width) -inf where the row has no end among its candidates
    end_scores: Tensor  # (active, width) summed; -inf where no end, or one that ranks below the beam


def continuations(
    live_scores: Tensor, first_rows: Tensor, log_probs: Tensor | TopK, banned: Tensor | None, search: Search
) -> Continuations:
    """From live hypotheses of summed scores (active, width), whose sentences' rows begin at (active, 1)."""
    active, width = live_scores.shape
    beam_size = search.beam_size
    # beam_size + 1 candidates of a row are enough: one may be its end, and an end that ranks among the
    # sentence's best beam_size continuations has fewer than beam_size of its own row before it.
    row_log_probs, token_ids = row_candidates(log_probs, beam_size + 1, banned, active * width)
    columns = token_ids.shape[1]
    is_end = token_ids == search.eos_id
    candidates = (row_log_probs + live_scores.view(-1, 1)).masked_fill(is_end, -math.inf)
    scores, chosen = candidates.view(active, -1).topk(min(beam_size, width * columns))
    end_token_scores = torch.where(is_end, row_log_probs, -math.inf).amax(dim=1).view(active, width)
    # Where fewer than beam_size continuations exist, the last of `scores` is the -inf of an end's own column.
    end_scores = end_token_scores + live_scores
    end_scores = end_scores.masked_fill(end_scores < scores[:, -1:], -math.inf)
    return Continuations(
        scores=scores,
        parents=chosen.div(columns, rounding_mode="floor") + first_rows,
        tokens=token_ids.view(active, -1).gather(1, chosen),
        token_scores=row_log_probs.view(active, -1).gather(1, chosen),
        end_token_scores=end_token_scores,
        end_scores=end_scores,
    )


def check_step(state: Any, attn_weights: Tensor | None, rows: int, attn_needed: bool) -> None:
    if attn_weights is None:
        if attn_needed:
            raise ValueError("`step` returned no attn_weights, which `return_attn` and `coverage_penalty` need")
    elif attn_weights.dim() != 2 or attn_weights.shape[0] != rows:
        raise ValueError(f"`attn_weights` of `step` must be (N, S) = ({rows}, S); got {tuple(attn_weights.shape)}")
    if first_tensor(state).shape[0] != rows:
        raise ValueError(f"`state` of `step` must have N = {rows} rows; got {tuple(first_tensor(state).shape)}")


def first_tensor(state: Any) -> Tensor:
    if isinstance(state, Tensor):
        return state
    if isinstance(state, tuple) and state:
        return first_tensor(state[0])
    raise ValueError(f"`state` must be a tensor or a non-empty tuple of tensors; got {type(state).__name__}")


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The same (nested) tuple of what ``function`` makes of each tensor."""
    if isinstance(state, tuple):
        parts = [map_state(function, part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return function(state)


def reorder(state: Any, rows: Tensor) -> Any:
    return map_state(lambda part: part.index_select(0, rows), state)


def select(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values.index_select(0, rows)
