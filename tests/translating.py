"""What the tests of `rnnsearch translate` share: a small model on disk, texts, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rnnsearch import cli
from rnnsearch.segmentation import Words
from rnnsearch.translator import Translator
from small_model import make_model

TEXTS = ["a b c", "f", "", "a b c d e", "c  a b", "?", "e", "d a", "b b b b", " ", "f e d", "a"]


def save_model(directory: Path, scale: float = 1.0) -> Path:
    Translator(make_model(dtype=torch.float32, scale=scale), Words(), Words()).save(directory)
    return directory


def translate(model: Path, *options: object) -> int:
    return cli.main(["translate", "--model", str(model), "--max_length=7", *map(str, options)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "best")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


@pytest.fixture
def wanted(model: Path) -> list[str]:
    return Translator(model, max_length=7)(TEXTS)
