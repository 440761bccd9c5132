"""Training and translating beside JoeyNMT's recurrent model, on one core and the same text, in turn.

`train` lets both make the same number of updates, a few at a time, and keeps their models in FOLDER; `translate` lets
both models translate a text as often as is wanted. Words, GRU and embeddings of 256, Adam at 1e-3, 64 sentences a
minibatch, dropout 0.3, a beam of 5, float32. JoeyNMT 2.3 installs in an environment of its own with --no-deps, and with
torch 2.13 wants the line `"verbose": False` taken out of its builders.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from command import run
from machine import header
from turns import Done, Worker

HERE = Path(__file__).resolve().parent
OURS, THEIRS = "rnnsearch", "joeynmt"
NEVER = 10**9
BEAM, BATCH, DROPOUT, RATE, SIZE, LEAST = 5, 64, 0.3, 1e-3, 256, 2


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="joeynmt_speed.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--joeynmt", metavar="PYTHON", required=True, help="the interpreter that has JoeyNMT")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="updates of both, in turn; the models are kept")
    train.add_argument("folder", type=Path, help="a new one, for both models and their logs")
    for side in ("source", "target", "dev_source", "dev_target"):
        train.add_argument(f"--{side}", type=Path, required=True, metavar="FILE")
    train.add_argument("--updates", type=int, default=48, help="of each (48)")
    train.add_argument("--turn", type=int, default=4, help="updates a turn (4)")
    translate = commands.add_parser("translate", help="the same text by both models, in turn")
    translate.add_argument("folder", type=Path, help="what `train` made")
    translate.add_argument("--source", type=Path, required=True, metavar="FILE")
    translate.add_argument("--rounds", type=int, default=3, help="times that each translates it (3)")
    translate.add_argument(
        "--length", type=int, default=0, help="of every hypothesis, its end included, so that the work is the same"
    )
    options = parser.parse_args(given)
    if options.command == "train" and (options.updates % options.turn or options.updates == options.turn):
        parser.error(f"--updates must be several turns of {options.turn}; got {options.updates}")
    return options


def joeynmt_config(folder: Path, parts: Sequence[str], updates: int, length: int = 0) -> str:
    """JoeyNMT's recurrent model with the sizes of ours, to work on ``parts`` of the text; where it was written, as
    JSON, which is YAML."""
    layer = {"type": "recurrent", "rnn_type": "gru", "hidden_size": SIZE, "dropout": DROPOUT}
    layer["embeddings"] = {"embedding_dim": SIZE, "dropout": DROPOUT}
    side = {"level": "word", "voc_min_freq": LEAST, "lowercase": False}
    config = {
        "name": THEIRS,
        "model_dir": str(folder / THEIRS),
        "use_cuda": False,
        "data": {
            **{part: str(folder / "text" / part) for part in parts},
            "dataset_type": "plain",
            "src": {"lang": "source", **side},
            "trg": {"lang": "target", **side},
        },
        "model": {
            "encoder": {**layer, "bidirectional": True},
            "decoder": {**layer, "attention": "bahdanau", "init_hidden": "bridge", "hidden_dropout": DROPOUT},
        },
        "training": {
            **{"optimizer": "adam", "learning_rate": RATE, "scheduling": "plateau", "clip_grad_norm": 1.0},
            **{"normalization": "tokens", "batch_size": BATCH, "batch_type": "sentence"},
            **{"updates": updates, "epochs": NEVER, "validation_freq": NEVER, "logging_freq": 100},
        },
        "testing": {
            **{"beam_size": BEAM, "beam_alpha": 1.0, "batch_size": BATCH, "batch_type": "sentence"},
            "load_model": str(folder / THEIRS / "latest.ckpt"),
            "max_output_length": length or -1,
        },
    }
    path = folder / f"{THEIRS}.json"
    path.write_text(json.dumps(config, indent=1))
    return str(path)


def our_options(options: argparse.Namespace) -> list[str]:
    given = {
        "preset": "tiny",
        **{f"data.{side}": getattr(options, side) for side in ("source", "target", "dev_source", "dev_target")},
        "data.min_count": LEAST,
        "batch.size": BATCH,
        **{f"model.{part}_size": SIZE for part in ("embedding", "encoder", "hidden", "attention", "readout")},
        **{f"model.{part}_dropout": DROPOUT for part in ("embedding", "memory", "readout")},
        "optimizer.learning_rate": RATE,
        "run.directory": options.folder / OURS,
        "run.epochs": 0,
        "run.updates": options.updates,
        "run.evaluate_every": NEVER,
        "run.device": "cpu",
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def workers(options: argparse.Namespace) -> dict[str, Worker]:
    folder = options.folder
    if options.command == "train":
        config = joeynmt_config(folder, ["train", "dev"], options.updates)
        commands = {
            OURS: [
                sys.executable,
                str(HERE / "rnnsearch_worker.py"),
                "train",
                str(options.turn),
                *our_options(options),
            ],
            THEIRS: [options.joeynmt, str(HERE / "joeynmt_worker.py"), "train", config, str(options.turn)],
        }
    else:
        link(folder / "text", {"test.source": options.source})
        ours = [str(folder / OURS / "best"), str(options.source), str(folder / f"{OURS}.txt"), str(BEAM)]
        theirs = [joeynmt_config(folder, ["test"], NEVER, options.length), str(folder / f"{THEIRS}.txt")]
        length = str(options.length)
        commands = {
            OURS: [sys.executable, str(HERE / "rnnsearch_worker.py"), "translate", *ours, length],
            THEIRS: [options.joeynmt, str(HERE / "joeynmt_worker.py"), "translate", *theirs, length],
        }
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    found: dict[str, Worker] = {}
    try:
        for name, command in commands.items():
            environment = one if name == OURS else {**one, "PYTHONPATH": str(HERE)}
            found[name] = Worker(command, folder / f"{options.command}-{name}.log", environment)
    except BaseException:
        for worker in found.values():
            worker.kill()
        raise
    return found


def link(folder: Path, files: Mapping[str, Path]) -> None:
    """JoeyNMT wants the two sides of a text named alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path.resolve())


