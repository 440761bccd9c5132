"""Every op of the Triton backend against the reference, by the self-test: values, gradients, variants, dtypes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import rnnsearch_kernels as rk
from rnnsearch_kernels.autograd import BACKWARD
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import (
    INFERENCE_ONLY,
    SIZES,
    check,
    differentiable_arguments,
    error_ratio,
    example,
    values_and_grads,
    widen,
)

(TRITON,) = (backend for backend in rk.list_backends() if backend.name == "triton")


@pytest.mark.parametrize("dtype", TRITON.dtypes, ids=str)
@pytest.mark.parametrize("op", [op for op in TRITON.ops if not op.endswith("_backward")])
def test_an_op_holds_against_the_reference(op, dtype, monkeypatch):
    monkeypatch.setitem(SIZES, "T", 3)  # a first step, one between and a last
    kernels = {name: TRITON.kernels[name] for name in (op, BACKWARD.get(op)) if name is not None}
    (outcome,) = check(dataclasses.replace(TRITON, dtypes=(dtype,), kernels=kernels), "cpu")
    assert outcome.complaint is None, outcome.complaint


def ratios(name, dtype=torch.float32, *, wanted=(), **options):
    """The errors of one op on one example, in units of what is allowed."""
    op = BY_NAME[name]
    args = example(op, dtype, **options)
    wanted = differentiable_arguments(op, args) if wanted == "all" else wanted
    found = values_and_grads(overload_of(name, "triton"), args, wanted)
    truth = values_and_grads(overload_of(name, "reference"), widen(args), wanted)
    return {result: error_ratio(value, truth[result], dtype) for result, value in found.items()}


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_scan_with_fewer_positions_than_steps_sums_memory_gates(dtype, reset_after):
    sizes = {**SIZES, "S": 3, "T": 4}
    found = ratios("decoder_scan", dtype, wanted="all", sizes=sizes, flags={"reset_after": reset_after})
    assert max(found.values()) <= 1, found


@pytest.mark.parametrize("sizes", [{"S": 1}, {"S": 40, "A": 131, "M": 70}, {"H": 67}], ids=str)
def test_sizes_beside_the_blocks(sizes):
    sizes = {**SIZES, "B": 2, "N": 2, "T": 2, **sizes}
    for name in ("additive_attention", "decoder_step", "decoder_scan"):
        found = ratios(name, wanted="all", sizes=sizes, absent=INFERENCE_ONLY)
        assert max(found.values()) <= 1, (name, found)


@pytest.mark.parametrize("name", ["additive_attention", "decoder_scan"])
def test_twice_gives_the_same_bits_whatever_the_strides_and_the_padding_hold(name):
    op = BY_NAME[name]
    sizes = {**SIZES, "T": 2}
    args = example(op, sizes=sizes, absent=INFERENCE_ONLY)
    wanted = differentiable_arguments(op, args)
    first = values_and_grads(overload_of(name, "triton"), args, wanted)
    padded = args["key_padding_mask"]
    for given in ("keys", "memory"):
        spoilt = args[given].masked_fill(padded[..., None], float("nan"))
        args[given] = torch.empty(spoilt.shape[1], spoilt.shape[0], 2 * spoilt.shape[2])[..., ::2].transpose(0, 1)
        args[given].copy_(spoilt)
    second = values_and_grads(overload_of(name, "triton"), args, wanted)
    assert all(torch.equal(value, second[result]) for result, value in first.items())


@pytest.mark.parametrize("name", ["additive_attention", "decoder_step"])
def test_a_row_has_the_same_bits_alone_and_among_others(name):
    args = example(BY_NAME[name], sizes={**SIZES, "N": 18})
    together = overload_of(name, "triton")(*args.values())
    per_row = {arg.name for arg in BY_NAME[name].tensors if arg.shape[0] == "N"}
    for row in (0, 17):
        alone = {
            key: value[row : row + 1] if key in per_row and value is not None else value for key, value in args.items()
        }
        for one, all_rows in zip(overload_of(name, "triton")(*alone.values()), together, strict=True):
            assert torch.equal(one[0], all_rows[row])
