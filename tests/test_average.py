"""`rnnsearch average`: the mean of weights, and what has no mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rnnsearch import cli, segmentation, snapshots
from rnnsearch.config import RNNSearchConfig
from rnnsearch.model import RNNSearch
from rnnsearch.segmentation import Characters, Words
from rnnsearch.snapshots import INITIAL
from rnnsearch.trainer import CHECKPOINTS
from rnnsearch.translator import Translator
from rnnsearch.vocabulary import Vocabulary
from safetensors.torch import load_file

SIZES = {f"{name}_size": 6 for name in ("embedding", "encoder", "hidden", "attention", "readout")}


def model(folder: Path, seed: int, *, tokens: str = "abc", source: type = Words, **changes: object) -> RNNSearch:
    vocabulary = Vocabulary.from_sequences([list(tokens)])
    torch.manual_seed(seed)
    made = RNNSearch(RNNSearchConfig(len(vocabulary), len(vocabulary), **{**SIZES, **changes}), vocabulary, vocabulary)
    made.save_pretrained(folder)
    segmentation.save(folder, source(), Words())
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four checkpoints, the last update saved twice."""
    folder = tmp_path / "run"
    model(folder / INITIAL, 0)
    for update, seed in ((10, 1), (20, 2), (30, 3), (30, 3)):
        tensors = {"model": model(tmp_path / "other", seed).state_dict(), "optimizer": {}}
        snapshots.save(folder / CHECKPOINTS, update, tensors=tensors, state={}, keep=9)
    return folder


def mean(*weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([each[name].double() for each in weights]).mean(dim=0).float() for name in weights[0]}


def test_a_runs_newest_checkpoints_count_once_each_and_the_mean_translates(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["average", str(run), "--last", "2", "--output", str(out)]) == 0
    saved = [snapshots.load(place)[0]["model"] for place in snapshots.every(run / CHECKPOINTS)]
    found = load_file(out / "model.safetensors")
    for name, value in mean(saved[1], saved[2]).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-7)
    assert "update-00000030-1" in capsys.readouterr().err
    assert len(Translator.from_pretrained(out)(["a b", "c"])) == 2


def test_models_are_averaged_too_and_stored_in_half_the_space(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    weights = [model(folder, seed).state_dict() for seed, folder in enumerate(folders)]
    given = ["average", *map(str, folders), "--output", str(tmp_path / "out"), "--dtype", "float16"]
    assert cli.main(given) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in mean(*weights).items():
        assert torch.equal(found[name], value.half())


DIFFERENT = {
    "sizes": {"hidden_size": 5},
    "sources": {"tokens": "abd"},
    "segmentation": {"source": Characters},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_models_that_do_not_fit_together_are_refused(tmp_path, capsys, what):
    model(tmp_path / "one", 1)
    model(tmp_path / "two", 2, **DIFFERENT[what])
    given = ["average", str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(tmp_path / "out")]
    assert cli.main(given) == 1
    assert f"cannot be averaged: they differ in {what}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_few_checkpoints_and_what_is_no_model_are_refused(run, tmp_path, capsys):
    assert cli.main(["average", str(run), "--last", "4", "--output", str(tmp_path / "out")]) == 1
    assert "holds checkpoints of 3 updates and 4 are wanted" in capsys.readouterr().err
    assert cli.main(["average", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    with pytest.raises(SystemExit):
        cli.main(["average", str(run), "--last", "0", "--output", str(tmp_path / "out")])
