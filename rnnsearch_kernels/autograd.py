"""The derivative of every op, as the call of its backward op in the same backend.

Each formula is a pair (setup_context, backward) for ``register_autograd`` of torch's library. Backward ops have none
of their own: differentiating twice raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .reference.dtypes import accumulate_dtype
from .schema import BY_NAME, Arg

# The op that a differentiable op's formula calls; None where plain products are enough.
BACKWARD: dict[str, str | None] = {
    "linear": None,
    "additive_attention": "additive_attention_backward",
    "decoder_step": "decoder_scan_backward",
    "decoder_scan": "decoder_scan_backward",
    "gru_scan": "gru_scan_backward",
    "vocabulary_loss": None,
}

Formula = tuple[Callable[..., None], Callable[..., Any]]


def formula(name: str, backward_op: Callable[..., Any] | None) -> Formula:
    """The formula of the op ``name``, given its backend's backward op."""
    if name not in BACKWARD:
        return _not_differentiable(name)
    return _FORMULAS[name](backward_op)


def _not_differentiable(name: str) -> Formula:
    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    def backward(ctx: Any, *grads: Any) -> None:
        what = "a second derivative is not available" if name.endswith("_backward") else "it is for inference"
        raise RuntimeError(f"rnnsearch::{name} has no derivative: {what}")

    return setup, backward


def without_backward(name: str, overload: str) -> Formula:
    """For a backend that has the op ``name`` and not its backward op: for inference."""

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        known = [arg.name for arg in BY_NAME[name].args]
        _inference_only(name, inputs, *(argument for argument in ("memory_index", "memory_gates") if argument in known))

    def backward(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"rnnsearch::{name}.{overload} has no derivative: its backend has no {BACKWARD[name]}")

    return setup, backward


def _inference_only(name: str, inputs: Any, *arguments: str) -> None:
    for argument in arguments:
        if inputs[BY_NAME[name].position(argument)] is not None:
            raise RuntimeError(f"`{argument}` is for inference: call under torch.no_grad() or torch.inference_mode()")


def _refuse_gradients_of_constants(name: str, ctx: Any) -> None:
    """Said while the graph is made: a gradient silently missing would be noticed after the training."""
    for position, arg in enumerate(BY_NAME[name].args):
        if isinstance(arg, Arg) and arg.constant and ctx.needs_input_grad[position]:
            raise RuntimeError(f"`{arg.name}` is a constant, rnnsearch::{name} has no gradient for it: detach it")


def _grad(needed: bool, value: Callable[[], Tensor]) -> Tensor | None:
    return value() if needed else None


def _or_zeros(grad: Tensor | None, result: Tensor) -> Tensor:
    return torch.zeros_like(result) if grad is None else grad


def _linear(_: None) -> Formula:
    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        input, weight, bias = inputs
        ctx.save_for_backward(input, weight, bias)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias = ctx.saved_tensors
        accumulate = accumulate_dtype(weight.dtype)
        needs = ctx.needs_input_grad
        return (
            _grad(needs[0], lambda: (grad @ weight.to(accumulate)).to(input.dtype)),
            _grad(needs[1], lambda: (grad.t() @ input.to(accumulate)).to(weight.dtype)),
            _grad(bias is not None and needs[2], lambda: grad.sum(0).to(bias.dtype)),
        )

    return setup, backward


def _additive_attention(backward_op: Any) -> Formula:
    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        _inference_only("additive_attention", inputs, "memory_index")
        *tensors, _ = inputs
        ctx.save_for_backward(*tensors, output[1])

    def backward(ctx: Any, grad_context: Tensor, grad_attn_weights: Tensor) -> tuple[Tensor | None, ...]:
        return *backward_op(grad_context, grad_attn_weights, *ctx.saved_tensors), None, None

    return setup, backward


def _decoder_scan(backward_op: Any) -> Formula:
    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        _refuse_gradients_of_constants("decoder_scan", ctx)
        *tensors, ctx.reset_after = inputs
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)  # none is made for the gates, the largest of the results
        op = BY_NAME["decoder_scan"]
        ctx.has_biases = tuple(inputs[op.position(name)] is not None for name in ("query_bias", "hidden_bias"))
        del tensors[op.position("hidden_bias")]
        ctx.save_for_backward(*tensors, *output)

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, contexts, attn_weights, _ = ctx.saved_tensors[-4:]
        given = map(_or_zeros, grads, (states, contexts, attn_weights))
        found = backward_op(*given, *ctx.saved_tensors, ctx.reset_after)
        return *_decoder_grads(found, *ctx.has_biases), None, None, None

    return setup, backward


