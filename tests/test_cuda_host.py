"""The CUDA kernels without a GPU: their sources compiled as host C++, one thread per CUDA thread, real barriers.

Values and gradients against the reference in float64, and the same runs under ThreadSanitizer, AddressSanitizer and
UndefinedBehaviorSanitizer. Blocks start in an order drawn from a seed; every buffer starts as NaN.
"""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from host_builds import COMPILER, PATIENCE, HostBuilds, race_shows, results
from tolerances import HOST_KERNELS
from torch import Tensor

from rnnsearch_kernels.reference import gru

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> HostBuilds:
    return HostBuilds("gru_scan_host.cpp", tmp_path_factory.mktemp("cuda_host"))


@dataclass(frozen=True)
class Case:
    """Sizes and how the launch divides them: ``rows`` of the batch a team, ``units`` a block."""

    dtype: torch.dtype = torch.bfloat16
    reset_after: bool = True
    B: int = 3
    T: int = 3
    H: int = 10
    rows: int = 2
    units: int = 8
    threads: int = 64
    reverse: bool = False
    plain: bool = False  # neither bias, lengths, mask nor input in the storage type
    seed: int = 0
    spin_limit: int = 1 << 30
    missing_blocks: int = 0
    skipped_block_barrier: int = 0
    relaxed_atomics: bool = False
    cluster: int = 0  # blocks of a cluster, which is a team; 0: a grid
    skipped_cluster_barrier: int = 0


