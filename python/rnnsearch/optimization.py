"""Optimizers, the learning rate, and their state by the parameters' names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rnnsearch.checkpoint import CheckpointError
from rnnsearch.settings import OptimizerOptions

# What each keeps of a parameter.
_STATE = {"adam": {"step", "exp_avg", "exp_avg_sq"}, "adadelta": {"step", "square_avg", "acc_delta"}}

# Numbers that Adadelta takes at a time and a thread: what it reads and writes of them stays in the second-level cache.
PIECE = 2**15


class Adadelta(torch.optim.Adadelta):
    """torch's; on a CPU its dozen passes are over a piece in the cache, not over all parameters in memory.

    Zeiler 2012, arXiv:1212.5701, algorithm 1.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        wanted = [parameter for group in self.param_groups for parameter in group["params"]]
        in_pieces = all(x.device.type == "cpu" and x.is_contiguous() and not x.is_complex() for x in wanted)
        if not in_pieces or any(group["differentiable"] for group in self.param_groups):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["square_avg"], state["acc_delta"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        whole = (parameter, grad, state["square_avg"], state["acc_delta"])
        size, rho = PIECE * torch.get_num_threads(), group["rho"]
        # As tensors they are not converted again for every piece; a narrow parameter's own type would lose digits.
        wide = torch.promote_types(parameter.dtype, torch.float32)
        decay, eps = torch.tensor(rho, dtype=wide), torch.tensor(group["eps"], dtype=wide)
        room = parameter.new_empty(2, min(size, parameter.numel()))
        for values, gradient, square_avg, acc_delta in zip(*(x.reshape(-1).split(size) for x in whole), strict=True):
            root, delta = room[:, : len(values)]
            if group["maximize"]:
                gradient = -gradient
            if group["weight_decay"]:
                gradient = gradient.add(values, alpha=group["weight_decay"])
            square_avg.mul_(decay).addcmul_(gradient, gradient, value=1 - rho)
            torch.add(square_avg, eps, out=root).sqrt_()
            torch.add(acc_delta, eps, out=delta).sqrt_().div_(root).mul_(gradient)
            acc_delta.mul_(decay).addcmul_(delta, delta, value=1 - rho)
            values.add_(delta, alpha=-group["lr"])


def make_optimizer(model: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    rate, decay = options.learning_rate, options.weight_decay
    if options.name == "adadelta":
        return Adadelta(model.parameters(), lr=rate, rho=0.95, eps=1e-6, weight_decay=decay)
    # Fused, a step reads and writes everything once: a fifth of the time of the default one on a CPU.
    return torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.98), eps=1e-9, weight_decay=decay, fused=True)


def rate_factor(update: int, progress: float, options: OptimizerOptions) -> float:
    """The learning rate of ``update`` (from 0) as a part of the highest; ``progress`` of the whole run is 0 to 1.

        warm-up         (update + 1) / (warmup_updates + 1), at most 1, in every schedule
        inverse_sqrt    sqrt((warmup_updates + 1) / (update + 1)) behind it
        cosine          half of 1 + cos(π progress), times the warm-up

    What plateau takes off is a matter of the measures, and kept by the run.
    """
    warm = min(1.0, (update + 1) / (options.warmup_updates + 1))
    if options.schedule == "inverse_sqrt":
        return min(warm, math.sqrt((options.warmup_updates + 1) / (update + 1)))
    if options.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return warm


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``parameter/key``."""
    names = [name for name, _ in model.named_parameters()]
    state = optimizer.state_dict()["state"]
    return {f"{names[number]}/{key}": value for number, entry in state.items() for key, value in entry.items()}


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    numbers = {name: number for number, (name, _) in enumerate(model.named_parameters())}
    state: dict[int, dict[str, Tensor]] = {}
    for label, value in tensors.items():
        name, _, key = label.rpartition("/")
        if name not in numbers:
            raise CheckpointError(f"the optimizer's state names `{name}`, which the model lacks")
        state.setdefault(numbers[name], {})[key] = value
    wanted = _STATE[type(optimizer).__name__.lower()]
    for entry in state.values():
        if entry.keys() != wanted:
            raise CheckpointError(
                f"the optimizer's state must hold {', '.join(sorted(wanted))} for a parameter; it holds "
                f"{', '.join(sorted(entry))}: `optimizer.name` stays what it was at the run's start"
            )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
