"""The persistent decoder_scan without a GPU, as test_cuda_host.py has the GRU's: values against the reference in
float64, the same runs under the sanitizers, and barriers that are broken to see that it shows."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import pytest
import torch
from host_builds import COMPILER, PATIENCE, HostBuilds, race_shows, results
from tolerances import HOST_KERNELS
from torch import Tensor

from rnnsearch_kernels.reference import decoder
from rnnsearch_kernels.reference.attention import zero_padding
from rnnsearch_kernels.schema import BY_NAME

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> HostBuilds:
    return HostBuilds("decoder_scan_host.cpp", tmp_path_factory.mktemp("cuda_decoder"))


@dataclass(frozen=True)
class Sizes:
    B: int = 3
    T: int = 3
    S: int = 5
    H: int = 10
    A: int = 13


@dataclass(frozen=True)
class Launch:
    """How the sizes lie on the blocks: ``rows`` of the batch and ``team`` blocks a team, ``splits`` of a source. A
    block has as many tiles of columns as the product needs with so many blocks."""

    rows: int = 2
    team: int = 2
    splits: int = 1
    kept_keys: int = 0  # positions of a block
    kept_gates: int = 0
    threads: int = 64
    cluster: bool = False  # a team is one


@dataclass(frozen=True)
class Broken:
    seed: int = 0
    spin_limit: int = 1 << 30
    missing_blocks: int = 0
    missing_parts: int = 0
    skipped_block_barrier: int = 0
    relaxed_atomics: bool = False
    skipped_cluster_barrier: int = 0


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype = torch.bfloat16
    reset_after: bool = True
    sizes: Sizes = Sizes()
    launch: Launch = Launch()
    plain: bool = False  # no bias, lengths, padding or mask; input in float32
    broken: Broken = Broken()


def tiles(columns: int, team: int) -> int:
    return -(-columns // (8 * team))


class Values:
    """Inputs drawn for a case, rounded to what the kernel is given and held in float64, and runs on them."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(1)
        B, T, S, H, A = astuple(case.sizes)
        M = 4

        def draw(*shape: int, dtype: torch.dtype = case.dtype, scale: float = 1) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(dtype).double()

        self.case, full = case, not case.plain
        self.input_gates = draw(B, T, 3 * H, dtype=case.dtype if full else torch.float32)
        self.state = draw(B, H, dtype=torch.float32).tanh().float().double()
        self.state_mask = (draw(B, H) > 0).double() * 2 if full else None
        self.keys, self.score_weight = draw(B, S, A), draw(A)
        self.query_weight, self.query_bias = draw(A, H, scale=H**-0.5), draw(A) if full else None
        self.hidden_weight, self.hidden_bias = draw(3 * H, H, scale=H**-0.5), draw(3 * H) if full else None
        # In eighths, so that memory_gates, which the caller computes, are exact in every dtype.
        self.memory = torch.randint(-8, 9, (B, S, M), generator=generator).double() / 8
        self.context_weight = torch.randint(-1, 2, (3 * H, M), generator=generator).double()
        self.memory_gates = self.memory @ self.context_weight.t()
        self.grad_states = draw(B, T, H, dtype=torch.float32)
        self.grad_contexts, self.grad_attn_weights = draw(B, T, M), draw(B, T, S, dtype=torch.float32)
        self.input_lengths = torch.arange(B) % (T + 1) if full else None
        self.padding: Tensor | None = None
        if full:  # what is padded or past the end may be NaN
            self.padding = torch.arange(S) >= torch.arange(B).sub(1).clamp(min=0)[:, None] * 2
            for values in (self.keys, self.memory, self.memory_gates):
                values[self.padding] = torch.nan
            self.input_gates[torch.arange(T) >= self.input_lengths[:, None]] = torch.nan

    def run(self, program: Path, *tensors: Tensor | None, backward: bool) -> subprocess.CompletedProcess[bytes]:
        """``tensors`` of this direction, behind those that both have."""
        case, full = self.case, not self.case.plain
        sizes, launch = case.sizes, case.launch
        through = sizes.H if backward else sizes.A + (3 if case.reset_after else 2) * sizes.H
        candidates = 0 if case.reset_after or backward else sizes.H
        numbers = (
            *(DTYPES.index(case.dtype), backward, *astuple(sizes), launch.rows, launch.team),
            *(tiles(through, launch.team), tiles(candidates, launch.team), launch.splits),
            *(launch.kept_keys, launch.kept_gates, launch.threads),
            *(case.reset_after, full, full, full, full, full, *astuple(case.broken)[:-1]),
            *(launch.cluster, case.broken.skipped_cluster_barrier),
        )
        data = struct.pack(f"{len(numbers)}i", *map(int, numbers))
        if full:
            assert self.input_lengths is not None and self.padding is not None
            data += self.input_lengths.numpy().tobytes() + self.padding.numpy().tobytes()
        both = (
            *(self.state, self.state_mask, self.keys, self.memory_gates, self.score_weight),
            *(self.query_weight, self.hidden_weight),
        )
        data += b"".join(t.float().contiguous().numpy().tobytes() for t in (*both, *tensors) if t is not None)
        return subprocess.run([program], input=data, capture_output=True, timeout=300)

    def forward(self, program: Path) -> subprocess.CompletedProcess[bytes]:
        return self.run(program, self.query_bias, self.hidden_bias, self.input_gates, backward=False)

    def backward(self, program: Path) -> subprocess.CompletedProcess[bytes]:
        """With what the caller computes before the launch: the old states' queries, and ``outside``."""
        states, _, attn_weights, gates = self.forward_truth()
        outside = self.grad_attn_weights + self.grad_contexts @ zero_padding(self.memory, self.padding).mT
        return self.run(
            *(program, self.grad_states, outside, self.queries(states), states, attn_weights, gates),
            backward=True,
        )

    def queries(self, states: Tensor) -> Tensor:
        entering = torch.cat([self.state[:, None], states[:, :-1]], 1)
        if self.state_mask is not None:
            entering = entering * self.state_mask[:, None]
        return torch.nn.functional.linear(entering, self.query_weight, self.query_bias)

    def forward_truth(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return decoder.decoder_scan(
            *(self.input_gates, self.state, self.state_mask, self.keys, self.memory, self.score_weight),
            *(self.query_weight, self.query_bias, self.context_weight, self.hidden_weight, self.hidden_bias),
            *(self.padding, self.input_lengths, self.case.reset_after),
        )

    def truth(self) -> tuple[Tensor, Tensor, Tensor]:
        states, _, attn_weights, gates = self.forward_truth()
        return states, attn_weights, gates

    def backward_truth(self) -> dict[str, Tensor]:
        states, contexts, attn_weights, gates = self.forward_truth()
        results = decoder.decoder_scan_backward(
            *(self.grad_states, self.grad_contexts, self.grad_attn_weights, self.input_gates, self.state),
            *(self.state_mask, self.keys, self.memory, self.score_weight, self.query_weight, self.query_bias),
            *(self.context_weight, self.hidden_weight, self.padding, self.input_lengths, states, contexts),
            *(attn_weights, gates, self.case.reset_after),
        )
        return dict(zip((result.name for result in BY_NAME["decoder_scan_backward"].results), results, strict=True))

    def shapes(self) -> list[tuple[int, ...]]:
        sizes = self.case.sizes
        return [(sizes.B, sizes.T, size) for size in (sizes.H, sizes.S, 4 * sizes.H)]


BOTH = (True, False)
CASES = [
    *(Case(dtype, reset_after) for dtype in DTYPES for reset_after in BOTH),
    # A source in parts: one that is all padding, blocks with several parts, a team with more blocks than parts.
    *(Case(torch.float32, after, launch=Launch(rows=3, team=team, splits=3)) for after in BOTH for team in (3, 12)),
    # Kept in shared memory: all of a block's two rows but the last position, and gates of less than one; and of a part.
    Case(launch=Launch(kept_keys=9, kept_gates=3)),
    Case(torch.float32, sizes=Sizes(H=8, A=12), launch=Launch(rows=3, team=3, splits=2, kept_keys=4, kept_gates=6)),
    Case(torch.float32, sizes=Sizes(S=1), launch=Launch(threads=32)),
    # More positions than one part has room for at a time (8 a warp), padding of four columns and of sixteen.
    Case(torch.float32, False, Sizes(B=1, T=2, S=41, H=17, A=1), Launch(rows=1, team=3, splits=2), plain=True),
    # Rows in more tiles than warps, more columns than 128, and blocks of which one has no tile.
    Case(sizes=Sizes(B=19, T=2, S=3, H=33, A=140), launch=Launch(rows=19, team=9, threads=32), plain=True),
    # Clusters: more than one, blocks with several parts of rows, and with none; a block's columns in two turns.
    *(Case(dtype, after, launch=Launch(cluster=True)) for dtype in DTYPES for after in BOTH),
    *(Case(torch.float32, after, launch=Launch(team=3, splits=3, cluster=True)) for after in BOTH),
    Case(sizes=Sizes(B=2, S=7), launch=Launch(rows=1, team=4, splits=3, kept_keys=2, kept_gates=1, cluster=True)),
    Case(sizes=Sizes(B=19, T=2, S=3, H=33, A=140), launch=Launch(rows=19, team=3, threads=96, cluster=True)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decoder_scan_is_the_reference(case: Case, build: HostBuilds) -> None:
    values = Values(case)
    for got, wanted in zip(results(values.forward(build("plain")), *values.shapes()), values.truth(), strict=True):
        torch.testing.assert_close(got, wanted, **HOST_KERNELS[case.dtype])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decoder_scan_backward_is_the_reference(case: Case, build: HostBuilds) -> None:
    values, sizes = Values(case), case.sizes
    shapes = [(sizes.B, sizes.T, size) for size in (3 * sizes.H, 3 * sizes.H, sizes.A, sizes.S)]
    run = values.backward(build("plain"))
    grad_input, grad_hidden, grad_queries, grad_scores, grad_state = results(run, *shapes, (sizes.B, sizes.H))
    # The rest as the caller has it from the kernel's results.
    queries, keys = values.queries(values.truth()[0]), zero_padding(values.keys, values.padding)
    activation = torch.tanh(queries[:, :, None] + keys[:, None])
    slopes = grad_scores[..., None] * values.score_weight * (1 - activation * activation)
    got = {
        "grad_input_gates": grad_input,
        "grad_state": grad_state,
        "grad_keys": slopes.sum(1),
        "grad_score_weight": (grad_scores[..., None] * activation).sum((0, 1, 2)),
        "grad_query_bias": grad_queries.sum((0, 1)),
        "grad_hidden_bias": grad_hidden.sum((0, 1)),
    }
    torch.testing.assert_close(slopes.sum(2), grad_queries, **HOST_KERNELS[case.dtype])
    wanted = values.backward_truth()
    for name, one in got.items():
        torch.testing.assert_close(one, wanted[name], **HOST_KERNELS[case.dtype], msg=lambda m, n=name: f"{n}: {m}")


def test_a_nan_in_a_real_position_reaches_the_state(build: HostBuilds) -> None:
    for splits in (1, 2):
        values = Values(Case(torch.float32, launch=Launch(splits=splits), plain=True))
        values.keys[1, 2, 3] = torch.nan
        states, attn_weights, _ = results(values.forward(build("plain")), *values.shapes())
        assert states[1].isnan().all() and attn_weights[1].isnan().all()
        assert not states[[0, 2]].isnan().any() and not attn_weights[[0, 2]].isnan().any()


def test_the_order_of_the_blocks_changes_no_bit_nor_do_clusters(build: HostBuilds) -> None:
    runs = set()
    for seed in range(4):
        launch = Launch(splits=2, cluster=seed > 1)
        values = Values(Case(reset_after=False, launch=launch, broken=Broken(seed=seed)))
        runs.add((values.forward(build("plain")).stdout, values.backward(build("plain")).stdout))
    assert len(runs) == 1


SMALL = Launch(rows=3, team=2, splits=2, kept_keys=4, kept_gates=9, threads=32)


@pytest.mark.parametrize("reset_after", BOTH)
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
@pytest.mark.parametrize("cluster", [False, True])
def test_no_race_no_stray_access(cluster: bool, sanitizer: str, reset_after: bool, build: HostBuilds) -> None:
    values = Values(Case(reset_after=reset_after, sizes=Sizes(T=2), launch=replace(SMALL, cluster=cluster)))
    for run in (values.forward(build(sanitizer)), values.backward(build(sanitizer))):
        assert run.returncode == 0, run.stderr.decode()[-4000:]


# Of the first step, where a block has one part of a row: forward after the product, after the query has been copied,
# after the scores, their softmax and the sums, before the arrival at the row's meeting, after the wait there; backward
# after the row's gradients have been copied, after those of alpha, after the sums and after the product.
BROKEN = [Broken(relaxed_atomics=True), *(Broken(skipped_block_barrier=n) for n in (3, 7, 8, 9, 10, 11, 12))]
BACKWARD_BROKEN = [Broken(skipped_block_barrier=n) for n in (5, 6, 7, 14)]


# A cluster's: before another block's memory is written to, after the first d, in the first step after the product and
# where the parts of a row meet and after the step, before a block ends.
CLUSTER_BROKEN = [("forward", Broken(skipped_cluster_barrier=n)) for n in (1, 2, 3, 4, 5, 11)]
CLUSTER_BROKEN += [("backward", Broken(skipped_cluster_barrier=n)) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(("direction", "broken"), CLUSTER_BROKEN, ids=str)
def test_a_clusters_barrier_taken_away_is_a_race_that_shows(direction: str, broken: Broken, build: HostBuilds) -> None:
    launch = Launch(rows=3, team=3, splits=3, cluster=True)
    values = Values(Case(sizes=Sizes(S=9, H=24, A=24), launch=launch, plain=True, broken=broken))
    assert race_shows(getattr(values, direction), build)


@pytest.mark.parametrize(
    ("direction", "broken"),
    [*(("forward", broken) for broken in BROKEN), *(("backward", broken) for broken in BACKWARD_BROKEN)],
    ids=str,
)
def test_a_barrier_taken_away_is_a_race_that_shows(direction: str, broken: Broken, build: HostBuilds) -> None:
    sizes, launch = Sizes(S=8, H=24, A=24), Launch(rows=3, team=6, splits=2)
    values = Values(Case(sizes=sizes, launch=launch, plain=True, broken=broken))
    assert race_shows(getattr(values, direction), build)


def test_a_barrier_that_waits_for_nobody_ends_and_says_where(build: HostBuilds) -> None:
    # A row that waits for its parts keeps its block from the grid's barrier, whose others may give up before it does.
    for missing, phases in (("missing_blocks", {3}), ("missing_parts", {1, 3})):
        broken = Broken(spin_limit=PATIENCE, **{missing: 1})
        run = Values(Case(launch=SMALL, broken=broken)).forward(build("plain"))
        assert run.returncode == 3
        assert run.stderr.decode().strip() in {f"stopped at step 0, phase {phase}" for phase in phases}
