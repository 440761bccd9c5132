"""The cross-entropy over the vocabulary, from the readout on, with or without the logits in memory.

Without them it is torch's ``linear_cross_entropy``. Of the libraries for GPUs, cut-cross-entropy (25.1) has no bias and
no label smoothing. Liger's (0.8.5) has both and computes the same (seen in Triton's interpreter); but it waits for the
device in every call (``.item()`` of the number of real tokens), adds up the weight's gradient in the parameters' own
dtype unless told otherwise, and takes pieces of about as many logits as the readout has values: 128 rows at the paper's
sizes, where ``PIECE`` gives 559, and every piece reads and writes that gradient, 60 MB, whole. So neither is offered;
neither has been timed against torch's on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnsearch.data import Batch
from rnnsearch.model import RNNSearch

WAYS = ("auto", "logits", "chunked")

# torch >= 2.13 has it; what it cannot do (label smoothing) is made of what it can.
HAS_CHUNKED = hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions")

# Logits of so many values at a time, 64 MB in float32. torch's own choice, much smaller, was slower than plain
# cross-entropy at the paper's sizes on a CPU, where every piece reads and writes the whole weight gradient.
PIECE = 2**24


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
) -> Tensor:
    """The mean over real tokens of the cross-entropy with a smoothed target:

        -(1 - ε) log p(y) - ε / V Σ_v log p(v),   p = softmax(weight readout + bias)

    Args:
        readout: (…, L). weight: (V, L). bias: (V,). target: (…) int64; ``pad_id`` is no token.
        label_smoothing: ε.
        way: ``"logits"`` computes all (…, V) of them. ``"chunked"``, torch's ``linear_cross_entropy`` (2.13 and
            newer), works through the rows in pieces and computes the gradients beside the loss: so much less memory
            that nothing of size (…, V) exists, and one backward pass through it, of the first order. ``"auto"`` is
            chunked where torch has it, a gradient is wanted and the logits take more than one piece (``PIECE``);
            below, there is nothing to save.

    Raises:
        RuntimeError: ``way`` is ``"chunked"`` and this torch has no such function.
    """
    if way not in WAYS:
        raise ValueError(f"`way` must be one of {WAYS}; got {way!r}")
    if way == "chunked" and not HAS_CHUNKED:
        raise RuntimeError(f"torch {torch.__version__} has no linear_cross_entropy; it came with 2.13")
    readout, target = readout.flatten(0, -2).to(weight.dtype), target.flatten()
    if way == "auto":
        large = readout.shape[0] * weight.shape[0] > PIECE
        way = "chunked" if HAS_CHUNKED and large and torch.is_grad_enabled() and weight.requires_grad else "logits"
    if way == "logits":
        return sequence_loss(F.linear(readout, weight, bias), target, pad_id, label_smoothing)
    if torch.is_autocast_enabled(readout.device.type):  # which does not know the chunked op
        dtype = torch.get_autocast_dtype(readout.device.type)
        readout, weight, bias = readout.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    loss = F.linear_cross_entropy(
        readout,
        weight,
        target,
        linear_bias=bias,
        ignore_index=pad_id,
        options=torch.nn.LinearCrossEntropyOptions(
            batch_chunk_size=max(1, PIECE // weight.shape[0]), chunking_method=None
        ),
    )
    if label_smoothing == 0.0:
        return loss
    return loss + label_smoothing * _above_mean(readout, weight, bias, target, pad_id)


def _above_mean(readout: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, pad_id: int) -> Tensor:
    """How far the target's logit is above the mean of all, on average.

    The log of the sum of exponentials is the same in both terms of the smoothed loss, so that they differ by
    -ε (mean_v logit_v - logit_y), and a mean of logits is the logit of the mean weight.
    """
    real = target != pad_id
    rows = F.embedding(target, weight) - weight.float().mean(dim=0).to(weight.dtype)
    above = (readout.float() * rows.float()).sum(dim=1)
    if bias is not None:
        above = above + (bias[target].float() - bias.float().mean())
    return torch.where(real, above, 0.0).sum() / real.sum()
