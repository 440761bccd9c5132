"""Checkpoints of a training run: whole or not there.

    checkpoints/update-00000120-0/
        model.safetensors, optimizer.safetensors [, average.safetensors]
        state.json      position in the data, measures, counts
        complete.json   sizes and SHA-256 of the others; written last

A checkpoint is written into a temporary folder, every file brought to the disk, and the folder renamed: a run that is
killed at any moment leaves the last checkpoint whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from rnnsearch.checkpoint import CheckpointError

INITIAL = "initial"  # beside the checkpoints' folder: the model before the first update, with all that they share
MARKER, STATE, KIND, FORMAT = "complete.json", "state.json", "rnnsearch-training", 1
PREFIX, UNFINISHED = "update-", ".unfinished-"
_NAME = re.compile(rf"{PREFIX}(\d+)-(\d+)")  # update, and which of those saved at it


def save(
    folder: Path, update: int, *, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write the checkpoint of ``update``, then remove all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left)
    # Saved before and after it was measured, say; the earlier ones may have been removed.
    again = max((again + 1 for of, again in map(_numbers, every(folder)) if of == update), default=0)
    place, unfinished = folder / f"{PREFIX}{update:08}-{again}", folder / f"{UNFINISHED}{update:08}"
    unfinished.mkdir()
    contents = {
        f"{name}.safetensors": save_tensors({key: value.detach().cpu().contiguous() for key, value in group.items()})
        for name, group in tensors.items()
    }
    contents[STATE] = json.dumps(state, indent=1).encode()
    files = {name: {"size": len(content), "sha256": _digest(content)} for name, content in contents.items()}
    contents[MARKER] = json.dumps({"kind": KIND, "format": FORMAT, "files": files}, indent=1).encode()
    for name, content in contents.items():
        try:
            with open(unfinished / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk names no file
            raise OSError(error.errno, error.strerror, str(unfinished / name)) from error
    _sync(unfinished)
    os.rename(unfinished, place)
    _sync(folder)
    for old in every(folder)[:-keep]:
        shutil.rmtree(old)
    return place


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``."""
    found = every(folder)
    return found[-1] if found else None


def load(place: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by file and name, and the state.

    Raises:
        CheckpointError: it is no checkpoint, of another format, or a file is missing or not what was written.
    """
    marker = _json(place / MARKER, _read(place / MARKER))
    if not isinstance(marker, dict) or marker.get("kind") != KIND or not isinstance(marker.get("files"), dict):
        raise CheckpointError(f"{place} is not a checkpoint of `rnnsearch train`")
    if marker.get("format") != FORMAT:
        raise CheckpointError(f"{place / MARKER} must have format {FORMAT}; it has {marker.get('format')!r}")
    contents = {name: _read(place / name) for name in marker["files"]}
    for name, content in contents.items():
        if _digest(content) != marker["files"][name].get("sha256"):
            raise CheckpointError(
                f"{place / name} is damaged (its SHA-256 is not the one in {MARKER}): remove {place} to go on from "
                "the checkpoint before it"
            )
    if STATE not in contents:
        raise CheckpointError(f"{place / MARKER} names no {STATE}")
    try:
        tensors = {
            name.removesuffix(".safetensors"): load_tensors(content)
            for name, content in contents.items()
            if name != STATE
        }
    except SafetensorError as error:
        raise CheckpointError(f"{place} holds a file that is not safetensors ({error})") from error
    return tensors, _json(place / STATE, contents[STATE])


def every(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first."""
    places = folder.glob(f"{PREFIX}*") if folder.is_dir() else ()
    return sorted((place for place in places if _NAME.fullmatch(place.name)), key=_numbers)


def update_of(place: Path) -> int:
    """The update that the checkpoint ``place`` is of."""
    return _numbers(place)[0]


def _numbers(place: Path) -> tuple[int, int]:
    found = _NAME.fullmatch(place.name)
    assert found is not None
    return int(found[1]), int(found[2])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error


def _json(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error})") from error


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
