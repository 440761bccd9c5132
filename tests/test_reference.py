"""Truth: every op of every backend equals what one would write by hand (naive.py) and what torch.nn computes."""

from __future__ import annotations

from functools import cache

import naive
import pytest
import tolerances
import torch
from conftest import implementations
from torch import nn

from rnnsearch_kernels.autograd import BACKWARD
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME, OPS
from rnnsearch_kernels.selftest import (
    SIZES,
    differentiable_arguments,
    example,
    values_and_grads,
    variants,
    widen,
)

FORWARD = tuple(op.name for op in OPS if not op.name.endswith("_backward"))
DIFFERENTIABLE = tuple(BACKWARD)
KEEPS_GATES = ("decoder_step", "decoder_scan", "gru_scan")
# gradcheck goes back through one graph more than once.
MORE_THAN_ONCE = tuple(op for op in DIFFERENTIABLE if op != "vocabulary_loss")

# Odd; all one; where vectors of 4, 8, 16 and 32 end exactly; one past it.
SIZE_SETS = {
    "odd": SIZES,
    "ones": dict.fromkeys(SIZES, 1),
    "round": {**SIZES, "S": 16, "H": 16, "A": 32, "M": 32, "T": 2, "L": 16, "I": 32, "O": 16, "V": 64},
    "past": {**SIZES, "S": 17, "H": 17, "A": 33, "M": 65, "T": 2, "L": 33, "I": 65, "O": 33, "V": 65},
}


def hand_written(op):
    """The naive op without ``gates`` and without the loss's gradients, which carry none."""
    function = getattr(naive, op)
    if op == "vocabulary_loss":
        return lambda *args: function(*args)[0]
    return (lambda *args: function(*args)[:-1]) if op in KEEPS_GATES else function


@pytest.mark.parametrize("sizes", SIZE_SETS)
@pytest.mark.parametrize(("op", "backend", "device"), implementations(*FORWARD, dtype=torch.float64))
def test_results_equal_the_op_written_by_hand(op, backend, device, sizes):
    for seed, (absent, flags) in enumerate(variants(BY_NAME[op])):
        args = example(BY_NAME[op], torch.float64, seed=seed, sizes=SIZE_SETS[sizes], absent=absent, flags=flags)
        found = overload_of(op, backend)(*(_to(value, device) for value in args.values()))
        wanted = getattr(naive, op)(*args.values())
        for result, mine, theirs in zip(BY_NAME[op].results, _tuple(found), _tuple(wanted), strict=True):
            torch.testing.assert_close(
                mine.cpu(),
                theirs,
                **tolerances.EXACT,
                msg=lambda text, name=result.name, case=(absent, flags): f"{name} with {case}: {text}",
            )


@pytest.mark.parametrize("sizes", ["odd", "ones"])
@pytest.mark.parametrize(
    ("op", "backend", "device"), implementations(*DIFFERENTIABLE, gradients=True, dtype=torch.float64)
)
def test_gradients_equal_autograd_through_the_op_written_by_hand(op, backend, device, sizes):
    for seed, (absent, flags) in enumerate(variants(BY_NAME[op], differentiable=True)):
        args = example(BY_NAME[op], torch.float64, seed=seed, sizes=SIZE_SETS[sizes], absent=absent, flags=flags)
        wanted = differentiable_arguments(BY_NAME[op], args)
        theirs = values_and_grads(hand_written(op), args, wanted)
        mine = values_and_grads(
            overload_of(op, backend), {name: _to(value, device) for name, value in args.items()}, wanted
        )
        for name, value in theirs.items():
            torch.testing.assert_close(
                mine[name].cpu(),
                value,
                **tolerances.EXACT,
                msg=lambda text, name=name, case=(absent, flags): f"{name} with {case}: {text}",
            )


@pytest.mark.parametrize(
    ("op", "backend", "device"), implementations(*MORE_THAN_ONCE, gradients=True, dtype=torch.float64)
)
def test_gradients_pass_gradcheck(op, backend, device):
    small = {**SIZES, "B": 3, "N": 3, "S": 3, "T": 2, "H": 2, "A": 3, "M": 2, "I": 3, "O": 2}
    for seed, (absent, flags) in enumerate(variants(BY_NAME[op], differentiable=True)):
        args = example(BY_NAME[op], torch.float64, seed=seed, sizes=small, absent=absent, flags=flags, device=device)
        wanted = differentiable_arguments(BY_NAME[op], args)
        leaves = [args[name].detach().requires_grad_() for name in wanted]

        def function(*values, args=args, wanted=wanted):
            results = _tuple(overload_of(op, backend)(*{**args, **dict(zip(wanted, values, strict=True))}.values()))
            return results[:-1] if op in KEEPS_GATES else results

        assert torch.autograd.gradcheck(function, leaves, **tolerances.GRADCHECK)


