"""Pairs of sequences as ids, and minibatches of them, padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Pair(NamedTuple):
    """A source and a target as ids, each with its end of sentence."""

    source: list[int]
    target: list[int]


class Batch(NamedTuple):
    source: Tensor  # (B, S) int64, padded
    source_lengths: Tensor | None  # (B,); None where no source is padded, which spares the masks
    target_input: Tensor  # (B, T): beginning of sentence, then the target without its end
    target: Tensor  # (B, T): the target with its end, padded
    tokens: int  # in `target`, ends counted, padding not

    def to(self, device: torch.device) -> Batch:
        """Without waiting for the copy, where the batch is in pinned memory."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        lengths = None if self.source_lengths is None else change(self.source_lengths)
        return Batch(change(self.source), lengths, change(self.target_input), change(self.target), self.tokens)


def pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(B, longest) int64 and the lengths (B,)."""
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise ValueError("there must be at least one sequence and none may be empty")
    lengths = [len(sequence) for sequence in sequences]
    longest = max(lengths)
    rows = [[*sequence, *[pad_id] * (longest - len(sequence))] for sequence in sequences]
    return torch.tensor(rows), torch.tensor(lengths)


def collate(pairs: Sequence[Pair], *, pad_id: int, bos_id: int) -> Batch:
    source, source_lengths = pad([pair.source for pair in pairs], pad_id)
    target, target_lengths = pad([pair.target for pair in pairs], pad_id)
    target_input, _ = pad([[bos_id, *pair.target[:-1]] for pair in pairs], pad_id)
    padded = int(source_lengths.min()) < source.shape[1]
    return Batch(source, source_lengths if padded else None, target_input, target, int(target_lengths.sum()))
