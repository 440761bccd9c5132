"""A scan is its steps: values, ends, memory."""

from __future__ import annotations

import pytest
import tolerances
import torch
from conftest import implementations
from torch.utils._python_dispatch import TorchDispatchMode

from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.orders import last_state
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import INFERENCE_ONLY, SIZES, differentiable_arguments, example

SCANS = implementations("decoder_scan", dtype=torch.float64)


def steps_of(args, step):
    """T steps with the step op, by hand: each row stops at its length."""
    state, lengths = args["state"], args["input_lengths"]
    rows = []
    for t in range(args["input_gates"].shape[1]):
        within = (t < lengths)[:, None]
        given = {**args, "input_gates": args["input_gates"][:, t], "state": state}
        given = [given.get(arg.name) for arg in BY_NAME["decoder_step"].args]
        new_state, context, weights, _ = step(*given)
        state = torch.where(within, new_state, state)
        rows.append([value * within for value in (state, context, weights)])
    return *(torch.stack(parts, 1) for parts in zip(*rows, strict=True)), state


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize(("op", "backend", "device"), SCANS)
def test_a_scan_equals_its_steps_values_and_gradients(op, backend, device, reset_after):
    args = example(BY_NAME[op], torch.float64, flags={"reset_after": reset_after}, device=device)
    wanted = differentiable_arguments(BY_NAME[op], args)
    leaves = {name: value.clone().requires_grad_() if name in wanted else value for name, value in args.items()}
    *results, _ = overload_of(op, backend)(*leaves.values())
    scanned = [*results, last_state(results[0], leaves["state"], args["input_lengths"])]
    stepped = steps_of(leaves, overload_of("decoder_step", "reference"))
    for one, other in zip(scanned, stepped, strict=True):
        torch.testing.assert_close(one, other, **tolerances.EXACT)
    if (op, backend, device) not in implementations(op, gradients=True, dtype=torch.float64):
        return
    cotangents = [torch.randn_like(value) for value in scanned]
    inputs = [leaves[name] for name in wanted]
    mine, theirs = (torch.autograd.grad(outs, inputs, cotangents) for outs in (scanned, stepped))
    for name, one, other in zip(wanted, mine, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerances.EXACT, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("lengths", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 5, 1, 3], None])
@pytest.mark.parametrize(("op", "backend", "device"), SCANS)
def test_the_last_state_is_that_of_each_rows_last_step(op, backend, device, lengths):
    args = example(BY_NAME[op], torch.float64, device=device)
    args["input_lengths"] = None if lengths is None else torch.tensor(lengths, device=device)
    states = overload_of(op, backend)(*args.values())[0]
    found = last_state(states, args["state"], args["input_lengths"])
    for row, length in enumerate(lengths or [states.shape[1]] * 4):
        assert torch.equal(found[row], states[row, length - 1] if length else args["state"][row])


@pytest.mark.parametrize(
    ("op", "backend", "device"), implementations("additive_attention", "decoder_scan", gradients=True)
)
def test_nothing_of_size_batch_by_target_by_source_by_attention_is_saved(op, backend, device):
    sizes = {**SIZES, "B": 2, "N": 2, "T": 6, "S": 9, "H": 4, "A": 40, "M": 4}
    args = example(BY_NAME[op], sizes=sizes, absent=INFERENCE_ONLY, device=device)
    for name in differentiable_arguments(BY_NAME[op], args):
        args[name].requires_grad_()
    given = {value.untyped_storage().data_ptr() for value in args.values() if isinstance(value, torch.Tensor)}
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = overload_of(op, backend)(*args.values())
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // t.element_size() for t in saved}
    beyond_the_arguments = sum(numbers for where, numbers in kept.items() if where not in given)
    # states, contexts, weights and gates: what the results hold, and nothing else
    assert 0 < beyond_the_arguments <= sum(result.numel() for result in results)
    assert beyond_the_arguments < sizes["B"] * sizes["S"] * sizes["A"]


@pytest.mark.parametrize(("op", "backend", "device"), SCANS)
def test_a_result_that_nothing_reads_has_a_gradient_of_zero(op, backend, device):
    if (op, backend, device) not in implementations(op, gradients=True, dtype=torch.float64):
        pytest.skip("this backend has no gradients of the op in this dtype")
    args = example(BY_NAME[op], torch.float64, device=device)
    wanted = differentiable_arguments(BY_NAME[op], args)
    leaves = {name: value.clone().requires_grad_() if name in wanted else value for name, value in args.items()}
    *results, _ = overload_of(op, backend)(*leaves.values())
    inputs = [leaves[name] for name in wanted]
    for read in range(len(results)):
        seeds = [torch.full_like(value, float(number == read)) for number, value in enumerate(results)]
        alone = torch.autograd.grad(results[read], inputs, seeds[read], retain_graph=True)
        for one, other in zip(alone, torch.autograd.grad(results, inputs, seeds, retain_graph=True), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("op", ["decoder_scan", "gru_scan"])
def test_no_gradient_is_made_of_the_saved_gates(op):
    """The largest result; nothing differentiates it."""
    args = example(BY_NAME[op], absent={"lengths", "input_lengths"})
    wanted = differentiable_arguments(BY_NAME[op], args)
    leaves = {name: value.clone().requires_grad_() if name in wanted else value for name, value in args.items()}
    *results, gates = overload_of(op, "reference")(*leaves.values())
    made = []

    class Zeros(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if func in (torch.ops.aten.zeros.default, torch.ops.aten.zeros_like.default):
                made.append(found.shape)
            return found

    with Zeros():
        results[0].sum().backward()
    assert gates.shape not in made