@cache
def _plain_errors(op, dtype, steps, reset_after):
    """Over the seeds: the examples, the truths, and the RMS error of plain PyTorch in this dtype."""
    absent = {"memory_index", "memory_gates"} if op in DIFFERENTIABLE else set()
    flags = {"reset_after": reset_after, "reverse": reset_after}
    examples, truths, plain = [], [], []
    for seed in range(tolerances.SEEDS):
        sizes = {**SIZES, "B": 2, "T": steps, "S": 5}
        args = example(BY_NAME[op], dtype, seed=seed, sizes=sizes, absent=absent, flags=flags)
        wanted = differentiable_arguments(BY_NAME[op], args) if op in DIFFERENTIABLE else []
        in_dtype = {
            name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in args.items()
        }
        examples.append((args, wanted))
        truths.append(values_and_grads(hand_written(op), widen(args), wanted))
        plain.append(values_and_grads(hand_written(op), in_dtype, wanted))
    return examples, truths, _rms_over_seeds(plain, truths)


def _rms_over_seeds(found, truths):
    return {
        name: tolerances.rms(
            torch.stack([one[name].double() - truth[name] for one, truth in zip(found, truths, strict=True)])
        )
        for name in truths[0]
    }


# T where there is a recurrence, which compounds errors; the others have no time.
STEPS = [
    (op, steps, reset_after)
    for op in FORWARD
    for steps in ((1, 6, 20) if op.endswith("scan") else (1,))
    for reset_after in ((True, False) if op in KEEPS_GATES else (True,))
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("op", "steps", "reset_after"), STEPS)
def test_error_is_at_most_twice_that_of_plain_pytorch(op, steps, reset_after, dtype):
    if dtype == torch.float16 and steps > 6:
        pytest.skip("float16 is stored and not computed in: what T compounds is seen in the other two")
    gradients = op in DIFFERENTIABLE
    for _, backend, device in implementations(op, dtype=dtype):
        with_gradients = gradients and (op, backend, device) in implementations(op, gradients=True, dtype=dtype)
        examples, truths, plain = _plain_errors(op, dtype, steps, reset_after)
        found = []
        for args, wanted in examples:
            moved = {name: _to(value, device) for name, value in args.items()}
            results = values_and_grads(overload_of(op, backend), moved, wanted if with_gradients else [])
            found.append({name: value.cpu() for name, value in results.items()})
        compared = [{name: truth[name] for name in found[0] if name in truth} for truth in truths]
        for name, error in _rms_over_seeds(found, compared).items():
            if op == "vocabulary_topk" and name == "1":
                continue  # which token is as likely as another is settled below, where nothing is rounded
            largest = torch.stack([truth[name] for truth in truths])
            assert error <= tolerances.allowed(plain[name], largest, dtype), f"{backend}: {name}"


