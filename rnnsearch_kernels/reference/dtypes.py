"""The dtype that everything is summed in."""

from __future__ import annotations

import torch


def accumulate_dtype(storage: torch.dtype) -> torch.dtype:
    """What sums, statistics and carried states of ``storage`` tensors are held in."""
    return torch.float64 if storage == torch.float64 else torch.float32
