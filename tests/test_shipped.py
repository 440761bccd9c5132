"""The models that ship: small, whole, and with a card and a licence."""

from __future__ import annotations

from pathlib import Path

import pytest
from rnnsearch import cli, translate_options
from rnnsearch.pronunciation import MODEL_DIRECTORY
from rnnsearch.translator import Translator
from safetensors import safe_open

MODELS = sorted(path for path in MODEL_DIRECTORY.parent.iterdir() if path.is_dir())
MOST_BYTES = 12 * 10**6


@pytest.mark.parametrize("directory", MODELS, ids=lambda directory: directory.name)
def test_a_model_that_ships_is_small_and_whole_with_a_card_and_a_licence(directory: Path) -> None:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert (directory / "MODEL_CARD.md").is_file() and any("LICEN" in path.name for path in files)
    with safe_open(directory / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    assert Translator(directory)(["cat"])[0]


@pytest.mark.skipif(not translate_options.DEFAULT_MODEL.is_dir(), reason="no translation model ships yet")
def test_translate_needs_nothing_but_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["translate", "I am hungry ."]) == 0
    assert capsys.readouterr().out.strip()
