"""Every op of the Triton backend against the reference, by the self-test: values, gradients, variants, dtypes."""

from __future__ import annotations

import pytest
import torch

import rnnsearch_kernels as rk
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


@pytest.mark.parametrize("outcome", list(check(TRITON, "cpu")), ids=lambda outcome: f"{outcome.op}-{outcome.dtype}")
def test_an_op_holds_against_the_reference(outcome):
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


@pytest.mark.parametrize("sizes", [{"S": 1}, {"S": 40, "A": 131, "M": 70}, {"H": 300}], ids=str)
def test_sizes_beside_the_blocks(sizes):
    sizes = {**SIZES, "B": 2, "N": 2, "T": 2, **sizes}
    for name in ("additive_attention", "decoder_step", "decoder_scan"):
        found = ratios(name, wanted="all", sizes=sizes, absent=INFERENCE_ONLY)
        assert max(found.values()) <= 1, (name, found)
