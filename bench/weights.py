"""One set of weights for everybody: ours on every backend, the baselines, and float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from baselines import Eager, Hoisted
from rnnsearch.config import RNNSearchConfig
from rnnsearch.model import RNNSearch
from torch import Tensor
from workloads import Workload

import rnnsearch_kernels


@dataclass(frozen=True)
class Settings:
    device: torch.device
    backends: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    compile: bool = True
    everything: bool = False
    contenders: tuple[str, ...] | None = None  # by name, all for None

    def takes(self, contender: str) -> bool:
        return self.contenders is None or contender in self.contenders

    def able(self, dtype: torch.dtype, *ops: str) -> list[str]:
        """Our backends that have all of these ops for ``dtype``, the fastest first.

        The reference, which is the definition and no contender, is timed in float32 unless everything is, or
        unless it is all there is.
        """
        found = [
            backend.name
            for backend in rnnsearch_kernels.list_backends()
            if backend.name in self.backends
            and all(backend.why_not(op, self.device.type, dtype, False) is None for op in ops)
        ]
        if len(found) > 1 and dtype != torch.float32 and not self.everything:
            found = [name for name in found if name != "reference"]
        return found


class Weights:
    """A model of a workload's sizes in each storage dtype, and the same weights in float64.

    They are spread so that the gates, the scores and the vocabulary all have something to decide; how long an op
    takes does not depend on them.
    """

    def __init__(self, workload: Workload, settings: Settings) -> None:
        self.workload, self.settings = workload, settings
        config = RNNSearchConfig(
            source_vocabulary_size=4,
            target_vocabulary_size=workload.vocabulary_size,
            embedding_size=workload.input_size,
            encoder_size=workload.memory_size // 2,
            hidden_size=workload.hidden_size,
            attention_size=workload.attention_size,
            readout_size=workload.readout_size,
            reset_after=True,  # nn.GRUCell's, which the baselines use
        )
        with torch.device("meta"):
            self._shell = RNNSearch(config).eval().requires_grad_(False)
        torch.manual_seed(1409_0473)
        self._drawn: dict[str, Tensor] = {}
        for name, parameter in self._shell.state_dict().items():
            fan_in = parameter.shape[1] if parameter.dim() > 1 and name != "target_embedding.weight" else 1
            peaked = 3.0 if name == "output.weight" else 1.0
            self._drawn[name] = torch.randn(parameter.shape) * (peaked * fan_in**-0.5)
        self._models: dict[tuple[str, torch.dtype], RNNSearch] = {}
        self._eager: dict[torch.dtype, Eager] = {}
        self._hoisted: dict[torch.dtype, Hoisted] = {}
        self._stored: dict[torch.dtype, dict[str, Tensor]] = {}

    def randn(self, *shape: int) -> Tensor:
        return rounded(torch.randn(*shape)).to(self.settings.device)

    def stored(self, dtype: torch.dtype) -> dict[str, Tensor]:
        if dtype not in self._stored:
            self._stored[dtype] = {name: value.to(self.settings.device, dtype) for name, value in self._drawn.items()}
        return self._stored[dtype]

    def model(self, backend: str, dtype: torch.dtype) -> RNNSearch:
        """Ours on a backend; all backends hold the same tensors."""
        if (backend, dtype) not in self._models:
            model = copy.deepcopy(self._shell)
            model.load_state_dict(self.stored(dtype), assign=True)
            model.backend = model.decoder.backend = backend
            self._models[backend, dtype] = model
        return self._models[backend, dtype]

    def eager(self, dtype: torch.dtype) -> Eager:
        if dtype not in self._eager:
            model = self.model("auto", dtype)
            self._eager[dtype] = Eager(model.decoder, model)
        return self._eager[dtype]

    def hoisted(self, dtype: torch.dtype) -> Hoisted:
        if dtype not in self._hoisted:
            model = self.model("auto", dtype)
            self._hoisted[dtype] = Hoisted(model.decoder, model)
        return self._hoisted[dtype]

    def double(self, dtype: torch.dtype) -> Eager:
        """Eager in float64 over the weights as ``dtype`` has rounded them; made anew, since it is large."""
        model = copy.deepcopy(self._shell)
        model.load_state_dict({name: value.double() for name, value in self.stored(dtype).items()}, assign=True)
        return Eager(model.decoder, model)


def rounded(values: Tensor) -> Tensor:
    """To what bfloat16 can hold: every contender gets the same inputs."""
    return values.bfloat16().float()
