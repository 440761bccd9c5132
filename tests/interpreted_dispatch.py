"""The dispatcher's side of the Triton overloads, interpreted: opcheck, torch.compile in one graph, torch.export.

What cannot be seen without a GPU: that Triton's launches themselves may be captured, and Inductor's code around them.
"""

from __future__ import annotations

import pytest
import tolerances
import torch
from torch import library, nn
from torch.export import Dim

import rnnsearch_kernels as rk
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import INFERENCE_ONLY, SIZES, differentiable_arguments, example
from rnnsearch_kernels.triton import LOOPS, graphs

(TRITON,) = (backend for backend in rk.list_backends() if backend.name == "triton")
SMALL = {
    **SIZES,
    "B": 2,
    "N": 3,
    "S": 2,
    "T": 1,
    "H": 2,
    "A": 3,
    "M": 2,
    "L": 3,
    "V": 7,
    "R": 2,
    "K": 3,
    "I": 3,
    "O": 2,
}
CHEAP = ("test_schema", "test_autograd_registration", "test_faketensor")
DIFFERENTIABLE = ("linear", "additive_attention", "decoder_step", "decoder_scan", "gru_scan")


@pytest.mark.parametrize("name", TRITON.ops)
def test_opcheck_with_every_optional_argument_and_with_none(name):
    op = BY_NAME[name]
    optional = {arg.name for arg in op.tensors if arg.optional}
    for absent, dtype in ((set(), torch.bfloat16), (optional, torch.float16)):
        args = example(op, dtype, sizes=SMALL, absent=absent, flags={"reset_after": True})
        library.opcheck(overload_of(name, "triton"), tuple(args.values()), test_utils=CHEAP)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_opcheck_with_gradients_traced_ahead_of_time_with_dynamic_sizes(name):
    op = BY_NAME[name]
    args = example(op, sizes=SMALL, absent=INFERENCE_ONLY, flags={"reset_after": False})
    for wanted in differentiable_arguments(op, args):
        args[wanted].requires_grad_()
    checks = (*CHEAP, "test_aot_dispatch_dynamic")
    library.opcheck(overload_of(name, "triton"), tuple(args.values()), test_utils=checks)


def module() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    decoder = rk.FusedBahdanauDecoder(3, 2, 4, 3, query_bias=True, backend="triton")
    return decoder, [torch.randn(2, 2, 3), torch.randn(2, 3, 4)]


def test_the_module_compiles_in_one_graph_forward_and_backward():
    torch._dynamo.reset()
    decoder, (input, memory) = module()
    lengths = {"memory_lengths": torch.tensor([3, 1]), "input_lengths": torch.tensor([1, 2])}
    found = []
    for forward in (decoder, torch.compile(decoder, fullgraph=True, backend="aot_eager")):
        leaf = memory.clone().requires_grad_()
        out = forward(input, leaf, **lengths, need_weights=True)
        loss = sum(value.square().sum() for value in out)
        found.append([*out, *torch.autograd.grad(loss, [leaf, *decoder.parameters()])])
    assert all(map(torch.equal, *found))
    torch._dynamo.reset()


class Plain(nn.Module):
    """Its results as a plain tuple, as an exporter wants them."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input, memory):
        return tuple(self.decoder(input, memory, need_weights=True))


def test_the_module_exports_with_dynamic_sizes_through_a_file(tmp_path):
    decoder, inputs = module()
    decoder = Plain(decoder)
    batch, steps, source = Dim("B", min=1), Dim("T", min=1), Dim("S", min=1)
    with torch.no_grad():
        shapes = {"input": {0: batch, 1: steps}, "memory": {0: batch, 1: source}}
        exported = torch.export.export(decoder, tuple(inputs), dynamic_shapes=shapes)
        torch.export.save(exported, tmp_path / "decoder.pt2")
        loaded = torch.export.load(tmp_path / "decoder.pt2").module()
        others = torch.randn(1, 3, 3), torch.randn(1, 5, 4)
        for given in (inputs, others):
            assert all(map(torch.equal, loaded(*given), decoder(*given)))
    overloads = {str(node.target) for node in exported.graph.nodes}
    assert "rnnsearch.decoder_scan.triton" in overloads


@pytest.mark.parametrize("name", LOOPS)
def test_steps_rows_and_positions_of_padding_are_no_ops_of_the_kernels(name, monkeypatch):
    """What a CUDA graph of a bucket runs: one more of each than was given."""
    monkeypatch.setattr(graphs, "bucket", lambda size: size + 1)
    op, sizes = BY_NAME[name], {**SMALL, "B": 3, "T": 2, "S": 4}
    for given in (set(), {"lengths", "input_lengths", "key_padding_mask"}):
        absent = {arg.name for arg in op.tensors if arg.optional} - given
        args = example(op, sizes=sizes, absent=absent, flags={"reset_after": not given, "reverse": bool(given)})
        call = graphs.Call(op, list(args.values()))
        assert call.padded == set(call.sizes) >= {"B", "T"}
        overload = overload_of(name, "triton")
        for mine, theirs in zip(call.plainly(overload), overload(*args.values()), strict=True):
            torch.testing.assert_close(mine, theirs, **tolerances.SAME_FLOAT32)


def test_on_a_gpu_the_results_are_there_with_the_sizes_and_dtypes_of_the_list():
    """Fake CUDA tensors need no GPU: what a compiler sees of every op."""
    from torch._subclasses import FakeTensorMode

    for name in TRITON.ops:
        args = example(BY_NAME[name], torch.bfloat16, sizes=SMALL, absent=INFERENCE_ONLY)
        wanted = overload_of(name, "reference")(*args.values())
        with FakeTensorMode():
            fakes = [
                torch.empty(value.shape, dtype=value.dtype, device="cuda") if isinstance(value, torch.Tensor) else value
                for value in args.values()
            ]
            found = overload_of(name, "triton")(*fakes)
        found, wanted = ([each] if isinstance(each, torch.Tensor) else each for each in (found, wanted))
        assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in wanted], name
        assert all(x.device.type == "cuda" for x in found)
