"""The planner of the CUDA kernels, over GPUs and sizes: what it promises a kernel, and cases computed by hand."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from rnnsearch_kernels import native
from rnnsearch_kernels.planning import GPUS, DeviceLimits, plan_gru_scan

if native.extension() is None:
    pytest.skip(f"no compiled planner: {native.why_missing()}", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def without_clusters(gpu: DeviceLimits) -> DeviceLimits:
    return dataclasses.replace(gpu, clusters_of_8=0, clusters_of_16=0)


def random_sizes(seed: int) -> dict[str, int]:
    draw = random.Random(seed)
    return {size: int(most ** draw.random()) for size, most in {"B": 300, "T": 100, "H": 5000}.items()}


# The hidden sizes of the named workloads (512 and 1000, 64 or 80 rows, 16 of speech), and others.
NAMED = [{"B": B, "T": 50, "H": H} for B, H in [(64, 512), (64, 1000), (80, 1000), (16, 512)]]
CASES = [*NAMED, *(random_sizes(seed) for seed in range(60))]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_plan_keeps_its_promises_and_its_absence_has_a_reason(gpu: DeviceLimits, backward: bool) -> None:
    plans = 0
    for sizes, dtype, reset_after in itertools.product(CASES, DTYPES, (False, True)):
        got = plan_gru_scan(dtype, gpu, **sizes, reset_after=reset_after, backward=backward)
        if got.reason is not None:
            assert got.blocks == 0
            continue
        plans += 1
        # A block an SM, whatever the compiler takes of the registers; all of a grid are resident. A cluster is a team,
        # of a size that the GPU has.
        assert 0 < got.blocks and (got.cluster > 0 or got.blocks <= gpu.processors)
        assert (got.cluster == 0) != (got.no_cluster is None)
        assert got.cluster in (0, got.unit_groups)
        assert {0: 1, 8: gpu.clusters_of_8, 16: gpu.clusters_of_16}[got.cluster] > 0
        assert got.shared_bytes <= gpu.shared_per_block and got.shared_bytes + 1024 <= gpu.shared_per_sm
        assert got.threads * 255 <= gpu.registers_per_sm
        # Every row and every unit belongs to exactly one block, and no block of a grid has none.
        assert (got.row_groups - 1) * got.rows < sizes["B"] <= got.row_groups * got.rows
        assert sizes["H"] <= got.unit_groups * got.units
        assert got.cluster > 0 or (got.unit_groups - 1) * got.units < sizes["H"]
        assert got.units in (8, 16, 32)
        assert got.weight_bytes >= 3 * got.units * sizes["H"] * dtype.itemsize
        in_shared_memory = got.cluster > 0 and not backward
        assert got.workspace_bytes >= (0 if in_shared_memory else 3 * sizes["B"] * sizes["H"] * dtype.itemsize)
        assert got.barriers == got.barriers_per_step * sizes["T"] and got.barriers_per_step == 1 + (not reset_after)
    assert plans > len(CASES)


def test_more_of_a_gpu_never_loses_a_plan() -> None:
    for sizes, dtype in itertools.product(CASES, DTYPES):
        for less, more in [("L4", "RTX 4090"), ("H100", "B200")]:
            if plan_gru_scan(dtype, GPUS[less], **sizes).reason is None:
                assert plan_gru_scan(dtype, GPUS[more], **sizes).reason is None


def test_the_gru_of_512_on_an_h200_as_computed_by_hand() -> None:
    # One team of 64 blocks does 4 row tiles by 8 units, two teams half of that (128 blocks); four teams of 16 units
    # and 32 blocks as much as two, and eight would be more than 64 rows have: the smaller team is taken.
    got = plan_gru_scan(torch.bfloat16, without_clusters(GPUS["H200"]), B=64, T=50, H=512)
    assert (got.row_groups, got.unit_groups, got.rows, got.units) == (4, 32, 16, 16)
    # 48 columns of 512 values and 16 of padding, 2 bytes each; 8 warps' sums; the carry; the barrier's verdict.
    assert got.weight_bytes == 48 * 528 * 2
    assert got.shared_bytes == 48 * 528 * 2 + 8 * 16 * 48 * 4 + 16 * 16 * 4 + 4
    assert got.workspace_bytes == 3 * 64 * 512 * 2 + 5 * 4
    assert (got.barriers_per_step, got.barriers) == (1, 50)


def test_the_gru_of_512_in_clusters_of_an_h200_as_computed_by_hand() -> None:
    # 32 units a block are 16 blocks: a cluster takes 16 rows, and four run at once.
    got = plan_gru_scan(torch.bfloat16, GPUS["H200"], B=64, T=50, H=512)
    assert (got.cluster, got.row_groups, got.unit_groups, got.rows, got.units) == (16, 4, 16, 16, 32)
    # 96 columns of 512 values and 16 of padding, 2 bytes each; 16 rows of d of two steps, as wide; 8 warps' sums; the
    # carry; a verdict that a cluster does not need.
    assert got.weight_bytes == 96 * 528 * 2
    assert got.shared_bytes == 96 * 528 * 2 + 2 * 16 * 528 * 2 + 8 * 16 * 96 * 4 + 16 * 32 * 4 + 4
    assert (got.workspace_bytes, got.barriers, got.no_cluster) == (0, 50, None)
    # With the reset first, a third row of r d and two meetings; backward the gates' gradients lie outside.
    reset_first = plan_gru_scan(torch.bfloat16, GPUS["H200"], B=64, T=50, H=512, reset_after=False)
    assert reset_first.cluster == 16 and reset_first.shared_bytes == got.shared_bytes + 16 * 528 * 2
    backward = plan_gru_scan(torch.bfloat16, GPUS["H200"], B=64, T=50, H=512, backward=True)
    assert backward.cluster == 16 and backward.workspace_bytes == 6 * 64 * 512 * 2 + 64 * 50 * 4 * 512 * 2


@pytest.mark.parametrize(
    ("gpu", "H", "reason"),
    [
        (GPUS["A100"], 256, "clusters need compute capability 9.0 or later; this is 8.0"),
        (without_clusters(GPUS["H200"]), 256, "no cluster of 8 blocks can run, or they are off"),
        (GPUS["H200"], 513, "H = 513 takes 17 blocks of 32 units, and a cluster has up to 16"),
        # 96 columns of 256 values and 16 of padding, 16 rows of d of two steps, the sums, the carry, the verdict.
        (
            GPUS["RTX 5090"],
            256,
            f"cluster of 8 needs {(96 + 32) * 272 * 2 + 8 * 16 * 96 * 4 + 16 * 32 * 4 + 4} bytes of shared memory, and",
        ),
        (dataclasses.replace(GPUS["H200"], clusters_of_8=0, clusters_of_16=1), 512, "would take 2..% of the grid's"),
    ],
)
def test_what_is_no_cluster_says_why(gpu: DeviceLimits, H: int, reason: str) -> None:
    got = plan_gru_scan(torch.bfloat16, gpu, B=64, T=50, H=H)
    assert got.reason is None and got.cluster == 0
    assert got.no_cluster is not None and re.search(reason, got.no_cluster), got.no_cluster


def test_clusters_need_no_counter_and_no_grid() -> None:
    # More steps than a grid's barriers can count, and more rows than blocks that are resident have.
    assert plan_gru_scan(torch.bfloat16, GPUS["H200"], B=1, T=2**30 + 1, H=8).cluster == 8
    few = dataclasses.replace(GPUS["H200"], processors=16, clusters_of_8=2, clusters_of_16=1)
    assert plan_gru_scan(torch.float32, without_clusters(few), B=256, T=50, H=256).reason is not None
    got = plan_gru_scan(torch.float32, few, B=256, T=50, H=256)
    assert (got.reason, got.cluster) == (None, 8) and got.blocks > few.processors


def test_the_backward_of_1000_on_an_h200_as_computed_by_hand() -> None:
    # 8 units: one team of 125 blocks and 5 row tiles; 16: two of 63, 3 row tiles; 32: four of 32, 2 row tiles, which
    # costs 64 against 48 and 40.
    got = plan_gru_scan(torch.bfloat16, GPUS["H200"], B=80, T=50, H=1000, reset_after=False, backward=True)
    assert (got.row_groups, got.unit_groups, got.rows, got.units) == (1, 125, 80, 8)
    # 8 columns of 3 times 1008 values, an odd number of sixteens, so without padding.
    assert got.shared_bytes == 8 * 3024 * 2 + 8 * 80 * 8 * 4 + 80 * 8 * 4 + 4
    # Two steps' gates in the exchange, two counters, and the factors of the weight's gradient.
    assert got.workspace_bytes == 6 * 80 * 1008 * 2 + 2 * 4 + 80 * 50 * 5 * 1000 * 2
    assert got.barriers == 100


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_shared_memory_is_planned_as_the_kernels_lay_it_out(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    cuda = tests.parent / "csrc" / "cuda"
    program = tmp_path / "planner_layout"
    sources = [tests / "cuda_host" / "planner_layout.cpp", *sorted((cuda / "planner").glob("*.cpp"))]
    subprocess.run(["g++", "-std=c++20", "-pthread", f"-I{cuda}", *sources, "-o", program], check=True)
    ran = subprocess.run([program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("dtype", "gpu", "H", "reason"),
    [
        (torch.bfloat16, GPUS["L4"], 1000, r"a block of 32 units needs \d+ bytes of shared memory, and has 101376"),
        (torch.bfloat16, GPUS["H200"], 4500, "H = 4500 takes 141 blocks of 32 units, and 132 can be resident"),
        (torch.float16, dataclasses.replace(GPUS["A100"], major=7, minor=5), 512, "this is 7.5"),
        (torch.float16, dataclasses.replace(GPUS["A100"], registers_per_sm=32768), 512, "256 threads"),
    ],
)
def test_what_cannot_be_one_launch_says_why(dtype: torch.dtype, gpu: DeviceLimits, H: int, reason: str) -> None:
    assert re.search(reason, str(plan_gru_scan(dtype, gpu, B=64, T=50, H=H).reason))


def test_the_last_barrier_that_a_counter_can_count() -> None:
    """32 blocks, two barriers a step: every arrival of the launch fits into 32 bits, or there is no plan."""
    most = (2**32 - 1) // (32 * 2)
    sizes = {"B": 64, "H": 512, "reset_after": False}
    gpu = without_clusters(GPUS["H200"])
    got = plan_gru_scan(torch.bfloat16, gpu, T=most, **sizes)
    assert got.reason is None and got.unit_groups * got.barriers < 2**32
    reason = plan_gru_scan(torch.bfloat16, gpu, T=most + 1, **sizes).reason
    assert reason is not None and "more than the counter of a team can count" in reason
    # One block alone: the step in the word that a stopped barrier leaves is the limit.
    reasons = [plan_gru_scan(torch.bfloat16, gpu, B=1, T=T, H=8).reason for T in (2**30, 2**30 + 1)]
    assert reasons[0] is None and reasons[1] is not None


def test_sizes_beyond_any_memory_are_an_error_and_no_negative_workspace() -> None:
    with pytest.raises(ValueError, match="more than memory has addresses for"):
        plan_gru_scan(torch.float32, GPUS["H200"], B=2**30, T=2**30, H=64, backward=True)


@pytest.mark.parametrize(
    ("dtype", "B", "message"), [(torch.float16, 0, "B must be positive"), (torch.float64, 1, "`dtype` must be float32")]
)
def test_a_wrong_question_is_an_error(dtype: torch.dtype, B: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_gru_scan(dtype, GPUS["A100"], B=B, T=1, H=1)
