"""Models on disk: what is saved comes back, what is interrupted loses nothing, what is damaged is refused."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import resource
import stat
from pathlib import Path

import pytest
import torch
from rnnsearch import CheckpointError, RNNSearch, RNNSearchConfig, checkpoint, snapshots
from rnnsearch.checkpoint import write_atomically
from safetensors.torch import load_file, save_file
from small_model import SIZES, SOURCE, TARGET, make_model


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_saved_model_comes_back(tmp_path: Path, dtype: torch.dtype | None) -> None:
    model = make_model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "model", dtype=dtype)
    before = torch.get_rng_state()
    loaded = RNNSearch.from_pretrained(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn to be thrown away
    assert loaded.config == model.config and not loaded.training
    for parameter in loaded.parameters():
        assert parameter.dtype == torch.float32 and parameter.device.type == "cpu" and parameter.requires_grad
    assert loaded.source_vocabulary is not None and loaded.source_vocabulary.tokens == SOURCE.tokens
    for name, weight in model.state_dict().items():
        wanted = weight if dtype is None else weight.to(dtype).float()
        assert torch.equal(loaded.state_dict()[name], wanted)
    with pytest.raises(ValueError, match="save_pretrained needs both vocabularies"):
        RNNSearch(model.config).save_pretrained(tmp_path)


@pytest.mark.parametrize("file", range(3))
def test_an_interrupted_save_leaves_the_old_model_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int
) -> None:
    """Whichever file is being written, and though the new model has other sizes."""
    make_model(dtype=torch.float32).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = itertools.count()

    def interrupt(descriptor: int) -> None:
        if next(written) == file:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "fsync", interrupt)
    other = RNNSearch(RNNSearchConfig(len(SOURCE), len(TARGET), **{**SIZES, "hidden_size": 9}), SOURCE, TARGET)
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    other.save_pretrained(tmp_path)
    assert RNNSearch.from_pretrained(tmp_path).config.hidden_size == 9


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = make_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.output.bias[0] = 1e6  # too large for float16
    with pytest.raises(CheckpointError, match=r"`output\.bias` has values that are not finite"):
        model.save_pretrained(tmp_path, dtype=torch.float16)
    with torch.no_grad():
        model.output.bias[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"`output\.bias` has values that are not finite"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def _change_config(path: Path, **changes) -> None:
    described = json.loads((path / "config.json").read_text())
    described["config"].update(changes)
    (path / "config.json").write_text(json.dumps(described))


def _change_weights(path: Path, change) -> None:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors")


DAMAGE = {
    "no directory": (lambda path: [file.unlink() for file in path.iterdir()] and path.rmdir(), "is not a directory"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "model.safetensors cannot be read"),
    "no configuration": (lambda path: (path / "config.json").unlink(), "config.json cannot be read"),
    "no JSON": (lambda path: (path / "config.json").write_text("{"), "config.json is not JSON"),
    "a foreign model": (
        lambda path: (path / "config.json").write_text('{"model_type": "bert"}'),
        "config.json is not the configuration of an RNNSearch model",
    ),
    "a later format": (
        lambda path: (path / "config.json").write_text('{"model_type": "rnnsearch", "format": 2, "config": {}}'),
        "must have format 1; it has 2",
    ),
    "an unknown option": (lambda path: _change_config(path, layers=2), "cannot be built: .*layers"),
    "a foreign vocabulary": (
        lambda path: (path / "vocabulary.json").write_text('["a"]'),
        "must have a list of strings under 'source'",
    ),
    "another vocabulary": (
        lambda path: _change_config(path, target_vocabulary_size=11),
        "the target vocabulary must have 11 tokens; got 10",
    ),
    "half a file": (
        lambda path: (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:1000]),
        "is not a whole safetensors file",
    ),
    "a pickle": (
        lambda path: (path / "model.safetensors").write_bytes(pickle.dumps({"a": 1})),
        "is not a whole safetensors file",
    ),
    "a NaN": (
        lambda path: _change_weights(path, lambda weights: weights["output.bias"].fill_(torch.nan)),
        r"`output\.bias` has values that are not finite",
    ),
    "other sizes": (
        lambda path: _change_config(path, attention_size=9),
        r"`decoder\.query_proj\.weight` must be \(9, 7\); got \(4, 7\)",
    ),
    "a missing weight": (
        lambda path: _change_weights(path, lambda weights: weights.pop("output.bias")),
        r"it lacks output\.bias",
    ),
    "a foreign weight": (
        lambda path: _change_weights(path, lambda weights: weights.update(extra=torch.ones(1))),
        "it has extra besides",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_refused_with_the_reason(tmp_path: Path, damage: str) -> None:
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    spoil, message = DAMAGE[damage]
    spoil(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        RNNSearch.from_pretrained(tmp_path / "model")


def test_what_is_no_file_is_not_replaced_and_a_link_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="is no file that could be written over"):
            checkpoint.write_atomically({path: b"new"})
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    checkpoint.write_atomically({tmp_path / "link": b"new"})
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


def test_of_several_files_none_takes_its_place_before_all_are_whole(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError):
        checkpoint.write_atomically({tmp_path / "a": b"new", tmp_path / "nowhere" / "b": b"new"})
    assert (tmp_path / "a").read_text() == "old" and list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_file_that_does_not_fit_is_named_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # as a full disk: an error that names no file
    try:
        with pytest.raises(OSError, match=re.escape(str(path))):
            write_atomically({path: b"x" * 10**6})
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "checkpoints"))):
            snapshots.save(tmp_path / "checkpoints", 1, tensors={"model": {"w": torch.zeros(10**5)}}, state={}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before" and not list(tmp_path.glob(".out*"))
    assert snapshots.latest(tmp_path / "checkpoints") is None
