"""The K likeliest tokens of a row:

    log_probs = log_softmax(weight readout + bias)

Bahdanau et al. 2014, appendix A.2.2: p(y_i) ∝ exp(W_o t_i), here with the paper's t_i as ``readout``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .linear import linear


def vocabulary_topk(
    readout: Tensor, weight: Tensor, bias: Tensor | None, banned_ids: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    log_probs = torch.log_softmax(linear(readout, weight, bias), -1)
    if banned_ids is not None:
        rows, vocabulary = log_probs.shape
        # One column more than there are tokens takes what is no token: the -1 of a row with fewer bans.
        banned = torch.zeros(rows, vocabulary + 1, dtype=torch.bool, device=log_probs.device)
        is_token = (banned_ids >= 0) & (banned_ids < vocabulary)
        banned.scatter_(1, torch.where(is_token, banned_ids, vocabulary), True)
        # A row that holds a NaN stays NaN as a whole.
        log_probs = torch.where(banned[:, :vocabulary] & ~log_probs.isnan(), -torch.inf, log_probs)
    # A stable sort, because topk does not say which of equals comes first.
    values, token_ids = torch.sort(log_probs, dim=-1, descending=True, stable=True)
    return values[:, :k].clone(), token_ids[:, :k].clone()
