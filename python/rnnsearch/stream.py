"""Minibatches of like length, for ever, from any position: the order follows from the seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from rnnsearch.corpus import ParallelText
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


@dataclass(frozen=True)
class BatchStream:
    """As in the paper (section 4.2), the epoch's random order is taken ``sort * size`` pairs at a time, sorted by
    length and cut into minibatches, which come in random order.

    Args:
        encode: a pair of texts to ids.
        size: pairs a minibatch at most.
        tokens: above 0, padded tokens of a minibatch's sources or targets at most (a longer pair stands alone).
        max_length: a pair that is longer on a side is left out and counted.
    """

    corpus: ParallelText
    encode: Callable[[str, str], Pair]
    size: int
    tokens: int
    sort: int
    max_length: int
    seed: int

    def __call__(self, position: Position) -> Iterator[tuple[list[Pair], Position]]:
        """Minibatches from ``position`` on, each with the position behind it."""
        epoch, start, skipped = position.epoch, position.start, position.batch
        while True:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            order = torch.randperm(len(self.corpus), generator=generator)
            groups = self._groups(order, epoch, start, counted=skipped > 0)
            current = next(groups, None)
            if current is None and start == 0:
                raise ValueError(f"no pair is at most {self.max_length} tokens long: raise `data.max_length`")
            while current is not None:
                start, group = current
                # Groups without a usable pair belong to the one before: its last minibatch may be the epoch's.
                following = next(groups, None)
                end = len(self.corpus) if following is None else following[0]
                generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch, start))
                places = torch.randperm(len(group), generator=generator).tolist()
                for number in range(skipped, len(group)):
                    last = number + 1 == len(group)
                    behind = Position(epoch, end, 0) if last else Position(epoch, start, number + 1)
                    yield group[places[number]], behind
                current, skipped = following, 0
            epoch, start, skipped = epoch + 1, 0, 0

    def _groups(
        self, order: torch.Tensor, epoch: int, start: int, *, counted: bool
    ) -> Iterator[tuple[int, list[list[Pair]]]]:
        """Where each group that has minibatches begins, from ``start`` on; ``counted``: the first one's long pairs."""
        step = self.size * self.sort
        for place in range(start, len(self.corpus), step):
            group = self._group(order[place : place + step].tolist(), epoch, first=not (counted and place == start))
            if group:
                yield place, group

    def _group(self, indices: Sequence[int], epoch: int, *, first: bool) -> list[list[Pair]]:
        pairs = []
        for index in indices:
            pair = self.encode(*self.corpus[index])
            length = max(len(pair.source), len(pair.target))
            if length <= self.max_length:
                pairs.append(pair)
            elif epoch == 0 and first:  # once, not at every pass
                self.corpus.skips.count(self.corpus.where(index), f"more than {self.max_length} tokens")
        return cut_batches(pairs, self.size, self.tokens)


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
