"""Scheduled sampling (Bengio et al. 2015, arXiv:1506.03099): training reads the model's own words, more and more."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnnsearch_kernels import FusedBahdanauDecoder


class Decoded(NamedTuple):
    logits: Tensor  # (B, T, V)
    attn_weights: Tensor  # (B, T, S)


def decode(
    decoder: FusedBahdanauDecoder,
    embedding: nn.Embedding,
    readout: Callable[[Tensor], Tensor],
    memory: Tensor,
    target: Tensor,
    *,
    begin_id: int,
    own_share: float,
) -> Decoded:
    """T steps over memory (B, S, M), from a state of zeros.

    Step t reads the target's token t - 1 or, with probability ``own_share`` for each row, what the model itself gave
    the highest probability there. 0 is teacher forcing, 1 is greedy decoding. What is read is chosen without a
    gradient; everything else has one, through all steps.

    Args:
        readout: of [state ; context] (B, H + M): the logits (B, V).
        target: (B, T) int64; with ``own_share`` 1 only T matters.
    """
    prepared = decoder.prepare_memory(memory)  # keys once, not at every step
    token, state = target.new_full(target.shape[:1], begin_id), None
    logits: list[Tensor] = []
    attn_weights: list[Tensor] = []
    for t in range(target.shape[1]):
        step = decoder.step(embedding(token), state, prepared)
        state = step.state
        logits.append(readout(torch.cat([step.output, step.context], dim=1)))
        assert step.attn_weights is not None
        attn_weights.append(step.attn_weights)
        own = torch.rand(token.shape, device=token.device) < own_share
        token = torch.where(own, logits[-1].detach().argmax(dim=1), target[:, t])
    return Decoded(torch.stack(logits, dim=1), torch.stack(attn_weights, dim=1))


def train(
    model: nn.Module,
    draw: Callable[[], tuple[Tensor, Tensor]],
    *,
    updates: int,
    learning_rate: float,
    own_share: float = 0.5,
    report: Callable[[int, float, float], object] | None = None,
) -> list[float]:
    """The loss of each update; the share of the model's own words is 0 in the first half, then rises to ``own_share``.

    Args:
        model: ``model(inputs, target, own_share=...)`` is :class:`Decoded`.
        draw: the next inputs and targets (B, T).
        report: gets the update, its loss and its share, every 20 updates.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses = []
    for update in range(updates):
        inputs, target = draw()
        share = own_share * max(0.0, 2 * update / updates - 1)
        decoded = model(inputs, target, own_share=share)
        loss = nn.functional.cross_entropy(decoded.logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if report is not None and (update + 1) % 20 == 0:
            report(update + 1, losses[-1], share)
    return losses


def print_progress(update: int, loss: float, own_share: float) -> None:
    print(f"update {update}: loss {loss:.3f}, {own_share:.0%} of the words read are the model's own", flush=True)
