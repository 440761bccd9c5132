"""How good a model is on held-out text, shared out among the processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from rnnsearch import scores
from rnnsearch.alignment import of_translation
from rnnsearch.data import Pair, collate
from rnnsearch.loss import model_loss
from rnnsearch.model import RNNSearch, Translation
from rnnsearch.processes import Processes
from rnnsearch.settings import RunOptions
from rnnsearch.stream import cut_batches
from rnnsearch.translator import Translator

Interrupted = Callable[[], bool]
BATCH = 64


class DevText(NamedTuple):
    sources: list[str]
    references: list[str]
    pairs: list[Pair]


class InterruptedMeasure(Exception):
    """The measure was given up because the run was asked to end."""


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def measure_dev(
    translator: Translator, dev: DevText, run: RunOptions, *, processes: Processes, interrupted: Interrupted
) -> tuple[dict[str, float], list[list[Translation]]]:
    """The loss, and the run's metric where it is another; and translations, of the samples, or for the metric of all.

    Raises InterruptedMeasure as :func:`mean_loss`.
    """
    model = translator.model
    assert isinstance(model, RNNSearch)
    shared: dict[str, Any] = {"processes": processes, "interrupted": interrupted}
    values = {"loss": mean_loss(model, dev.pairs, size=BATCH, precision=run.precision, **shared)}
    count = min(run.samples, len(dev.sources)) if run.metric == "loss" else len(dev.sources)
    found = translate_all(translator, dev.sources[:count], beam_size=run.beam_size, **shared)
    if run.metric != "loss":
        texts = [translator.text(entry[0]) if entry else "" for entry in found]
        if run.metric == "bleu":
            value = scores.score(scores.bleu, texts, dev.references, resamples=0).value
        else:
            same = (text.split() == reference.split() for text, reference in zip(texts, dev.references, strict=True))
            value = 100 * sum(same) / len(texts)
        values[run.metric] = value
    return values, found


def samples(translator: Translator, sources: Sequence[str], found: Sequence[Sequence[Translation]]) -> Iterator[str]:
    """Lines that show texts, their translations, and what these attended to."""
    for source, entry in zip(sources, found, strict=False):
        yield f"  {source}"
        for best in entry[:1]:
            yield f"  → {translator.text(best)}"
            yield f"    {of_translation(translator, source, best).pharaoh()}"


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
    size = BATCH * processes.count
    results: list[list[Translation]] = []
    for start in range(0, len(texts), size):
        some = list(texts[start : start + size])
        parts = processes.gather(translator.hypotheses(processes.shard(some), **options))
        results += [parts[place % processes.count][place // processes.count] for place in range(len(some))]
        if interrupted():
            raise InterruptedMeasure
    return results
