"""Parallel text on disk. In memory: where each line begins, eight bytes a line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

NAMED = 5  # skipped lines that are named one by one; the others are counted


class CorpusError(ValueError):
    """Text that cannot be used; the message names file and line."""


class Skips:
    """What was left out and why; the first of each kind by file and line, with what is done about it."""

    def __init__(self, on_bad_line: str, report: Callable[[str], Any], done: str = "left out") -> None:
        self.on_bad_line, self.report, self.done = on_bad_line, report, done
        self.counts: Counter[str] = Counter()

    def __call__(self, where: str, why: str) -> None:
        if self.on_bad_line == "error":
            raise CorpusError(f"{where}: {why}")
        self.count(where, why)

    def count(self, where: str, why: str) -> None:
        self.counts[why] += 1
        if self.counts[why] <= NAMED:
            self.report(f"{where}: {why}; {self.done}")


class LineFile:
    """Lines of a UTF-8 file by their place, read when they are asked for; safe to share between threads and forks.

    A pipe is read to its end at once, into a temporary file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as given, _seekable(given) as file:
                offsets = array("q", [0])
                for line in file:
                    offsets.append(offsets[-1] + len(line))
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise CorpusError(f"{path} cannot be read ({error.strerror})") from error
        self._offsets = offsets

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, place: int) -> str:
        """Without what ends it. Raises UnicodeDecodeError."""
        start, end = self._offsets[place], self._offsets[place + 1]
        return os.pread(self._descriptor, end - start, start).decode("utf-8").rstrip("\r\n")


@contextmanager
def _seekable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """``file``, or all that a pipe says."""
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as kept:
        shutil.copyfileobj(file, kept)
        kept.seek(0)
        yield kept


class Unusable(Exception):
    """A pair that is left out: where it stands, and why."""


class Corpus:
    """Pairs (source, target) of texts, read when they are asked for; every one has text on both sides.

    A kind of corpus gives :meth:`_read`, and :meth:`_where` for what is wrong with a pair as a whole.

    Args:
        name: what is read, for messages.
        places: where pairs may stand.

    Raises:
        CorpusError: nothing usable is in it; with ``on_bad_line="error"`` also what is left out otherwise.
    """

    def __init__(self, name: str, places: Sequence[int], skips: Skips) -> None:
        self.skips = skips
        self._usable = array("q")
        digest = hashlib.sha256()
        for place in places:
            try:
                digest.update(self._checked(place))
            except Unusable as bad:
                skips(*bad.args)
            else:
                self._usable.append(place)
        if not self._usable:
            raise CorpusError(f"{name} has no pair that can be used")
        self.digest = digest.hexdigest()  # SHA-256 of the usable pairs in their order

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self._read(self._usable[index])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> str:
        return self._where(self._usable[index])

    def _read(self, place: int) -> tuple[str, str]:
        """Raises Unusable."""
        raise NotImplementedError

    def _where(self, place: int, side: int = 0) -> str:
        raise NotImplementedError

    def _checked(self, place: int) -> bytes:
        """Both texts with their lengths, so that no other pair has the same bytes."""
        sides = self._read(place)
        encoded = []
        for side, text in enumerate(sides):
            if not isinstance(text, str):
                raise Unusable(self._where(place), "a side is not a string")
            if not text.strip():
                raise Unusable(self._where(place, side), "empty")
            try:
                encoded.append(text.encode())
            except UnicodeEncodeError as error:  # half a character, which JSON can write
                raise Unusable(self._where(place, side), f"not UTF-8 ({error.reason})") from None
        return b"".join((*(b"%d " % len(text) for text in encoded), *encoded))


class ParallelText(Corpus):
    """Pairs of lines.

    Args:
        source: a file of lines; or, without ``target``, a .tsv or .jsonl file with both sides.
        keys: of the two sides in a .jsonl file.
        lines: the places of those that are read; None reads all.

    Raises:
        CorpusError: a file cannot be read, the line counts differ, there are no such ``lines``, nothing usable is in
            them; with ``on_bad_line="error"`` also an empty line, bad UTF-8, a missing column or key.
    """

    def __init__(
        self,
        source: str | Path,
        target: str | Path | None,
        skips: Skips,
        *,
        keys: tuple[str, str] = ("source", "target"),
        lines: range | None = None,
    ) -> None:
        self._keys = keys
        self._source = LineFile(Path(source))
        self._target = None if target is None else LineFile(Path(target))
        self._format = self._source.path.suffix
        if self._target is None and self._format not in (".tsv", ".jsonl"):
            raise CorpusError(f"{source} has one side only: give the other's file, or a .tsv or .jsonl file with both")
        if self._target is not None and len(self._source) != len(self._target):
            raise CorpusError(
                f"{self._source.path} has {len(self._source)} lines and {self._target.path} has {len(self._target)}"
            )
        super().__init__(str(self._source.path), _places(self._source, lines), skips)

    def _where(self, place: int, side: int = 0) -> str:
        return f"{(self._target or self._source if side else self._source).path}, line {place + 1}"

    def _read(self, place: int) -> tuple[str, str]:
        source = self._line(place, 0)
        if self._target is not None:
            return source, self._line(place, 1)
        if self._format == ".tsv":
            fields = source.split("\t")
            if len(fields) < 2:
                raise Unusable(self._where(place), "no tab")
            return fields[0], fields[1]
        try:
            record = json.loads(source)
            return record[self._keys[0]], record[self._keys[1]]
        except (ValueError, TypeError):
            raise Unusable(self._where(place), "not a JSON object") from None
        except KeyError as error:
            raise Unusable(self._where(place), f"no key {error}") from None

    def _line(self, place: int, side: int) -> str:
        file = self._source if side == 0 or self._target is None else self._target
        try:
            return file[place]
        except UnicodeDecodeError as error:
            raise Unusable(self._where(place, side), f"not UTF-8 ({error.reason})") from None


def read_pairs(
    source: Path, target: Path | None, *, keys: tuple[str, str] = ("source", "target"), lines: range | None = None
) -> list[tuple[str, str]]:
    """Those of :class:`ParallelText` where every line must be usable."""
    return list(ParallelText(source, target, Skips("error", lambda said: None), keys=keys, lines=lines))


def read_lines(path: Path, *, lines: range | None = None, empty: bool = True) -> list[str]:
    """The lines of a file, or those at the places ``lines``.

    Raises:
        CorpusError: there are none, one is not UTF-8, or, with ``empty=False``, one has no text.
    """
    file = LineFile(path)
    found = []
    for place in _places(file, lines):
        where = f"{path}, line {place + 1}"
        try:
            found.append(file[place])
        except UnicodeDecodeError as error:
            raise CorpusError(f"{where}: not UTF-8 ({error.reason})") from error
        if not (empty or found[-1].strip()):
            raise CorpusError(f"{where}: empty")
    if not found:
        raise CorpusError(f"{path} is empty")
    return found


def _places(file: LineFile, lines: range | None) -> range:
    if lines is not None and lines.stop > len(file):
        raise CorpusError(f"{file.path} has {len(file)} lines; line {lines.stop} is asked for")
    return range(len(file)) if lines is None else lines
