"""A beam search for one sentence in Python lists: what the batched one is held against.

It shares nothing with it, and it never stops early: it goes on to `max_length`, so a wrong bound would show.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Plain(NamedTuple):
    tokens: tuple[int, ...]
    log_prob: float
    token_scores: tuple[float, ...]
    attn_weights: tuple[tuple[float, ...], ...]
    finished: bool = False
    score: float = 0.0


Next = Callable[[tuple[int, ...]], "tuple[Sequence[float], Sequence[float]]"]


def extend(hypothesis: Plain, token: int, log_prob: float, attn_weights: Sequence[float]) -> Plain:
    return Plain(
        (*hypothesis.tokens, token),
        hypothesis.log_prob + log_prob,
        (*hypothesis.token_scores, log_prob),
        (*hypothesis.attn_weights, tuple(attn_weights)),
    )


def score(hypothesis: Plain, *, length_penalty: str, alpha: float, coverage_penalty: float, real: int) -> float:
    length = len(hypothesis.tokens)
    divisor = {"none": 1.0, "average": length, "wu": ((5 + length) / 6) ** alpha}[length_penalty]
    total = hypothesis.log_prob / divisor
    for position in range(real):
        covered = sum(weights[position] for weights in hypothesis.attn_weights)
        if coverage_penalty:
            total += coverage_penalty * math.log(min(max(covered, 1e-30), 1.0))
    return total


def allowed(
    tokens: tuple[int, ...], token: int, *, eos_id: int, min_length: int, ban_ids: Sequence[int], ngram: int
) -> bool:
    if token in ban_ids or (token == eos_id and len(tokens) + 1 < min_length):
        return False
    grown = (*tokens, token)
    if not ngram or len(grown) < ngram:
        return True
    before = {tokens[start : start + ngram] for start in range(len(tokens) - ngram + 1)}
    return grown[-ngram:] not in before


def ranked(closed: list[Plain], n_best: int, real: int, penalties: dict) -> list[Plain]:
    scored = [entry._replace(score=score(entry, real=real, **penalties)) for entry in closed]
    return sorted(scored, key=lambda entry: (not entry.finished, -entry.score))[:n_best]


def plain_beam_search(
    following: Next,
    *,
    eos_id: int,
    beam_size: int,
    n_best: int,
    max_length: int,
    min_length: int,
    ban_ids: Sequence[int],
    ngram: int,
    real: int,
    penalties: dict,
) -> list[Plain]:
    live, closed = [Plain((), 0.0, (), ())], []
    for _ in range(max_length):
        continuations = []
        for hypothesis in live:
            log_probs, attn_weights = following(hypothesis.tokens)
            for token, log_prob in enumerate(log_probs):
                if allowed(
                    hypothesis.tokens, token, eos_id=eos_id, min_length=min_length, ban_ids=ban_ids, ngram=ngram
                ):
                    continuations.append(extend(hypothesis, token, log_prob, attn_weights))
        continuations.sort(key=lambda entry: -entry.log_prob)
        live = []
        for entry in continuations:
            if entry.tokens[-1] == eos_id:
                closed.append(entry._replace(finished=True))
            else:
                live.append(entry)
            if len(live) == beam_size:
                break
    return ranked(closed + live, n_best, real, penalties)


def brute_force(
    following: Next, *, vocabulary_size: int, eos_id: int, n_best: int, max_length: int, real: int, penalties: dict
) -> list[Plain]:
    """Every sequence that ends within ``max_length``, best first."""
    words = [token for token in range(vocabulary_size) if token != eos_id]
    closed = []
    for length in range(max_length):
        for prefix in itertools.product(words, repeat=length):
            hypothesis = Plain((), 0.0, (), ())
            for token in (*prefix, eos_id):
                log_probs, attn_weights = following(hypothesis.tokens)
                hypothesis = extend(hypothesis, token, log_probs[token], attn_weights)
            closed.append(hypothesis._replace(finished=True))
    return ranked(closed, n_best, real, penalties)
