"""The sizes that are measured, by name; every number in the README and the changelog is of one of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Sizes as in the op list: B, S, T, E, H, A, M, L, V and the beam K.

    ``decode_batches`` are the numbers of sentences that a decode row decodes at once; its rows are as many beams.
    """

    name: str
    batch: int
    source_length: int
    target_length: int
    input_size: int
    hidden_size: int
    attention_size: int
    memory_size: int
    readout_size: int
    vocabulary_size: int
    beam_size: int
    decode_batches: tuple[int, ...] = (1,)
    default: bool = True  # measured where no workload is named

    def __str__(self) -> str:
        return (
            f"{self.name}: B{self.batch} S{self.source_length} T{self.target_length} E{self.input_size} "
            f"H{self.hidden_size} A{self.attention_size} M{self.memory_size} L{self.readout_size} "
            f"V{self.vocabulary_size} beam {self.beam_size}"
        )


# fmt: off
WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in (
    #        name       B    S    T    E     H     A     M    L      V   beam
    Workload("tiny",   16,   25,  25, 256,  256,  256,  512, 256,  8000,  5),
    Workload("small",  64,   64,  64, 512,  512,  512, 1024, 512,  8000,  5, decode_batches=(1, 16)),
    Workload("paper",  80,   50,  50, 620, 1000, 1000, 2000, 500, 30000, 12),
    Workload("speech",  4, 1500,  50, 512,  512,  512, 1024, 512,  1000,  8),
    Workload("speech16", 16, 1500, 50, 512, 512, 512, 1024, 512,  1000,  8, default=False),  # speech on a GPU
    Workload("synthesis", 16, 50, 200, 256, 256, 256, 512, 256, 1000, 1, default=False),  # text to speech, S < T
)}

# What a step costs beside its arithmetic shows where there is hardly any: one row, at tiny's sizes.
OVERHEAD = Workload("overhead", 1, 25, 1, 256, 256, 256, 512, 256, 8000, 1)
# fmt: on


def named(names: str | None) -> list[Workload]:
    """The workloads of a comma-separated list; those measured by default for None."""
    if names is None:
        return [workload for workload in WORKLOADS.values() if workload.default]
    unknown = [name for name in names.split(",") if name not in WORKLOADS]
    if unknown:
        raise ValueError(f"a workload must be one of {list(WORKLOADS)}; got {unknown[0]!r}")
    return [WORKLOADS[name] for name in dict.fromkeys(names.split(","))]
