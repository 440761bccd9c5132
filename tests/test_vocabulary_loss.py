"""The loss over the vocabulary: its sum and gradients against cross-entropy in float64, and what else is promised."""

from __future__ import annotations

import pytest
import torch
from conftest import implementations
from tolerances import EXACT, SAME_FLOAT32
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rnnsearch_kernels as rk
from rnnsearch_kernels import functional, reference
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.reference import vocabulary
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import SIZES, error_ratio, example

OP = "vocabulary_loss"
SMOOTHINGS = [0.0, 0.1, 1.0]
NAMES = ("readout", "weight", "bias")
EVERY_BACKEND = pytest.mark.parametrize(("op", "backend", "device"), implementations(OP, gradients=True))


def arguments(dtype=torch.float32, smoothing=0.1, *, bias=True, device="cpu", **sizes):
    absent = () if bias else ("bias",)
    flags = {"label_smoothing": smoothing}
    return example(BY_NAME[OP], dtype, sizes={**SIZES, **sizes}, absent=absent, flags=flags, device=device)


def found(args, backend="auto", scale=1.0):
    """The loss and its gradients, times ``scale``, through the public function."""
    leaves = {name: args[name].detach().requires_grad_() for name in NAMES if args[name] is not None}
    loss = rk.vocabulary_loss(**{**args, **leaves}, backend=backend)
    return [loss.detach(), *torch.autograd.grad(loss * scale, list(leaves.values()))]


