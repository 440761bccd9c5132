"""The benchmark of whole updates: every contender makes the same updates, is checked first, and every part is told."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """train_speed, with a tiny that takes no time."""
    monkeypatch.syspath_prepend(str(BENCH))
    threads = torch.get_num_threads()
    workloads = importlib.import_module("workloads").WORKLOADS
    small = dataclasses.replace(
        workloads["tiny"],
        batch=4, source_length=9, target_length=7, vocabulary_size=40,
    )  # fmt: skip
    monkeypatch.setitem(workloads, "tiny", small)
    yield importlib.import_module("train_speed")
    torch.set_num_threads(threads)


def test_every_part_of_every_contenders_update_is_told(speed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.import_module("command"), "why_not_compiled", lambda device: "not in this test")
    file = tmp_path / "rows.json"
    assert speed.main(["--workload", "tiny", "--rounds", "2", "--all", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    parts = {"waiting for data", "encoder", "decoder", "readout and loss", "backward", "optimizer"}
    names = {row["backend"] for row in rows}
    assert {"reference", "eager", "eager autocast"} <= names
    for name in names:
        found = {row["pass"]: row for row in rows if row["backend"] == name}
        assert found.keys() == {"update", *parts}
        together = sum(found[part]["median_ms"] for part in parts)
        assert together == pytest.approx(found["update"]["median_ms"], rel=0.5)
        assert found["update"]["rows"] == 4 * 7 and found["update"]["peak_mb"] > 0
    printed = capsys.readouterr().out
    assert "waiting for data" in printed and "tokens/s" in printed


@pytest.mark.parametrize(("what", "factor"), [("library_gru", 1.01), ("model_loss", 1.01)])
def test_a_contender_that_computes_something_else_is_not_timed(speed, capsys, monkeypatch, what, factor):
    update = importlib.import_module("update")
    right = getattr(update, what)
    monkeypatch.setattr(update, what, lambda *args, **options: right(*args, **options) * factor)
    monkeypatch.setattr(speed, "contenders", lambda settings: ["reference", "eager"])
    truth = update.Update.gradients

    def gradients(self: Any, batch: Any) -> Any:
        with monkeypatch.context() as patch:
            if self.model.output.weight.dtype == torch.float64:
                patch.setattr(update, what, right)
            return truth(self, batch)

    monkeypatch.setattr(update.Update, "gradients", gradients)
    assert speed.main(["--workload", "tiny", "--rounds", "1"]) == 1
    said = capsys.readouterr()
    assert "MISMATCH" in said.err and "median" not in said.out


def test_contenders_that_drift_apart_are_noticed(speed, monkeypatch, capsys):
    update = importlib.import_module("update")
    monkeypatch.setattr(speed, "contenders", lambda settings: ["reference", "eager"])
    step = update.Update.__call__

    def call(self: Any, batch: Any) -> Any:
        parts = step(self, batch)
        if self.model.decoder.__class__ is update.PlainDecoder:
            with torch.no_grad():
                self.model.output.bias[4:9] += 1.0
        return parts

    monkeypatch.setattr(update.Update, "__call__", call)
    assert speed.main(["--workload", "tiny", "--rounds", "3"]) == 1
    assert "update: the " in capsys.readouterr().err
