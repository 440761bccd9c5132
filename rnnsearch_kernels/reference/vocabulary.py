"""The K likeliest tokens of a row, and the loss of the tokens that were to be read out:

    log_probs = log_softmax(weight readout + bias)

Bahdanau et al. 2014, appendix A.2.2: p(y_i) ∝ exp(W_o t_i), here with the paper's t_i as ``readout``.

The loss is written here because no library's was found to be enough. torch's ``linear_cross_entropy`` (2.13) has
neither label smoothing nor a way to leave padded rows out, and took 1.05 to 1.2 times as long on one thread of a CPU.
Of the libraries for GPUs, cut-cross-entropy (25.1) has no bias and no label smoothing. Liger's (0.8.5) has both and
computes the same (seen in Triton's interpreter); but it waits for the device in every call (``.item()`` of the number
of real tokens), adds up the weight's gradient in the parameters' own dtype unless told otherwise, and takes pieces of
about as many logits as the readout has values: 128 rows at the paper's sizes, where ``PIECE`` gives 559, and every
piece reads and writes that gradient, 60 MB, whole. None has been timed on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .dtypes import accumulate_dtype
from .linear import linear

# Logits of so many values at a time, 64 MB in float32. Every piece reads and writes the whole weight gradient.
PIECE = 2**24


def vocabulary_topk(
    readout: Tensor, weight: Tensor, bias: Tensor | None, banned_ids: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    log_probs = torch.log_softmax(linear(readout, weight, bias), -1)
    if banned_ids is not None:
        rows, vocabulary = log_probs.shape
        # One column more than there are tokens takes what is no token: the -1 of a row with fewer bans.
        banned = torch.zeros(rows, vocabulary + 1, dtype=torch.bool, device=log_probs.device)
        is_token = (banned_ids >= 0) & (banned_ids < vocabulary)
        banned = banned.scatter(1, torch.where(is_token, banned_ids, vocabulary), True)
        # A row that holds a NaN stays NaN as a whole.
        log_probs = torch.where(banned[:, :vocabulary] & ~log_probs.isnan(), -torch.inf, log_probs)
    # A stable sort, because topk does not say which of equals comes first.
    values, token_ids = torch.sort(log_probs, dim=-1, descending=True, stable=True)
    return values[:, :k].clone(), token_ids[:, :k].clone()


def vocabulary_loss(
    readout: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With ε for ``label_smoothing``, where a row n has a target:

        dlogits_nv = p_nv - (1 - ε) [v = target_n] - ε / V
        grad_readout = dlogits weight,   grad_weight = dlogitsᵀ readout,   grad_bias = Σ_n dlogits_n

    The three products are the largest of a training. On a CPU they are made in the accumulate dtype; elsewhere in the
    storage dtype, which GPUs have units for. Either way dlogits is rounded to the storage dtype before it is
    multiplied, and so is a piece's grad_weight before it is added in the accumulate dtype.
    """
    if torch.compiler.is_compiling():
        return _at_once(readout, weight, bias, target, label_smoothing)
    rows = rows_with_target(target)
    if rows is None:
        return _loss_and_gradients(readout, weight, bias, target, label_smoothing)
    loss, of_rows, grad_weight, grad_bias = _loss_and_gradients(
        readout.index_select(0, rows), weight, bias, target.index_select(0, rows), label_smoothing
    )
    grad_readout = torch.zeros(readout.shape, dtype=readout.dtype, device=readout.device)
    return loss, grad_readout.index_copy_(0, rows, of_rows), grad_weight, grad_bias


def rows_with_target(target: Tensor) -> Tensor | None:
    """Which they are; None for all, and where their number would have to be waited for."""
    if target.device.type != "cpu":
        return None
    rows = (target >= 0).nonzero().squeeze(1)
    return None if len(rows) == len(target) else rows


def pieces_of_log_probs(
    readout: Tensor, weight: Tensor, bias: Tensor | None, product: Callable[[Tensor, Tensor, Tensor | None], Tensor]
) -> Iterator[tuple[slice, Tensor]]:
    """log p (n, V) of so many rows at a time; whoever drops it before the next holds one piece in memory."""
    accumulate, size = accumulate_dtype(weight.dtype), max(1, PIECE // len(weight))
    for begin in range(0, len(readout), size):
        piece = slice(begin, begin + size)
        logits = product(readout[piece], weight, bias)
        # In place where the dtype allows it: every row is read before it is written.
        in_place = logits.dtype == accumulate
        yield piece, torch.log_softmax(logits, 1, out=logits) if in_place else logits.log_softmax(1, dtype=accumulate)
        del logits


def summed_loss(log_p: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Over the rows with a target."""
    wrong = (label_smoothing - 1) * log_p.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
    if label_smoothing:
        wrong = wrong - label_smoothing * log_p.mean(1)
    return torch.where(target >= 0, wrong, 0.0).sum()


def _at_once(
    readout: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In one piece and in nothing's place: what a graph of plain operations can hold."""
    accumulate, without = accumulate_dtype(weight.dtype), (target < 0).unsqueeze(1)
    wide, x = weight.to(accumulate), readout.masked_fill(without, 0).to(accumulate)
    log_p = torch.log_softmax(linear(x, weight, bias), 1)
    wanted = torch.nn.functional.one_hot(target.clamp(min=0), len(weight))
    dlogits = log_p.exp() - (1 - label_smoothing) * wanted - label_smoothing / len(weight)
    dlogits = dlogits.masked_fill(without, 0).to(weight.dtype).to(accumulate)
    loss = summed_loss(log_p, target, label_smoothing)
    return loss, (dlogits @ wide).to(readout.dtype), dlogits.t() @ x, dlogits.sum(0)


def _loss_and_gradients(
    readout: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    storage, accumulate = weight.dtype, accumulate_dtype(weight.dtype)
    in_products = accumulate if weight.device.type == "cpu" else storage
    readout, weight = readout.to(in_products), weight.to(in_products)
    bias = None if bias is None else bias.to(in_products)
    without = (target < 0).unsqueeze(1)
    readout = readout.masked_fill(without, 0)  # 0 · NaN is NaN
    loss = torch.zeros((), dtype=accumulate, device=weight.device)
    grad_readout = torch.empty_like(readout, memory_format=torch.contiguous_format)
    grad_weight = torch.zeros(weight.shape, dtype=accumulate, device=weight.device)
    grad_bias = torch.zeros(len(weight), dtype=accumulate, device=weight.device)
    for piece, log_p in pieces_of_log_probs(readout, weight, bias, torch.nn.functional.linear):
        y = target[piece]
        loss += summed_loss(log_p, y, label_smoothing)
        at = y.clamp(min=0).unsqueeze(1)
        difference = log_p.exp_().scatter_add_(1, at, log_p.new_full((1, 1), label_smoothing - 1).expand_as(at))
        if label_smoothing:
            difference -= label_smoothing / len(weight)
        grad_bias.addmv_(difference.t(), (y >= 0).to(accumulate))
        difference = difference.to(storage).to(in_products)
        torch.mm(difference, weight, out=grad_readout[piece])
        if storage == accumulate:
            grad_weight.addmm_(difference.t(), readout[piece])
        else:
            grad_weight += torch.mm(difference.t(), readout[piece]).to(storage)
        del log_p, difference
    return loss, grad_readout.masked_fill_(without, 0).to(storage), grad_weight, grad_bias
