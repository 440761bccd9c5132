"""A checkpoint of a run translates as the model that it holds, alone and in an ensemble."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rnnsearch import CheckpointError, Translator, snapshots
from rnnsearch.ensemble import Ensemble
from rnnsearch.pretrained import load_model
from rnnsearch.segmentation import Words
from small_model import make_model
from torch.optim.swa_utils import AveragedModel

TEXTS = ["a b c", "f e", "c a b"]


def a_run(folder: Path, scale: float, *, averaged: bool = False) -> tuple[Path, Translator]:
    """A checkpoint of a run, and what it should translate as."""
    model = make_model(dtype=torch.float32, scale=scale)
    Translator(make_model(dtype=torch.float32, scale=0.1), Words(), Words()).save(folder / snapshots.INITIAL)
    tensors = {"model": model.state_dict(), "optimizer": {"step": torch.tensor(1.0)}}
    if averaged:
        tensors["average"] = AveragedModel(model).state_dict()
        tensors["model"] = make_model(dtype=torch.float32, scale=0.2).state_dict()
    place = snapshots.save(folder / "checkpoints", 7, tensors=tensors, state={}, keep=1)
    return place, Translator(model, Words(), Words(), max_length=6)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_checkpoint_translates_as_the_model_that_would_be_kept(tmp_path: Path, averaged: bool) -> None:
    place, wanted = a_run(tmp_path, 1.0, averaged=averaged)
    assert Translator(place, max_length=6)(TEXTS) == wanted(TEXTS)


def test_checkpoints_are_an_ensemble(tmp_path: Path) -> None:
    (first, left), (second, right) = (a_run(tmp_path / str(scale), scale) for scale in (1.0, 0.8))
    both = Translator([first, second], max_length=6)
    wanted = Ensemble([left.model, right.model]).translate([text.split() for text in TEXTS], beam_size=5, max_length=6)
    assert both(TEXTS) == [" ".join(entry[0].tokens) for entry in wanted]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    place, _ = a_run(tmp_path, 1.0)
    (place / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model(place)
    (place / snapshots.MARKER).write_text("{}")
    with pytest.raises(CheckpointError, match="is not a checkpoint of `rnnsearch train`"):
        load_model(place)
