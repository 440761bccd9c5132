"""A whole update of an RNNSearch model: encoder, decoder, readout and loss, their gradients, and the optimizer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from rnnsearch.config import RNNSearchConfig
from rnnsearch.data import Batch
from rnnsearch.loss import model_loss
from rnnsearch.model import RNNSearch
from weights import Settings
from workloads import Workload

PARTS = ("encoder", "decoder", "readout and loss", "backward", "optimizer")


class Update:
    """One model and its batch; every call is an update and gives the milliseconds of each part."""

    def __init__(self, workload: Workload, backend: str, device: torch.device) -> None:
        torch.manual_seed(5)
        w = workload
        config = RNNSearchConfig(
            source_vocabulary_size=w.vocabulary_size,
            target_vocabulary_size=w.vocabulary_size,
            embedding_size=w.input_size,
            encoder_size=w.memory_size // 2,
            hidden_size=w.hidden_size,
            attention_size=w.attention_size,
            readout_size=w.readout_size,
            reset_after=True,
        )
        self.model = RNNSearch(config, backend=backend)
        self.model.reset_parameters("xavier")
        self.model.to(device)
        self.device = device
        source = torch.randint(4, w.vocabulary_size, (w.batch, w.source_length))
        target = torch.randint(4, w.vocabulary_size, (w.batch, w.target_length))
        lengths = torch.full((w.batch,), w.source_length)
        source, target, lengths = (x.to(device) for x in (source, target, lengths))
        self.batch = Batch(source, lengths, target, target, target.numel())
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.loss = float("nan")
        self._marks: list[float] = []
        self.model.decoder.register_forward_pre_hook(lambda *_: self._mark())
        self.model.decoder.register_forward_hook(lambda *_: self._mark())

    def _mark(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._marks.append(time.perf_counter())

    def __call__(self) -> list[float]:
        self._marks = []
        self._mark()
        loss = model_loss(self.model, self.batch)  # the decoder marks its own begin and end
        self._mark()
        self.optimizer.zero_grad()
        loss.backward()
        self._mark()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._mark()
        self.loss = float(loss.detach())
        return [(end - begin) * 1e3 for begin, end in zip(self._marks, self._marks[1:], strict=False)]


def update_lines(workload: Workload, settings: Settings, rounds: int) -> Iterator[str]:
    """The table: every backend that can train, in turn, medians by part; losses must agree after every update."""
    updates = {
        name: Update(workload, name, settings.device) for name in settings.able(torch.float32, "decoder_scan_backward")
    }
    samples: dict[str, list[list[float]]] = {name: [] for name in updates}
    for round_ in range(rounds + 1):
        for name, update in updates.items():
            parts = update()
            if round_ > 0:
                samples[name].append([*parts, sum(parts)])
        losses = [update.loss for update in updates.values()]
        if max(losses) - min(losses) > 1e-3 * min(losses):
            raise AssertionError(f"the losses of {list(updates)} differ after {round_ + 1} updates: {losses}")
    yield "    " + f"{'backend':<14}" + "".join(f"{part:>18}" for part in (*PARTS, "together"))
    for name, found in samples.items():
        medians = [statistics.median(column) for column in zip(*found, strict=True)]
        yield "    " + f"{name:<14}" + "".join(f"{median:>18.1f}" for median in medians)
