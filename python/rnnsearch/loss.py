"""The cross-entropy over the vocabulary, from the readout on, with or without the logits in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rnnsearch_kernels
from rnnsearch.data import Batch
from rnnsearch.model import RNNSearch

WAYS = ("auto", "logits", "chunked")


def model_loss(model: RNNSearch, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """The mean loss of the batch's target tokens."""
    readout = model.readouts(batch.source, batch.source_lengths, batch.target_input)
    return vocabulary_loss(
        readout,
        model.output.weight,
        model.output.bias,
        batch.target,
        pad_id=model.config.pad_id,
        label_smoothing=label_smoothing,
        backend=model.backend,
    )


class ModelLoss(nn.Module):
    """:func:`model_loss` as a module, for what wraps modules."""

    def __init__(self, model: RNNSearch, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, batch: Batch) -> Tensor:
        return model_loss(self.model, batch, self.label_smoothing)


def sequence_loss(logits: Tensor, target: Tensor, pad_id: int, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (…, V) and target (…), the mean over tokens that are not padding."""
    logits = logits.flatten(0, -2)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, target.flatten(), ignore_index=pad_id, label_smoothing=label_smoothing)


def vocabulary_loss(
    readout: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    pad_id: int,
    label_smoothing: float = 0.0,
    way: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """The mean over real tokens of the cross-entropy with a smoothed target:

        -(1 - ε) log p(y) - ε / V Σ_v log p(v),   p = softmax(weight readout + bias)

    Args:
        readout: (…, L). weight: (V, L). bias: (V,). target: (…) int64; ``pad_id`` is no token.
        label_smoothing: ε, 0..1.
        way: ``"logits"`` computes all (…, V) of them. ``"chunked"`` is :func:`rnnsearch_kernels.vocabulary_loss`:
            nothing of size (…, V) is kept, and there is one backward pass through it, of the first order. ``"auto"`` is
            chunked unless a gradient is wanted and none of the weight, whose gradient chunked computes always.
        backend: of the op, where that backend has it; one without it was chosen for the model's other ops, and leaves
            this one to ``"auto"``.

    Returns:
        The mean; NaN, with gradients of zero, where no target is a token.
    """
    if way not in WAYS:
        raise ValueError(f"`way` must be one of {WAYS}; got {way!r}")
    rnnsearch_kernels.check_backend(backend)
    readout, target = readout.flatten(0, -2).to(weight.dtype), target.flatten()
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (readout, weight, bias))
    if way == "auto":
        way = "logits" if differentiable and not weight.requires_grad else "chunked"
    if way == "logits":
        if target.device.type == "cpu":  # elsewhere their number would have to be waited for
            rows = (target != pad_id).nonzero().squeeze(1)
            if len(rows) < len(target):
                readout, target = readout.index_select(0, rows), target.index_select(0, rows)
        return sequence_loss(F.linear(readout, weight, bias), target, pad_id, label_smoothing)
    target = target.masked_fill(target == pad_id, -1)
    has_it = [found.name for found in rnnsearch_kernels.list_backends() if "vocabulary_loss" in found.ops]
    loss = rnnsearch_kernels.vocabulary_loss(
        readout,
        weight,
        bias,
        target,
        label_smoothing=label_smoothing,
        backend=backend if backend in has_it else "auto",
    )
    count = (target >= 0).sum()
    return torch.where(count > 0, loss / count.clamp(min=1), torch.nan)
