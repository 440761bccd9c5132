"""A model on disk: weights, configuration and vocabularies, one file each and none of them executable.

    model.safetensors   the weights
    config.json         {"model_type": "rnnsearch", "format": 1, "config": {...}}
    vocabulary.json     {"source": [...], "target": [...]}

All three are written beside their places before the first is moved there, so a save that is interrupted, or finds the
disk full, leaves the old model whole.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocabulary.json"
MODEL_TYPE, FORMAT = "rnnsearch", 1


class CheckpointError(RuntimeError):
    """A model on disk that cannot be used; the message says which file and why."""


class Saved(NamedTuple):
    weights: dict[str, Tensor]
    config: dict[str, Any]
    vocabularies: dict[str, list[str]]


def save(
    directory: str | Path,
    *,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    vocabularies: Mapping[str, Sequence[str]],
    dtype: torch.dtype | None = None,
) -> None:
    """Write the three files; weights as ``dtype`` or as they are. Refuses weights that are not finite."""
    directory = Path(directory)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items()}
    _check_finite(directory / WEIGHTS, tensors)
    directory.mkdir(parents=True, exist_ok=True)
    described = {"model_type": MODEL_TYPE, "format": FORMAT, "config": dict(config)}
    write_atomically(
        {
            directory / CONFIG: _json(described),
            directory / VOCABULARY: _json({side: list(tokens) for side, tokens in vocabularies.items()}),
            directory / WEIGHTS: save_tensors(tensors, metadata={"format": "pt"}),
        }
    )


def load(directory: str | Path) -> Saved:
    """Read the three files and check what can be checked without a model."""
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    described = _read_json(directory / CONFIG)
    if not isinstance(described, dict) or described.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"{directory / CONFIG} is not the configuration of an RNNSearch model")
    if described.get("format") != FORMAT or not isinstance(described.get("config"), dict):
        raise CheckpointError(f"{directory / CONFIG} must have format {FORMAT}; it has {described.get('format')!r}")
    vocabularies = _read_json(directory / VOCABULARY)
    for side in ("source", "target"):
        tokens = vocabularies.get(side) if isinstance(vocabularies, dict) else None
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise CheckpointError(f"{directory / VOCABULARY} must have a list of strings under {side!r}")
    path = directory / WEIGHTS
    try:
        weights = load_tensors(_read(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error})") from error
    _check_finite(path, weights)
    return Saved(weights, described["config"], vocabularies)


def check_weights(
    directory: str | Path, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: str = WEIGHTS
) -> None:
    """``weights`` must have the names and shapes of ``wanted``."""
    path = Path(directory) / file
    missing, foreign = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or foreign:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(foreign)} besides"] * bool(foreign)
        raise CheckpointError(f"{path} does not fit its configuration: it {' and '.join(parts)}")
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path} does not fit its configuration: `{name}` must be {tuple(tensor.shape)}; "
                f"got {tuple(weights[name].shape)}"
            )


@contextmanager
def explained(directory: str | Path) -> Iterator[None]:
    """A value in the configuration or the vocabulary that a model refuses becomes a CheckpointError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the model in {directory} cannot be built: {error}") from error


def write_atomically(contents: Mapping[Path, bytes]) -> None:
    """Write each file beside its place and to the disk; when all are whole, move them into their places, in order."""
    with ExitStack() as stack:
        for path, content in reversed(list(contents.items())):  # the first in is the last out
            file = stack.enter_context(replacing(path))
            file.write(content)
            _to_disk(file)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when all of it is written and on the disk, and else is gone.

    Raises:
        ValueError: ``path`` is a directory, a device or a pipe, which nothing should replace.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file that could be written over")
    path = path.resolve()  # a link stays one
    umask = os.umask(0)
    os.umask(umask)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            _to_disk(file)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's files are for their owner alone
        os.replace(name, path)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file
    finally:
        Path(name).unlink(missing_ok=True)


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: `{name}` has values that are not finite")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error})") from error
