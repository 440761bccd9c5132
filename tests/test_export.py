"""torch.export with dynamic sizes, through a file; to plain ATen; to ONNX."""

from __future__ import annotations

from typing import Any

import pytest
import tolerances
import torch
from rnnsearch.continuations import reorder
from small_model import make_model
from torch import nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import rnnsearch_kernels as rk
from rnnsearch_kernels.schema import OPS, Op
from rnnsearch_kernels.selftest import example

B, S, T = Dim("B", min=1), Dim("S", min=1), Dim("T", min=1)
ORDERS = pytest.mark.parametrize("attend_after", [False, True], ids=["attends_first", "attends_after"])


def decoder(**options) -> rk.FusedBahdanauDecoder:
    return rk.FusedBahdanauDecoder(6, 5, 7, 4, query_bias=True, **options).eval()


class Scan(nn.Module):
    """The decoder with its optional arguments given, as an exporter wants them: by position."""

    def __init__(self, attend_after: bool = False) -> None:
        super().__init__()
        self.decoder = decoder(score_bias=True, attend_after=attend_after)

    def forward(self, input, memory, memory_lengths, input_lengths):
        return tuple(
            self.decoder(input, memory, memory_lengths=memory_lengths, input_lengths=input_lengths, need_weights=True)
        )


class Step(nn.Module):
    """One step of a beam, its memory prepared in the graph."""

    def __init__(self, attend_after: bool = False) -> None:
        super().__init__()
        self.decoder = decoder(attend_after=attend_after)

    def forward(self, input, state, memory, key_padding_mask, memory_index, context):
        prepared = self.decoder.prepare_memory(memory, key_padding_mask=key_padding_mask)
        last = {"context": context} if self.decoder.attend_after else {}
        return tuple(self.decoder.step(input, state, prepared, memory_index=memory_index, **last))


def scan_inputs(batch: int, source: int, target: int) -> tuple[torch.Tensor, ...]:
    lengths = torch.randint(0, source + 1, (batch,)), torch.randint(0, target + 1, (batch,))
    return torch.randn(batch, target, 6), torch.randn(batch, source, 7), *lengths


NAMES = ("input", "state", "memory", "key_padding_mask", "memory_index", "context")


def step_inputs(batch: int, source: int, rows: int) -> tuple[torch.Tensor, ...]:
    mask = torch.rand(batch, source) < 0.3
    return (
        torch.randn(rows, 6),
        torch.randn(rows, 5),
        torch.randn(batch, source, 7),
        mask,
        torch.randint(0, batch, (rows,)),
        torch.randn(rows, 7),
    )


def through_file(exported: torch.export.ExportedProgram, path) -> nn.Module:
    torch.export.save(exported, path)
    return torch.export.load(path).module()


@ORDERS
def test_the_scan_exports_with_dynamic_sizes_through_a_file(tmp_path, attend_after):
    module = Scan(attend_after)
    shapes = ({0: B, 1: T}, {0: B, 1: S}, {0: B}, {0: B})
    exported = torch.export.export(module, scan_inputs(4, 6, 3), dynamic_shapes=shapes)
    loaded = through_file(exported, tmp_path / "scan.pt2")
    for sizes in ((4, 6, 3), (2, 11, 5), (1, 1, 1)):
        inputs = scan_inputs(*sizes)
        for one, other in zip(loaded(*inputs), module(*inputs), strict=True):
            torch.testing.assert_close(one, other)


@ORDERS
def test_the_step_exports_with_dynamic_sizes_through_a_file(tmp_path, attend_after):
    module, rows = Step(attend_after), Dim("N", min=1)
    shapes = ({0: rows}, {0: rows}, {0: B, 1: S}, {0: B, 1: S}, {0: rows}, {0: rows})
    with torch.no_grad():
        exported = torch.export.export(module, step_inputs(3, 6, 5), dynamic_shapes=shapes)
        loaded = through_file(exported, tmp_path / "step.pt2")
        for sizes in ((3, 6, 5), (1, 2, 8), (2, 9, 2)):
            inputs = step_inputs(*sizes)
            for one, other in zip(loaded(*inputs), module(*inputs), strict=True):
                torch.testing.assert_close(one, other)


