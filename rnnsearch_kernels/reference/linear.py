"""``output = input weightᵀ + bias``, and the dtype that everything is summed in."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulate_dtype(storage: torch.dtype) -> torch.dtype:
    """What sums, statistics and carried states of ``storage`` tensors are held in."""
    return torch.float64 if storage == torch.float64 else torch.float32


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    accumulate = accumulate_dtype(weight.dtype)
    if bias is not None:
        bias = bias.to(accumulate)
    return torch.nn.functional.linear(input.to(accumulate), weight.to(accumulate), bias)
