"""``gru_scan``, ``linear`` and ``vocabulary_topk`` in Triton, where the self-test's one size does not reach."""

from __future__ import annotations

import pytest
import tolerances
import torch

from rnnsearch_kernels import reference
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import (
    SIZES,
    differentiable_arguments,
    error_ratio,
    example,
    values_and_grads,
    variants,
    widen,
)

GRU = BY_NAME["gru_scan"]
# Rows and units that end within a block, at its edge and one past it; sums longer than one tile of them.
GRU_SIZES = [(1, 1, 1), (3, 1, 16), (17, 2, 33)]


def gru(args, wanted=()):
    return values_and_grads(overload_of("gru_scan", "triton"), args, wanted)


def topk(*args):
    return overload_of("vocabulary_topk", "triton")(*args)


@pytest.mark.parametrize(("B", "T", "H"), GRU_SIZES)
def test_a_scan_of_any_size_holds_against_the_reference(B, T, H):
    # Every third: each argument there and not, each flag on and off. The self-test has them all.
    for seed, (absent, flags) in enumerate(list(variants(GRU, differentiable=True))[::3]):
        args = example(GRU, seed=seed, sizes={**SIZES, "B": B, "T": T, "H": H}, absent=absent, flags=flags)
        wanted = differentiable_arguments(GRU, args)
        truth = values_and_grads(overload_of("gru_scan", "reference"), widen(args), wanted)
        for name, value in gru(args, wanted).items():
            assert error_ratio(value, truth[name], torch.float32) <= 1, (name, absent, flags)


def test_strided_arguments_give_the_same_bits():
    args = example(GRU, flags={"reverse": True})
    wanted = differentiable_arguments(GRU, args)
    strided = {
        **args,
        "input_gates": args["input_gates"].transpose(0, 2).contiguous().transpose(0, 2),
        "state": args["state"].t().contiguous().t(),
        "hidden_weight": torch.cat([args["hidden_weight"], args["hidden_weight"]], 1)[:, SIZES["H"] :],
        "lengths": args["lengths"].repeat_interleave(2)[::2],
    }
    expected = gru(args, wanted)
    overload = overload_of("gru_scan", "triton")
    leaves = {name: strided[name].detach().requires_grad_() if name in wanted else strided[name] for name in strided}
    states, gates = overload(*leaves.values())
    assert torch.equal(states, expected["0"]) and torch.equal(gates, expected["1"])
    # A cotangent without strides, as that of a sum.
    found = torch.autograd.grad(states.sum(), [leaves[name] for name in wanted])
    leaves = {name: args[name].clone().requires_grad_() if name in wanted else args[name] for name in args}
    dense = torch.autograd.grad(
        overload(*leaves.values())[0], [leaves[name] for name in wanted], torch.ones_like(states)
    )
    assert all(torch.equal(one, other) for one, other in zip(found, dense, strict=True))


@pytest.mark.parametrize("reset_after", [True, False])
def test_nan_past_a_length_reaches_nothing(reset_after):
    args = example(GRU, flags={"reverse": True, "reset_after": reset_after})
    backward, results = overload_of("gru_scan_backward", "triton"), gru(args)
    past = torch.arange(SIZES["T"]) >= args["lengths"][:, None]
    assert past.any() and not results["0"][past].any() and not results["1"][past].any()
    spoiled = {**args, "input_gates": args["input_gates"].masked_fill(past[..., None], torch.nan)}
    assert all(torch.equal(value, results[name]) for name, value in gru(spoiled).items())

    def back(args, grad):
        tensors = [args[name] for name in ("input_gates", "state", "state_mask", "hidden_weight", "lengths")]
        return backward(grad, *tensors, results["0"], results["1"], args["reverse"], reset_after)

    grad = torch.randn_like(results["0"])
    clean, dirty = back(args, grad), back(spoiled, grad.masked_fill(past[..., None], torch.nan))
    assert not clean[0][past].any()
    assert all(torch.equal(one, other) for one, other in zip(clean, dirty, strict=True))