class Translate(nn.Module):
    """A source read and the first token scored, by a model whose sources may be of any length."""

    def __init__(self, attend_after: bool) -> None:
        super().__init__()
        self.model = make_model(attend_after=attend_after, dtype=torch.float32)

    def forward(self, source, source_lengths, tokens, memory_index):
        memory, state = self.model.encode(source, source_lengths)
        log_probs, _, attn_weights = self.model.log_probs(tokens, reorder(state, memory_index), memory, memory_index)
        return log_probs, attn_weights


def translate_inputs(batch: int, source: int, rows: int) -> tuple[torch.Tensor, ...]:
    lengths, index = torch.randint(1, source + 1, (batch,)), torch.randint(0, batch, (rows,))
    return torch.randint(4, 10, (batch, source)), lengths, torch.randint(4, 10, (rows,)), index


@ORDERS
def test_a_model_exports_for_sources_of_any_length(attend_after):
    module, rows = Translate(attend_after), Dim("N", min=1)
    with torch.no_grad():
        shapes = ({0: B, 1: S}, {0: B}, {0: rows}, {0: rows})
        exported = torch.export.export(module, translate_inputs(3, 5, 4), dynamic_shapes=shapes).module()
        for sizes in ((3, 5, 4), (2, 13, 5), (1, 1, 1)):
            inputs = translate_inputs(*sizes)
            for one, other in zip(exported(*inputs), module(*inputs), strict=True):
                torch.testing.assert_close(one, other)


def operators(exported: torch.export.ExportedProgram) -> set[str]:
    return {node.target.namespace for node in exported.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}


@ORDERS
def test_step_and_scan_decompose_to_plain_aten(attend_after):
    cases = [(Step(attend_after), step_inputs(3, 6, 5)), (Scan(attend_after), scan_inputs(4, 6, 3))]
    with torch.no_grad():
        for module, inputs in cases:
            exported = torch.export.export(module, inputs)
            assert "rnnsearch" in operators(exported)
            plain = exported.run_decompositions(rk.decompositions())
            assert operators(plain) == {"aten"}
            for one, other in zip(plain.module()(*inputs), module(*inputs), strict=True):
                torch.testing.assert_close(one, other)


class Call(nn.Module):
    """An op with all of its arguments; those that are no tensors are the graph's own."""

    def __init__(self, op: Op, flags: dict[str, Any]) -> None:
        super().__init__()
        self.overload, self.flags = getattr(torch.ops.rnnsearch, op.name).reference, flags

    def forward(self, tensors: dict[str, torch.Tensor]):
        return self.overload(**tensors, **self.flags)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_decomposes_to_plain_aten_with_every_argument_there_is(op):
    args = example(op)
    tensors = {name: value for name, value in args.items() if isinstance(value, torch.Tensor)}
    call = Call(op, {name: value for name, value in args.items() if name not in tensors})
    with torch.no_grad():
        plain = torch.export.export(call, (tensors,)).run_decompositions(rk.decompositions())
        assert operators(plain) == {"aten"}
        found, wanted = plain.module()(tensors), call(tensors)
    for one, other in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_decompositions_name_every_op_of_every_backend():
    table = rk.decompositions()
    assert {str(overload) for overload in table} == {
        f"rnnsearch.{op}.{backend.name}" for backend in rk.list_backends() for op in backend.ops
    }


@ORDERS
def test_the_step_runs_in_onnxruntime(tmp_path, attend_after):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the `test` extra has it)")
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed (the `test` extra has it)")
    module, rows = Step(attend_after), Dim("N", min=1)
    shapes = ({0: rows}, {0: rows}, {0: B, 1: S}, {0: B, 1: S}, {0: rows}, {0: rows})
    with torch.no_grad():
        exported = torch.export.export(module, step_inputs(3, 6, 5), dynamic_shapes=shapes)
        exported = exported.run_decompositions(rk.decompositions())
        torch.onnx.export(exported, f=str(tmp_path / "step.onnx"), dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
        for sizes in ((3, 6, 5), (2, 9, 4)):
            inputs = step_inputs(*sizes)
            given = dict(zip(NAMES, inputs, strict=True))
            found = session.run(None, {entry.name: given[entry.name].numpy() for entry in session.get_inputs()})
            for one, other in zip(found, module(*inputs), strict=True):
                torch.testing.assert_close(torch.from_numpy(one), other, **tolerances.OTHER_RUNTIME)
