"""The benchmark beside JoeyNMT, as far as it is ours: turns, and what our side counts. JoeyNMT itself is not here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
COUNTS = """
import sys
sys.path.insert(0, {bench!r})
from turns import Turns
turns = Turns()
print("not for the one that listens")
for amount in range(3):
    turns.done(amount)
sys.exit({status})
"""


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("turns")


def state(worker: object) -> str:
    return Path(f"/proc/{worker._process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]  # type: ignore[attr-defined]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_worker_works_in_its_turns_alone(turns, tmp_path) -> None:
    code = COUNTS.format(bench=str(BENCH), status=0)
    worker = turns.Worker([sys.executable, "-c", code], tmp_path / "counts.log", {})
    try:
        found = [worker.turn(), worker.turn()]
        assert [done.amount for done in found] == [1, 2] and all(done.seconds > 0 for done in found)
        assert state(worker) == "T"
        worker.finish()
    finally:
        worker.kill()
    assert "not for the one that listens" in (tmp_path / "counts.log").read_text()


def test_a_worker_that_ends_early_or_fails_is_named(turns, tmp_path) -> None:
    code = COUNTS.format(bench=str(BENCH), status=3)
    worker = turns.Worker([sys.executable, "-c", code], tmp_path / "counts.log", {})
    worker.turn()
    worker.turn()
    with pytest.raises(RuntimeError, match="counts ended with 3"):
        worker.turn()
    worker.kill()


def test_our_side_counts_target_tokens_with_their_ends(turns, tmp_path) -> None:
    text, size = tmp_path / "text.tsv", 8
    text.write_text("".join(f"{'abc' * count}\t{'cba' * count}\n" for count in range(1, 2 * size + 1)))
    options = {
        **{"data.source": text, "data.dev_source": text, "data.segmentation": "characters", "batch.size": size},
        **{f"model.{name}_size": 4 for name in ("embedding", "encoder", "hidden", "attention", "readout")},
        **{"run.directory": tmp_path / "run", "run.epochs": 0, "run.updates": 2, "run.device": "cpu"},
    }
    command = [sys.executable, str(BENCH / "rnnsearch_worker.py"), "train", "1"]
    command += [f"--{name}={value}" for name, value in options.items()]
    worker = turns.Worker(command, tmp_path / "train.log", {})
    try:
        second = worker.turn()
        worker.finish()
    finally:
        worker.kill()
    lengths = [len(line.split("\t")[1]) + 1 for line in text.read_text().splitlines()]
    # Two minibatches of like length: the first turn had one of them.
    assert second.amount in (sum(sorted(lengths)[:size]), sum(sorted(lengths)[size:]))
    assert (tmp_path / "run" / "best").is_dir()
