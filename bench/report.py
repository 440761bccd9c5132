"""Rows as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LEGEND = """\
median and quartiles of interleaved calls; × eager: eager float32 over this row (bfloat16 rows in brackets: over eager
bfloat16); × floor: this row over the least time for reading and arithmetic at this machine's own measured rates;
peak: allocated through PyTorch during a call; ~ : the machine was noisy while this was measured"""


@dataclass(frozen=True)
class Row:
    """One measurement: ``steps`` steps of ``rows`` hypotheses of ``sentences``. ``pass_`` is ``pass`` in JSON."""

    workload: str
    op: str
    pass_: str
    backend: str
    dtype: str
    device: str
    threads: int
    sentences: int
    rows: int
    steps: int
    median_ms: float
    p25_ms: float
    p75_ms: float
    peak_mb: float | None
    floor_ms: float | None
    floor: str | None
    noisy: bool
    outside_products: float | None = None
    saved_mb: float | None = None  # kept between a forward pass and its backward pass
    error: float | None = None  # against float64: the largest RMS error of a result, over its largest value

    def json(self) -> dict[str, object]:
        fields = asdict(self)
        return {name.rstrip("_"): value for name, value in fields.items()}


def write_json(path: Path, rows: Sequence[Row]) -> None:
    path.write_text(json.dumps([row.json() for row in rows], indent=1) + "\n")


def eager_of(rows: Sequence[Row], row: Row, dtype: str) -> Row | None:
    """The eager row that ``row`` is compared with."""
    key = (row.workload, row.op, row.sentences)
    for other in rows:
        if (other.workload, other.op, other.sentences) == key and (other.backend, other.dtype) == ("eager", dtype):
            return other
    return None


def heading() -> str:
    left = f"    {'backend':<14}{'dtype':<10}{'median ms':>10}  {'p25 – p75':<16}"
    return left + f"{'× eager':<14}{'× floor':>9}{'peak MB':>9}"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of one op at one size; ``rows`` are all of its contenders."""
    first = rows[0]
    what = f"{first.sentences} sentence{'s' * (first.sentences > 1)}"
    if first.rows != first.sentences:
        what += f", {first.rows} hypotheses"
    if first.steps > 1:
        what += f", {first.steps} tokens"
    floors = ", ".join(
        f"{row.dtype} {_ms(row.floor_ms)} ms ({row.floor})"
        for row in {row.dtype: row for row in rows}.values()
        if row.floor_ms is not None
    )
    yield f"  {first.workload} {first.op} {first.pass_}: {what}; floor {floors}"
    for row in rows:
        quartiles = f"{_ms(row.p25_ms)} – {_ms(row.p75_ms)}"
        noise = "~" if row.noisy else " "
        line = f"    {row.backend:<14}{row.dtype:<10}{_ms(row.median_ms):>10}{noise} {quartiles:<16}"
        line += f"{_ratio(rows, row):<14}"
        line += f"{row.median_ms / row.floor_ms:>9.1f}" if row.floor_ms else f"{'':>9}"
        line += f"{row.peak_mb:>9.1f}" if row.peak_mb is not None else ""
        if row.op == "beam_search":
            line += f"  {row.sentences / row.median_ms * 1e3:.1f} sentences/s"
        yield line


def _ratio(rows: Sequence[Row], row: Row) -> str:
    over = eager_of(rows, row, "float32")
    same = eager_of(rows, row, row.dtype)
    text = f"{over.median_ms / row.median_ms:5.2f}" if over else ""
    if same and row.dtype != "float32":
        text += f" ({same.median_ms / row.median_ms:.2f})"
    return text


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"
