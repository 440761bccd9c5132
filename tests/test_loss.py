"""The loss without logits in memory against plain cross-entropy in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch
from rnnsearch.loss import vocabulary_loss
from torch import Tensor, nn

import rnnsearch_kernels as rk
from rnnsearch_kernels import reference
from rnnsearch_kernels.reference import vocabulary

PAD = 0
WAYS = ["logits", "chunked"]
ROWS, READOUT, VOCABULARY = 23, 6, 11


def drawn(dtype: torch.dtype = torch.float32, *, bias: bool = True, rows: int = ROWS) -> tuple[list[Tensor], Tensor]:
    readout, weight = torch.randn(rows, READOUT), torch.randn(VOCABULARY, READOUT)
    target = torch.randint(1, VOCABULARY, (rows,))
    target[::4] = PAD
    given = [readout, weight, *([torch.randn(VOCABULARY)] if bias else [])]
    return [value.to(dtype).requires_grad_() for value in given], target


def found(given: list[Tensor], target: Tensor, **options) -> list[Tensor]:
    readout, weight, *bias = given
    loss = vocabulary_loss(readout, weight, bias[0] if bias else None, target, pad_id=PAD, **options)
    return [loss.detach(), *torch.autograd.grad(loss, given)]


def truth(given: list[Tensor], target: Tensor, smoothing: float) -> list[Tensor]:
    double = [value.detach().double().requires_grad_() for value in given]
    loss = nn.functional.cross_entropy(
        nn.functional.linear(*double), target, ignore_index=PAD, label_smoothing=smoothing
    )
    return [loss.detach(), *torch.autograd.grad(loss, double)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("way", WAYS)
def test_values_and_gradients_are_those_of_cross_entropy(way, smoothing, bias) -> None:
    given, target = drawn(bias=bias)
    wanted = truth(given, target, smoothing)
    for got, want in zip(found(given, target, label_smoothing=smoothing, way=way), wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_is_as_close_as_plain_pytorch(way) -> None:
    given, target = drawn(torch.bfloat16)
    wanted = truth(given, target, 0.1)
    plain = found(given, target, label_smoothing=0.1, way="logits")
    for got, beside, want in zip(found(given, target, label_smoothing=0.1, way=way), plain, wanted, strict=True):
        unit = torch.finfo(torch.bfloat16).eps * float(want.abs().max())
        allowed = max(2 * float((beside.double() - want).square().mean().sqrt()), 8 * unit)
        assert float((got.double() - want).square().mean().sqrt()) <= allowed


@pytest.mark.parametrize("way", WAYS)
def test_autocast_is_followed(way) -> None:
    given, target = drawn()
    with torch.autocast("cpu", torch.bfloat16):
        got = found(given, target, label_smoothing=0.1, way=way)
    assert all(value.dtype == torch.float32 for value in got[1:])
    for value, want in zip(got, truth(given, target, 0.1), strict=True):
        torch.testing.assert_close(value.double(), want, rtol=0, atol=0.05 * float(want.abs().max()))


def test_float16_under_a_loss_scale_is_as_close_as_plain_pytorch() -> None:
    """A row's share of the mean is about float16's smallest number: what it multiplies must be scaled first."""
    scale, (given, target) = 2.0**16, drawn(rows=4000)
    with torch.no_grad():
        given[0] *= 0.01
    wanted = truth(given, target, 0.1)[1:]
    errors = {}
    for way in WAYS:
        with torch.autocast("cpu", torch.float16):
            loss = vocabulary_loss(*given, target, pad_id=PAD, label_smoothing=0.1, way=way)
        got = torch.autograd.grad(loss * scale, given)
        errors[way] = [
            float((value.double() / scale - want).norm() / want.norm()) for value, want in zip(got, wanted, strict=True)
        ]
    for error, plain in zip(errors["chunked"], errors["logits"], strict=True):
        assert error <= 2 * plain, errors


def test_leading_sizes_are_the_callers() -> None:
    given, target = drawn()
    readout, weight, bias = given
    flat = vocabulary_loss(readout[:20], weight, bias, target[:20], pad_id=PAD)
    batched = vocabulary_loss(readout[:20].view(4, 5, -1), weight, bias, target[:20].view(4, 5), pad_id=PAD)
    assert torch.equal(flat, batched)


def test_a_way_that_is_not_there_is_an_error() -> None:
    given, target = drawn()
    with pytest.raises(ValueError, match=r"`way` must be one of .*; got 'fused'"):
        vocabulary_loss(*given, target, pad_id=PAD, way="fused")


@pytest.mark.parametrize("way", WAYS)
def test_padded_rows_are_not_multiplied(way) -> None:
    given, target = drawn()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        found(given, target, way=way, backend="reference")  # whose products a profile sees
    products = [event.input_shapes for event in profile.events() if event.name in ("aten::addmm", "aten::mm")]
    rows = {size for shapes in products for shape in shapes for size in shape} - {READOUT, VOCABULARY}
    assert rows == {int((target != PAD).sum())}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("way", WAYS)
def test_a_padded_row_may_hold_anything(way, smoothing) -> None:
    given, target = drawn()
    wanted = found(given, target, way=way, label_smoothing=smoothing)
    with torch.no_grad():
        given[0][target == PAD] = torch.nan
    got = found(given, target, way=way, label_smoothing=smoothing)
    assert all(torch.equal(value, want) for value, want in zip(got, wanted, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_no_real_token_is_no_gradient(way) -> None:
    """A process of several may have none."""
    given, target = drawn()
    loss = vocabulary_loss(*given, torch.full_like(target, PAD), pad_id=PAD, way=way)
    assert loss.isnan()
    for gradient in torch.autograd.grad(loss * 0.0, given):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_op_is_that_of_the_backend_named_or_of_auto_where_that_has_none(own_backends) -> None:
    """A model is given the backend that is to run its scans."""
    calls = []

    def counting(*args):
        calls.append(args)
        return reference.vocabulary_loss(*args)

    for name, kernels in (
        ("brings_the_loss", {"vocabulary_loss": counting}),
        ("brings_no_loss", {"linear": reference.linear}),
    ):
        rk.register_backend(rk.Backend(name, ("cpu",), (torch.float32,), rank=-1, kernels=kernels))
    given, target = drawn()
    wanted = truth(given, target, 0.1)
    for backend in ("brings_the_loss", "brings_no_loss"):
        for value, want in zip(found(given, target, label_smoothing=0.1, backend=backend), wanted, strict=True):
            torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=1e-6)
        assert len(calls) == 1
        with torch.no_grad():
            alone = vocabulary_loss(*given, target, pad_id=PAD, label_smoothing=0.1, backend=backend)
        torch.testing.assert_close(alone.double(), wanted[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"`backend` must be one of .*; got 'typo'"):
        vocabulary_loss(*given, target, pad_id=PAD, backend="typo")


def test_the_mean_is_over_the_rows_that_are_summed() -> None:
    """-1 is no token whatever the padding is."""
    given, target = drawn()
    target = target.masked_fill(target == PAD, -1)
    truth_, *_ = truth(given, target.masked_fill(target < 0, PAD), 0.1)
    found_ = vocabulary_loss(*given, target, pad_id=PAD, label_smoothing=0.1, way="chunked")
    torch.testing.assert_close(found_.double(), truth_, rtol=1e-5, atol=1e-6)


def test_a_second_backward_pass_is_an_error_and_no_wrong_gradient() -> None:
    given, target = drawn()
    loss = vocabulary_loss(*given, target, pad_id=PAD, way="chunked")
    torch.autograd.grad(loss, given, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|one backward pass goes through it"):
        torch.autograd.grad(loss, given)


def test_no_logits_are_kept_where_gradients_are_wanted() -> None:
    """The library's products show which way was taken: none is of all rows by the whole vocabulary."""
    given, target = drawn()
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.shape) or value, lambda value: value):
        vocabulary_loss(*given, target, pad_id=PAD)
        assert not any(VOCABULARY in shape and READOUT not in shape and len(shape) > 1 for shape in kept) and kept
        kept.clear()
        vocabulary_loss(*given, target, pad_id=PAD, way="logits")
        assert any(VOCABULARY in shape and READOUT not in shape and len(shape) > 1 for shape in kept)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_gradients_the_loss_is_one_product_a_piece_and_no_more_logits_than_that(smoothing, monkeypatch) -> None:
    monkeypatch.setattr(vocabulary, "PIECE", 4 * VOCABULARY)
    given, target = drawn()
    wanted = truth(given, target, smoothing)[0]
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.no_grad(), torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        loss = vocabulary_loss(*given, target, pad_id=PAD, label_smoothing=smoothing)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    rows = int((target != PAD).sum())
    calls = [event for event in profile.events() if event.name == "rnnsearch::linear"]
    assert len(calls) == -(-rows // 4)
    assert not any([rows, VOCABULARY] in event.input_shapes for event in profile.events())
