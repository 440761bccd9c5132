"""The ops as functions: arguments checked, a backend chosen, the op called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .backends import AUTO, choose, pick
from .checks import Plan, padding_mask
from .ops import AUTOCAST_DEVICES, PLANS, cast_for_autocast
from .reference.dtypes import accumulate_dtype
from .reference.vocabulary import pieces_of_log_probs, rows_with_target, summed_loss


def _call(name: str, backend: str, args: Sequence[Any]) -> Any:
    plan = PLANS[name]
    storage = args[plan.storage]
    if not isinstance(storage, Tensor):
        plan.check(args)
    device = storage.device
    args = _under_autocast(plan, args, device.type)
    try:
        overload, guarded = choose(name, backend, device, args[plan.storage].dtype, _differentiable(args))
        if not guarded:
            plan.check(args)
            plan.check_values(args)
        return overload(*args)
    except RuntimeError:
        # Kernels that guard themselves are called unchecked, which saves a third of a small step's overhead;
        # what was wrong is still said here, in the one place that says it.
        plan.check(args)
        plan.check_values(args)
        raise


def _under_autocast(plan: Plan, args: Sequence[Any], device: str) -> Sequence[Any]:
    """Here and not in the dispatcher's rule alone: under autocast arguments arrive in several dtypes."""
    if device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
        return cast_for_autocast(plan.op, args, device)
    return args


def _differentiable(args: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = AUTO) -> Tensor:
    """``output = input weightᵀ + bias``, every row by itself.

    On the native backend a row's result is the same bits whatever the number of rows beside it: what decoding
    needs for a sentence to come out alike alone and in a batch.

    Args:
        input: (…, I), storage or accumulate dtype.
        weight: (O, I), storage dtype; may be a column slice of a wider matrix.
        bias: (O,), storage dtype.
        backend: ``"auto"`` or a backend's name.

    Returns:
        (…, O) in the accumulate dtype: float32, or float64 for float64 weights.

    Raises:
        ValueError, TypeError, RuntimeError: a shape, dtype or device is wrong, or the backend cannot run it.
    """
    if not isinstance(input, Tensor) or input.dim() in (0, 2):
        return _call("linear", backend, (input, weight, bias))
    *leading, features = input.shape
    output = _call("linear", backend, (input.reshape(math.prod(leading), features), weight, bias))
    return output.reshape(*leading, weight.shape[0])