def _decoder_step(backward_op: Any) -> Formula:
    """A step is a scan with T = 1, and so is its derivative."""

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        _inference_only("decoder_step", inputs, "memory_index", "memory_gates")
        _refuse_gradients_of_constants("decoder_step", ctx)
        op = BY_NAME["decoder_step"]
        tensors = list(inputs[: op.position("memory_index")])
        ctx.reset_after = inputs[-1]
        ctx.mark_non_differentiable(output[-1])
        ctx.has_biases = tuple(inputs[op.position(name)] is not None for name in ("query_bias", "hidden_bias"))
        del tensors[op.position("hidden_bias")]
        ctx.save_for_backward(*tensors, *output)

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input_gates, *tensors = ctx.saved_tensors
        inputs, results = tensors[:-4], tensors[-4:]
        found = backward_op(
            *(grad.unsqueeze(1) for grad in grads[:3]),
            input_gates.unsqueeze(1),
            *inputs,
            None,
            *(result.unsqueeze(1) for result in results),
            ctx.reset_after,
        )
        grad_input_gates, *others = _decoder_grads(found, *ctx.has_biases)
        return grad_input_gates.squeeze(1), *others, None, None, None, None

    return setup, backward


def _decoder_grads(found: tuple[Tensor, ...], has_query_bias: bool, has_hidden_bias: bool) -> list[Any]:
    """By the arguments of the forward op up to hidden_bias."""
    grads: list[Any] = list(found)
    if not has_query_bias:
        grads[6] = None
    if not has_hidden_bias:
        grads[9] = None
    grads.insert(2, None)  # state_mask
    return grads


def _gru_scan(backward_op: Any) -> Formula:
    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        _refuse_gradients_of_constants("gru_scan", ctx)
        input_gates, state, state_mask, hidden_weight, hidden_bias, lengths, *ctx.flags = inputs
        ctx.has_bias = hidden_bias is not None
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)  # as that of decoder_scan
        ctx.save_for_backward(input_gates, state, state_mask, hidden_weight, lengths, *output)

    def backward(ctx: Any, grad_states: Tensor | None, grad_gates: None) -> tuple[Tensor | None, ...]:
        given = _or_zeros(grad_states, ctx.saved_tensors[-2])
        grad_input_gates, grad_state, grad_weight, grad_bias = backward_op(given, *ctx.saved_tensors, *ctx.flags)
        grad_bias = grad_bias if ctx.has_bias else None
        return grad_input_gates, grad_state, None, grad_weight, grad_bias, None, None, None

    return setup, backward


def _vocabulary_loss(_: None) -> Formula:
    """The op has computed its gradients; what is left is their product with the loss's own, in place.

    That is a mean's 1 / N and a loss scale in one: 1 / N alone may be too small for float16. Going back a second time
    would multiply twice, and is an error: autograd's own check does not see it where saved tensors are packed.
    """

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        _, *grads = output
        _, weight, bias, _, _ = inputs
        ctx.dtype, ctx.has_bias, ctx.spent = weight.dtype, bias is not None, False
        ctx.mark_non_differentiable(*grads)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads)

    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        if ctx.spent:
            raise RuntimeError("rnnsearch::vocabulary_loss: one backward pass goes through it, and this is another")
        ctx.spent = True
        needs = (*ctx.needs_input_grad[:2], ctx.has_bias and ctx.needs_input_grad[2])
        with torch.no_grad():
            found = [
                _times(value, grad).to(ctx.dtype) if needed else None
                for needed, value in zip(needs, ctx.saved_tensors, strict=True)
            ]
        if torch.is_grad_enabled():
            found = [None if value is None else _Once.apply(value.detach().requires_grad_()) for value in found]
        return *found, None, None

    return setup, backward


def _times(value: Tensor, scale: Tensor) -> Tensor:
    """In place, except where a compiler is tracing, which finds the places itself."""
    return value.mul_(scale) if type(value) is Tensor else value * scale


class _Once(torch.autograd.Function):
    """A gradient whose own derivative is an error, and does not silently miss."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError("rnnsearch::vocabulary_loss has one derivative: a second derivative is not available")


_FORMULAS: dict[str, Callable[[Any], Formula]] = {
    "linear": _linear,
    "additive_attention": _additive_attention,
    "decoder_step": _decoder_step,
    "decoder_scan": _decoder_scan,
    "gru_scan": _gru_scan,
    "vocabulary_loss": _vocabulary_loss,
}
