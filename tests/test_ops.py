"""The dispatcher's side of every op of every backend: schema, fake, autograd, autocast, aliasing, repeatability."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import tolerances
import torch
from conftest import implementations
from torch import library

import rnnsearch_kernels as rk
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME, Arg
from rnnsearch_kernels.selftest import (
    INFERENCE_ONLY,
    SIZES,
    differentiable_arguments,
    example,
    values_and_grads,
    variants,
)

DIFFERENTIABLE = ("linear", "additive_attention", "decoder_step", "decoder_scan", "gru_scan", "vocabulary_loss")
EVERY_OP = tuple(BY_NAME)
SMALL = {**SIZES, "B": 3, "N": 4, "S": 3, "T": 2, "H": 2, "A": 4, "M": 5, "L": 3, "V": 7, "R": 2, "K": 3, "I": 3}
WITHOUT_COMPILING = ("test_schema", "test_autograd_registration", "test_faketensor")


def subsets(names):
    names = sorted(names)
    return chain.from_iterable(combinations(names, count) for count in range(len(names) + 1))


def optional(op):
    return {arg.name for arg in BY_NAME[op].args if isinstance(arg, Arg) and arg.optional}


def tensors(results):
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("op", "backend", "device"), implementations(*EVERY_OP))
def test_opcheck_with_every_subset_of_the_optional_arguments(op, backend, device, dtype):
    if (op, backend, device) not in implementations(op, dtype=dtype):
        pytest.skip(f"{backend} has no {op} in {dtype}")
    for absent in subsets(optional(op)):
        args = example(BY_NAME[op], dtype, sizes=SMALL, absent=absent, flags={"reset_after": True}, device=device)
        library.opcheck(overload_of(op, backend), tuple(args.values()), test_utils=WITHOUT_COMPILING)


@pytest.mark.parametrize(("op", "backend", "device"), implementations(*DIFFERENTIABLE, gradients=True))
def test_opcheck_with_gradients(op, backend, device):
    traced = []
    for absent, flags in variants(BY_NAME[op], differentiable=True):
        args = example(BY_NAME[op], sizes=SMALL, absent=absent, flags=flags, device=device)
        for name in differentiable_arguments(BY_NAME[op], args):
            args[name].requires_grad_()
        # Tracing takes a second and sees which arguments are there, not what a flag makes of them.
        checks = WITHOUT_COMPILING if absent in traced else (*WITHOUT_COMPILING, "test_aot_dispatch_dynamic")
        library.opcheck(overload_of(op, backend), tuple(args.values()), test_utils=checks)
        traced.append(absent)


@pytest.mark.parametrize(("op", "backend", "device"), implementations(*DIFFERENTIABLE, gradients=True))
def test_every_subset_of_gradients_gives_the_same_gradients(op, backend, device):
    absent = optional(op) & set(INFERENCE_ONLY)
    # One step of a scan: which gradients are wanted is not a matter of T, and there are 1024 subsets of ten.
    sizes = {**SMALL, "T": 1}
    args = example(BY_NAME[op], sizes=sizes, absent=absent, flags={"reset_after": False}, device=device)
    overload, names = overload_of(op, backend), differentiable_arguments(BY_NAME[op], args)
    whole = values_and_grads(overload, args, names)
    for wanted in subsets(names):
        for name, value in values_and_grads(overload, args, wanted).items():
            assert torch.equal(value, whole[name]), f"{name} with gradients of {wanted}"


@pytest.mark.parametrize(("op", "backend", "device"), implementations(*DIFFERENTIABLE[1:], gradients=True))
def test_a_second_derivative_raises(op, backend, device):
    args = example(BY_NAME[op], sizes=SMALL, absent=INFERENCE_ONLY, device=device)
    names = differentiable_arguments(BY_NAME[op], args)
    leaves = [args[name].requires_grad_() for name in names]
    result = tensors(overload_of(op, backend)(*args.values()))[0]
    grads = torch.autograd.grad(result.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="a second derivative is not available"):
        sum(grad.square().sum() for grad in grads).backward()


@pytest.mark.parametrize(("op", "backend", "device"), implementations("linear", gradients=True, dtype=torch.float64))
def test_the_second_derivative_of_linear_is_right(op, backend, device):
    args = example(BY_NAME[op], torch.float64, sizes=SMALL, device=device)
    leaves = [value.requires_grad_() for value in args.values()]
    assert torch.autograd.gradgradcheck(overload_of(op, backend), leaves, **tolerances.GRADCHECK)


@pytest.mark.parametrize(("op", "backend", "device"), implementations("additive_attention", "decoder_step"))
def test_memory_index_and_memory_gates_raise_under_autograd(op, backend, device):
    for argument in optional(op) & set(INFERENCE_ONLY):
        others = optional(op) & set(INFERENCE_ONLY) - {argument}
        args = example(BY_NAME[op], sizes=SMALL, absent=others, device=device)
        args["keys"].requires_grad_()
        with pytest.raises(RuntimeError, match=f"`{argument}` is for inference: call under torch.no_grad"):
            overload_of(op, backend)(*args.values())
        with torch.no_grad():
            overload_of(op, backend)(*args.values())


@pytest.mark.parametrize(
    ("op", "backend", "device"), implementations("decoder_step", "decoder_scan", "gru_scan", gradients=True)
)
def test_a_state_mask_that_wants_a_gradient_is_refused(op, backend, device):
    args = example(BY_NAME[op], sizes=SMALL, absent=INFERENCE_ONLY, device=device)
    args["state_mask"].requires_grad_()
    with pytest.raises(RuntimeError, match=f"`state_mask` is a constant, rnnsearch::{op} has no gradient for it"):
        overload_of(op, backend)(*args.values())
    with torch.no_grad():
        overload_of(op, backend)(*args.values())


@pytest.mark.parametrize(("op", "backend", "device"), implementations("vocabulary_topk"))
def test_a_derivative_of_vocabulary_topk_raises(op, backend, device):
    args = example(BY_NAME[op], sizes=SMALL, device=device)
    args["readout"].requires_grad_()
    log_probs, token_ids = overload_of(op, backend)(*args.values())
    assert not token_ids.requires_grad
    with pytest.raises(RuntimeError, match="vocabulary_topk has no derivative: it is for inference"):
        log_probs.sum().backward()


@pytest.mark.parametrize(
    ("op", "backend", "device"), implementations("decoder_step", "decoder_scan", "gru_scan", gradients=True)
)
def test_gates_carry_no_gradient(op, backend, device):
    args = example(BY_NAME[op], sizes=SMALL, absent=INFERENCE_ONLY, device=device)
    args["input_gates"].requires_grad_()
    *results, gates = overload_of(op, backend)(*args.values())
    assert not gates.requires_grad and all(result.requires_grad for result in results)


@pytest.mark.parametrize(("op", "backend", "device"), implementations(*EVERY_OP))
def test_results_alias_nothing_and_arguments_are_left_alone(op, backend, device):
    for absent, flags in variants(BY_NAME[op]):
        for sizes in (SMALL, {**dict.fromkeys(SIZES, 1)}):
            args = example(BY_NAME[op], sizes=sizes, absent=absent, flags=flags, device=device)
            before = {name: value.clone() for name, value in args.items() if isinstance(value, torch.Tensor)}
            results = tensors(overload_of(op, backend)(*args.values()))
            memory = [value.untyped_storage().data_ptr() for value in (*before, *results) if not isinstance(value, str)]
            memory += [args[name].untyped_storage().data_ptr() for name in before]
            assert len(set(memory)) == len(memory)
            assert all(result.is_contiguous() for result in results)
            assert all(torch.equal(args[name], value) for name, value in before.items())


@pytest.mark.parametrize(("op", "backend", "device"), implementations(*EVERY_OP))
def test_results_and_gradients_are_the_same_bits_every_time(op, backend, device):
    differentiable = (op, backend, device) in implementations(op, gradients=True) and op in DIFFERENTIABLE
    absent = set(INFERENCE_ONLY) if differentiable else set()
    args = example(BY_NAME[op], absent=absent, device=device)
    wanted = differentiable_arguments(BY_NAME[op], args) if differentiable else []
    first = values_and_grads(overload_of(op, backend), args, wanted)
    for _ in range(3):
        again = values_and_grads(overload_of(op, backend), args, wanted)
        assert all(torch.equal(again[name], value) for name, value in first.items())


def strided(value, how):
    """The same numbers, laid out in another way."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    if how == "sliced":  # columns of something wider: the innermost stride stays 1
        wide = torch.cat([value, value.new_ones((*value.shape[:-1], 5))], -1)
        return wide[..., : value.shape[-1]]
    if how == "every other":
        return torch.stack([value, torch.zeros_like(value)], -1)[..., 0]
    if how == "permuted":
        return value.permute(*reversed(range(value.dim()))).contiguous().permute(*reversed(range(value.dim())))
    return value[:1].expand_as(value) if how == "expanded" else value


