"""What orders finished hypotheses: summed log-probability under a length and a coverage penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LENGTH_PENALTIES = ("none", "average", "wu")

# A position that got no attention at all (a softmax can underflow to 0) costs this much and not infinitely much.
LEAST_COVERAGE = 1e-30


@dataclass(frozen=True)
class Scoring:
    """score = log_prob / penalty(length) + beta * sum_j log(min(coverage_j, 1)), j over real source positions.

    penalty is 1 (``"none"``), the length (``"average"``) or ((5 + length) / 6)^alpha (``"wu"``); both terms are
    equation 14 of Wu et al. 2016, arXiv:1609.08144. Lengths count the end of sentence.
    """

    length_penalty: str
    alpha: float
    coverage_penalty: float

    def __post_init__(self) -> None:
        if self.length_penalty not in LENGTH_PENALTIES:
            raise ValueError(f"`length_penalty` must be one of {LENGTH_PENALTIES}; got {self.length_penalty!r}")
        for name in ("alpha", "coverage_penalty"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"`{name}` must be finite and at least 0; got {value}")

    def weight(self, length: int) -> float:
        """1 / penalty(length); at most 1 and never rising with the length."""
        if self.length_penalty == "average":
            return 1.0 / length
        if self.length_penalty == "wu":
            return ((5 + length) / 6) ** -self.alpha
        return 1.0

    def __call__(
        self, log_probs: Tensor, weight: float | Tensor, coverage: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        """Scores of hypotheses of one length, of which ``weight`` is :meth:`weight`; ``coverage`` and ``padding``
        have a row for each, or are None."""
        scores = log_probs * weight if self.length_penalty != "none" else log_probs
        if coverage is None:
            return scores
        term = coverage.clamp(LEAST_COVERAGE, 1.0).log()
        if padding is not None:
            term = term.masked_fill(padding, 0.0)
        return scores + self.coverage_penalty * term.sum(dim=-1).view_as(log_probs)

    def ceilings(self, limits: list[int], device: torch.device) -> Tensor:
        """(B,): log_prob * ceiling bounds from above the score of everything a live hypothesis can become.

        A live hypothesis of log-probability p ends with q <= p <= 0, since log-probabilities are at most 0,
        and at a length l <= limit. The coverage term is at most 0. So:

        none     score <= q <= p.
        average  score <= q / l <= p / l <= p / limit: dividing a number below 0 by more brings it closer to 0.
        wu       the same with ((5 + l) / 6)^alpha, which does not fall with l because alpha >= 0.

        Rounding keeps the order, since float addition and multiplication are monotone.
        """
        return torch.tensor([self.weight(limit) for limit in limits], device=device)
