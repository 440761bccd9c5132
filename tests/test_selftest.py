"""``python -m rnnsearch_kernels``: the report, and that it finds a wrong backend out."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from itertools import product

import pytest
import torch
from conftest import implementations

import rnnsearch_kernels as rk
from rnnsearch_kernels import __main__ as report
from rnnsearch_kernels import native, reference
from rnnsearch_kernels.autograd import BACKWARD
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME, OPS
from rnnsearch_kernels.selftest import (
    MORE_STEPS,
    SIZES,
    check,
    differentiable_arguments,
    error_ratio,
    example,
    values_and_grads,
    variants,
    widen,
)

house = importlib.import_module("rnnsearch_kernels.backends")


@pytest.fixture(autouse=True)
def leaves_no_trace(monkeypatch):
    monkeypatch.setattr(house, "_backends", dict(house._backends))
    monkeypatch.setattr(house, "_chosen", {})


def only(*kept: str) -> None:
    house._backends = {name: backend for name, backend in house._backends.items() if name in kept}


def _plain() -> dict:
    return {op: getattr(reference, op) for op in ("gru_scan", "gru_scan_backward", "linear")}


def test_the_command_says_what_is_here_and_that_all_is_well():
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # two would fight with the tests beside it over small products
    command = [sys.executable, "-m", "rnnsearch_kernels"]
    done = subprocess.run(command, capture_output=True, text=True, env=one_thread)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"rnnsearch_kernels {rk.__version__}" in done.stdout and f"torch {torch.__version__}" in done.stdout
    assert "All is well" in done.stdout and "FAILED" not in done.stdout and done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 100
    for op in OPS:
        assert op.name.endswith("_backward") or f"\n{op.name} " in done.stdout
    for backend in rk.list_backends():
        assert backend.name in done.stdout


@pytest.mark.parametrize(
    ("op", "wrong"),
    [
        ("linear", lambda *args: reference.linear(*args) * (1 + 1e-4)),
        ("linear", lambda *args: reference.linear(*args).fill_(float("nan"))),
        ("linear", lambda *args: 1 / 0),
        ("gru_scan", lambda *args: reference.gru_scan(*args[:-1], not args[-1])),
        ("gru_scan_backward", lambda *args: [grad * 0.999 for grad in reference.gru_scan_backward(*args)]),
    ],
    ids=["a digit", "nan", "an exception", "the other convention", "a gradient"],
)
def test_a_wrong_backend_is_named_and_the_exit_status_is_not_zero(op, wrong, capsys, request):
    name = "wrong_in_" + request.node.callspec.id.replace(" ", "_").replace("-", "_")
    rk.register_backend(rk.Backend(name, ("cpu",), (torch.float32,), rank=-1, kernels={**_plain(), op: wrong}))
    only(name, "reference")
    assert report.main() == 1
    printed = capsys.readouterr().out
    assert f"FAILED      {name} {op.removesuffix('_backward')} float32: " in printed
    assert "FAILED: 1 of " in printed and "All is well" not in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_it_says_what_was_not_built(capsys, monkeypatch):
    monkeypatch.setattr(native, "_cpu", None)
    monkeypatch.setattr(native, "_why_no_cpu", "the C++ extension was not built, for a reason")
    house._backends = {
        "cpu": rk.Backend("cpu", ("cpu",), (torch.float32,), rank=10, missing=native.why_missing()),
        "reference": house._backends["reference"],
    }
    assert report.main() == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line]
    assert ["extension", "the C++ extension was not built, for a reason"] in lines
    assert ["cpu", "not everywhere: the C++ extension was not built, for a reason"] in lines
    assert ["linear", *["reference"] * 4] in [" ".join(line).split() for line in lines]


def test_every_instruction_set_is_tested_and_the_one_in_use_is_kept(capsys):
    extension = native.extension()
    if extension is None:
        pytest.skip("the C++ extension was not built")
    before = extension.isa()
    only("cpu")
    assert report.main() == 0
    printed = capsys.readouterr().out
    assert all(f"cpu ({isa}) on cpu" in printed for isa in extension.isas())
    assert extension.isa() == before


def test_the_error_of_a_nan_is_infinite_and_that_of_equals_zero():
    truth = torch.ones(3, dtype=torch.float64)
    assert error_ratio(truth, truth, torch.float32) == 0
    for bad in (float("nan"), float("inf")):
        assert error_ratio(torch.full((3,), bad), truth, torch.float32) == float("inf")
    assert error_ratio(torch.ones(3), torch.zeros(3, dtype=torch.float64), torch.float32) == float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_honest_backend_fails_by_bad_luck(dtype):
    """Another machine rounds otherwise, as other values do: over many values no error comes near what is allowed."""
    for name, backend, device in implementations(*BACKWARD, gradients=True, dtype=dtype):
        op = BY_NAME[name]
        for seed, (absent, flags) in product(range(20), variants(op, differentiable=True)):
            args = example(op, dtype, seed=seed, absent=absent, flags=flags, device=device)
            wanted = differentiable_arguments(op, args)
            found = values_and_grads(overload_of(name, backend), args, wanted)
            truth = values_and_grads(overload_of(name, "reference"), widen(args), wanted)
            for result, value in found.items():
                assert error_ratio(value, truth[result], dtype) < 0.75, (name, backend, seed, result)


def test_a_check_covers_every_op_and_dtype_of_a_backend():
    (backend,) = [backend for backend in rk.list_backends() if backend.name == "reference"]
    found = {(outcome.op, outcome.dtype) for outcome in check(backend, "cpu")}
    assert found == {(op.name, dtype) for op in OPS if not op.name.endswith("_backward") for dtype in backend.dtypes}


def test_a_check_covers_both_forms_of_a_scan():
    """What is wrong where memory_gates are summed alone is found."""

    def wrong(*args):
        states, *others = reference.decoder_scan(*args)
        return (states * 1.001 if states.shape[1] == MORE_STEPS["T"] else states), *others

    kernels = {op: getattr(reference, op) for op in ("decoder_scan", "decoder_scan_backward")} | {"decoder_scan": wrong}
    rk.register_backend(rk.Backend("wrong_in_a_form", ("cpu",), (torch.float32,), rank=-1, kernels=kernels))
    (outcome,) = check(house._backends["wrong_in_a_form"], "cpu")
    assert outcome.complaint is not None and "`states` is off" in outcome.complaint
    extension = native.extension()
    for dtype in ("float32", "bfloat16", "float64") if extension is not None else ():
        for sizes, form in ((SIZES, "contexts"), (MORE_STEPS, "memory_gates")):
            forms = extension.decoder_scan_forms(dtype, sizes["S"], sizes["T"], sizes["M"])
            assert set(forms.values()) == {form}


def test_examples_are_the_same_every_time_and_hold_every_hard_case():
    for op in OPS:
        for one, other in zip(example(op).values(), example(op).values(), strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    args = example(BY_NAME["decoder_scan"])
    assert args["key_padding_mask"].all(1).any() and not args["key_padding_mask"][0, 0]
    assert args["input_lengths"].min() == 0 and args["input_lengths"].max() == 5
    target = example(BY_NAME["vocabulary_loss"])["target"]
    assert target.min() == -1 and target.max() >= 0
