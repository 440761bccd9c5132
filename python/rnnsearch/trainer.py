"""A training run that can end at any moment and goes on bit for bit.

Everything a run is follows from its settings and its :class:`Progress`: the order of the data and every dropout mask
are drawn from (seed, update), so a checkpoint holds weights, the optimizer's state and a few numbers. An update is
that of one whole minibatch, whatever the number of processes: each takes some of its rows.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rnnsearch import snapshots
from rnnsearch.ahead import Ahead
from rnnsearch.checkpoint import CheckpointError, check_weights
from rnnsearch.data import Pair
from rnnsearch.loss import ModelLoss
from rnnsearch.measure import DevText, InterruptedMeasure, autocast, measure_dev, samples
from rnnsearch.model import RNNSearch
from rnnsearch.monitor import Monitor
from rnnsearch.optimization import load_optimizer, make_optimizer, optimizer_tensors, rate_factor
from rnnsearch.processes import Processes, Share, weighted
from rnnsearch.settings import TrainSettings
from rnnsearch.stream import BatchStream, Position, derived_seed
from rnnsearch.translator import Translator

BEST, CHECKPOINTS, NONFINITE = "best", "checkpoints", "nonfinite"


class TrainingError(RuntimeError):
    """The run cannot go on; the message says why."""


@dataclass
class Progress:
    """What a run is besides weights and optimizer state."""

    update: int = 0
    position: Position = field(default_factory=Position)
    measured: int = 0  # the last update after which the dev text was measured
    best: float | None = None  # the best value of the metric, lower is better
    without_improvement: int = 0
    plateau: float = 1.0  # what the plateau schedule has taken off the rate
    nonfinite: int = 0
    nonfinite_in_row: int = 0

    @classmethod
    def read(cls, state: Any, place: Path) -> Progress:
        try:
            return cls(**{**state, "position": Position(**state["position"])})
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{place / snapshots.STATE} is not the state of a run ({error})") from error


class Trainer:
    """
    Args:
        translator: the model to train, with its segmentation.
        stream: of training minibatches.
        interrupted: the number of the signal that asks this process to end, or 0.
    """

    def __init__(
        self,
        settings: TrainSettings,
        directory: Path,
        translator: Translator,
        stream: BatchStream,
        dev: DevText,
        *,
        processes: Processes,
        monitor: Monitor,
        interrupted: Callable[[], int],
    ) -> None:
        self.settings, self.directory, self.translator, self.dev = settings, directory, translator, dev
        self.stream, self.processes, self.monitor, self._signal = stream, processes, monitor, interrupted
        assert isinstance(translator.model, RNNSearch)
        self.model: RNNSearch = translator.model.to(processes.device).train()
        self.loss = processes.wrap(ModelLoss(self.model, settings.optimizer.label_smoothing))
        self.optimizer = make_optimizer(self.model, settings.optimizer)
        decay = settings.optimizer.ema_decay
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
        self.progress = Progress()
        self._saved: dict[str, Any] | None = None

    def resume(self) -> None:
        """Go on from the newest checkpoint.

        Raises:
            CheckpointError: there is none, or it is damaged or of another model.
        """
        place = snapshots.latest(self.directory / CHECKPOINTS)
        if place is None:
            raise CheckpointError(f"{self.directory / CHECKPOINTS} holds no checkpoint to go on from")
        tensors, state = snapshots.load(place)
        wanted: dict[str, torch.nn.Module] = {"model": self.model}
        if self.average is not None:
            wanted["average"] = self.average
        for name, module in wanted.items():
            if name not in tensors:
                why = ": `optimizer.ema_decay` was 0 in this run" if name == "average" else ""
                raise CheckpointError(f"{place} holds no {name}.safetensors{why}")
            check_weights(place, tensors[name], module.state_dict(), f"{name}.safetensors")
            module.load_state_dict(tensors[name])
        if "optimizer" not in tensors:
            raise CheckpointError(f"{place} holds no optimizer.safetensors")
        load_optimizer(self.model, self.optimizer, tensors["optimizer"])
        self.progress = Progress.read(state, place)
        self._saved = asdict(self.progress)
        self.monitor.say(f"going on from {place}, update {self.progress.update}")

    def run(self) -> int:
        """Train to the end. The number of the signal that ended the run before, or 0."""
        run = self.settings.run
        try:
            self._measure_when_due()  # what an interruption may have cut off
            if not self._done(self.progress.position):
                self._train()
            if self._out_of_patience():
                self.monitor.say(f"no improvement in {run.patience} measures: done")
            if self.progress.measured < self.progress.update:
                self._measure()
        except InterruptedMeasure:
            self.save()
            self.monitor.say(f"interrupted; saved update {self.progress.update}, --resume goes on from there")
            return max(self.processes.gather(self._signal()))
        self.save()
        self.processes.gather(None)  # no process ends, or goes on from here, before that is written
        return 0

    def save(self) -> None:
        state = asdict(self.progress)
        if not self.processes.first or state == self._saved:
            return
        tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.model, self.optimizer)}
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        folder, update = self.directory / CHECKPOINTS, self.progress.update
        snapshots.save(folder, update, tensors=tensors, state=state, keep=self.settings.run.keep)
        self._saved = state

    def _train(self) -> None:
        """Updates from here to the run's end."""
        run, progress = self.settings.run, self.progress
        update: list[Share] = []
        # A whole group of minibatches is read at once, so as many must be ready for nobody to wait for the next.
        shares = self.processes.shares(self.stream(progress.position), self.model.config)
        with Ahead(shares, depth=self.settings.batch.sort) as ready:
            for share in ready:
                update.append(share)
                position = share.whole.position
                # An epoch's last update may have fewer minibatches, so that epochs begin alike.
                if len(update) < self.settings.batch.accumulate and not self._at_epoch_end(position):
                    continue
                self._train_on(update, ready.waited)
                update, progress.position = [], position
                if run.save_every and progress.update % run.save_every == 0:
                    self.save()
                self._measure_when_due()
                if self._interrupted():
                    raise InterruptedMeasure
                if self._done(position):
                    return

    def _at_epoch_end(self, position: Position) -> bool:
        return position.start >= len(self.stream.corpus) and position.batch == 0

    def _done(self, position: Position) -> bool:
        run = self.settings.run
        passed = position.epoch + (1 if self._at_epoch_end(position) else 0)
        enough = (run.updates and self.progress.update >= run.updates) or (run.epochs and passed >= run.epochs)
        return bool(enough) or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return 0 < self.settings.run.patience <= self.progress.without_improvement

    def _part_done(self) -> float:
        """0 to 1, of the whole run; 0 where it has no end."""
        run, position = self.settings.run, self.progress.position
        inside = position.start + position.batch * self.settings.batch.size
        parts = [self.progress.update / run.updates] if run.updates else []
        if run.epochs:
            parts.append((position.epoch + inside / len(self.stream.corpus)) / run.epochs)
        return min(1.0, max(parts, default=0.0))

    def _train_on(self, update: Sequence[Share], waited: float) -> None:
        options, progress, processes = self.settings.optimizer, self.progress, self.processes
        done = self._part_done()
        rate = options.learning_rate * rate_factor(progress.update, done, options) * progress.plateau
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derived_seed(self.settings.run.seed, progress.update, processes.rank))
        tokens = sum(len(pair.target) for share in update for pair in share.whole.pairs)
        value = 0.0
        for number, share in enumerate(update):
            for where, why in share.whole.left_out:
                self.stream.corpus.skips.count(where, why)
            last = number + 1 == len(update)
            with contextlib.nullcontext() if last else processes.unsynchronised(self.loss):
                value += self._backward(share, tokens)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_norm)
        (loss,) = processes.sum([value])
        progress.update += 1
        if math.isfinite(loss) and bool(torch.isfinite(norm)):
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            progress.nonfinite_in_row = 0
        else:
            self._leave_out([pair for share in update for pair in share.whole.pairs], loss, float(norm))
        self.optimizer.zero_grad(set_to_none=True)
        epoch = progress.position.epoch + 1
        self.monitor.update(
            progress.update, epoch=epoch, loss=loss, tokens=tokens, rate=rate, progress=done, waited=waited
        )

    def _backward(self, share: Share, tokens: int) -> float:
        """The gradient of this process' rows; its part of the update's mean loss per token."""
        processes = self.processes
        with autocast(processes.device, self.settings.run.precision):
            loss = self.loss(share.batch.to(processes.device))
        part = share.tokens / tokens
        weighted(loss, part, processes.count).backward()
        return float(loss.detach()) * part if part else 0.0

    def _leave_out(self, pairs: Sequence[Pair], loss: float, norm: float) -> None:
        progress, limit = self.progress, self.settings.run.max_nonfinite
        progress.nonfinite, progress.nonfinite_in_row = progress.nonfinite + 1, progress.nonfinite_in_row + 1
        path = self.directory / NONFINITE / f"update-{progress.update:08}.jsonl"
        if self.processes.first:
            source, target = self.model.source_vocabulary, self.model.target_vocabulary
            assert source is not None and target is not None
            path.parent.mkdir(exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                for pair in pairs:
                    record = {"source": source.decode(pair.source), "target": target.decode(pair.target)}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        why = f"update {progress.update}: loss {loss}, gradient norm {norm}"
        self.monitor.say(f"{why}; left out ({progress.nonfinite} so far), its batch is in {path}")
        if progress.nonfinite_in_row >= limit:
            raise TrainingError(f"{why}: not finite {limit} times in a row; a lower learning rate may help")

    def _measure_when_due(self) -> None:
        every, progress = self.settings.run.evaluate_every, self.progress
        due = progress.update % every == 0 if every else self._at_epoch_end(progress.position)
        if due and progress.measured < progress.update:
            with self.monitor.paused():
                self._measure()

    def _measure(self) -> None:
        """Measure the dev text, keep the model if it is the best so far, and save where no other time is set."""
        run, progress, options = self.settings.run, self.progress, self.settings.optimizer
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, RNNSearch)
        translator = Translator(model, self.translator.source, self.translator.target)
        values, found = measure_dev(translator, self.dev, run, processes=self.processes, interrupted=self._interrupted)
        value = values["loss"] if run.metric == "loss" else -values[run.metric]
        better = math.isfinite(value) and (progress.best is None or value < progress.best)
        if better:
            if self.processes.first:
                translator.save(self.directory / BEST)
            progress.best, progress.without_improvement = value, 0
        else:
            progress.without_improvement += 1
            if options.schedule == "plateau" and progress.without_improvement % options.plateau_patience == 0:
                progress.plateau *= options.plateau_factor
        progress.measured = progress.update
        said = ", ".join(f"{name} {number:.4f}" for name, number in values.items())
        self.monitor.say(f"update {progress.update}: dev {said}{' (best, kept)' if better else ''}")
        self.monitor.curves(progress.update, {f"dev/{name}": number for name, number in values.items()})
        for line in samples(translator, self.dev.sources[: run.samples], found):
            self.monitor.say(line)
        self.model.train()
        if not run.save_every:
            self.save()

    def _interrupted(self) -> bool:
        """In any process; the same answer in each."""
        return self.processes.sum([float(self._signal() != 0)])[0] > 0
