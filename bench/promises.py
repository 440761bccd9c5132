"""What is expected of a GPU (an H200, medians), each held against the rows that the benchmarks have written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JsonRow = Mapping[str, Any]
# Everything else that is timed is somebody's loop, or a floor.
OTHERS = ("eager", "eager_hoisted", "compile", "compile_graph", "graph", "products", "nn.GRU", "reference")
WAITS = "beam_waits"  # the stage
OUTPUTS = "## What the stages printed at their end"
LAST_LINES = 80


@dataclass(frozen=True)
class Promise:
    """Ours over one of ``others`` at least ``least`` times: as fast, in so much less memory, or as near to float64."""

    what: str
    file: str
    select: Mapping[str, Any]
    others: tuple[str, ...]
    least: float
    value: str = "median_ms"


def _scan(what: str, workload: str, eager: float, compiled: float, graphed: float | None = None) -> list[Promise]:
    select = {"op": "scan", "pass": "forward+backward", "dtype": "bfloat16"}
    file = f"scan_speed-{workload}"
    found = [
        Promise(f"{what}, over eager", file, select, ("eager",), eager),
        Promise(f"{what}, over torch.compile at its best", file, select, ("compile", "compile_graph"), compiled),
    ]
    if graphed is not None:
        found.append(Promise(f"{what}, over a CUDA-graphed eager loop", file, select, ("graph",), graphed))
    found.append(Promise(f"{what}: eager's error over ours", file, select, ("eager",), 0.5, "error"))
    return found


PROMISES: tuple[Promise, ...] = (
    *_scan("decoder_scan forward+backward, paper, bfloat16", "paper", 6, 2, 2),
    *_scan("decoder_scan forward+backward, small, bfloat16", "small", 8, 2.5),
    *_scan("decoder_scan forward+backward, speech B16, bfloat16", "speech16", 4, 1.7),
    Promise(
        "beam search, batch 1 beam 12, paper, float32, over eager",
        "decode_speed-paper",
        {"op": "beam_search", "dtype": "float32", "sentences": 1},
        ("eager",),
        8,
    ),
    Promise(
        "memory kept for the backward pass, speech B16, bfloat16: eager's over ours",
        "scan_speed-speech16",
        {"op": "scan", "pass": "forward+backward", "dtype": "bfloat16"},
        ("eager",),
        10,
        "saved_mb",
    ),
)


def ratio(promise: Promise, rows: Sequence[JsonRow]) -> float | None:
    """The best of the others over the best of ours, autocast left out; None where either was not measured."""
    fitting = [row for row in rows if all(row[key] == wanted for key, wanted in promise.select.items())]
    fitting = [row for row in fitting if row[promise.value] is not None]
    ours = [row[promise.value] for row in fitting if row["backend"] not in OTHERS and " " not in row["backend"]]
    theirs = [row[promise.value] for row in fitting if row["backend"] in promise.others]
    return min(theirs) / min(ours) if ours and theirs and min(ours) > 0 else None


def rows_of(promise: Promise, folder: Path) -> list[JsonRow]:
    """Of all runs of a benchmark on the workload, each of which has some of the contenders; one that was cut may have
    left half a file."""
    rows: list[JsonRow] = []
    for file in sorted(folder.glob(f"{promise.file}*.rows.json")):
        with suppress(json.JSONDecodeError):
            rows += json.loads(file.read_text())
    return rows


def summary(folder: Path, promises: Sequence[Promise] = PROMISES) -> Iterator[str]:
    """A Markdown table: how each stage ended, then each promise; with the machine above it."""
    machine = folder / "machine.txt"
    if machine.exists():
        yield from (f"    {line}" for line in machine.read_text().splitlines())
        yield ""
    yield "| stage | ended | seconds |"
    yield "|---|---|---|"
    records = [json.loads(file.read_text()) for file in folder.glob("*.json") if not file.name.endswith(".rows.json")]
    for record in sorted(records, key=lambda record: record["stage"]):
        yield f"| {record['stage']} | {record['status']} | {record['seconds']} |"
    yield ""
    yield "| what | at least | measured | |"
    yield "|---|---|---|---|"
    for promise in promises:
        found = ratio(promise, rows_of(promise, folder))
        measured = "not measured" if found is None else f"{found:.2f}×"
        verdict = "" if found is None else "kept" if found >= promise.least else "missed"
        yield f"| {promise.what} | {promise.least:g}× | {measured} | {verdict} |"
    waits = next((record["status"] for record in records if record["stage"] == WAITS), "not measured")
    verdict = {"passed": "kept", "failed": "missed"}.get(waits, "")
    yield f"| beam search: no wait for the host inside a step, by the profiler | | {waits} | {verdict} |"


def report(folder: Path) -> Iterator[str]:
    """The summary, and the end of what each stage printed, those first that did not pass."""
    yield from summary(folder)
    yield ""
    yield OUTPUTS
    files = [file for file in folder.glob("*.json") if not file.name.endswith(".rows.json")]
    records = [json.loads(file.read_text()) for file in files]
    for record in sorted(records, key=lambda record: (record["status"] == "passed", record["stage"])):
        lines = (folder / f"{record['stage']}.txt").read_text(errors="replace").splitlines()
        yield f"\n### {record['stage']}: {record['status']}\n"
        if len(lines) > LAST_LINES:
            yield f"    ({len(lines) - LAST_LINES} lines before)"
        yield from (f"    {line}" for line in lines[-LAST_LINES:])