@pytest.mark.parametrize("how", ["sliced", "every other", "permuted", "expanded"])
@pytest.mark.parametrize(("op", "backend", "device"), implementations(*EVERY_OP, dtype=torch.float64))
def test_strided_arguments_give_equal_results(op, backend, device, how):
    differentiable = op in DIFFERENTIABLE and (op, backend, device) in implementations(op, gradients=True)
    args = example(BY_NAME[op], torch.float64, absent=INFERENCE_ONLY if differentiable else (), device=device)
    views = {name: strided(value, how) for name, value in args.items()}
    dense = {name: view.contiguous() if isinstance(view, torch.Tensor) else view for name, view in views.items()}
    wanted = differentiable_arguments(BY_NAME[op], args) if differentiable else []
    mine, theirs = (_through_views(overload_of(op, backend), values, wanted) for values in (views, dense))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerances.EXACT)


def _through_views(overload, args, wanted):
    """Values and gradients without copying the arguments, so that they keep their strides."""
    leaves = {name: value.detach().requires_grad_(name in wanted) if name in wanted else value
              for name, value in args.items()}  # fmt: skip
    results = tensors(overload(*leaves.values()))
    live = [result for result in results if result.requires_grad]
    grads = torch.autograd.grad(sum(r.square().sum() for r in live), [leaves[n] for n in wanted]) if live else ()
    return [value.detach() for value in (*results, *grads)]


