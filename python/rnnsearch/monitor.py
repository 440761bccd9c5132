"""What a run says while it runs: lines on stderr and curves for TensorBoard."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Monitor:
    """Says things in one process and is silent in the others.

    Args:
        loud: whether this process speaks.
        tensorboard: where the curves go; None for no curves.
    """

    def __init__(self, *, loud: bool, log_every: int, tensorboard: Path | None = None) -> None:
        self.loud, self.log_every = loud, log_every
        self._writer = _writer(tensorboard) if loud and tensorboard is not None else None
        self._since, self._updates, self._tokens, self._loss = time.monotonic(), 0, 0, 0.0
        self._waited = 0.0
        self._began: tuple[float, float] | None = None

    def say(self, text: str) -> None:
        if self.loud:
            print(text, file=sys.stderr, flush=True)

    def update(
        self, update: int, *, epoch: int, loss: float, tokens: int, rate: float, progress: float, waited: float
    ) -> None:
        """One update: the mean ``loss`` of its ``tokens``, the learning rate, the part of the run that is done, and the
        seconds that were ``waited`` for data since the run began."""
        now = time.monotonic()
        if self._began is None:
            self._began = (now, progress)
        self._updates, self._tokens, self._loss = self._updates + 1, self._tokens + tokens, self._loss + loss * tokens
        if self._updates < self.log_every:
            return
        passed = max(now - self._since, 1e-9)
        speed, mean = self._tokens / passed, self._loss / max(self._tokens, 1)
        waiting = (waited - self._waited) / passed
        left = ""
        began, before = self._began
        if progress > before:
            seconds = (now - began) / (progress - before) * (1 - progress)
            left = f", {_clock(seconds)} left"
        said = f"loss {mean:.4f}, {speed:,.0f} tokens/s, {waiting:.1%} waiting for data, rate {rate:.2g}{left}"
        self.say(f"update {update}, epoch {epoch}: {said}")
        curves = {"loss": mean, "tokens_per_second": speed, "waiting": waiting, "rate": rate}
        self.curves(update, {f"train/{name}": value for name, value in curves.items()})
        self._since, self._updates, self._tokens, self._loss, self._waited = now, 0, 0, 0.0, waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile does not count as training in the tokens a second."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - began

    def curves(self, update: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, update)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RuntimeError("the curves need TensorBoard: pip install 'rnnsearch-kernels[tensorboard]'") from error
    return SummaryWriter(str(folder))
