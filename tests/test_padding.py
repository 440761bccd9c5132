"""What is padded never matters; what is real always does; numbers at the ends of a dtype's range stay numbers."""

from __future__ import annotations

import pytest
import torch
from conftest import implementations

import rnnsearch_kernels as rk
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import INFERENCE_ONLY, differentiable_arguments, example, values_and_grads

ATTENDING = ("additive_attention", "decoder_step", "decoder_scan")
NAN = float("nan")


def run(op, backend, args):
    """Values and, where the backend has them, gradients."""
    differentiable = any(backend == name for _, name, _ in implementations(op, gradients=True))
    differentiable = differentiable and all(args.get(name) is None for name in INFERENCE_ONLY)
    wanted = differentiable_arguments(BY_NAME[op], args) if differentiable else []
    return values_and_grads(overload_of(op, backend), args, wanted)


@pytest.mark.parametrize("absent", [INFERENCE_ONLY, ()], ids=["training", "inference"])
@pytest.mark.parametrize(("op", "backend", "device"), implementations(*ATTENDING))
def test_nan_in_padded_memory_reaches_no_result_and_no_gradient(op, backend, device, absent):
    args = example(BY_NAME[op], absent=absent, device=device)
    clean = run(op, backend, args)
    mask = args["key_padding_mask"]
    for name in ("keys", "memory", "memory_gates"):
        if args.get(name) is not None:
            args[name] = args[name].masked_fill(mask[..., None], NAN)
    for name, value in run(op, backend, args).items():
        assert torch.equal(value, clean[name]), name


@pytest.mark.parametrize(("op", "backend", "device"), implementations(*ATTENDING))
def test_padded_weights_are_exactly_zero_and_the_real_ones_sum_to_one(op, backend, device):
    args = example(BY_NAME[op], absent={*INFERENCE_ONLY, "input_lengths"}, device=device)
    attn_weights = run(op, backend, args)["2" if op != "additive_attention" else "1"]
    mask = args["key_padding_mask"]
    for weights in attn_weights.transpose(0, 1) if attn_weights.dim() == 3 else [attn_weights]:
        assert (weights[mask] == 0).all() and (weights[~mask] > 0).all()
        real = ~mask.all(1)
        torch.testing.assert_close(weights.sum(1)[real], torch.ones_like(weights.sum(1)[real]))


@pytest.mark.parametrize(("op", "backend", "device"), implementations(*ATTENDING))
def test_a_fully_masked_row_gives_zero_weights_zero_context_and_zero_gradients(op, backend, device):
    args = example(BY_NAME[op], absent={*INFERENCE_ONLY, "input_lengths"}, device=device)
    row = int(args["key_padding_mask"].all(1).nonzero())
    found = run(op, backend, args)
    context, attn_weights = (found["0"], found["1"]) if op == "additive_attention" else (found["1"], found["2"])
    assert (context[row] == 0).all() and (attn_weights[row] == 0).all()
    assert all(value.isfinite().all() for value in found.values())
    for name in ("keys", "memory"):
        if f"gradient of {name}" in found:
            assert (found[f"gradient of {name}"][row] == 0).all()
    if op == "additive_attention" and "gradient of query" in found:
        assert (found["gradient of query"][row] == 0).all()


@pytest.mark.parametrize("name", ["keys", "memory"])
@pytest.mark.parametrize(("op", "backend", "device"), implementations(*ATTENDING))
def test_nan_in_a_real_position_reaches_its_row_and_no_other(op, backend, device, name):
    args = example(BY_NAME[op], absent={*INFERENCE_ONLY, "input_lengths"}, device=device)
    clean = run(op, backend, args)
    real = int((~args["key_padding_mask"][0]).nonzero()[-1])
    args[name] = args[name].clone()
    args[name][0, real, 1] = NAN
    found = run(op, backend, args)
    context = "0" if op == "additive_attention" else "1"
    assert found[context][0].isnan().any()
    if op != "additive_attention":
        assert found["0"][0].isnan().any()
    for result in (result for result in found if result.isdigit()):
        assert torch.equal(found[result][1:], clean[result][1:])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("op", "backend", "device"), implementations("decoder_scan", "gru_scan"))
def test_nan_past_the_lengths_reaches_no_result_and_no_gradient(op, backend, device, reverse):
    args = example(BY_NAME[op], flags={"reverse": reverse}, device=device)
    lengths = args["lengths" if op == "gru_scan" else "input_lengths"]
    past = torch.arange(args["input_gates"].shape[1], device=device) >= lengths[:, None]
    clean = run(op, backend, args)
    assert all((value[past] == 0).all() for name, value in clean.items() if name.isdigit())
    args["input_gates"] = args["input_gates"].masked_fill(past[..., None], NAN)
    for name, value in run(op, backend, args).items():
        assert torch.equal(value, clean[name]), name
    if "gradient of input_gates" in clean:
        assert (clean["gradient of input_gates"][past] == 0).all()


@pytest.mark.parametrize(("op", "backend", "device"), implementations("decoder_scan", gradients=True))
def test_nan_gradients_of_what_lies_past_the_lengths_go_nowhere(op, backend, device):
    """A loss over padded targets may hold a NaN there; the row has ended before."""
    args = example(BY_NAME[op], device=device)
    wanted = differentiable_arguments(BY_NAME[op], args)
    leaves = {name: value.clone().requires_grad_() if name in wanted else value for name, value in args.items()}
    past = torch.arange(args["input_gates"].shape[1], device=device) >= args["input_lengths"][:, None]
    results = overload_of(op, backend)(*leaves.values())[:3]
    cotangents = [torch.ones_like(result).masked_fill(past[..., None], NAN) for result in results]
    for name, grad in zip(wanted, torch.autograd.grad(results, [leaves[n] for n in wanted], cotangents), strict=True):
        assert grad.isfinite().all(), name


