"""Training by maximum likelihood: one loss, two optimizers, length-bucketed minibatches, the best model kept."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rnnsearch.data import Pair, batches, collate
from rnnsearch.loss import model_loss
from rnnsearch.model import RNNSearch

OPTIMIZERS = ("adam", "adadelta")


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; everything that is random follows from ``seed``.

    Args:
        optimizer: ``"adam"`` with ``learning_rate``, or ``"adadelta"`` as the paper has it (rho 0.95, eps 1e-6,
            rate 1).
        learning_rate: Adam's highest; it rises linearly over ``warmup_steps`` and, with ``decay``, falls to zero
            along a cosine by the last step.
        clip_norm: the gradient's norm at most (the paper: 1).
        label_smoothing: this part of the target probability is spread over the vocabulary.
        sort_batches: so many minibatches are sorted by length together (the paper: 20).
    """

    epochs: int = 10
    batch_size: int = 80
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: bool = True
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    sort_batches: int = 20
    seed: int = 1

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"`optimizer` must be one of {OPTIMIZERS}; got {self.optimizer!r}")
        for name in ("epochs", "batch_size", "sort_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0; got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be at least 0 and below 1; got {self.label_smoothing}")


@dataclass(frozen=True)
class EpochReport:
    epoch: int
    train_loss: float  # per token, label smoothing included
    dev_loss: float  # per token, without
    seconds: float
    tokens_per_second: float  # target tokens
    best: bool


def make_optimizer(model: RNNSearch, options: TrainingOptions) -> torch.optim.Optimizer:
    if options.optimizer == "adadelta":
        return torch.optim.Adadelta(model.parameters(), lr=1.0, rho=0.95, eps=1e-6)
    return torch.optim.Adam(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), eps=1e-9)


def rate_factor(step: int, steps: int, options: TrainingOptions) -> float:
    """The learning rate at ``step`` (from 0) as a part of its highest."""
    if options.optimizer == "adadelta":
        return 1.0
    warm = min(1.0, (step + 1) / (options.warmup_steps + 1))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps)) if options.decay else warm


@torch.no_grad()
def dev_loss(model: RNNSearch, pairs: Sequence[Pair], batch_size: int) -> float:
    """Loss per token over ``pairs``, without dropout or smoothing."""
    config, training = model.config, model.training
    model.eval()
    total, tokens = 0.0, 0
    ordered = sorted(pairs, key=lambda pair: (len(pair.source), len(pair.target)))
    for start in range(0, len(ordered), batch_size):
        batch = collate(ordered[start : start + batch_size], pad_id=config.pad_id, bos_id=config.bos_id)
        total += float(model_loss(model, batch)) * batch.tokens
        tokens += batch.tokens
    model.train(training)
    return total / tokens


def train(
    model: RNNSearch,
    train_pairs: Sequence[Pair],
    dev_pairs: Sequence[Pair],
    options: TrainingOptions,
    *,
    save: Callable[[RNNSearch], Any],
    on_epoch: Callable[[EpochReport], Any] = lambda report: None,
    progress: bool = False,
) -> list[EpochReport]:
    """Train ``model``; after every epoch with the lowest development loss so far, call ``save(model)``.

    SIGINT (Ctrl-C) ends the run after the minibatch or the save at work, so what was saved stays whole; a second
    one kills as usual. The reports are those of the epochs that were finished.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    if not train_pairs or not dev_pairs:
        raise ValueError(f"there must be pairs to train and to develop on; got {len(train_pairs)} and {len(dev_pairs)}")
    torch.manual_seed(options.seed)  # dropout
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = make_optimizer(model, options)
    highest = [group["lr"] for group in optimizer.param_groups]
    group_size = options.batch_size * options.sort_batches
    whole, rest = divmod(len(train_pairs), group_size)
    steps_an_epoch = whole * options.sort_batches + math.ceil(rest / options.batch_size)
    steps, step = options.epochs * steps_an_epoch, 0
    reports: list[EpochReport] = []
    with _interruptible() as interrupted, _bar(steps, progress) as bar:
        for epoch in range(1, options.epochs + 1):
            model.train()
            started, total, tokens = time.perf_counter(), 0.0, 0
            for pairs in batches(
                train_pairs, options.batch_size, generator=generator, sort_batches=options.sort_batches
            ):
                for group, rate in zip(optimizer.param_groups, highest, strict=True):
                    group["lr"] = rate * rate_factor(step, steps, options)
                loss, count = _train_step(model, pairs, optimizer, options)
                step, total, tokens = step + 1, total + loss * count, tokens + count
                if bar is not None:
                    speed = tokens / (time.perf_counter() - started)
                    bar.set_postfix_str(f"epoch {epoch}, loss {total / tokens:.4f}, {speed:.0f} tokens/s", False)
                    bar.update()
                if interrupted():
                    return reports
            seconds = time.perf_counter() - started
            loss = dev_loss(model, dev_pairs, options.batch_size)
            best = not reports or loss < min(report.dev_loss for report in reports)
            if best:
                save(model)
            reports.append(EpochReport(epoch, total / tokens, loss, seconds, tokens / seconds, best))
            on_epoch(reports[-1])
            if interrupted():
                return reports
    return reports


def _train_step(
    model: RNNSearch, pairs: Sequence[Pair], optimizer: torch.optim.Optimizer, options: TrainingOptions
) -> tuple[float, int]:
    config = model.config
    batch = collate(pairs, pad_id=config.pad_id, bos_id=config.bos_id)
    loss = model_loss(model, batch, options.label_smoothing)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}: a lower learning rate may help")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
    optimizer.step()
    return value, batch.tokens


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT into a flag. Only the main thread can; elsewhere the flag stays down."""
    raised = False
    previous = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: Any) -> None:
        nonlocal raised
        raised = True
        signal.signal(signal.SIGINT, previous)

    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:
        yield lambda: False
        return
    try:
        yield lambda: raised
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _bar(steps: int, wanted: bool) -> Iterator[Any]:
    if not wanted:
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise RuntimeError("the progress bar needs tqdm: pip install 'rnnsearch-kernels[train]'") from error
    with tqdm(total=steps, unit="batch", mininterval=1.0, dynamic_ncols=True) as bar:
        yield bar
