"""From the modules of a hand-written decoder to ``FusedBahdanauDecoder``: what it can represent, and the copying."""

from __future__ import annotations

import torch
from torch import nn

INPUT_ORDERS = ("input_context", "context_input")


def check_modules(cell: nn.GRUCell, query: nn.Linear, key: nn.Linear, score: nn.Linear, input_order: str) -> None:
    """TypeError for modules of another kind, ValueError where their sizes do not fit together."""
    if type(cell) is not nn.GRUCell:
        raise TypeError(f"`cell` must be an nn.GRUCell, the only recurrence here; got {type(cell).__name__}")
    for name, module in (("query", query), ("key", key), ("score", score)):
        if not isinstance(module, nn.Linear):
            raise TypeError(f"`{name}` must be an nn.Linear; got {type(module).__name__}")
        if not module.state_dict().keys() <= {"weight", "bias"}:
            raise TypeError(
                f"`{name}` must be an nn.Linear with a weight of its own, not one computed from other parameters; "
                f"got {type(module).__name__} with {list(module.state_dict())}"
            )
    if input_order not in INPUT_ORDERS:
        raise ValueError(f"`input_order` must be 'input_context' or 'context_input'; got {input_order!r}")
    hidden, attention, memory = cell.hidden_size, query.out_features, key.in_features
    for name, module, wanted in (
        ("query", query, (attention, hidden)),
        ("key", key, (attention, memory)),
        ("score", score, (1, attention)),
    ):
        if tuple(module.weight.shape) != wanted:
            raise ValueError(f"`{name}.weight` must be {wanted}; got {tuple(module.weight.shape)}")
    if cell.input_size <= memory:
        raise ValueError(f"`cell` must read input and context, more than M = {memory} features; got {cell.input_size}")


def copy_parameters(own: nn.Module, theirs: nn.Module) -> None:
    """Values, and which of them are trained."""
    own.load_state_dict(theirs.state_dict())
    for mine, original in zip(own.parameters(), theirs.parameters(), strict=True):
        mine.requires_grad_(original.requires_grad)


@torch.no_grad()
def input_first(cell: nn.GRUCell, context_size: int) -> None:
    """A cell that read cat([context, input]) reads cat([input, context]) from now on."""
    context_part, input_part = cell.weight_ih.split([context_size, cell.input_size - context_size], 1)
    cell.weight_ih.copy_(torch.cat([input_part, context_part], 1))
