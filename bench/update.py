"""A whole update of an RNNSearch model, on every backend and as plain PyTorch has it; all with the same weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from baselines import Eager
from cases import Case, Contender, one_by_one
from costs import scan_cost
from rnnsearch.config import RNNSearchConfig
from rnnsearch.corpus import ParallelText, Skips
from rnnsearch.data import Batch, Pair
from rnnsearch.embedded import Embedded
from rnnsearch.loss import model_loss
from rnnsearch.measure import autocast
from rnnsearch.model import RNNSearch
from rnnsearch.optimization import make_optimizer
from rnnsearch.processes import Processes, Share
from rnnsearch.segmentation import Words
from rnnsearch.settings import OptimizerOptions
from rnnsearch.stream import BatchStream, Position
from rnnsearch.vocabulary import SPECIALS, Vocabulary
from scan_cases import AUTOCAST, CompiledStep
from torch import Tensor, nn
from weights import Settings
from workloads import Workload

PARTS = ("encoder", "decoder", "readout and loss", "backward", "optimizer")
# What is checked against float64 before anything is timed is cut to so many sentences, of so many positions.
CHECKED = (3, 6)
PLAIN: dict[str, type[Eager]] = {"eager": Eager, "compile": CompiledStep}


class Decoded(NamedTuple):
    output: Tensor
    context: Tensor
    attn_weights: None = None  # the loss reads none


class PlainDecoder(nn.Module):
    """A baseline's loop in the place of FusedBahdanauDecoder, for sentences without padding."""

    def __init__(self, loop: Eager) -> None:
        super().__init__()
        self.loop = loop

    def forward(
        self,
        input: Tensor,
        memory: Tensor,
        state: Tensor,
        *,
        input_gates: None,
        memory_lengths: None,
        state_mask: None,
        need_weights: bool,
    ) -> Decoded:
        return Decoded(*self.loop(input, state, memory))


def embed_all(model: RNNSearch, embedding: nn.Embedding, tokens: Tensor) -> Embedded:
    """Each position's embedding, in the place of each different token's."""
    return Embedded(embedding(tokens))


def library_gru(model: RNNSearch, cell: nn.GRUCell, embedded: Embedded, lengths: None, *, reverse: bool) -> Tensor:
    """The library's GRU, in the place of the model's."""
    input = embedded.rows.flip(1) if reverse else embedded.rows
    state = input.new_zeros(1, input.shape[0], cell.hidden_size)
    flat = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    output = torch.gru(input, state, flat, True, 1, 0.0, True, False, True)[0]
    return output.flip(1) if reverse else output