@pytest.mark.parametrize(("op", "backend", "device"), implementations(*ATTENDING, gradients=True))
def test_nan_gradients_of_padded_weights_go_nowhere(op, backend, device):
    """The entropy of the weights has the gradient 0 · inf where a weight is padded."""
    args = example(BY_NAME[op], absent={*INFERENCE_ONLY, "input_lengths"}, device=device)
    wanted = differentiable_arguments(BY_NAME[op], args)
    leaves = {name: value.clone().requires_grad_() if name in wanted else value for name, value in args.items()}
    results = overload_of(op, backend)(*leaves.values())
    attn_weights = results[1 if op == "additive_attention" else 2]
    padded = args["key_padding_mask"] if attn_weights.dim() == 2 else args["key_padding_mask"][:, None]
    found = []
    for fill in (0.0, NAN):
        cotangent = torch.linspace(-1, 1, attn_weights.numel(), device=device).view_as(attn_weights)
        grads = torch.autograd.grad(
            attn_weights,
            [leaves[name] for name in wanted],
            cotangent.masked_fill(padded, fill),
            retain_graph=True,
            materialize_grads=True,
        )
        found.append(grads)
    for name, clean, poisoned in zip(wanted, *found, strict=True):
        assert torch.equal(clean, poisoned), name


@pytest.mark.parametrize(("op", "backend", "device"), implementations("decoder_scan", "gru_scan"))
def test_padding_added_to_other_rows_changes_nothing(op, backend, device):
    """A row's results and gradients in a wider batch, by values: padded S and T are longer sums of zeros."""
    args = example(BY_NAME[op], torch.float64, device=device)
    if (op, backend, device) not in implementations(op, dtype=torch.float64):
        pytest.skip(f"{backend} has no float64 {op}")
    wider = dict(args)
    for name, value in args.items():
        shape = {arg.name: arg.shape for arg in BY_NAME[op].tensors}.get(name, ())
        for dim, letter in enumerate(shape):
            if letter in ("S", "T") and value is not None:
                size = list(value.shape)
                size[dim] = 3
                fill = True if value.dtype == torch.bool else NAN
                wider[name] = torch.cat([wider[name], value.new_full(size, fill)], dim)
    narrow, wide = (squared_gradients(op, backend, values) for values in (args, wider))
    for name, value in narrow.items():
        kept = wide[name][tuple(slice(size) for size in value.shape)]
        torch.testing.assert_close(kept, value, rtol=1e-12, atol=1e-13)


def squared_gradients(op, backend, args):
    """Values, and the gradients of the sum of their squares: a loss to which added zeros add nothing."""
    differentiable = any(backend == name for _, name, _ in implementations(op, gradients=True))
    wanted = differentiable_arguments(BY_NAME[op], args) if differentiable else []
    leaves = {name: value.clone().requires_grad_() if name in wanted else value for name, value in args.items()}
    results = overload_of(op, backend)(*leaves.values())
    found = {str(number): result.detach() for number, result in enumerate(results)}
    if wanted:
        loss = sum(result.square().sum() for result in results if result.requires_grad)
        found.update(zip(wanted, torch.autograd.grad(loss, [leaves[name] for name in wanted]), strict=True))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("op", "backend", "device"), implementations(*ATTENDING))
def test_extremes_overflow_nowhere(op, backend, device, dtype):
    if (op, backend, device) not in implementations(op, dtype=dtype):
        pytest.skip(f"{backend} has no {op} in {dtype}")
    # 1e4 · 11 terms overflows float16 (65504); 1e30 · 11 is at home in bfloat16 and float32 alone.
    large = 1e4 if dtype == torch.float16 else 1e30
    for signs in (1, -1):
        args = example(BY_NAME[op], dtype, absent=INFERENCE_ONLY, device=device)
        args["score_weight"] = torch.full_like(args["score_weight"], signs * large)
        args["keys"] = args["keys"] * 1e4
        found = run(op, backend, args)
        assert all(value.isfinite().all() for name, value in found.items() if name.isdigit())
        assert found.get("gradient of memory", torch.zeros(1)).isfinite().all()


@pytest.mark.parametrize(("op", "backend", "device"), implementations("linear", "vocabulary_topk"))
def test_infinite_logits_and_large_products_follow_ieee(op, backend, device):
    if op == "linear":
        input, weight = torch.full((2, 3), 1e30, device=device), torch.full((4, 3), 1e30, device=device)
        assert overload_of(op, backend)(input, weight, None).eq(float("inf")).all()
        weight[:, 1] *= -1
        assert overload_of(op, backend)(input, weight, None).isfinite().logical_not().all()
    else:
        readout, weight = torch.full((1, 3), 100.0, device=device), torch.randn(50, 3, device=device) * 100
        log_probs, _ = overload_of(op, backend)(readout, weight, None, None, 50)
        assert log_probs.isfinite().all() and (log_probs <= 0).all()


def test_no_source_position_is_an_error():
    args = example(BY_NAME["additive_attention"], absent={*INFERENCE_ONLY, "key_padding_mask"})
    with pytest.raises(ValueError, match=r"`keys` must be \(B, S, A\).*every size at least 1; got \(4, 0, 11\)"):
        rk.additive_attention(args["query"], args["keys"][:, :0], args["memory"][:, :0], args["score_weight"])
