"""What `rnnsearch evaluate` says of a system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rnnsearch.scores import Bucket, Score


@dataclass(frozen=True)
class System:
    """One system's translations of a whole text.

    scores   by name; the last BLEU among them is that of lengths and no_unk
    lengths  BLEU by sentence length
    known    sentences without an unknown word on either side; None where no vocabulary was given
    no_unk   their BLEU; None where there is none of them
    """

    name: str
    sentences: int
    scores: Mapping[str, Score]
    lengths: Sequence[Bucket]
    known: int | None
    no_unk: Score | None

    @property
    def bleu(self) -> tuple[str, Score]:
        """The BLEU that tables and plots show, and its name."""
        return [(name, score) for name, score in self.scores.items() if name != "chrF"][-1]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        no_unk = None if self.known is None else {"sentences": self.known, "score": self.no_unk and asdict(self.no_unk)}
        return {
            "name": self.name,
            "sentences": self.sentences,
            "scores": {name: asdict(score) for name, score in self.scores.items()},
            "lengths": [asdict(bucket) for bucket in self.lengths],
            "no_unk": no_unk,
        }


def print_system(system: System, *, lengths_of: str) -> None:
    print(f"{system.name}, {system.sentences:,} sentences")
    for name, score in system.scores.items():
        print(f"{name:<16}{score}")
        print(f"{'':<16}{score.signature}")
    kind, whole = system.bleu
    table = [(f"words of the {lengths_of}", "sentences", kind)]
    table += [(str(bucket), f"{bucket.sentences:,}", str(bucket.score)) for bucket in system.lengths]
    _print_table(table)
    if system.known is not None:
        _print_table(
            [
                ("", "sentences", kind),
                ("all", f"{system.sentences:,}", str(whole)),
                ("no UNK", f"{system.known:,}", "–" if system.no_unk is None else str(system.no_unk)),
            ]
        )


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        first, *rest = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        rest = [cell.strip().rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([first, *rest]))