def truth(args):
    double = [args[name].detach().double().cpu().requires_grad_() for name in NAMES if args[name] is not None]
    target, smoothing = args["target"].cpu(), args["label_smoothing"]
    loss = nn.functional.cross_entropy(
        nn.functional.linear(*double), target, ignore_index=-1, label_smoothing=smoothing, reduction="sum"
    )
    return [loss.detach(), *torch.autograd.grad(loss, double)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize(("op", "backend", "device"), implementations(OP, gradients=True, dtype=torch.float64))
def test_sum_and_gradients_are_those_of_cross_entropy(op, backend, device, smoothing, bias):
    args = arguments(torch.float64, smoothing, bias=bias, device=device)
    for got, want in zip(found(args, backend), truth(args), strict=True):
        torch.testing.assert_close(got.cpu(), want, **EXACT)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@EVERY_BACKEND
def test_a_row_without_a_target_may_hold_anything_and_changes_nothing(op, backend, device, smoothing):
    args = arguments(smoothing=smoothing, device=device)
    without = args["target"] < 0
    assert without.any() and not without.all()
    clean = found(args, backend)
    args["readout"] = args["readout"].masked_fill(without[:, None], torch.nan)
    dirty = found(args, backend)
    assert all(map(torch.equal, dirty, clean))
    assert dirty[1][without].eq(0).all()
    with torch.no_grad():
        assert rk.vocabulary_loss(**args, backend=backend).isfinite()


@EVERY_BACKEND
def test_rows_without_a_target_alone_give_a_loss_and_gradients_of_exactly_zero(op, backend, device):
    args = arguments(device=device)
    args["target"], args["readout"] = torch.full_like(args["target"], -1), args["readout"] * torch.nan
    assert all(value.eq(0).all() for value in found(args, backend))
    assert all(value.eq(0).all() for value in overload_of(op, backend)(*args.values()))
    assert rk.vocabulary_loss(**args, backend=backend).eq(0)


@EVERY_BACKEND
def test_a_nan_in_a_row_with_a_target_is_not_lost(op, backend, device):
    args = arguments(device=device)
    args["readout"][0, 0] = torch.nan
    loss, grad_readout, grad_weight, grad_bias = found(args, backend)
    assert loss.isnan() and rk.vocabulary_loss(**args, backend=backend).isnan()
    assert grad_readout[0].isnan().all() and not grad_readout[1:].isnan().any()
    assert grad_weight.isnan().any() and grad_bias.isnan().all()


@pytest.mark.parametrize("wanted", NAMES)
@pytest.mark.parametrize("value", [-0.1, 1.1, torch.nan])
@EVERY_BACKEND
def test_a_label_smoothing_out_of_range_is_named(op, backend, device, value, wanted):
    args = {**arguments(device=device), "label_smoothing": value}
    with torch.no_grad(), pytest.raises(ValueError, match=rf"`label_smoothing` must lie in 0\.\.1; got {value}"):
        rk.vocabulary_loss(**args, backend=backend)
    args[wanted].requires_grad_()
    with pytest.raises(ValueError, match=rf"`label_smoothing` must lie in 0\.\.1; got {value}"):
        rk.vocabulary_loss(**args, backend=backend)


@pytest.mark.parametrize("token", [-2, SIZES["V"]])
@EVERY_BACKEND
def test_a_target_out_of_range_is_named_where_gradients_are_wanted_too(op, backend, device, token):
    if device != "cpu":
        pytest.skip("a look at the values would synchronise")
    args = arguments(device=device)
    args["target"][1:] = -1
    args["target"][0] = token
    args["weight"].requires_grad_()
    message = rf"`target` must lie in -1\.\.V-1 = -1\.\.36; got {min(token, -1)}\.\.{max(token, -1)}"
    with pytest.raises(ValueError, match=message):
        rk.vocabulary_loss(**args, backend=backend)


def test_a_backend_without_the_op_says_so_whether_or_not_a_gradient_is_wanted(own_backends):
    rk.register_backend(
        rk.Backend("has_linear_alone", ("cpu",), (torch.float32,), rank=-1, kernels={"linear": reference.linear})
    )
    args = arguments()
    for wants in (False, True):
        args["weight"].requires_grad_(wants)
        with pytest.raises(RuntimeError, match="has_linear_alone: it has no vocabulary_loss"):
            rk.vocabulary_loss(**args, backend="has_linear_alone")


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EVERY_BACKEND
def test_without_a_gradient_the_value_is_the_same_and_none_is_computed(op, backend, device, dtype, smoothing):
    args = arguments(dtype, smoothing, device=device)
    wanted = truth(args)[0]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss = rk.vocabulary_loss(**args, backend=backend)
        args["weight"].requires_grad_()
        with torch.no_grad():
            again = rk.vocabulary_loss(**args, backend=backend)
    assert torch.equal(loss, again) and loss.dtype == torch.float32
    assert error_ratio(loss, wanted, dtype) <= 1
    names = [event.name for event in profile.events()]
    assert not any(f"::{op}" in name for name in names), "the op, which computes gradients"
    products = [name for name in names if name == "rnnsearch::linear" or (device != "cpu" and name == "aten::addmm")]
    assert len(products) == 2


@EVERY_BACKEND
def test_a_second_backward_pass_is_an_error_and_no_wrong_gradient(op, backend, device):
    args = arguments(device=device)
    leaves = [args[name].requires_grad_() for name in NAMES]
    loss = rk.vocabulary_loss(**args, backend=backend)
    torch.autograd.grad(loss, leaves, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|one backward pass goes through it"):
        torch.autograd.grad(loss, leaves)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: value, lambda value: value):
        loss = rk.vocabulary_loss(**args, backend=backend)
    torch.autograd.grad(loss, leaves, retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass goes through it"):
        torch.autograd.grad(loss, leaves)


@EVERY_BACKEND
def test_a_second_derivative_is_an_error_under_a_constant_gradient_too(op, backend, device):
    args = arguments(device=device)
    leaves = [args[name].requires_grad_() for name in NAMES]
    grads = torch.autograd.grad(rk.vocabulary_loss(**args, backend=backend), leaves, create_graph=True)
    for grad in grads:
        with pytest.raises(RuntimeError, match="a second derivative is not available"):
            grad.square().sum().backward(retain_graph=True)


@EVERY_BACKEND
def test_the_gradients_among_the_results_have_none(op, backend, device):
    args = arguments(device=device)
    args["weight"].requires_grad_()
    loss, *grads = overload_of(op, backend)(*args.values())
    assert loss.requires_grad and not any(grad.requires_grad for grad in grads)


@pytest.mark.parametrize(("op", "backend", "device"), implementations(OP, gradients=True, dtype=torch.float16))
def test_a_float16_gradient_is_scaled_before_it_is_divided(op, backend, device):
    """1 / N of a small gradient is below float16's smallest number; with a loss scale none is lost."""
    args, rows, scale = arguments(torch.float16, device=device, N=4000), 4000, 2.0**12
    args["weight"] = args["weight"] / 64
    assert (truth(args)[1] / rows).abs().max() < torch.finfo(torch.float16).tiny
    for got, want in zip(found(args, backend, scale / rows)[1:], truth(args)[1:], strict=True):
        assert error_ratio(got, want * scale / rows, torch.float16) <= 1


@EVERY_BACKEND
def test_autocast_gives_each_gradient_in_its_arguments_dtype_and_a_float32_loss(op, backend, device):
    args = arguments(device=device)
    wanted = truth(args)
    args["readout"] = args["readout"].bfloat16()  # as torch's own Linear leaves it
    with torch.autocast(device, dtype=torch.bfloat16):
        got = found(args, backend)
        alone = rk.vocabulary_loss(**args, backend=backend)
    assert [value.dtype for value in got] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    for value, want in zip([*got, alone], [*wanted, wanted[0]], strict=True):
        torch.testing.assert_close(value.double().cpu(), want, rtol=0, atol=0.05 * float(want.abs().max()))


@pytest.mark.parametrize("wants", [False, True], ids=["alone", "with gradients"])
@EVERY_BACKEND
def test_it_compiles_in_one_graph(op, backend, device, wants):
    torch._dynamo.reset()
    args = arguments(device=device)
    args["weight"].requires_grad_(wants)
    compiled = torch.compile(rk.vocabulary_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**args, backend=backend), rk.vocabulary_loss(**args, backend=backend))
    torch._dynamo.reset()


class Loss(nn.Module):
    def forward(self, readout, weight, bias, target):
        return rk.vocabulary_loss(readout, weight, bias, target, label_smoothing=0.1)


@pytest.mark.parametrize("wants", [False, True], ids=["alone", "with gradients"])
def test_an_exported_loss_takes_any_number_of_rows_and_decomposes(wants):
    args = arguments(N=6)
    tensors = tuple(args[name].requires_grad_(wants) for name in NAMES)
    rows = torch.export.Dim("N", min=2)
    with torch.set_grad_enabled(wants):
        exported = torch.export.export(
            Loss(), (*tensors, args["target"]), dynamic_shapes=({0: rows}, None, None, {0: rows})
        )
    exported = exported.run_decompositions(rk.decompositions())
    assert not any("rnnsearch" in str(node.target) for node in exported.graph.nodes)
    more = arguments(N=11)
    given = (*(more[name] for name in NAMES), more["target"])
    torch.testing.assert_close(exported.module()(*given), truth(more)[0].float(), **SAME_FLOAT32)


@pytest.mark.parametrize("counted", [True, False], ids=["on a CPU", "where rows cannot be counted"])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("piece", [1, 80, 2**24])
def test_in_pieces_it_is_the_same(piece, smoothing, counted, monkeypatch):
    """One row, two rows with a last piece of fewer, and all; NaN in rows without a target."""
    args = arguments(smoothing=smoothing, N=11)
    wanted = truth(args)
    monkeypatch.setattr(vocabulary, "PIECE", piece)
    if not counted:
        for module in (vocabulary, functional):
            monkeypatch.setattr(module, "rows_with_target", lambda target: None)
    args["readout"] = args["readout"].masked_fill(args["target"][:, None] < 0, torch.nan)
    got = [*found(args, "reference"), rk.vocabulary_loss(**args, backend="reference")]
    for value, want in zip(got, [*wanted, wanted[0]], strict=True):
        torch.testing.assert_close(value, want.float(), **SAME_FLOAT32)


class Seen(TorchDispatchMode):
    """The names of the calls below it, and the dtypes of the products."""

    def __init__(self):
        super().__init__()
        self.names, self.dtypes, self.largest = set(), set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket._qualified_op_name
        self.names.add(name)
        if name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            self.dtypes |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize(
    ("device", "products"), [("cpu", torch.float32), ("meta", torch.bfloat16)], ids=["cpu", "elsewhere"]
)
def test_the_references_products_are_in_the_storage_dtype_where_there_are_units_for_it(device, products, monkeypatch):
    """And nothing waits for a device, or is as large as all logits."""
    monkeypatch.setattr(vocabulary, "PIECE", 128)
    args = arguments(torch.bfloat16, device=device, N=100, L=3, V=64)
    with Seen() as seen:
        loss, grad_readout, grad_weight, grad_bias = reference.vocabulary_loss(*args.values())
    assert seen.dtypes == {products}
    assert (loss.dtype, grad_readout.dtype) == (torch.float32, torch.bfloat16)
    assert grad_weight.dtype == grad_bias.dtype == torch.float32
    assert seen.largest <= 100 * 3
    if device != "cpu":
        assert not seen.names & {"aten::_local_scalar_dense", "aten::nonzero"}