def additive_attention(
    query: Tensor,
    keys: Tensor,
    memory: Tensor,
    score_weight: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    memory_lengths: Tensor | None = None,
    memory_index: Tensor | None = None,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    """Additive attention (Bahdanau et al. 2014, arXiv:1409.0473, appendix A.1.2).

        score_j = score_weight · tanh(query + keys_j)
        attn_weights = softmax over the real j of score
        context = Σ_j attn_weights_j memory_j

    Args:
        query: (B, A), storage or accumulate dtype; (N, A) with ``memory_index``.
        keys: (B, S, A), storage dtype.
        memory: (B, S, M), storage dtype.
        score_weight: (A,), storage dtype.
        key_padding_mask: (B, S) bool, True = ignore.
        memory_lengths: (B,) int64 in 0..S, the alternative to the mask.
        memory_index: (N,) int64, the sentence each row attends to; inference only.
        backend: ``"auto"`` or a backend's name.

    Returns:
        context (B, M) in the storage dtype and attn_weights (B, S) in the accumulate dtype; (N, …) with
        ``memory_index``. Padded positions have weight exactly 0; a row without a real position has zero weights
        and a zero context.

    Raises:
        ValueError, TypeError, RuntimeError: a shape, dtype or device is wrong, both masks are given, a length
            is out of range, or the backend cannot run it.
    """
    mask = padding_mask(key_padding_mask, memory_lengths, memory)
    return _call("additive_attention", backend, (query, keys, memory, score_weight, mask, memory_index))


def decoder_step(
    input_gates: Tensor,
    state: Tensor,
    keys: Tensor,
    memory: Tensor,
    score_weight: Tensor,
    query_weight: Tensor,
    context_weight: Tensor | None,
    hidden_weight: Tensor,
    *,
    state_mask: Tensor | None = None,
    query_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    memory_lengths: Tensor | None = None,
    memory_index: Tensor | None = None,
    memory_gates: Tensor | None = None,
    reset_after: bool = True,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the attention decoder (Bahdanau et al. 2014, appendix A.1.2 and A.2.2).

        query = query_weight state + query_bias
        context, attn_weights = additive_attention(query, keys, memory, score_weight)
        new_state = GRU(input_gates + context_weight context, state)

    with the GRU of ``torch.nn.GRUCell`` (``reset_after=True``) or of the paper (``False``).

    Args:
        input_gates: (B, 3H), the input's part of the gates, r, z, n, input bias included.
        state: (B, H), accumulate dtype.
        state_mask: (B, H), accumulate dtype: dropout of the state. Wherever the state enters a product, that of the
            query or of the gates, it is state_mask ∘ state; what the update gate carries on is not masked. A
            constant without a gradient; None is a mask of ones.
        keys, memory, score_weight, key_padding_mask, memory_lengths: as in :func:`additive_attention`.
        query_weight: (A, H). query_bias: (A,).
        context_weight: (3H, M). hidden_weight: (3H, H). hidden_bias: (3H,).
        memory_index: (N,) int64, the sentence of each row; then ``input_gates``, ``state`` and ``state_mask`` have
            N rows. Inference only.
        memory_gates: (B, S, 3H), memory · context_weightᵀ prepared once. Inference only. With them ``context_weight``
            is not read and may be None; ``memory`` then is whatever is wanted summed as the context, of any width:
            a readout that multiplies the context by P can have memory · Pᵀ there.
        backend: ``"auto"`` or a backend's name.

    Returns:
        new_state (B, H) in the accumulate dtype, context (B, M) in the storage dtype, attn_weights (B, S) in the
        accumulate dtype.

    Raises:
        As :func:`additive_attention`.
    """
    mask = padding_mask(key_padding_mask, memory_lengths, memory)
    new_state, context, attn_weights, _ = _call(
        "decoder_step",
        backend,
        (
            input_gates,
            state,
            state_mask,
            keys,
            memory,
            score_weight,
            query_weight,
            query_bias,
            context_weight,
            hidden_weight,
            hidden_bias,
            mask,
            memory_index,
            memory_gates,
            reset_after,
        ),
    )
    return new_state, context, attn_weights


def decoder_scan(
    input_gates: Tensor,
    state: Tensor,
    keys: Tensor,
    memory: Tensor,
    score_weight: Tensor,
    query_weight: Tensor,
    context_weight: Tensor,
    hidden_weight: Tensor,
    *,
    state_mask: Tensor | None = None,
    query_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    memory_lengths: Tensor | None = None,
    input_lengths: Tensor | None = None,
    reset_after: bool = True,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor, Tensor]:
    """T steps of :func:`decoder_step`, teacher-forced, as one op forward and one backward.

    Nothing of size B·T·S·A is stored: the backward pass recomputes the tanh.

    Args:
        input_gates: (B, T, 3H). The other arguments as in :func:`decoder_step`; ``state_mask`` (B, H) is that of
            every step: variational dropout (Gal and Ghahramani 2016, arXiv:1512.05287), its entries 0 or 1 / (1 - p).
        input_lengths: (B,) int64 in 0..T. From there on the state is frozen and every result is zero.

    Returns:
        states (B, T, H) in the accumulate dtype, contexts (B, T, M) in the storage dtype, attn_weights (B, T, S)
        in the accumulate dtype.

    Raises:
        As :func:`additive_attention`.
    """
    mask = padding_mask(key_padding_mask, memory_lengths, memory)
    states, contexts, attn_weights, _ = _call(
        "decoder_scan",
        backend,
        (
            input_gates,
            state,
            state_mask,
            keys,
            memory,
            score_weight,
            query_weight,
            query_bias,
            context_weight,
            hidden_weight,
            hidden_bias,
            mask,
            input_lengths,
            reset_after,
        ),
    )
    return states, contexts, attn_weights


def gru_scan(
    input_gates: Tensor,
    state: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None = None,
    *,
    state_mask: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    reset_after: bool = True,
    backend: str = AUTO,
) -> Tensor:
    """A GRU over a sequence (Cho et al. 2014, arXiv:1406.1078), both conventions, either direction.

        r, z = σ(g + U s + b)
        n = tanh(g_n + r ∘ (U_n s + b_n))       reset_after=True, as torch.nn.GRU
        n = tanh(g_n + U_n (r ∘ s) + b_n)       reset_after=False, as the paper
        s' = (1 - z) ∘ n + z ∘ s

    With a ``state_mask`` the s of the first three lines is state_mask ∘ s at every step: variational dropout (Gal and
    Ghahramani 2016, arXiv:1512.05287).

    The ``cpu`` backend gives a row the same bits in any batch and with any padding.

    Args:
        input_gates: (B, T, 3H), the input's part g of the gates, r, z, n, input bias included.
        state: (B, H), the state before the first step, accumulate dtype.
        hidden_weight: (3H, H). hidden_bias: (3H,).
        state_mask: (B, H), accumulate dtype, its entries 0 or 1 / (1 - p). A constant without a gradient.
        lengths: (B,) int64 in 0..T. From there on the state is frozen and the result is zero.
        reverse: run each row from its own end to its start.
        backend: ``"auto"`` or a backend's name.

    Returns:
        states (B, T, H) in the accumulate dtype, where the input stands: with ``reverse`` the last state is at
        t = 0.

    Raises:
        ValueError, TypeError, RuntimeError: a shape, dtype or device is wrong, a length is out of range, or the
            backend cannot run it.
    """
    args = (input_gates, state, state_mask, hidden_weight, hidden_bias, lengths, reverse, reset_after)
    return _call("gru_scan", backend, args)[0]


def vocabulary_topk(
    readout: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    k: int,
    banned_ids: Tensor | None = None,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens of each row: the k largest of ``log_softmax(weight readout + bias)``.

    The native backend never forms the (N, V) logits. For inference: it has no derivative.

    Args:
        readout: (N, L), storage or accumulate dtype.
        weight: (V, L), storage dtype. bias: (V,).
        k: how many, 1..V.
        banned_ids: (N, R) int64, tokens that a row must not choose; what is no token, as -1, bans nothing. They
            keep their share of the probability.
        backend: ``"auto"`` or a backend's name.

    Returns:
        log_probs (N, k) in the accumulate dtype, largest first, and token_ids (N, k) int64, of equal logits
        the lowest id first. Where a row has fewer than k tokens left the rest is -inf; a row with a NaN among
        its logits, or with none above -inf, is NaN.

    Raises:
        ValueError, TypeError, RuntimeError: a shape, dtype or device is wrong, or the backend cannot run it.
    """
    return _call("vocabulary_topk", backend, (readout, weight, bias, banned_ids, k))


def vocabulary_loss(
    readout: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    backend: str = AUTO,
) -> Tensor:
    """The cross-entropy of a readout's softmax over the vocabulary (Bahdanau et al. 2014, appendix A.2.2) and a
    smoothed target (Szegedy et al. 2016, arXiv:1512.00567, section 7), summed over the rows that have a target:

        p_n = softmax(weight readout_n + bias)
        loss = -Σ_n ((1 - ε) log p_n(target_n) + ε / V Σ_v log p_n(v))

    Nothing of size (N, V) is kept. Where a gradient is wanted all of them are computed beside the loss: one backward
    pass goes through it, of the first order. The sum, because a loss scale for float16 has to go in before a division:
    divide by the number of targets for the mean.

    Args:
        readout: (N, L), storage dtype.
        weight: (V, L), storage dtype. bias: (V,).
        target: (N,) int64, a token or -1 for none: such a row changes neither the loss nor a gradient, whatever its
            readout holds.
        label_smoothing: ε, 0..1.
        backend: ``"auto"`` or a backend's name.

    Returns:
        () in the accumulate dtype.

    Raises:
        ValueError, TypeError, RuntimeError: a shape, dtype or device is wrong, a target or ``label_smoothing`` is out
            of range, or the backend cannot run it; a second backward pass, or a second derivative.
    """
    args = (readout, weight, bias, target, label_smoothing)
    if _differentiable(args) or torch.compiler.is_compiling():  # a graph would hold so many pieces as N asks for
        return _call("vocabulary_loss", backend, args)[0]
    return _loss_alone(args, backend)


def _loss_alone(args: Sequence[Any], backend: str) -> Tensor:
    """:func:`vocabulary_loss` without the gradients that its op computes: a product a piece, and no more."""
    plan = PLANS["vocabulary_loss"]
    if isinstance(args[plan.storage], Tensor):
        args = _under_autocast(plan, args, args[plan.storage].device.type)
    plan.check(args)
    plan.check_values(args)
    readout, weight, bias, target, label_smoothing = args
    choose("vocabulary_loss", backend, weight.device, weight.dtype, False)  # what cannot run says why
    rows = rows_with_target(target)
    if rows is not None:
        readout, target = readout.index_select(0, rows), target.index_select(0, rows)
    brings_linear, _ = pick("linear", weight.device, weight.dtype, False, backend)
    of_backend = partial(linear, backend=AUTO if brings_linear is None else backend)
    product = of_backend if weight.device.type == "cpu" else torch.nn.functional.linear
    loss = torch.zeros((), dtype=accumulate_dtype(weight.dtype), device=weight.device)
    for piece, log_p in pieces_of_log_probs(readout, weight, bias, product):
        loss += summed_loss(log_p, target[piece], label_smoothing)
        del log_p
    return loss
