"""The cross-entropy over the vocabulary, from the readout on, with or without the logits in memory.

torch's ``linear_cross_entropy`` (2.13) has neither label smoothing nor a way to leave padded rows out, and took 1.05 to
1.2 times as long on one thread of a CPU. Of the libraries for GPUs, cut-cross-entropy (25.1) has no bias and no label
smoothing. Liger's (0.8.5) has both and computes the same (seen in Triton's interpreter); but it waits for the device in
every call (``.item()`` of the number of real tokens), adds up the weight's gradient in the parameters' own dtype unless
told otherwise, and takes pieces of about as many logits as the readout has values: 128 rows at the paper's sizes, where
``PIECE`` gives 559, and every piece reads and writes that gradient, 60 MB, whole. So none is used; none has been timed
on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rnnsearch.data import Batch
from rnnsearch.model import RNNSearch
from rnnsearch_kernels import linear

WAYS = ("auto", "logits", "chunked")

# Logits of so many values at a time, 64 MB in float32. Every piece reads and writes the whole weight gradient.
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
        label_smoothing: ε.
        way: ``"logits"`` computes all (…, V) of them. ``"chunked"`` works through the rows in pieces and computes the
            gradients, where any is wanted, beside the loss: nothing of size (…, V) exists, and there is one backward
            pass through it, of the first order. ``"auto"`` is chunked unless a gradient is wanted and none of the
            weight, whose gradient chunked computes always.
        backend: of the op :func:`rnnsearch_kernels.linear`, which makes the logits of a piece on a CPU.
    """
    if way not in WAYS:
        raise ValueError(f"`way` must be one of {WAYS}; got {way!r}")
    readout, target = readout.flatten(0, -2).to(weight.dtype), target.flatten()
    if target.device.type == "cpu":  # elsewhere their number would have to be waited for
        real = (target != pad_id).nonzero().squeeze(1)
        if len(real) < len(target):
            readout, target = readout.index_select(0, real), target.index_select(0, real)
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (readout, weight, bias))
    if way == "auto":
        way = "logits" if differentiable and not weight.requires_grad else "chunked"
    if way == "logits":
        return sequence_loss(F.linear(readout, weight, bias), target, pad_id, label_smoothing)
    if torch.is_autocast_enabled(readout.device.type):  # which does not know what has no derivative of its own
        dtype = torch.get_autocast_dtype(readout.device.type)
        readout, weight, bias = readout.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(readout.device.type, enabled=False):
        if differentiable:
            return _ChunkedLoss.apply(readout, weight, bias, target, pad_id, label_smoothing, backend)
        real, loss = target != pad_id, weight.new_zeros((), dtype=_accumulate(weight))
        for piece, log_p in _pieces(readout, weight, bias, backend):
            loss += _sum(log_p, target[piece], real[piece], label_smoothing)
            del log_p
        return loss / real.sum()


def _accumulate(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _pieces(readout: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Iterator[tuple[slice, Tensor]]:
    """log p (n, V) of so many rows at a time; whoever drops it before the next holds one piece in memory."""
    accumulate, size = _accumulate(weight), max(1, PIECE // len(weight))
    for begin in range(0, len(readout), size):
        piece = slice(begin, begin + size)
        if weight.device.type == "cpu":
            logits = linear(readout[piece], weight, bias, backend=backend)
        else:
            logits = F.linear(readout[piece], weight, bias)
        # In place where the dtype allows it: every row is read before it is written.
        in_place = accumulate == logits.dtype
        yield piece, torch.log_softmax(logits, 1, out=logits) if in_place else logits.log_softmax(1, dtype=accumulate)
        del logits


def _sum(log_p: Tensor, target: Tensor, real: Tensor, label_smoothing: float) -> Tensor:
    """Of the real rows' losses."""
    wrong = (label_smoothing - 1) * log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    if label_smoothing:
        wrong -= label_smoothing * log_p.mean(1)
    return torch.where(real, wrong, 0.0).sum()


class _ChunkedLoss(torch.autograd.Function):
    """Where a row n is real, and N rows are:

        dlogits_nv = (p_nv - (1 - ε) [v = y_n] - ε / V) / N
        dreadout = dlogits weight,   dweight = dlogitsᵀ readout,   dbias = Σ_n dlogits_n

    The division waits for the backward pass, where a loss scale goes before it: 1 / N alone may be too small for
    float16.
    """

    @staticmethod
    def forward(
        ctx: Any,
        readout: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        pad_id: int,
        label_smoothing: float,
        backend: str,
    ) -> Tensor:
        accumulate, vocabulary_size = _accumulate(weight), len(weight)
        real = target != pad_id
        count = real.sum()
        readout = readout.masked_fill(~real.unsqueeze(1), 0)  # 0 · NaN is NaN
        loss = torch.zeros((), dtype=accumulate, device=readout.device)
        grad_readout, grad_weight = torch.empty_like(readout), torch.zeros_like(weight, dtype=accumulate)
        grad_bias = torch.zeros(vocabulary_size, dtype=accumulate, device=readout.device)
        for piece, log_p in _pieces(readout, weight, bias, backend):
            x, y = readout[piece], target[piece].unsqueeze(1)
            loss += _sum(log_p, target[piece], real[piece], label_smoothing)
            difference = log_p.exp_().scatter_add_(1, y, log_p.new_full((1, 1), label_smoothing - 1).expand_as(y))
            if label_smoothing:
                difference -= label_smoothing / vocabulary_size
            grad_bias.addmv_(difference.t(), real[piece].to(accumulate))
            difference = difference.to(weight.dtype)
            torch.mm(difference, weight, out=grad_readout[piece])
            if accumulate == weight.dtype:
                grad_weight.addmm_(difference.t(), x)
            else:
                grad_weight += torch.mm(difference.t(), x)
            del log_p, difference
        grad_readout.masked_fill_(~real.unsqueeze(1), 0)
        ctx.save_for_backward(grad_readout, grad_weight, grad_bias)
        ctx.count, ctx.dtype, ctx.has_bias = count, weight.dtype, bias is not None
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad / ctx.count.clamp(min=1)
        readout, weight, bias = (value.mul_(scale).to(ctx.dtype) for value in ctx.saved_tensors)
        return readout, weight, bias if ctx.has_bias else None, None, None, None, None