def table(samples: Mapping[str, Sequence[Done]], unit: str) -> list[str]:
    """Medians and quartiles of each, and of the ratio of turns that followed each other."""
    rates = {name: [done.amount / done.seconds for done in found] for name, found in samples.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates[OURS], rates[THEIRS], strict=True)]
    lines = [f"    {'':<20}{'median':>10}  {'p25 – p75':<18}{'turns':>6}"]
    for name, values in (*((f"{name}, {unit}/s", values) for name, values in rates.items()), ("ratio", ratios)):
        low, _, high = statistics.quantiles(values * (1 if len(values) > 1 else 2), n=4, method="inclusive")
        digits = 2 if name == "ratio" else 1 if statistics.median(values) < 100 else 0
        spread = f"{low:,.{digits}f} – {high:,.{digits}f}"
        lines.append(f"    {name:<20}{statistics.median(values):>10,.{digits}f}  {spread:<18}{len(values):>6}")
    return lines


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # the workers inherit it: a read-ahead thread is no second core
    for line in header(torch.device("cpu"), 1):
        print(line, flush=True)
    if options.command == "train":
        sides = {"train": ("source", "target"), "dev": ("dev_source", "dev_target")}
        files = {f"{part}.{side[-6:]}": getattr(options, side) for part, names in sides.items() for side in names}
        link(options.folder / "text", files)
        rounds, unit = options.updates // options.turn - 1, "target tokens"  # the first turn is not counted
    else:
        rounds, unit = options.rounds, "sentences"
    try:
        both = workers(options)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    samples: dict[str, list[Done]] = {name: [] for name in both}
    try:
        for round_ in range(rounds):
            for name in (OURS, THEIRS) if round_ % 2 else (THEIRS, OURS):
                samples[name].append(both[name].turn())
        if options.command == "train":
            for worker in both.values():
                worker.finish()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        for worker in both.values():
            worker.kill()
    print("\n".join(table(samples, unit)), flush=True)
    if options.command == "translate":
        for name in both:
            words = len((options.folder / f"{name}.txt").read_text().split())
            print(f"    {name}: {words / samples[name][0].amount:.1f} words a sentence")
    return 0


if __name__ == "__main__":
    run(main)