@pytest.mark.parametrize(("op", "backend", "device"), implementations("gru_scan", dtype=torch.float64))
def test_gru_scan_equals_nn_gru_in_both_directions(op, backend, device):
    gru = nn.GRU(4, 3, batch_first=True, bidirectional=True, dtype=torch.float64)
    input, lengths = torch.randn(3, 6, 4, dtype=torch.float64), torch.tensor([6, 1, 4])
    packed = nn.utils.rnn.pack_padded_sequence(input, lengths, batch_first=True, enforce_sorted=False)
    theirs, last = gru(packed)
    theirs, _ = nn.utils.rnn.pad_packed_sequence(theirs, batch_first=True)
    for reverse, suffix in ((False, ""), (True, "_reverse")):
        weight_ih, weight_hh, bias_ih, bias_hh = (
            getattr(gru, f"{name}_l0{suffix}").detach() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        gates = input @ weight_ih.t() + bias_ih
        args = (gates, torch.zeros(3, 3, dtype=torch.float64), None, weight_hh, bias_hh, lengths, reverse, True)
        states, _ = overload_of(op, backend)(*(_to(arg, device) for arg in args))
        torch.testing.assert_close(states.cpu(), theirs[..., 3 * reverse :][..., :3].detach(), **tolerances.EXACT)
        ends = states.cpu()[:, 0] if reverse else states.cpu()[torch.arange(3), lengths - 1]
        torch.testing.assert_close(ends, last[int(reverse)].detach(), **tolerances.EXACT)


@pytest.mark.parametrize(("op", "backend", "device"), implementations("decoder_step", dtype=torch.float64))
def test_with_memory_gates_the_context_is_the_sum_of_whatever_memory_is_given(op, backend, device):
    args = example(BY_NAME[op], torch.float64, device=device)
    projection = torch.randn(5, args["memory"].shape[2], dtype=torch.float64, device=device)
    overload = overload_of(op, backend)
    new_state, context, attn_weights, _ = overload(*args.values())
    projected = {**args, "memory": args["memory"] @ projection.T, "context_weight": None}
    results = overload(*projected.values())
    for mine, theirs in zip(results, (new_state, context @ projection.T, attn_weights), strict=False):
        torch.testing.assert_close(mine, theirs, **tolerances.EXACT)


@pytest.mark.parametrize(("op", "backend", "device"), implementations("decoder_step", dtype=torch.float64))
def test_decoder_step_equals_nn_gru_cell_over_input_and_context(op, backend, device):
    absent = {"memory_index", "memory_gates", "state_mask"}
    args = example(BY_NAME[op], torch.float64, absent=absent, flags={"reset_after": True})
    state, context_weight = args["state"], args["context_weight"]
    cell = nn.GRUCell(5 + context_weight.shape[1], state.shape[1], dtype=torch.float64)
    with torch.no_grad():
        cell.weight_ih[:, 5:] = context_weight
        cell.weight_hh.copy_(args["hidden_weight"])
        cell.bias_hh.copy_(args["hidden_bias"])
    input = torch.randn(state.shape[0], 5, dtype=torch.float64)
    args["input_gates"] = (input @ cell.weight_ih[:, :5].t() + cell.bias_ih).detach()
    new_state, context, _, _ = (out.cpu() for out in overload_of(op, backend)(*(_to(a, device) for a in args.values())))
    torch.testing.assert_close(new_state, cell(torch.cat([input, context], 1), state).detach(), **tolerances.EXACT)


@pytest.mark.parametrize(("op", "backend", "device"), implementations("vocabulary_topk"))
def test_topk_gives_the_lowest_id_of_equals_and_follows_the_bans(op, backend, device):
    topk = overload_of(op, backend)
    readout, weight = torch.ones(3, 2, device=device), torch.ones(70, 2, device=device)
    weight[[5, 40, 66]] = 2.0
    banned = torch.tensor([[-1, -1], [40, -1], [5, 5]], device=device)
    log_probs, ids = topk(readout, weight, None, banned, 4)
    assert ids.tolist() == [[5, 40, 66, 0], [5, 66, 0, 1], [40, 66, 0, 1]]
    # what is banned keeps its share of the probability
    assert log_probs[0, 0] == log_probs[1, 0] == log_probs[2, 0]
    # what is no token bans nothing
    _, ids = topk(
        readout, weight, None, torch.full((3, 2), 70, device=device) * torch.tensor([1, -1], device=device), 70
    )
    assert ids[0].tolist() == [5, 40, 66] + [token for token in range(70) if token not in (5, 40, 66)]


@pytest.mark.parametrize(("op", "backend", "device"), implementations("vocabulary_topk"))
def test_topk_of_fewer_tokens_than_k_ends_in_minus_infinity(op, backend, device):
    args = (torch.randn(1, 2), torch.randn(4, 2), None, torch.tensor([[0, 1, 3]]), 3)
    log_probs, ids = overload_of(op, backend)(*(_to(arg, device) for arg in args))
    assert ids[0, 0] == 2 and log_probs[0, 0].isfinite()
    assert log_probs[0, 1:].tolist() == [float("-inf")] * 2
    assert sorted(set(ids[0].tolist())) == sorted(ids[0].tolist())


@pytest.mark.parametrize(("op", "backend", "device"), implementations("vocabulary_topk"))
def test_topk_of_a_row_with_a_nan_is_nan_and_other_rows_are_not(op, backend, device):
    readout = torch.randn(3, 4)
    readout[1, 2] = float("nan")
    args = (readout, torch.randn(9, 4), torch.randn(9), torch.tensor([[1], [2], [-1]]), 9)
    log_probs, _ = overload_of(op, backend)(*(_to(arg, device) for arg in args))
    assert log_probs[1].isnan().all() and not log_probs[[0, 2]].isnan().any()


def _tuple(results):
    return results if isinstance(results, tuple) else (results,)


def _to(value, device):
    return value.to(device) if isinstance(value, torch.Tensor) else value
