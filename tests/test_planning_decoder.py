"""The planner of decoder_scan, over GPUs and sizes: what it promises a kernel, and cases computed by hand."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re

import pytest
import torch

from rnnsearch_kernels import native
from rnnsearch_kernels.planning import GPUS, DecoderPlan, DeviceLimits, plan_decoder_scan

if native.extension() is None:
    pytest.skip(f"no compiled planner: {native.why_missing()}", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PAPER = {"B": 80, "T": 50, "S": 50, "H": 1000, "A": 1000}
SMALL = {"B": 64, "T": 64, "S": 64, "H": 512, "A": 512}
SPEECH = {"B": 16, "T": 50, "S": 1500, "H": 512, "A": 512}
TINY = {"B": 16, "T": 25, "S": 25, "H": 256, "A": 256}


def without_clusters(gpu: DeviceLimits) -> DeviceLimits:
    return dataclasses.replace(gpu, clusters_of_8=0, clusters_of_16=0)


def random_sizes(seed: int) -> dict[str, int]:
    draw = random.Random(seed)
    most = {"B": 300, "T": 100, "S": 3000, "H": 3000, "A": 3000}
    return {size: int(limit ** draw.random()) for size, limit in most.items()}


CASES = [PAPER, SMALL, SPEECH, TINY, *(random_sizes(seed) for seed in range(30))]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_plan_keeps_its_promises_and_its_absence_has_a_reason(gpu: DeviceLimits, backward: bool) -> None:
    plans = 0
    for sizes, dtype, reset_after in itertools.product(CASES, DTYPES, (False, True)):
        got = plan_decoder_scan(dtype, gpu, **sizes, reset_after=reset_after, backward=backward)
        if got.reason is not None:
            assert got.blocks == 0
            continue
        plans += 1
        B, T, S, H, A = sizes.values()
        # A block an SM; all of a grid are resident. A cluster is a team, of a size that the GPU has.
        assert 0 < got.blocks and (got.cluster > 0 or got.blocks <= gpu.processors)
        assert (got.cluster == 0) != (got.no_cluster is None)
        assert got.cluster in (0, got.team)
        assert {0: 1, 8: gpu.clusters_of_8, 16: gpu.clusters_of_16}[got.cluster] > 0
        assert got.shared_bytes <= gpu.shared_per_block and got.shared_bytes + 1024 <= gpu.shared_per_sm
        assert got.threads * 168 <= gpu.registers_per_sm and got.threads <= gpu.threads_per_sm
        # Every row has its team, every column its block, and no two parts of a row the same block.
        assert (got.row_groups - 1) * got.rows < B <= got.row_groups * got.rows
        assert 8 * got.tiles * got.team >= (H if backward else A + (3 if reset_after else 2) * H)
        assert 8 * got.candidate_tiles * got.team >= (0 if reset_after or backward else H)
        most = 4 if backward else 5 if dtype == torch.float32 else 8
        assert (got.cluster > 0 and not backward) or max(got.tiles, got.candidate_tiles) <= most
        assert 1 <= got.splits <= min(got.team, S)
        positions = -(-got.rows * got.splits // got.team) * -(-S // got.splits)
        assert 0 <= got.kept_keys <= positions and 0 <= got.kept_gates <= positions
        kept = (got.kept_keys * A + got.kept_gates * 3 * H) * dtype.itemsize
        assert got.weight_bytes + kept < got.shared_bytes
        depth = A + 3 * H if backward else H
        assert got.weight_bytes >= 8 * (got.tiles + got.candidate_tiles) * depth * dtype.itemsize
        assert got.barriers == got.barriers_per_step * T and got.barriers_per_step == 2 + (not reset_after)
        assert got.row_meetings == (T if got.splits > 1 else 0)
    assert plans > len(CASES)


# One grid, bfloat16, the reset after the product, forward and backward: None, or teams, blocks and rows of a team,
# tiles of a block, splits, positions of a block whose keys and whose memory_gates are kept.
TABLE = {
    ("paper", "A100"): ((1, 100, 80, 5, 1, 28, 0), (1, 80, 80, 2, 1, 3, 0)),
    ("paper", "L4"): (None, None),
    ("paper", "RTX 4090"): ((1, 128, 80, 4, 3, 6, 0), (1, 128, 80, 1, 3, 4, 0)),
    ("paper", "H100"): ((2, 66, 40, 8, 3, 29, 0), (3, 44, 27, 3, 3, 5, 0)),
    ("paper", "H200"): ((2, 66, 40, 8, 3, 29, 0), (3, 44, 27, 3, 3, 5, 0)),
    ("paper", "B200"): ((2, 74, 40, 7, 5, 30, 3), (3, 49, 27, 3, 5, 5, 0)),
    ("small", "A100"): ((2, 52, 32, 5, 1, 64, 8), (4, 27, 16, 3, 5, 39, 1)),
    ("small", "L4"): ((1, 58, 64, 5, 4, 25, 0), (1, 58, 64, 2, 4, 10, 0)),
    ("small", "RTX 4090"): ((2, 64, 32, 4, 2, 32, 2), (4, 32, 16, 2, 2, 13, 0)),
    ("small", "H100"): ((4, 32, 16, 8, 2, 32, 26), (4, 32, 16, 2, 2, 32, 32)),
    ("small", "H200"): ((4, 32, 16, 8, 2, 32, 26), (4, 32, 16, 2, 2, 32, 32)),
    ("small", "B200"): ((4, 37, 16, 7, 2, 32, 31), (4, 32, 16, 2, 2, 32, 32)),
    ("speech", "A100"): ((1, 108, 16, 3, 20, 118, 0), (1, 108, 16, 1, 20, 109, 0)),
    ("speech", "L4"): ((1, 58, 16, 5, 7, 25, 0), (1, 58, 16, 2, 7, 11, 0)),
    ("speech", "RTX 4090"): ((1, 128, 16, 2, 8, 68, 0), (2, 64, 8, 1, 8, 44, 0)),
    ("speech", "H100"): ((1, 128, 16, 2, 8, 188, 2), (2, 64, 8, 1, 8, 172, 0)),
    ("speech", "H200"): ((1, 128, 16, 2, 8, 188, 2), (2, 64, 8, 1, 8, 172, 0)),
    ("speech", "B200"): ((1, 144, 16, 2, 9, 167, 9), (2, 72, 8, 1, 9, 167, 2)),
}
# The same of clusters, as many blocks as a team has; None where a grid is taken instead.
IN_CLUSTERS = {
    ("paper", "H200"): (None, None),
    ("small", "H200"): ((8, 16, 8, 16, 2, 32, 5), (8, 16, 8, 4, 2, 32, 13)),
    ("speech", "H200"): ((8, 16, 2, 16, 8, 74, 0), (8, 16, 2, 4, 8, 72, 0)),
    ("tiny", "H200"): ((8, 16, 2, 8, 1, 25, 25), (8, 16, 2, 2, 1, 25, 25)),
    ("small", "B200"): ((8, 16, 8, 16, 2, 32, 5), (8, 16, 8, 4, 2, 32, 13)),
    ("speech", "B200"): (None, (8, 16, 2, 4, 8, 72, 0)),
    ("small", "RTX 5090"): (None, None),
    ("tiny", "RTX 5090"): ((16, 8, 1, 16, 5, 5, 5), (16, 8, 1, 4, 5, 5, 5)),
}


def lies(plan: DecoderPlan) -> tuple[int, ...] | None:
    return None if plan.reason else (plan.row_groups, plan.team, plan.rows, plan.tiles, plan.splits, *kept(plan))


def kept(plan: DecoderPlan) -> tuple[int, int]:
    return plan.kept_keys, plan.kept_gates


WORKLOADS = {"paper": PAPER, "small": SMALL, "speech": SPEECH, "tiny": TINY}


def both_plans(name: str, gpu: DeviceLimits) -> list[DecoderPlan]:
    return [plan_decoder_scan(torch.bfloat16, gpu, **WORKLOADS[name], backward=b) for b in (False, True)]


def test_how_the_named_workloads_lie_on_six_gpus_as_one_grid() -> None:
    for (name, gpu), wanted in TABLE.items():
        assert tuple(map(lies, both_plans(name, without_clusters(GPUS[gpu])))) == wanted, (name, gpu)


def test_how_the_named_workloads_lie_in_clusters() -> None:
    for (name, gpu), wanted in IN_CLUSTERS.items():
        plans = both_plans(name, GPUS[gpu])
        assert tuple(lies(plan) if plan.cluster else None for plan in plans) == wanted, (name, gpu)


def test_small_in_clusters_of_an_h200_as_computed_by_hand() -> None:
    # 256 tiles of columns are 16 a block. Eight clusters have eight rows each, whose sources lie in two parts, one for
    # each of 16 blocks.
    got = plan_decoder_scan(torch.bfloat16, GPUS["H200"], **SMALL)
    assert (got.cluster, got.rows, got.tiles, got.splits) == (16, 8, 16, 2)
    # 128 columns of 512 values and 16 of padding; eight rows of d as wide.
    assert got.weight_bytes == 128 * 528 * 2
    # For its part of a row a block is sent the query, u of half of the units, and each part's sums of them, its largest
    # score and its total; a warp takes eight tiles, so twelve share out two turns of six parts of the sum.
    inbox = 512 + 3 * 256 + 2 * (3 * 256 + 2)
    products = 6 * 8 * 128 * 4
    without_kept = got.weight_bytes + 512 * 4 + 8 * 528 * 2 + inbox * 4 + products + 4
    assert got.shared_bytes == without_kept + (32 * 512 + 5 * 1536) * 2
    assert got.workspace_bytes == 64 * 64 * 1536 * 2  # memory_gates alone
    assert (got.barriers, got.row_meetings, got.no_cluster) == (128, 64, None)


def test_fewer_clusters_at_once_are_larger_teams_or_none() -> None:
    # As many as SMs would make are eight; where the GPU has room for four, the rows are twice as many.
    for at_once, rows in ((8, 8), (4, 16)):
        gpu = dataclasses.replace(GPUS["H200"], clusters_of_8=0, clusters_of_16=at_once)
        assert plan_decoder_scan(torch.bfloat16, gpu, **SMALL).rows == rows
    one = plan_decoder_scan(
        torch.bfloat16, dataclasses.replace(GPUS["H200"], clusters_of_8=0, clusters_of_16=1), **SMALL
    )
    assert one.cluster == 0 and "of the grid's, by the planner's estimates" in str(one.no_cluster)


def test_the_paper_on_an_h200_as_computed_by_hand() -> None:
    # 500 tiles of columns: four a block for one team, eight for two (63 blocks have columns, and all 66 attend), and
    # three teams of 44 would need twelve. 40 rows in three parts are 120 of 17 positions for 66 blocks, two each.
    got = plan_decoder_scan(torch.bfloat16, GPUS["H200"], **PAPER)
    # 64 columns of 1008 values, an odd number of sixteens, so without padding.
    assert got.weight_bytes == 64 * 1008 * 2
    # score_weight; three tiles of rows leave four parts of the sum to twelve warps; the barrier's verdict. That leaves
    # room for the keys of 29 positions of 34.
    without_keys = got.weight_bytes + 1000 * 4 + 4 * 40 * 64 * 4 + 4
    assert (got.kept_keys, got.kept_gates) == (29, 0) and got.shared_bytes == without_keys + 29 * 2000
    assert 0 <= 227 * 1024 - got.shared_bytes < 2000
    exchange, projected, partial, counters = 2 * 80 * 1008 * 2, 80 * 4000 * 4, 80 * 3 * 3004 * 4, (2 + 1 + 80) * 4
    assert got.workspace_bytes == exchange + projected + partial + counters + 80 * 50 * 3000 * 2
    assert (got.barriers, got.row_meetings) == (100, 50)


def test_the_papers_backward_on_an_h200_as_computed_by_hand() -> None:
    # 125 tiles of units: three a block for three teams of 44, whose last block has one unit's tile less; four teams of
    # 33 would need four, more than a block has room for.
    got = plan_decoder_scan(torch.bfloat16, GPUS["H200"], **PAPER, backward=True)
    # 24 units, each with 1008 values of the query's weights and 3024 of the gates': an even number of sixteens and one
    # more of padding.
    assert got.weight_bytes == 24 * (1008 + 3024 + 16) * 2
    carry, verdict, attention = 27 * 24 * 4, 4, 3000 + 4 + 2 * 20 + 2 * 1000
    assert got.shared_bytes == got.weight_bytes + 1000 * 4 + 5 * 2000 + carry + attention * 4 + verdict
    assert (got.barriers, got.row_meetings) == (100, 50)


def test_the_reset_before_has_the_candidates_columns_apart() -> None:
    got = plan_decoder_scan(torch.bfloat16, GPUS["H200"], **PAPER, reset_after=False)
    assert (got.tiles, got.candidate_tiles, got.barriers) == (6, 2, 150)  # 375 and 125 tiles over 66 blocks
    assert got.weight_bytes == 64 * 1008 * 2


@pytest.mark.parametrize(
    ("dtype", "gpu", "sizes", "reason"),
    [
        (torch.bfloat16, GPUS["L4"], PAPER, "has 4000 columns, and 58 blocks take up to 64 each"),
        (
            torch.float32,
            GPUS["RTX 4090"],
            PAPER,
            r"a block of 32 columns needs \d+ bytes of shared memory, and has 101376",
        ),
        (torch.float16, dataclasses.replace(GPUS["A100"], major=7, minor=5), SMALL, "this is 7.5"),
        (torch.float16, dataclasses.replace(GPUS["A100"], registers_per_sm=32768), SMALL, "384 threads"),
        (
            torch.float16,
            without_clusters(GPUS["H200"]),
            SMALL | {"T": 2**28},
            "more than the counter of a team can count",
        ),
    ],
)
def test_what_cannot_be_one_launch_says_why(
    dtype: torch.dtype, gpu: DeviceLimits, sizes: dict[str, int], reason: str
) -> None:
    assert re.search(reason, str(plan_decoder_scan(dtype, gpu, **sizes).reason))


def test_a_wrong_question_is_an_error() -> None:
    with pytest.raises(ValueError, match="S must be positive"):
        plan_decoder_scan(torch.float16, GPUS["A100"], **(TINY | {"S": 0}))
    with pytest.raises(ValueError, match="more than memory has addresses for"):
        plan_decoder_scan(torch.float16, GPUS["A100"], **(TINY | {"B": 2**30, "T": 2**30}))
