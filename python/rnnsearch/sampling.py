"""Translations drawn from the model's distribution instead of searched for.

Token by token, y_t is drawn from p(y)^(1/temperature) over the ``top_k`` most probable tokens that are not banned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnsearch.beam_search import check_lengths, length_limits, source_padding
from rnnsearch.candidates import TopK, banned_ids, row_candidates, without_banned
from rnnsearch.continuations import Step, check_step, first_tensor, map_state, reorder
from rnnsearch.hypotheses import BeamSearchOutput
from rnnsearch.penalties import Scoring

# More than any vocabulary has: the step gives what there is.
EVERYTHING = 2**31 - 1


@torch.no_grad()
def sample(
    step: Step,
    state: Any,
    memory: Any,
    *,
    bos_id: int,
    eos_id: int,
    seeds: Sequence[int],
    n_best: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    max_length: int | None = None,
    max_length_factor: float = 3.0,
    min_length: int = 0,
    length_penalty: str = "none",
    alpha: float = 0.6,
    ban_ids: Sequence[int] = (),
    no_repeat_ngram_size: int = 0,
    return_attn: bool = True,
) -> BeamSearchOutput:
    """``n_best`` independent samples of each of B sentences, in the order in which they were drawn.

    Scores and token scores are the model's own log-probabilities, without temperature or ``top_k``. One uniform number
    decides a token, taken from a sentence's own seed: its samples are the same alone and in any batch.

    Args:
        step, state, memory, and what is not named here: as in :func:`rnnsearch.beam_search.beam_search`.
        seeds: one for each sentence.
        temperature: above 0; below 1 favours the probable tokens, above 1 the others.
        top_k: draw among the so many most probable tokens; 0 is all of them.

    Raises:
        ValueError: an option is out of range, ``step`` returned a NaN or a wrong shape, or every token is banned.
    """
    scoring = Scoring(length_penalty, alpha, coverage_penalty=0.0)
    check_lengths(min_length, max_length, max_length_factor, no_repeat_ngram_size)
    for name, value, least in (("n_best", n_best, 1), ("top_k", top_k, 0)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"`temperature` must be finite and above 0; got {temperature}")
    if eos_id in ban_ids:
        raise ValueError(f"`ban_ids` holds `eos_id` ({eos_id}): no hypothesis could end")
    first = first_tensor(state)
    count, device = first.shape[0], first.device
    if len(seeds) != count:
        raise ValueError(f"`seeds` must be one for each of {count} sentences; got {len(seeds)}")
    padding = source_padding(memory, count) if max_length is None else None
    limits = length_limits(max_length, max_length_factor, min_length, padding, count)
    longest, total = max(limits), count * n_best
    uniform = _uniform(seeds, n_best, limits).to(device)  # (total, longest)
    bans = torch.tensor([*ban_ids, eos_id], dtype=torch.int64, device=device)

    # What is drawn, for all hypotheses; below, `rows` are those that go on.
    tokens = torch.full((total, longest), eos_id, dtype=torch.int64, device=device)
    token_scores = torch.zeros(total, longest, device=device)
    lengths = torch.tensor(limits, device=device).repeat_interleave(n_best)
    finished = torch.zeros(total, dtype=torch.bool, device=device)
    attn: list[Tensor] = []

    rows = torch.arange(total, device=device)
    memory_index = rows.div(n_best, rounding_mode="floor")
    state = map_state(lambda part: part.repeat_interleave(n_best, dim=0), state)
    last = torch.full((total,), bos_id, dtype=torch.int64, device=device)
    for length in range(1, longest + 1):
        log_probs, state, attn_weights = step(last, state, memory, memory_index)
        check_step(state, attn_weights, len(rows), return_attn)
        emitted = tokens.index_select(0, rows)[:, : length - 1] if no_repeat_ngram_size else None
        constant = bans if length < min_length else bans[:-1]
        banned = banned_ids(constant, emitted, no_repeat_ngram_size, len(rows))
        values, ids = _candidates(log_probs, top_k, banned, len(rows))
        chosen = _draw(values, uniform[rows, length - 1], temperature)
        last = ids.gather(1, chosen).squeeze(1)
        tokens[rows, length - 1] = last
        token_scores[rows, length - 1] = values.gather(1, chosen).squeeze(1)
        if return_attn and attn_weights is not None:
            whole = attn_weights.new_zeros(total, attn_weights.shape[1])
            attn.append(whole.index_copy_(0, rows, attn_weights))
        ended = last == eos_id
        finished[rows] = ended
        lengths[rows] = torch.where(ended, length, lengths[rows])
        staying = (~ended & (length < lengths[rows])).nonzero().squeeze(1)
        if not len(staying):
            break
        if len(staying) < len(rows):
            rows, memory_index, last = rows[staying], memory_index[staying], last[staying]
            state = reorder(state, staying)

    drawn = int(lengths.max())
    weights = torch.tensor([scoring.weight(length) for length in range(1, drawn + 1)], device=device)
    sums = token_scores.sum(dim=1)
    shape = (count, n_best)
    return BeamSearchOutput(
        tokens=tokens[:, :drawn].reshape(*shape, drawn),
        scores=scoring(sums, weights[lengths - 1], None, None).view(shape),
        lengths=lengths.view(shape),
        token_scores=token_scores[:, :drawn].reshape(*shape, drawn),
        finished=finished.view(shape),
        attn_weights=torch.stack(attn, dim=1).view(*shape, drawn, -1) if attn else None,
    )


def _uniform(seeds: Sequence[int], samples: int, limits: Sequence[int]) -> Tensor:
    """(B * samples, T) in [0, 1): a sentence's numbers are the same whatever the others' limits are."""
    table = torch.zeros(len(seeds), samples, max(limits))
    for place, (seed, limit) in enumerate(zip(seeds, limits, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        table[place, :, :limit] = torch.rand(samples, limit, generator=generator)
    return table.view(len(seeds) * samples, -1)


def _candidates(log_probs: Tensor | TopK, top_k: int, banned: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, K) and their tokens; all of them need not be sorted."""
    if top_k or not isinstance(log_probs, Tensor) or log_probs.dim() != 2:
        return row_candidates(log_probs, top_k or EVERYTHING, banned, rows)
    ids = torch.arange(log_probs.shape[1], device=log_probs.device).expand_as(log_probs)
    return without_banned(log_probs.float(), banned), ids


def _draw(log_probs: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """(N, 1): the column where the cumulative probability passes ``uniform`` (N,)."""
    cumulative = (log_probs.double() / temperature).softmax(dim=1).cumsum(dim=1)
    total = cumulative[:, -1:]
    if total.isnan().any():
        row = int(total.isnan().squeeze(1).nonzero()[0])
        raise ValueError(f"there is no token to draw in row {row}: all are banned, or `step` returned a NaN")
    return (cumulative <= uniform.double().unsqueeze(1) * total).sum(dim=1, keepdim=True)
