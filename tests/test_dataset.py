"""Hugging Face datasets as parallel text; only where that library is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rnnsearch import cli
from rnnsearch.corpus import CorpusError, ParallelText, Skips
from rnnsearch.dataset import DatasetText
from rnnsearch.translator import Translator

datasets = pytest.importorskip("datasets")
PAIRS = [("ein Haus", "a house"), ("zwei", "two"), ("drei Hunde", "three dogs")]
KEYS = ("translation.de", "translation.en")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def skips(said: list[str] | None = None) -> Skips:
    return Skips("skip", (said if said is not None else []).append)


def saved(folder: Path, *pairs: tuple[Any, Any]) -> Path:
    rows = datasets.Dataset.from_list([{"translation": {"de": left, "en": right}} for left, right in pairs])
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(2))}).save_to_disk(str(folder))
    return folder


def test_a_dataset_holds_the_pairs_of_the_same_text_in_files(tmp_path):
    (tmp_path / "a.tsv").write_text("".join(f"{left}\t{right}\n" for left, right in PAIRS))
    files = ParallelText(tmp_path / "a.tsv", None, skips())
    found = DatasetText(str(saved(tmp_path / "saved", *PAIRS)), "train", skips(), keys=KEYS)
    assert list(found) == list(files) == PAIRS and found.digest == files.digest
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text("".join(f'{{"s": "{s}", "t": "{t}"}}\n' for s, t in PAIRS))
    assert list(DatasetText(str(tmp_path / "hub"), "train", skips(), keys=("s", "t"))) == PAIRS


def test_a_row_without_text_is_left_out_and_named(tmp_path):
    said: list[str] = []
    folder = saved(tmp_path / "saved", ("a", "b"), ("", "c"), ("d", None), ("e", "f"))
    assert list(DatasetText(str(folder), "train", skips(said), keys=KEYS)) == [("a", "b"), ("e", "f")]
    assert "row 2, translation.de: empty" in said[0] and "row 3" in said[1]


def test_what_is_not_there_is_named(tmp_path):
    folder = str(saved(tmp_path / "saved", *PAIRS))
    with pytest.raises(CorpusError, match="no column for the key 'german': it has translation"):
        DatasetText(folder, "train", skips(), keys=("german", "translation.en"))
    with pytest.raises(CorpusError, match="no split 'test'"):
        DatasetText(folder, "test", skips(), keys=KEYS)
    with pytest.raises(CorpusError, match="no pair that can be used"):
        DatasetText(folder, "train", skips(), keys=("translation.fr", "translation.en"))
    with pytest.raises(CorpusError, match=r"holds one configuration: leave `data.dataset_config` \('de-en'\) out"):
        DatasetText(folder, "train", skips(), config="de-en", keys=KEYS)


def test_a_model_is_trained_on_a_dataset(tmp_path):
    given = {
        **{"data.dataset": saved(tmp_path / "saved", *PAIRS), "run.directory": tmp_path / "run", "run.updates": 1},
        **{"data.source_key": KEYS[0], "data.target_key": KEYS[1], "run.device": "cpu"},
        **{f"model.{size}_size": 8 for size in ("embedding", "encoder", "hidden", "attention", "readout")},
    }
    assert cli.main(["train", *(f"--{name}={value}" for name, value in given.items())]) == 0
    assert len(Translator.from_pretrained(tmp_path / "run" / "best")(["ein Haus"])) == 1
