"""The processes of one run under torchrun; one process alone needs none of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from rnnsearch.config import RNNSearchConfig
from rnnsearch.data import Batch, collate
from rnnsearch.stream import Minibatch


class Share(NamedTuple):
    """A minibatch, and this process' rows of it as they go into the model."""

    whole: Minibatch
    batch: Batch
    tokens: int  # of the batch; 0 where it has no row: it is then one that counts nothing, the others wait for it


@dataclass(frozen=True)
class Processes:
    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Over the processes, in float64: the same answer in each."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: object) -> list:
        """Every process' value, in each of them, by rank."""
        if self.count == 1:
            return [value]
        values: list = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        if self.count == 1:
            return model
        return DistributedDataParallel(model)

    def unsynchronised(self, wrapped: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Gradients add up in each process alone; the next backward outside sums them over all."""
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext()

    def shard(self, items: list) -> list:
        return items[self.rank :: self.count]

    def shares(self, minibatches: Iterable[Minibatch], config: RNNSearchConfig) -> Iterator[Share]:
        """This process' rows of each, padded; in pinned memory where they are for a GPU."""
        for whole in minibatches:
            rows = self.shard(whole.pairs)
            batch = collate(rows or whole.pairs[:1], pad_id=config.pad_id, bos_id=config.bos_id)
            if self.device.type == "cuda":
                batch = batch.pin_memory()
            yield Share(whole, batch, batch.tokens if rows else 0)


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The group that torchrun's variables describe: gloo on CPUs, NCCL on GPUs (one each)."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    place = pick_device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if count == 1:
        yield Processes(0, 1, place)
        return
    # One process may learn a segmentation for hours while the others wait; torchrun ends those of one that died.
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield Processes(dist.get_rank(), count, place)
    finally:
        dist.destroy_process_group()


def pick_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is CUDA where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def weighted(loss: Tensor, part: float, count: int) -> Tensor:
    """So that the mean over processes, which DistributedDataParallel takes, is the sum of their parts."""
    return loss * (part * count)
