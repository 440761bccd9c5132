"""The CUDA backend's binding without a GPU: built for the host, its ops run on CPU tensors from schema to kernel.

What differs on a GPU is in csrc/cuda/platform_device.h and the first half of csrc/cuda/ops/device.h alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from cuda_extension import NAME, build_for_host, host_backend
from host_builds import COMPILER

import rnnsearch_kernels as rk
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.planning import DeviceLimits, plan_decoder_scan, plan_gru_scan
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

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Op, and whether it has its gradients here.
HELD = [
    ("linear", True),
    ("additive_attention", True),
    ("additive_attention", False),
    ("decoder_step", True),
    ("decoder_step", False),
    ("decoder_scan", True),
    ("gru_scan", True),
]


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    # The folder that all processes of this run share, under xdist one above each one's own.
    base = tmp_path_factory.getbasetemp()
    return host_backend(build_for_host((base.parent if "popen" in base.name else base) / "cuda_host_extension"))[0]


@pytest.fixture(autouse=True)
def leaves_the_limits(module: ModuleType) -> Any:
    polls = module.spin_limit()
    module.set_use_clusters(False)  # eight blocks at once are many threads: where they are asked for
    yield
    module.set_spin_limit(polls)
    module.set_per_step_backend("reference")


def cases() -> Iterator[tuple[str, bool, torch.dtype, int]]:
    """Every form in one dtype, in the others one with all arguments and one with none of the optional."""
    for op, gradients in HELD:
        last = len(list(variants(BY_NAME[op], differentiable=gradients))) - 1
        for dtype in DTYPES:
            for form in range(last + 1) if dtype == DTYPES[0] else {0, last}:
                yield op, gradients, dtype, form


@pytest.mark.parametrize(("op", "gradients", "dtype", "form"), list(cases()))
def test_values_and_gradients_are_the_references(
    module: ModuleType, op: str, gradients: bool, dtype: torch.dtype, form: int
) -> None:
    absent, flags = list(variants(BY_NAME[op], differentiable=gradients))[form]
    args = example(BY_NAME[op], dtype, seed=form, absent=absent, flags=flags)
    wanted = differentiable_arguments(BY_NAME[op], args) if gradients else []
    found = values_and_grads(overload_of(op, NAME), args, wanted)
    truth = values_and_grads(overload_of(op, "reference"), widen(args), wanted)
    for name, value in found.items():
        assert error_ratio(value, truth[name], dtype) <= 1, name


def gru(dtype: torch.dtype = torch.bfloat16, H: int = 13, **options: Any) -> dict[str, Any]:
    return example(BY_NAME["gru_scan"], dtype, sizes={**SIZES, "B": 2, "T": 3, "H": H}, **options)


def test_what_has_no_plan_runs_step_by_step(module: ModuleType) -> None:
    # The host build has four SMs: 129 units take five blocks of 32.
    args = gru(H=129)
    wanted = differentiable_arguments(BY_NAME["gru_scan"], args)
    plain = values_and_grads(overload_of("gru_scan", "reference"), args, wanted)
    for name, value in values_and_grads(overload_of("gru_scan", NAME), args, wanted).items():
        assert torch.equal(value, plain[name]), name


def test_without_a_per_step_backend_it_says_why_there_is_no_launch(module: ModuleType) -> None:
    module.set_per_step_backend("")
    wanted = r"rnnsearch::gru_scan.cuda_host: not as one launch: H = 129 takes 5 blocks of 32 units, and 4 can be resid"
    with pytest.raises(RuntimeError, match=wanted):
        rk.gru_scan(**gru(H=129), backend=NAME)


def test_blocks_that_wait_in_vain_leave_nan_and_an_error_for_the_next_call(module: ModuleType) -> None:
    args = gru(absent=["lengths"])
    right = rk.gru_scan(**args, backend=NAME)
    # Two blocks cannot both come to the barrier first, and who comes second finds the first gone.
    module.set_spin_limit(1)
    results = [overload_of("gru_scan", NAME)(*args.values())]
    module.set_spin_limit(1 << 26)
    assert all(result.isnan().all() for result in results[0])
    with pytest.raises(RuntimeError, match=r"gru_scan.cuda_host, called earlier, gave up at step \d, phase 0: .* NaN"):
        rk.gru_scan(**args, backend=NAME)
    module.raise_if_stopped()  # said once
    assert torch.equal(rk.gru_scan(**args, backend=NAME), right)


def test_clusters_are_taken_where_they_are_wanted(module: ModuleType) -> None:
    limits = module.device_limits(0)
    assert (limits["clusters_of_8"], limits["clusters_of_16"]) == (0, 0)
    module.set_use_clusters(True)
    limits = DeviceLimits(**module.device_limits(0))
    assert limits.clusters_of_8 == 1
    for op in ("gru_scan", "decoder_scan"):
        sizes = {**SIZES, "B": 2, "T": 2, "S": 3, "H": 9, "A": 5}
        args = example(BY_NAME[op], torch.bfloat16, sizes=sizes, flags={"reset_after": False})
        plan = {"gru_scan": plan_gru_scan, "decoder_scan": plan_decoder_scan}[op]
        for backward in (False, True):
            asked = {name: sizes[name] for name in ("BTH" if op == "gru_scan" else "BTSHA")}
            assert plan(torch.bfloat16, limits, **asked, reset_after=False, backward=backward).cluster == 8
        wanted = differentiable_arguments(BY_NAME[op], args)
        found = values_and_grads(overload_of(op, NAME), args, wanted)
        truth = values_and_grads(overload_of(op, "reference"), widen(args), wanted)
        for name, value in found.items():
            assert error_ratio(value, truth[name], torch.bfloat16) <= 1, (op, name)


def test_wrong_arguments_are_refused_before_anything_is_read(module: ModuleType) -> None:
    op, args = overload_of("gru_scan", NAME), gru()
    for name, value, message in [
        ("state_mask", args["state_mask"][:, 1:], r"`state_mask` must be \(B, H\) = \(2, 13\), .*; got \(2, 12\)"),
        ("hidden_weight", args["hidden_weight"].double(), "`hidden_weight` must be torch.float32 or torch.bfloat16 or"),
        ("lengths", args["lengths"].int(), "`lengths` must be torch.int64"),
        ("input_gates", args["input_gates"].half(), "`input_gates` must be torch.bfloat16 or torch.float32"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            op(*{**args, name: value}.values())


@pytest.mark.parametrize("op", ["additive_attention", "decoder_scan"])
def test_what_is_padded_or_past_the_end_is_never_read(module: ModuleType, op: str) -> None:
    args = example(BY_NAME[op], torch.bfloat16, absent=["memory_index"])
    wanted = differentiable_arguments(BY_NAME[op], args)
    plain = values_and_grads(overload_of(op, NAME), args, wanted)
    poisoned = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in args.items()}
    for name in ("keys", "memory"):
        poisoned[name][poisoned["key_padding_mask"]] = torch.nan
    if op == "decoder_scan":
        past = torch.arange(5) >= args["input_lengths"][:, None]
        poisoned["input_gates"][past] = torch.nan
    for name, value in values_and_grads(overload_of(op, NAME), poisoned, wanted).items():
        assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize("op", ["linear", "decoder_step"])
def test_a_row_is_the_same_bits_among_many_and_alone(module: ModuleType, op: str) -> None:
    args = example(BY_NAME[op], torch.bfloat16, sizes={**SIZES, "N": 20})
    rows = [arg.name for arg in BY_NAME[op].tensors if arg.shape[0] == "N"]
    many = overload_of(op, NAME)(*args.values())
    alone = overload_of(op, NAME)(*{**args, **{name: args[name][17:18] for name in rows}}.values())
    for one, other in zip(many if op != "linear" else [many], alone if op != "linear" else [alone], strict=True):
        assert torch.equal(one[17:18], other)


def test_strided_arguments_and_opcheck(module: ModuleType) -> None:
    op, args = overload_of("gru_scan", NAME), gru(flags={"reset_after": True})
    plain = op(*args.values())
    strided = {k: torch.stack([v, v], -1)[..., 0] if isinstance(v, torch.Tensor) else v for k, v in args.items()}
    for one, other in zip(op(*strided.values()), plain, strict=True):
        assert torch.equal(one, other)
    for name in differentiable_arguments(BY_NAME["gru_scan"], args):
        args[name].requires_grad_()
    torch.library.opcheck(op, tuple(args.values()))


def test_it_tells_what_the_planner_goes_by(module: ModuleType) -> None:
    assert module.device_limits(0)["processors"] == 4
    assert module.build_info() == {"targets": "the host", "torch_target": "2.10"}
