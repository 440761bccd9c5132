"""Lines of text from files and pipes."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from typing import NamedTuple

from rnnsearch.corpus import LineFile

READ_BYTES = 1 << 16


class Line(NamedTuple):
    where: str  # file and line, for people
    number: int  # from 1
    text: str  # without what ends it; empty where it cannot be used
    problem: str | None = None  # why not


def file_lines(file: LineFile, places: range) -> list[Line]:
    found = []
    for place in places:
        where = f"{file.path}, line {place + 1}"
        try:
            found.append(Line(where, place + 1, file[place]))
        except UnicodeDecodeError as error:
            found.append(Line(where, place + 1, "", f"not UTF-8 ({error.reason})"))
    return found


def pipe_lines(descriptor: int, name: str, most: int) -> Iterator[list[Line]]:
    """Lines as they come: the next one is waited for, those that stand behind it already are taken with it."""
    number = 0
    for some in _waiting(descriptor, most):
        found = []
        for content in some:
            number += 1
            where = f"{name}, line {number}"
            try:
                found.append(Line(where, number, content.decode("utf-8").rstrip("\r")))
            except UnicodeDecodeError as error:
                found.append(Line(where, number, "", f"not UTF-8 ({error.reason})"))
        yield found


def _waiting(descriptor: int, most: int) -> Iterator[list[bytes]]:
    ready: list[bytes] = []
    begun: list[bytes] = []  # pieces of a line whose end has not come
    ended = False
    while ready or not ended:
        while not ended and len(ready) < most and (not ready or select.select([descriptor], [], [], 0)[0]):
            data = os.read(descriptor, READ_BYTES)
            ended = not data
            *whole, rest = data.split(b"\n")
            for piece in whole:
                ready.append(b"".join([*begun, piece]))
                begun = []
            if rest:
                begun.append(rest)
            if ended and begun:
                ready.append(b"".join(begun))
        if ready:
            yield ready[:most]
            ready = ready[most:]
