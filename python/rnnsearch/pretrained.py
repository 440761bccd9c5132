"""Models on disk: what was saved to translate with, and the checkpoints of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rnnsearch import segmentation, snapshots
from rnnsearch.checkpoint import CheckpointError, check_weights
from rnnsearch.model import RNNSearch
from rnnsearch.segmentation import Segmentation


def load_model(directory: Path, *, backend: str = "auto") -> RNNSearch:
    """The model in ``directory``: ``run/best``, or a checkpoint, ``run/checkpoints/update-00001400-0``, of which the
    moving average is taken where the run keeps one.

    Raises:
        CheckpointError: there is no model, or it is damaged.
    """
    home = _home(directory)
    model = RNNSearch.from_pretrained(home, backend=backend)
    if home != directory:
        weights = _weights(directory, snapshots.load(directory)[0])
        check_weights(directory, weights, model.state_dict())
        model.load_state_dict(weights)
    return model


def load_segmentation(directory: Path) -> tuple[Segmentation, Segmentation]:
    """Of the source and of the target, of the model that :func:`load_model` loads."""
    return segmentation.load(_home(directory))


def _home(directory: Path) -> Path:
    """Where vocabularies and segmentation are: a checkpoint shares those of its run."""
    if not (directory / snapshots.MARKER).is_file():
        return directory
    return directory.resolve().parent.parent / snapshots.INITIAL


def _weights(place: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    if "average" in tensors:  # torch's AveragedModel: beside the weights it has a count
        named = tensors["average"].items()
        return {name.removeprefix("module."): weight for name, weight in named if name.startswith("module.")}
    if "model" not in tensors:
        raise CheckpointError(f"{place} holds no model.safetensors")
    return tensors["model"]