class Values:
    """Inputs drawn for a case, rounded to what the kernel is given and held in float64, and runs on them."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(case.seed)

        def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype).double()

        self.case, H = case, case.H
        self.input_dtype = torch.float32 if case.plain else case.dtype
        self.input_gates = draw(case.B, case.T, 3 * H, dtype=self.input_dtype)
        self.state = draw(case.B, H).tanh().float().double()
        self.weight = (draw(3 * H, H) / H**0.5).to(case.dtype).double()
        self.bias = None if case.plain else draw(3 * H, dtype=case.dtype)
        self.lengths = None if case.plain else torch.arange(case.B) % (case.T + 1)
        self.mask = None if case.plain else (draw(case.B, H) > 0).double() * 2
        self.grad_states = draw(case.B, case.T, H)

    def header(self, backward: bool) -> bytes:
        case = self.case
        numbers = (
            *(DTYPES.index(case.dtype), backward, case.B, case.T, case.H, case.rows, case.units, case.threads),
            *(case.reverse, case.reset_after, not case.plain, not case.plain, not case.plain, not case.plain),
            *(case.seed, case.spin_limit, case.missing_blocks, case.skipped_block_barrier, case.relaxed_atomics),
            *(case.cluster, case.skipped_cluster_barrier),
        )
        lengths = b"" if self.lengths is None else self.lengths.numpy().tobytes()
        return struct.pack(f"{len(numbers)}i", *map(int, numbers)) + lengths

    def run(self, program: Path, *tensors: Tensor | None, backward: bool) -> subprocess.CompletedProcess[bytes]:
        data = b"".join(t.float().contiguous().numpy().tobytes() for t in tensors if t is not None)
        return subprocess.run([program], input=self.header(backward) + data, capture_output=True, timeout=300)

    def forward(self, program: Path) -> subprocess.CompletedProcess[bytes]:
        tensors = (self.state, self.weight, self.mask, self.bias, self.input_gates)
        return self.run(program, *tensors, backward=False)

    def truth(self) -> tuple[Tensor, Tensor]:
        case = self.case
        return gru.gru_scan(
            self.input_gates,
            self.state,
            self.mask,
            self.weight,
            self.bias,
            self.lengths,
            case.reverse,
            case.reset_after,
        )

    def backward(self, program: Path) -> subprocess.CompletedProcess[bytes]:
        states, gates = self.truth()
        return self.run(program, self.state, self.weight, self.mask, self.grad_states, states, gates, backward=True)

    def backward_truth(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        case = self.case
        states, gates = self.truth()
        return gru.gru_scan_backward(
            *(self.grad_states, self.input_gates, self.state, self.mask, self.weight, self.lengths, states, gates),
            *(case.reverse, case.reset_after),
        )


CASES = [Case(dtype, reset_after, reverse=reset_after) for dtype in DTYPES for reset_after in (True, False)] + [
    Case(reset_after=False, plain=True, reverse=True, B=10, H=20, rows=10, units=16, seed=1),
    Case(B=9, H=33, rows=9, units=32, threads=32, T=2, seed=2),
    Case(B=19, H=9, rows=19, units=16, threads=32, T=2, seed=3),  # two products of 16 rows, the second not full
    # Clusters: more than run at once, the last with fewer rows, blocks that have fewer units or none.
    *(Case(dtype, reset_after, B=5, cluster=3) for dtype in DTYPES for reset_after in (True, False)),
    Case(B=19, H=20, rows=19, units=16, threads=32, T=2, reverse=True, cluster=2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gru_scan_is_the_reference(case: Case, build: HostBuilds) -> None:
    values = Values(case)
    shapes = ((case.B, case.T, case.H), (case.B, case.T, 4 * case.H))
    for got, wanted in zip(results(values.forward(build("plain")), *shapes), values.truth(), strict=True):
        torch.testing.assert_close(got, wanted, **HOST_KERNELS[case.dtype])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gru_scan_backward_is_the_reference(case: Case, build: HostBuilds) -> None:
    values = Values(case)
    cell = (case.B, case.T, 3 * case.H)
    run = values.backward(build("plain"))
    grad_input, grad_hidden, grad_state = results(run, cell, cell, (case.B, case.H))
    wanted_input, wanted_state, _, wanted_bias = values.backward_truth()
    got = (grad_input, grad_state, grad_hidden.sum((0, 1)))
    for one, wanted in zip(got, (wanted_input, wanted_state, wanted_bias), strict=True):
        torch.testing.assert_close(one, wanted, **HOST_KERNELS[case.dtype])


def test_the_order_of_the_blocks_changes_no_bit_nor_do_clusters(build: HostBuilds) -> None:
    runs = set()
    for seed in range(4):
        values = Values(Case(reset_after=False))
        values.case = Case(reset_after=False, seed=seed, cluster=2 if seed > 1 else 0)
        runs.add((values.forward(build("plain")).stdout, values.backward(build("plain")).stdout))
    assert len(runs) == 1


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
@pytest.mark.parametrize("cluster", [0, 3])
def test_no_race_no_stray_access(cluster: int, sanitizer: str, reset_after: bool, build: HostBuilds) -> None:
    values = Values(Case(reset_after=reset_after, T=2, threads=32, rows=3, cluster=cluster))
    for run in (values.forward(build(sanitizer)), values.backward(build(sanitizer))):
        assert run.returncode == 0, run.stderr.decode()[-4000:]


# The first step's block barriers: after the product, before the arrival at the grid barrier, after the wait there.
BROKEN = [{"relaxed_atomics": True}, *({"skipped_block_barrier": n} for n in (3, 4, 5))]
# A cluster's: before another block's memory is written to, after the first d, after a step, before a block ends.
BROKEN += [{"cluster": 3, "skipped_cluster_barrier": n} for n in (1, 2, 3, 5)]


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_barrier_taken_away_is_a_race_that_shows(broken: dict[str, int], build: HostBuilds) -> None:
    # One race alone may escape ThreadSanitizer: here there are many.
    assert race_shows(Values(Case(T=3, H=24, rows=3, **broken)).forward, build)


def test_a_barrier_taken_away_from_a_clusters_backward_shows(build: HostBuilds) -> None:
    assert race_shows(Values(Case(T=3, H=24, rows=3, cluster=3, skipped_cluster_barrier=1)).backward, build)


def test_a_barrier_that_waits_for_nobody_ends_and_says_where(build: HostBuilds) -> None:
    run = Values(Case(rows=3, spin_limit=PATIENCE, missing_blocks=1)).forward(build("plain"))
    assert run.returncode == 3
    assert run.stderr.decode().strip() == "stopped at step 0, phase 0"
