"""torch.compile in one graph, forward and backward, and no second compilation when only values change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tolerances
import torch
import torch._dynamo.testing
from conftest import implementations

import rnnsearch_kernels as rk
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import INFERENCE_ONLY, SIZES, differentiable_arguments, example

FUNCTIONS = ("additive_attention", "decoder_step", "decoder_scan", "gru_scan", "vocabulary_loss")


def call(op: str, backend: str, args: dict) -> list[torch.Tensor]:
    results = getattr(rk, op)(**{k: v for k, v in args.items() if k not in INFERENCE_ONLY}, backend=backend)
    return list(results) if isinstance(results, tuple) else [results]


def arguments(op: str, device: str, seed: int = 0, **sizes: int) -> tuple[dict, list[torch.Tensor]]:
    args = example(BY_NAME[op], seed=seed, sizes={**SIZES, **sizes}, absent=INFERENCE_ONLY, device=device)
    leaves = [args[name].requires_grad_() for name in differentiable_arguments(BY_NAME[op], args)]
    return args, leaves


def grads(results: list[torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(sum(result.square().sum() for result in results), leaves))


@pytest.fixture
def counted() -> Callable[[], torch._dynamo.testing.CompileCounterWithBackend]:
    torch._dynamo.reset()
    yield lambda: torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize(("op", "backend", "device"), implementations(*FUNCTIONS, gradients=True))
def test_fullgraph_compile_equals_eager_and_compiles_once(op, backend, device, counted):
    counter = counted()
    compiled = torch.compile(lambda args: call(op, backend, args), fullgraph=True, backend=counter, dynamic=False)
    for seed in range(3):  # other values, the same shapes; eager calls between fill the backends' own cache
        args, leaves = arguments(op, device, seed)
        mine, theirs = compiled(args), call(op, backend, args)
        for one, other in zip([*mine, *grads(mine, leaves)], [*theirs, *grads(theirs, leaves)], strict=True):
            assert torch.equal(one, other)
    assert counter.frame_count == 1


@pytest.mark.parametrize(("op", "backend", "device"), implementations("decoder_scan", gradients=True))
def test_dynamic_shapes_compile_once(op, backend, device, counted):
    counter = counted()
    compiled = torch.compile(lambda args: call(op, backend, args), fullgraph=True, backend=counter, dynamic=True)
    for sizes in ({"B": 4, "N": 4, "S": 7, "T": 5}, {"B": 3, "N": 3, "S": 9, "T": 2}, {"B": 6, "N": 6, "S": 5, "T": 8}):
        args, leaves = arguments(op, device, **sizes)
        mine, theirs = compiled(args), call(op, backend, args)
        for one, other in zip([*mine, *grads(mine, leaves)], [*theirs, *grads(theirs, leaves)], strict=True):
            assert torch.equal(one, other)
    assert counter.frame_count == 1


ORDERS = pytest.mark.parametrize("attend_after", [False, True], ids=["attends_first", "attends_after"])


def module_case(
    score_bias: bool = True, attend_after: bool = False
) -> tuple[rk.FusedBahdanauDecoder, tuple[torch.Tensor, ...], torch.Tensor]:
    decoder = rk.FusedBahdanauDecoder(6, 5, 7, 4, query_bias=True, score_bias=score_bias, attend_after=attend_after)
    return decoder, (torch.randn(3, 4, 6), torch.randn(3, 8, 7)), torch.tensor([8, 3, 0])


@ORDERS
def test_the_module_compiles_in_one_graph_forward_and_backward(attend_after):
    torch._dynamo.reset()
    decoder, (input, memory), lengths = module_case(attend_after=attend_after)
    input_lengths = torch.tensor([4, 0, 2])
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    found = []
    for module in (decoder, compiled):
        leaf = memory.clone().requires_grad_()
        out = module(input, leaf, memory_lengths=lengths, input_lengths=input_lengths, need_weights=True)
        loss = sum(value.square().sum() for value in out)
        found.append([*out, *torch.autograd.grad(loss, [leaf, *decoder.parameters()])])
    for eager, through_compiler in zip(*found, strict=True):
        torch.testing.assert_close(through_compiler, eager, **tolerances.SAME_FLOAT32)


def test_inductor_compiles_an_op_among_others_forward_and_backward():
    """One case: each of inductor's own kernels costs seconds of C++ compilation."""
    torch._dynamo.reset()
    args, leaves = arguments("additive_attention", "cpu")

    def loss():
        context, attn_weights = call("additive_attention", "auto", args)
        return (context.tanh().sum() + attn_weights.square().sum()).sigmoid()

    compiled = torch.compile(loss, fullgraph=True, backend="inductor")
    mine, theirs = ([value, *torch.autograd.grad(value, leaves)] for value in (compiled(), loss()))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerances.SAME_FLOAT32)


@ORDERS
def test_a_compiled_step_equals_the_eager_one_under_inference_mode(attend_after):
    torch._dynamo.reset()
    decoder, (input, memory), lengths = module_case(score_bias=False, attend_after=attend_after)
    with torch.inference_mode():
        prepared = decoder.prepare_memory(memory, memory_lengths=lengths)
        index = torch.tensor([0, 0, 1])
        compiled = torch.compile(decoder.step, fullgraph=True, backend="aot_eager")
        one, other = (step(input[:, 0], None, prepared, memory_index=index) for step in (compiled, decoder.step))
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerances.SAME_FLOAT32)


@ORDERS
def test_compile_under_autocast_equals_eager(attend_after):
    torch._dynamo.reset()
    decoder, (input, memory), lengths = module_case(attend_after=attend_after)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, theirs = (module(input, memory, memory_lengths=lengths) for module in (compiled, decoder))
    assert mine.context.dtype == torch.bfloat16
    for one, other in zip((mine.output, mine.context), (theirs.output, theirs.context), strict=True):
        torch.testing.assert_close(one, other)
