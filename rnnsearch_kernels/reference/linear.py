"""``output = input weightᵀ + bias``."""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import accumulate_dtype


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    accumulate = accumulate_dtype(weight.dtype)
    if bias is not None:
        bias = bias.to(accumulate)
    return torch.nn.functional.linear(input.to(accumulate), weight.to(accumulate), bias)
