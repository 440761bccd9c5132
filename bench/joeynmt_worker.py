"""JoeyNMT's side of joeynmt_speed.py, for JoeyNMT's own interpreter: `train` or `translate`, with its configuration."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import joeynmt.__main__
import torch
from joeynmt import prediction, training
from joeynmt.config import load_config, parse_global_args
from torch.optim.optimizer import register_optimizer_step_post_hook
from turns import Turns


def train(config: Path, updates: int, turns: Turns) -> None:
    """Its own command; a turn is ``updates`` steps of its optimizer, counted in target tokens with their ends."""
    tokens = steps = 0
    train_step = training.TrainManager._train_step

    def counted(manager: Any, batch: Any) -> Any:
        nonlocal tokens
        tokens += batch.ntokens
        return train_step(manager, batch)

    def stepped(*_: Any) -> None:
        nonlocal tokens, steps
        steps += 1
        if steps % updates == 0:
            turns.done(tokens)
            tokens = 0

    training.TrainManager._train_step = counted
    register_optimizer_step_post_hook(stepped)
    sys.argv = ["joeynmt", "train", str(config), "--skip-test"]
    joeynmt.__main__.main()


def translate(config: Path, output: Path, length: int, turns: Turns) -> None:
    """A turn is the test text, from a model in memory to texts; with a ``length``, no hypothesis ends before it."""
    if length:
        prediction.search = partial(prediction.search, min_output_length=length)  # which its configuration cannot
    settings = load_config(config)
    args = parse_global_args(settings, rank=0, mode="test")
    model, _, _, test = prediction.prepare(args, rank=0, mode="test")
    turns.done(0)
    while True:
        *_, texts, _, _, _ = prediction.predict(
            model=model, data=test, device=args.device, n_gpu=0, args=args.test, autocast=args.autocast
        )
        output.write_text("".join(f"{text}\n" for text in texts))
        turns.done(len(texts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "train":
        config, updates = sys.argv[2:]
        train(Path(config), int(updates), Turns())
    else:
        config, output, length = sys.argv[2:]
        translate(Path(config), Path(output), int(length), Turns())