@pytest.mark.parametrize(("op", "backend", "device"), implementations(*EVERY_OP))
def test_inference_mode_and_no_grad_give_the_same_bits(op, backend, device):
    args = example(BY_NAME[op], device=device, absent=INFERENCE_ONLY)
    overload = overload_of(op, backend)
    plain = tensors(overload(*args.values()))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert all(map(torch.equal, tensors(overload(*args.values())), plain))


@pytest.mark.parametrize(
    ("op", "backend", "device"), implementations("linear", *DIFFERENTIABLE[1:], "vocabulary_topk", dtype=torch.bfloat16)
)
def test_autocast_casts_what_is_stored_and_keeps_what_is_accumulated(op, backend, device):
    args = example(BY_NAME[op], device=device)
    overload = overload_of(op, backend)
    plain = tensors(overload(*args.values()))
    with torch.autocast(device, dtype=torch.bfloat16):
        cast = tensors(overload(*args.values()))
    for result, one, other in zip(BY_NAME[op].results, cast, plain, strict=True):
        assert one.dtype == {"storage": torch.bfloat16, "index": torch.int64}.get(result.role, torch.float32)
        if result.role != "index":
            torch.testing.assert_close(one.float(), other, **tolerances.AUTOCAST)


@pytest.mark.parametrize(("op", "backend", "device"), implementations(*EVERY_OP, dtype=torch.float64))
def test_autocast_leaves_float64_untouched(op, backend, device):
    args = example(BY_NAME[op], torch.float64, device=device)
    plain = tensors(overload_of(op, backend)(*args.values()))
    with torch.autocast(device, dtype=torch.bfloat16):
        assert all(map(torch.equal, tensors(overload_of(op, backend)(*args.values())), plain))


def test_autocast_through_the_functions_takes_mixed_dtypes_and_gives_gradients_in_each_arguments_own():
    """Under autocast some tensors arrive already cast, as torch's own Linear leaves them."""
    args = example(BY_NAME["additive_attention"], absent=INFERENCE_ONLY)
    mask, index = args.pop("key_padding_mask"), args.pop("memory_index")
    assert index is None
    args["keys"] = args["keys"].bfloat16()
    leaves = [value.requires_grad_() for value in args.values()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context, attn_weights = rk.additive_attention(*leaves, key_padding_mask=mask)
    assert (context.dtype, attn_weights.dtype) == (torch.bfloat16, torch.float32)
    for leaf, grad in zip(leaves, torch.autograd.grad(context.float().square().sum(), leaves), strict=True):
        assert grad.dtype == leaf.dtype and grad.isfinite().all()


def test_poison_fills_what_is_not_initialised(request):
    """Otherwise a run with --poison would prove nothing."""
    if not request.config.getoption("--poison"):
        pytest.skip("this run is without --poison")
    assert torch.empty(1000).isnan().all() and torch.empty_strided((9, 9), (9, 1)).isnan().all()
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.ones(3).put_(torch.tensor([0]), torch.ones(1))
