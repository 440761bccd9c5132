"""Minibatches of like length, for ever, from any position: the order follows from the seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rnnsearch.corpus import Corpus
from rnnsearch.data import Pair


def derived_seed(*parts: int) -> int:
    """A seed for each use, so that randomness has no state to be saved."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


@dataclass(frozen=True)
class Position:
    """Where a stream stands: behind it are ``start`` pairs of the epoch and ``batch`` minibatches of the next group."""

    epoch: int = 0
    start: int = 0
    batch: int = 0


class Minibatch(NamedTuple):
    pairs: list[Pair]
    position: Position  # behind it
    left_out: Sequence[tuple[str, str]]  # where too long pairs stood, and why they are left out: once in a run


@dataclass(frozen=True)
class BatchStream:
    """As in the paper (section 4.2), the epoch's random order is taken ``sort * size`` pairs at a time, sorted by
    length and cut into minibatches, which come in random order. It has no state: any thread may read it.

    Args:
        encode: a pair of texts to ids.
        size: pairs a minibatch at most.
        tokens: above 0, padded tokens of a minibatch's sources or targets at most (a longer pair stands alone).
        max_length: a pair that is longer on a side is left out.
    """

    corpus: Corpus
    encode: Callable[[str, str], Pair]
    size: int
    tokens: int
    sort: int
    max_length: int
    seed: int

    def __call__(self, position: Position) -> Iterator[Minibatch]:
        """Minibatches from ``position`` on."""
        epoch, start, skipped = position.epoch, position.start, position.batch
        while True:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            order = torch.randperm(len(self.corpus), generator=generator)
            usable = start > 0
            for begin, end, group, left_out in self._groups(order, start):
                usable = True
                generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch, begin))
                places = torch.randperm(len(group), generator=generator).tolist()
                for number in range(skipped, len(group)):
                    last = number + 1 == len(group)
                    behind = Position(epoch, end, 0) if last else Position(epoch, begin, number + 1)
                    yield Minibatch(group[places[number]], behind, left_out if epoch == number == 0 else ())
                skipped = 0
            if not usable:
                raise ValueError(f"no pair is at most {self.max_length} tokens long: raise `data.max_length`")
            epoch, start, skipped = epoch + 1, 0, 0

    def _groups(
        self, order: torch.Tensor, start: int
    ) -> Iterator[tuple[int, int, list[list[Pair]], list[tuple[str, str]]]]:
        """From ``start`` on: where a group begins and the next one does, its minibatches, and what is left out.

        Pairs in a row without a usable one belong to the group before: its last minibatch may be the epoch's.
        """
        step = self.size * self.sort
        begin = start
        group: list[list[Pair]] = []
        left_out: list[tuple[str, str]] = []
        for place in range(start, len(self.corpus), step):
            found, too_long = self._group(order[place : place + step].tolist())
            if found and group:
                yield begin, place, group, left_out
                left_out = []
            if found:
                begin, group = place, found
            left_out = left_out + too_long
        if group:
            yield begin, len(self.corpus), group, left_out

    def _group(self, indices: Sequence[int]) -> tuple[list[list[Pair]], list[tuple[str, str]]]:
        pairs, too_long = [], []
        for index in indices:
            pair = self.encode(*self.corpus[index])
            if max(len(pair.source), len(pair.target)) <= self.max_length:
                pairs.append(pair)
            else:
                too_long.append((self.corpus.where(index), f"more than {self.max_length} tokens"))
        return cut_batches(pairs, self.size, self.tokens), too_long


def cut_batches(pairs: Sequence[Pair], size: int, tokens: int = 0) -> list[list[Pair]]:
    """``pairs`` sorted by length, in minibatches of at most ``size`` pairs and ``tokens`` padded tokens a side."""
    batches: list[list[Pair]] = []
    widest = 0
    for pair in sorted(pairs, key=lambda pair: (len(pair.source), len(pair.target))):
        widest = max(widest, len(pair.source), len(pair.target))
        full = not batches or len(batches[-1]) == size or (tokens and widest * (len(batches[-1]) + 1) > tokens)
        if full:
            batches.append([])
            widest = max(len(pair.source), len(pair.target))
        batches[-1].append(pair)
    return batches
