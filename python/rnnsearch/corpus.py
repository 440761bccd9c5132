"""Parallel text on disk. In memory: where each line begins, eight bytes a line."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NAMED = 5  # skipped lines that are named one by one; the others are counted


class CorpusError(ValueError):
    """Text that cannot be used; the message names file and line."""


class Skips:
    """What was left out and why; the first of each kind by file and line."""

    def __init__(self, on_bad_line: str, report: Callable[[str], Any]) -> None:
        self.on_bad_line, self.report = on_bad_line, report
        self.counts: Counter[str] = Counter()

    def __call__(self, where: str, why: str) -> None:
        if self.on_bad_line == "error":
            raise CorpusError(f"{where}: {why}")
        self.count(where, why)

    def count(self, where: str, why: str) -> None:
        self.counts[why] += 1
        if self.counts[why] <= NAMED:
            self.report(f"{where}: {why}; left out")


class LineFile:
    """Lines of a UTF-8 file by their place, read when they are asked for; safe to share between threads and forks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                offsets = array("q", [0])
                for line in file:
                    offsets.append(offsets[-1] + len(line))
            self._descriptor = os.open(path, os.O_RDONLY)
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


class ParallelText:
    """Pairs (source, target) of lines; every one has text on both sides.

    Args:
        source: a file of lines; or, without ``target``, a .tsv or .jsonl file with both sides.
        keys: of the two sides in a .jsonl file.

    Raises:
        CorpusError: a file cannot be read, the line counts differ, nothing usable is in it; with
            ``on_bad_line="error"`` also an empty line, bad UTF-8, a missing column or key.
    """

    def __init__(
        self,
        source: str | Path,
        target: str | Path | None,
        skips: Skips,
        *,
        keys: tuple[str, str] = ("source", "target"),
    ) -> None:
        self._keys, self.skips = keys, skips
        self._source = LineFile(Path(source))
        self._target = None if target is None else LineFile(Path(target))
        self._format = self._source.path.suffix
        if self._target is None and self._format not in (".tsv", ".jsonl"):
            raise CorpusError(f"{source} has one side only: give the other's file, or a .tsv or .jsonl file with both")
        if self._target is not None and len(self._source) != len(self._target):
            raise CorpusError(
                f"{self._source.path} has {len(self._source)} lines and {self._target.path} has {len(self._target)}"
            )
        self._usable = array("q")
        for place in range(len(self._source)):
            why = self._why_not(place)
            if why is None:
                self._usable.append(place)
            else:
                skips(*why)
        if not self._usable:
            raise CorpusError(f"{self._source.path} has no pair that can be used")

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self._pair(self._usable[index])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> str:
        return f"{self._source.path}, line {self._usable[index] + 1}"

    def _pair(self, place: int) -> tuple[str, str]:
        if self._target is not None:
            return self._source[place], self._target[place]
        line = self._source[place]
        if self._format == ".tsv":
            fields = line.split("\t")
            return fields[0], fields[1]
        record = json.loads(line)
        return record[self._keys[0]], record[self._keys[1]]

    def _why_not(self, place: int) -> tuple[str, str] | None:
        where = f"{self._source.path}, line {place + 1}"
        try:
            sides = self._pair(place)
        except UnicodeDecodeError as error:
            if self._target is not None:
                try:
                    self._source[place]
                    where = f"{self._target.path}, line {place + 1}"
                except UnicodeDecodeError:
                    pass
            return where, f"not UTF-8 ({error.reason})"
        except IndexError:
            return where, "no tab"
        except (ValueError, TypeError):
            return where, "not a JSON object"
        except KeyError as error:
            return where, f"no key {error}"
        for side, text in zip((self._source, self._target or self._source), sides, strict=True):
            if not isinstance(text, str):
                return where, "a side is not a string"
            if not text.strip():
                return f"{side.path}, line {place + 1}", "empty"
        return None
