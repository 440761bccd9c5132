"""The tokens that may continue each row of a beam."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# topk(k, banned_ids) -> (log_probs (N, k), token_ids (N, k)): see beam_search.
TopK = Callable[[int, "Tensor | None"], tuple[Tensor, Tensor]]


def row_candidates(log_probs: Tensor | TopK, k: int, banned: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """The best ``k`` tokens of each row in float32, best first, bans left out; fewer where V is smaller."""
    if not isinstance(log_probs, Tensor):
        best, token_ids = log_probs(k, banned)
        if best.dim() != 2 or best.shape[0] != rows or best.shape != token_ids.shape:
            raise ValueError(
                f"`topk` of `step` must return log_probs and token_ids (N, k) = ({rows}, {k}); "
                f"got {tuple(best.shape)} and {tuple(token_ids.shape)}"
            )
        return best.float(), token_ids
    if log_probs.dim() != 2 or log_probs.shape[0] != rows:
        raise ValueError(f"`log_probs` of `step` must be (N, V) = ({rows}, V); got {tuple(log_probs.shape)}")
    log_probs = without_banned(log_probs.float(), banned)
    values, token_ids = log_probs.topk(min(k, log_probs.shape[1]))
    return values, token_ids


def without_banned(log_probs: Tensor, banned: Tensor | None) -> Tensor:
    """``log_probs`` (N, V) with -inf at the ids of ``banned`` (N, R)."""
    if banned is None:
        return log_probs
    # Column V takes what is no token: the -1 of rows that have fewer bans, and bans of another vocabulary.
    rows, vocabulary_size = log_probs.shape
    mask = torch.zeros(rows, vocabulary_size + 1, dtype=torch.bool, device=log_probs.device)
    mask.scatter_(1, banned.masked_fill((banned < 0) | (banned >= vocabulary_size), vocabulary_size), True)
    return log_probs.masked_fill(mask[:, :-1], -math.inf)


def banned_ids(constant: Tensor, emitted: Tensor | None, ngram_size: int, rows: int) -> Tensor | None:
    """(N, R): the constant bans, and the tokens that would complete an n-gram the row already has; -1 is none."""
    parts = [constant.expand(rows, -1)] if constant.numel() else []
    if emitted is not None and emitted.shape[1] >= ngram_size:
        followers = emitted[:, ngram_size - 1 :]
        if ngram_size > 1:
            prefixes = emitted[:, :-1].unfold(1, ngram_size - 1, 1)
            repeats = (prefixes == emitted[:, 1 - ngram_size :].unsqueeze(1)).all(dim=2)
            followers = torch.where(repeats, followers, -1)
        parts.append(followers)
    return torch.cat(parts, dim=1) if parts else None


def completing_ids(emitted: Tensor, ngram_size: int, count: Tensor) -> Tensor:
    """:func:`banned_ids`' second part where the shape may not tell how many tokens there are.

    emitted (N, T) holds ``count`` (1,) tokens a row, and then whatever; the result is (N, T - ngram_size + 1).
    """
    followers = emitted[:, ngram_size - 1 :]
    repeats = torch.arange(ngram_size - 1, emitted.shape[1], device=emitted.device) < count
    if ngram_size > 1:
        prefixes = emitted[:, :-1].unfold(1, ngram_size - 1, 1)
        last = (count + torch.arange(1 - ngram_size, 0, device=emitted.device)).clamp(0, emitted.shape[1] - 1)
        repeats = repeats & (prefixes == emitted.index_select(1, last).unsqueeze(1)).all(dim=2)
    return torch.where(repeats, followers, -1)