class Update:
    """A model and its optimizer, the paper's Adadelta at the paper's sizes and Adam at others; a call is an update and
    gives the milliseconds of each of ``PARTS``.

    Args:
        name: a backend's, a baseline's, or either with AUTOCAST behind it.
    """

    def __init__(self, workload: Workload, name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(5)
        w, bare = workload, name.removesuffix(AUTOCAST)
        config = RNNSearchConfig(
            source_vocabulary_size=w.vocabulary_size,
            target_vocabulary_size=w.vocabulary_size,
            embedding_size=w.input_size,
            encoder_size=w.memory_size // 2,
            hidden_size=w.hidden_size,
            attention_size=w.attention_size,
            readout_size=w.readout_size,
            reset_after=True,  # nn.GRUCell's, which the baselines use
        )
        self.model = RNNSearch(config, backend="reference" if bare in PLAIN else bare)
        self.model.reset_parameters("xavier")
        self.model.to(device, dtype)
        self.parameters = dict(self.model.named_parameters())
        if bare in PLAIN:
            self.model.decoder = PlainDecoder(PLAIN[bare](self.model.decoder))  # type: ignore[assignment]
            self.model._embed = MethodType(embed_all, self.model)  # type: ignore[method-assign]
            self.model._encode = MethodType(library_gru, self.model)  # type: ignore[method-assign]
        self.device, self.precision = device, "bf16" if name.endswith(AUTOCAST) else "float32"
        adadelta = OptimizerOptions(name="adadelta", learning_rate=1.0)
        self.optimizer = make_optimizer(self.model, adadelta if w.name == "paper" else OptimizerOptions())
        self.loss = self.norm = float("nan")
        self._marks: list[float] = []
        self.model.target_embedding.register_forward_pre_hook(lambda *_: self._mark())
        self.model.decoder.register_forward_hook(lambda *_: self._mark())

    def _mark(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._marks.append(time.perf_counter())

    def gradients(self, batch: Batch) -> list[Tensor]:
        """The loss and its gradients, the parameters in alphabetical order."""
        with autocast(self.device, self.precision):
            loss = model_loss(self.model, batch.to(self.device))
        leaves = [parameter for _, parameter in sorted(self.parameters.items())]
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    def __call__(self, batch: Batch) -> list[float]:
        self._marks = []
        self._mark()
        with autocast(self.device, self.precision):
            loss = model_loss(self.model, batch.to(self.device))  # the hooks mark the decoder's begin and end
        self._mark()
        loss.backward()
        self._mark()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._mark()
        self.loss, self.norm = float(loss.detach()), float(norm)
        return [(end - begin) * 1e3 for begin, end in zip(self._marks, self._marks[1:], strict=False)]


def contenders(settings: Settings) -> list[str]:
    """Plain PyTorch and the reference, which the errors of the others are measured by, before ours."""
    able = settings.able(torch.float32, "decoder_scan_backward", "gru_scan_backward")
    ours = [name for name in able if name != "reference"]
    found = ["eager"] * settings.everything + ["reference"] * ("reference" in able) + ["compile"] * settings.compile
    autocast = ["eager" + AUTOCAST, *(name + AUTOCAST for name in ours)]
    return [*found, *ours, *(autocast if settings.everything else ())]


def checked_case(workload: Workload, updates: Mapping[str, Update], batch: Batch) -> Case:
    """The loss and every gradient of a few sentences' beginnings, against float64, which embeds every position. Of some
    five words, so that they repeat as in a whole minibatch.
    """
    rows, positions = CHECKED
    some = (batch.source, batch.target_input, batch.target)
    source, target_input, target = (len(SPECIALS) + x[:rows, :positions] % 5 for x in some)
    cut = Batch(source, None, target_input, target, target.numel())
    any_update = next(iter(updates.values()))

    def truth(dtype: torch.dtype) -> Any:
        update = Update(workload, "reference", any_update.device, torch.float64)
        update.model._embed = MethodType(embed_all, update.model)  # type: ignore[method-assign]
        return update.gradients(cut)

    calls = {
        Contender(name, torch.bfloat16 if name.endswith(AUTOCAST) else torch.float32): partial(update.gradients, cut)
        for name, update in updates.items()
    }
    return Case(workload, "update", rows, rows, calls, truth, one_by_one, scan_cost(workload))


def text_shares(workload: Workload, folder: Path, device: torch.device) -> Iterator[Share]:
    """Minibatches of random words as training has them: read from files, segmented, sorted and padded.

    The words are as frequent as those of a text: the r-th one's probability is proportional to 1 / r (Zipf's law).
    """
    w, minibatches = workload, 20
    generator = torch.Generator().manual_seed(6)
    frequencies = 1 / torch.arange(1, w.vocabulary_size - len(SPECIALS) + 1)
    files = []
    for side, length in (("source", w.source_length), ("target", w.target_length)):
        lines = minibatches * w.batch
        drawn = torch.multinomial(frequencies, lines * (length - 1), replacement=True, generator=generator)
        files.append(folder / side)
        files[-1].write_text(
            "".join(" ".join(f"w{word}" for word in line) + "\n" for line in drawn.view(lines, -1).tolist())
        )
    vocabulary = Vocabulary([*SPECIALS, *(f"w{number}" for number in range(w.vocabulary_size - len(SPECIALS)))])
    words = Words()

    def encode(source: str, target: str) -> Pair:
        return Pair(vocabulary.encode(words.split(source)), vocabulary.encode(words.split(target)))

    corpus = ParallelText(files[0], files[1], Skips("error", print))
    stream = BatchStream(corpus, encode, size=w.batch, tokens=0, sort=minibatches, max_length=2**30, seed=1)
    config = RNNSearchConfig(len(vocabulary), len(vocabulary))
    return Processes(0, 1, device).shares(stream(Position()), config)