def test_a_nan_stays_in_its_row():
    args = example(GRU, absent={"lengths"})
    expected = gru(args)["0"]
    args["input_gates"][1, 2, 0] = torch.nan
    states = gru(args)["0"]
    assert states[1, 2:, 0].isnan().all()
    assert torch.equal(states[[0, 2, 3]], expected[[0, 2, 3]]) and torch.equal(states[1, :2], expected[1, :2])


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 40])
def test_a_row_has_the_same_bits_whatever_the_rows_beside_it(rows):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    input, weight, bias = normal(40, 70), normal(20, 70), normal(20)
    linear = overload_of("linear", "triton")
    assert torch.equal(linear(input[:rows], weight, bias), linear(input, weight, bias)[:rows])
    (log_probs, ids), (some, some_ids) = topk(input, weight, bias, None, 5), topk(input[:rows], weight, bias, None, 5)
    assert torch.equal(some, log_probs[:rows]) and torch.equal(some_ids, ids[:rows])
    args = example(GRU, sizes={**SIZES, "B": 40, "T": 2})
    few = {name: value[:rows] if name not in ("hidden_weight", "hidden_bias") else value for name, value in args.items()
           if isinstance(value, torch.Tensor)}  # fmt: skip
    states = gru({**args, **few})["0"]
    assert torch.equal(states, gru(args)["0"][:rows])


@pytest.mark.parametrize(
    ("N", "V", "L", "k", "R"), [(1, 1, 1, 1, 1), (3, 300, 5, 7, 2), (1, 130, 33, 130, 4), (17, 129, 4, 3, 20)]
)
def test_ties_go_to_the_lowest_id_wherever_they_stand(N, V, L, k, R):
    # Small integers: every logit is exact in any order of summation, and many are equal, some of them -0.
    generator = torch.Generator().manual_seed(V)

    def whole(*shape):
        return torch.randint(-1, 2, shape, generator=generator) * -1.0

    readout, weight, bias = whole(N, L), whole(V, L), whole(V)
    banned = torch.randint(-1, V + 1, (N, R), generator=generator)
    for bans in (None, banned):
        log_probs, token_ids = topk(readout, weight, bias, bans, k)
        expected, expected_ids = reference.vocabulary_topk(readout, weight, bias, bans, k)
        assert torch.equal(token_ids, expected_ids)
        torch.testing.assert_close(log_probs, expected, **tolerances.SAME_FLOAT32)


def test_rows_without_a_distribution_are_nan_and_the_others_are_not():
    bias = torch.zeros(200)
    bias[150] = torch.nan
    for spoiled in (bias, bias.nan_to_num(torch.inf), torch.full((200,), -torch.inf)):
        log_probs, token_ids = topk(torch.zeros(2, 3), torch.zeros(200, 3), spoiled, None, 4)
        assert log_probs.isnan().all() and token_ids.tolist() == [[0, 1, 2, 3]] * 2
    readout = torch.tensor([[0.0, 1.0], [torch.nan, 1.0]])
    log_probs, _ = topk(readout, torch.ones(200, 2), None, None, 4)
    assert log_probs[0].isfinite().all() and log_probs[1].isnan().all()


def test_a_row_with_too_few_tokens_ends_in_minus_infinity():
    banned = torch.tensor([[0, 1, 2, 4, 5, 6], [-1, -1, -1, -1, -1, 7]])
    log_probs, token_ids = topk(torch.zeros(2, 3), torch.ones(7, 3), None, banned, 4)
    expected, expected_ids = reference.vocabulary_topk(torch.zeros(2, 3), torch.ones(7, 3), None, banned, 4)
    assert log_probs[0, 1:].tolist() == [-torch.inf] * 3
    torch.testing.assert_close(log_probs, expected, **tolerances.SAME_FLOAT32)
    assert torch.equal(token_ids, expected_ids)
