"""Whether what a command is to write can be written: said before the work is done, not behind it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path


def check_file(option: str, path: Path, inputs: Mapping[str, Path | None] | None = None) -> None:
    """
    Args:
        option: that the file was given by, for messages.
        inputs: files that are read, by their options.

    Raises:
        ValueError: ``path`` is no file, is one of the ``inputs``, or its folder is not there or cannot be written to.
    """
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        raise ValueError(f"{option} must be a file in a directory that exists; got {path}")
    for name, other in (inputs or {}).items():
        if other is not None and path.exists() and other.exists() and path.samefile(other):
            raise ValueError(f"{option} must be another file than {name}; both are {path}")
    _check_folder(option, path.resolve().parent)


def check_picture(option: str, path: Path) -> None:
    """Raises as :func:`check_file`; ValueError for an ending that is no picture's, RuntimeError without matplotlib."""
    from rnnsearch.plot import check_ending

    check_ending(path, option)
    check_file(option, path)


def check_results(files: Mapping[str, str | None], plot: str | None, inputs: Mapping[str, str | None]) -> None:
    """The files and the picture that a command ends with, by their options. Raises as :func:`check_file` and
    :func:`check_picture`; ValueError where two files are one."""
    read = {option: None if path is None else Path(path) for option, path in inputs.items()}
    taken: dict[Path, str] = {}
    for option, file in files.items():
        if file is None:
            continue
        check_file(option, Path(file), read)
        other = taken.setdefault(Path(file).resolve(), option)
        if other != option:
            raise ValueError(f"{option} must be another file than {other}; both are {file}")
    if plot is not None:
        check_picture("--plot", Path(plot))


def check_directory(option: str, path: Path) -> None:
    """For a directory that is made where it is not there. Raises ValueError as :func:`check_file`."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"{option} must be a directory; {there} is a file")
    _check_folder(option, there)


def _check_folder(option: str, folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{option}: {folder} cannot be written to ({error.strerror})") from error
