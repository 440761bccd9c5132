"""Our side of joeynmt_speed.py: `train` with the options of `rnnsearch train`, or `translate` with a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rnnsearch import train_command
from rnnsearch.processes import Share
from rnnsearch.trainer import Trainer
from rnnsearch.translator import Translator
from torch.optim.optimizer import register_optimizer_step_post_hook
from turns import Turns


def train(updates: int, options: Sequence[str], turns: Turns) -> None:
    """Our own command; a turn is ``updates`` steps of the optimizer, counted in target tokens with their ends."""
    counts = [0, 0]  # tokens, steps

    class Counted(Trainer):
        def _backward(self, share: Share, tokens: int) -> float:
            counts[0] += share.tokens
            return super()._backward(share, tokens)

    def stepped(*_: object) -> None:
        counts[1] += 1
        if counts[1] % updates == 0:
            turns.done(counts[0])
            counts[0] = 0

    register_optimizer_step_post_hook(stepped)
    train_command.Trainer = Counted  # type: ignore[misc]
    train_command.main(options)


def translate(model: Path, source: Path, output: Path, beam_size: int, length: int, turns: Turns) -> None:
    """A turn is the whole text, from a model in memory to texts."""
    lengths = {"min_length": length, "max_length": length} if length else {}
    translator = Translator(model, device="cpu", beam_size=beam_size, length_penalty="wu", alpha=1.0, **lengths)
    lines = source.read_text().splitlines()
    turns.done(0)
    while True:
        texts = translator(lines)
        output.write_text("".join(f"{text}\n" for text in texts))
        turns.done(len(texts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "train":
        train(int(sys.argv[2]), sys.argv[3:], Turns())
    else:
        model, source, output, beam_size, length = sys.argv[2:]
        translate(Path(model), Path(source), Path(output), int(beam_size), int(length), Turns())
