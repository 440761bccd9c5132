"""The benchmark of the scans times what it is asked for, and says what it does not have. No times are asserted."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """scan_speed, with a tiny that takes no time."""
    monkeypatch.syspath_prepend(str(BENCH))
    threads = torch.get_num_threads()
    workloads = importlib.import_module("workloads").WORKLOADS
    small = dataclasses.replace(
        workloads["tiny"],
        batch=3, source_length=7, target_length=9, input_size=6, hidden_size=8, attention_size=5, memory_size=10,
    )  # fmt: skip
    monkeypatch.setitem(workloads, "tiny", small)
    yield importlib.import_module("scan_speed")
    torch.set_num_threads(threads)


SCAN = "scan forward+backward"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "--part scan --pass forward+backward --dtype bfloat16 --all "
            "--contender eager,reference,products,reference+autocast",
            [f"{SCAN} {name} bfloat16" for name in ("eager", "reference", "reference+autocast", "products")],
        ),
        ("--part scan --pass forward --dtype float32 --contender reference", ["scan forward reference float32"]),
        (
            "--part gru,gru_reset_before --pass forward --contender nn.GRU,reference",
            [f"{op} forward {name} float32" for op, name in (("gru", "nn.GRU"), ("gru", "reference"))]
            + ["gru_reset_before forward reference float32"],
        ),
    ],
)
def test_what_is_asked_for_is_timed_and_nothing_else(
    speed: Any, given: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    options = [word.replace("+autocast", " autocast") for word in given.split()]
    assert speed.main([*options, "--quick", "--workload", "tiny", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    found = [f"{row['op']} {row['pass']} {row['backend'].replace(' ', '+')} {row['dtype']}" for row in rows]
    assert found == expected
    said = capsys.readouterr().out
    assert all(row["backend"] in said and row["median_ms"] > 0 for row in rows)
    for row in rows:
        assert (row["error"] is None) == (row["backend"] == "products") and not (row["error"] or 0) > 0.1
        trained = row["pass"] == "forward+backward" and row["backend"] != "products"
        assert (row["saved_mb"] is not None) == trained


def test_a_choice_that_leaves_nothing_is_said(speed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    given = ["--part", "gru", "--dtype", "bfloat16", "--workload", "tiny", "--json", str(file)]
    assert speed.main(given) == 2
    assert "nothing was timed" in capsys.readouterr().err and not file.exists()


def test_who_is_wrong_is_said_and_left_out_and_the_others_are_timed(
    speed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loops, file = importlib.import_module("scan_cases"), tmp_path / "rows.json"
    right = loops.HoistedTraining.forward
    monkeypatch.setattr(loops.HoistedTraining, "forward", lambda *given: tuple(value * 1.01 for value in right(*given)))
    given = (
        "--part scan --pass forward --dtype float32 --contender eager,eager_hoisted,reference --workload tiny --quick"
    )
    assert speed.main([*given.split(), "--json", str(file)]) == 1
    assert "MISMATCH, so it is not timed: tiny scan: result 0 of eager_hoisted in float32" in capsys.readouterr().err
    assert [row["backend"] for row in json.loads(file.read_text())] == ["eager", "reference"]

    def too_large(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(loops.HoistedTraining, "forward", too_large)
    assert speed.main([*given.split(), "--json", str(file)]) == 1
    assert "eager_hoisted in float32: OutOfMemoryError: CUDA out of memory" in capsys.readouterr().err


def test_what_is_saved_is_counted_once_and_without_the_leaves() -> None:
    timing = importlib.import_module("timing")
    leaf = torch.rand(1000, 250, requires_grad=True)
    # exp and tanh save their results, mul by itself saves one tensor twice.
    assert timing.saved_mb(lambda: leaf.exp().tanh(), [leaf]) == pytest.approx(2.0)
    assert timing.saved_mb(lambda: leaf * leaf, [leaf]) == 0
    assert timing.saved_mb(lambda: (leaf + 1) * (leaf + 2)[:, :10].sum(), [leaf]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--part", "lstm"], "--part must be of ['scan', 'scan_reset_before', 'gru', 'gru_reset_before']; got 'lstm'"),
        (["--pass", "backward"], "--pass must be of ['forward', 'forward+backward']; got 'backward'"),
        (["--dtype", "int8"], "--dtype must be of ['float32', 'bfloat16']; got 'int8'"),
        (["--contender", "eager,lstm"], "got 'lstm'"),
    ],
)
def test_what_it_does_not_have_is_said(
    speed: Any, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        speed.main(given)
    assert message in capsys.readouterr().err
