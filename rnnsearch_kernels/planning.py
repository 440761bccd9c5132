"""How a whole scan lies on a GPU as one launch, or why it would not; asked without one.

    from rnnsearch_kernels.planning import GPUS, limits_of, plan_decoder_scan, plan_gru_scan

    plan_gru_scan(torch.bfloat16, GPUS["H200"], B=64, T=50, H=1000)
    plan_decoder_scan(torch.bfloat16, GPUS["H200"], B=80, T=50, S=50, H=1000, A=1000)
    plan_gru_scan(torch.bfloat16, limits_of("cuda"), B=64, T=50, H=4000).reason  # why not, on the GPU that is here

The planner is the part of the CUDA kernels that decides before a launch. It says what a launch takes, not that this
installation has the kernels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import ModuleType

import torch

from . import native

KB = 1024


@dataclass(frozen=True)
class DeviceLimits:
    """What the plan depends on. ``shared_per_block`` is what a block can opt into; bytes. ``clusters_of_8`` and
    ``clusters_of_16``: how many thread-block clusters of so many blocks run at once, with a block an SM; 0 where there
    are no such clusters, and where ``RNNSEARCH_CUDA_CLUSTERS=0`` turns them off."""

    major: int
    minor: int
    processors: int
    shared_per_sm: int
    shared_per_block: int
    registers_per_sm: int
    threads_per_sm: int
    clusters_of_8: int = 0
    clusters_of_16: int = 0


@dataclass(frozen=True)
class Plan:
    """One launch for the whole sequence: ``row_groups`` teams of ``unit_groups`` blocks.

    reason             why there is no plan and steps are to be launched one by one; None where there is one, and then:
    cluster            blocks of a thread-block cluster, which is a team: clusters run as there is room for them; or 0,
                       and the blocks are one grid, all of them resident
    no_cluster         why they are no clusters; None where they are
    row_groups         teams; a team takes ``rows`` rows of the batch and never waits for another
    unit_groups        blocks of a team; a block owns ``units`` hidden units
    threads            of a block
    weight_bytes       of a block's recurrent weights, in shared memory for all steps
    shared_bytes       of a block: weights, the warps' sums, the state that is carried, and what a cluster's blocks hand
                       one another
    workspace_bytes    of global memory beside the results
    barriers_per_step  of a team: 1 where the reset comes after the product, otherwise 2
    barriers           of a team in the whole launch
    """

    reason: str | None
    cluster: int
    no_cluster: str | None
    row_groups: int
    unit_groups: int
    threads: int
    rows: int
    units: int
    weight_bytes: int
    shared_bytes: int
    workspace_bytes: int
    barriers_per_step: int
    barriers: int

    @property
    def blocks(self) -> int:
        return self.row_groups * self.unit_groups


@dataclass(frozen=True)
class DecoderPlan:
    """One launch of ``row_groups`` teams of ``team`` blocks; ``Plan`` says what both have.

    tiles              a block holds up to 8 times as many columns of [query_weight ; hidden_weight]; backward, all
                       that 8 times as many hidden units are multiplied with
    candidate_tiles    and of the candidate's, where the reset comes before its product; otherwise 0
    splits             parts of a row's source, each attended to by one block
    kept_keys          of a block's positions, whose keys stay in its shared memory for all steps
    kept_gates         and whose ``memory_gates`` do
    workspace_bytes    of the launch, ``memory_gates`` among them; backward, of the loop, not of the products around it
    barriers_per_step  of a team: 2 where the reset comes after the product, otherwise 3
    row_meetings       of the blocks that share a row, in a cluster of all, in the whole launch; 0 where a row has one
    """

    reason: str | None
    cluster: int
    no_cluster: str | None
    row_groups: int
    team: int
    threads: int
    rows: int
    tiles: int
    candidate_tiles: int
    splits: int
    kept_keys: int
    kept_gates: int
    weight_bytes: int
    shared_bytes: int
    workspace_bytes: int
    barriers_per_step: int
    barriers: int
    row_meetings: int

    @property
    def blocks(self) -> int:
        return self.row_groups * self.team


# From NVIDIA's tables of technical specifications by compute capability and the GPUs' numbers of SMs. The clusters are
# as many as the SMs would make; how those lie on a GPU can leave room for fewer, and ``limits_of`` asks the driver.
GPUS = {
    "A100": DeviceLimits(8, 0, 108, 164 * KB, 163 * KB, 65536, 2048),
    "L4": DeviceLimits(8, 9, 58, 100 * KB, 99 * KB, 65536, 1536),
    "RTX 4090": DeviceLimits(8, 9, 128, 100 * KB, 99 * KB, 65536, 1536),
    "H100": DeviceLimits(9, 0, 132, 228 * KB, 227 * KB, 65536, 2048, 16, 8),
    "H200": DeviceLimits(9, 0, 132, 228 * KB, 227 * KB, 65536, 2048, 16, 8),
    "B200": DeviceLimits(10, 0, 148, 228 * KB, 227 * KB, 65536, 2048, 18, 9),
    "RTX 5090": DeviceLimits(12, 0, 170, 100 * KB, 99 * KB, 65536, 1536, 21, 0),
}


def limits_of(device: torch.device | str) -> DeviceLimits:
    """The limits of a GPU that is here, as the kernels go by them; ``RuntimeError`` without the CUDA extension."""
    extension = native.cuda()
    if extension is None:
        raise RuntimeError(f"there is nothing to plan for: {native.why_no_cuda()}")
    index = torch.device(device).index
    return DeviceLimits(**extension.device_limits(torch.cuda.current_device() if index is None else index))


def plan_gru_scan(
    dtype: torch.dtype,
    device: DeviceLimits,
    *,
    B: int,
    T: int,
    H: int,
    reset_after: bool = True,
    backward: bool = False,
) -> Plan:
    """The plan for ``gru_scan`` with weights in ``dtype``, or with ``backward`` for the recurrence of its gradients.

    Raises ``ValueError`` for a size or limit that is not positive and a dtype that no GPU kernel has;
    ``RuntimeError`` where the C++ extension was not built.
    """
    return Plan(**_extension().plan_gru_scan(backward, _name(dtype), reset_after, B, T, H, asdict(device)))


def plan_decoder_scan(
    dtype: torch.dtype,
    device: DeviceLimits,
    *,
    B: int,
    T: int,
    S: int,
    H: int,
    A: int,
    reset_after: bool = True,
    backward: bool = False,
) -> DecoderPlan:
    """The plan for ``decoder_scan`` with weights, keys and memory in ``dtype``, or with ``backward`` for the recurrence
    of its gradients. Raises as ``plan_gru_scan``."""
    question = (backward, _name(dtype), reset_after, B, T, S, H, A)
    return DecoderPlan(**_extension().plan_decoder_scan(*question, asdict(device)))


def _extension() -> ModuleType:
    if (extension := native.extension()) is None:
        raise RuntimeError(f"the planner is compiled: {native.why_missing()}")
    return extension


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
