"""How good a model is on held-out text, shared out among the processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rnnsearch.data import Pair, collate
from rnnsearch.loss import model_loss
from rnnsearch.model import RNNSearch, Translation
from rnnsearch.processes import Processes
from rnnsearch.stream import cut_batches
from rnnsearch.translator import Translator

Interrupted = Callable[[], bool]


class InterruptedMeasure(Exception):
    """The measure was given up because the run was asked to end."""


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def mean_loss(
    model: RNNSearch,
    pairs: Sequence[Pair],
    *,
    size: int,
    precision: str,
    processes: Processes,
    interrupted: Interrupted,
) -> float:
    """Cross-entropy per token, without dropout or smoothing.

    Raises:
        InterruptedMeasure: ``interrupted()``, in every process alike, between two minibatches.
    """
    batches = cut_batches(pairs, size)
    total = tokens = 0.0
    training, config = model.training, model.config
    model.eval()
    try:
        for start in range(0, len(batches), processes.count):
            if start + processes.rank < len(batches):
                rows = batches[start + processes.rank]
                batch = collate(rows, pad_id=config.pad_id, bos_id=config.bos_id).to(processes.device)
                with autocast(processes.device, precision):
                    total += float(model_loss(model, batch)) * batch.tokens
                tokens += batch.tokens
            if interrupted():
                raise InterruptedMeasure
    finally:
        model.train(training)
    total, tokens = processes.sum([total, tokens])
    return total / tokens


def translate_all(
    translator: Translator, texts: Sequence[str], *, processes: Processes, interrupted: Interrupted, **options: Any
) -> list[list[Translation]]:
    """The n best of every text, in every process. Raises InterruptedMeasure as :func:`mean_loss`."""
    size = 64 * processes.count
    results: list[list[Translation]] = []
    for start in range(0, len(texts), size):
        some = list(texts[start : start + size])
        parts = processes.gather(translator.hypotheses(processes.shard(some), **options))
        results += [parts[place % processes.count][place // processes.count] for place in range(len(some))]
        if interrupted():
            raise InterruptedMeasure
    return results
