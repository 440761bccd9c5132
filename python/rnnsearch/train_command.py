"""`rnnsearch train`: settings from a file and the command line, then a run."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from rnnsearch import scores, segmentation, snapshots
from rnnsearch.checkpoint import write_atomically
from rnnsearch.command_line import new_parser, parse
from rnnsearch.config import PRESETS, RNNSearchConfig
from rnnsearch.corpus import Corpus, CorpusError, ParallelText, Skips
from rnnsearch.dataset import DatasetText
from rnnsearch.freed_memory import keep_freed_memory
from rnnsearch.interruption import interruptible
from rnnsearch.measure import DevText
from rnnsearch.model import RNNSearch
from rnnsearch.monitor import Monitor
from rnnsearch.outputs import check_directory
from rnnsearch.processes import Processes, joined
from rnnsearch.segmentation import PLAIN, Segmentation, SentencePiece
from rnnsearch.settings import DataOptions, ModelOptions, TrainSettings, preset
from rnnsearch.stream import BatchStream
from rnnsearch.trainer import CHECKPOINTS, Trainer
from rnnsearch.translator import Translator
from rnnsearch.vocabulary import Vocabulary

CONFIG, TEXTS = "config.yaml", "texts.json"
# What a run is made with before its first update, and keeps.
KEPT = {
    "data": (
        *("segmentation", "source_segmentation", "vocabulary_size"),
        *("min_count", "joint", "sentencepiece_model"),
    ),
    "model": tuple(entry.name for entry in fields(ModelOptions)),
    "run": ("metric", "seed"),
}
EPILOG = """examples:
  rnnsearch train --preset small --data.source train.de --data.target train.en \\
      --data.dev_source dev.de --data.dev_target dev.en --run.directory run
  rnnsearch train --preset small --print_config > small.yaml     every field, as a start
  rnnsearch train --config small.yaml --batch.size 32            the command line goes before the file
  rnnsearch train --resume run                                   go on where a run was stopped or killed
  torchrun --nproc-per-node 2 -m rnnsearch train --config small.yaml
"""


def main(arguments: Sequence[str]) -> int:
    settings, directory, resume, text = read_settings(arguments)
    keep_freed_memory()
    # Interruption is listened to from the first moment that something could be lost.
    with interruptible((signal.SIGINT, signal.SIGTERM)) as interrupted, joined(settings.run.device) as processes:
        monitor = Monitor(
            loud=processes.first,
            log_every=settings.run.log_every,
            tensorboard=directory / "tensorboard" if settings.run.tensorboard else None,
        )
        try:
            return _run(settings, directory, resume, text, processes, monitor, interrupted)
        finally:
            monitor.close()


def read_settings(arguments: Sequence[str]) -> tuple[TrainSettings, Path, bool, str]:
    """The settings, where the run is, whether it goes on, and the settings as YAML."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_own(first)
    own, rest = first.parse_known_args(list(arguments))
    parser = new_parser("train", "[options]", "Train a translation model on parallel text.", EPILOG)
    _add_own(parser)
    parser.add_class_arguments(TrainSettings)
    if own.preset is not None:
        parser.set_defaults(preset(own.preset))
    if own.resume is not None:
        saved = Path(own.resume) / CONFIG
        if not saved.is_file():
            raise ValueError(f"{own.resume} is not the directory of a run: it has no {CONFIG}")
        if own.preset is not None:
            raise ValueError("--preset is where a new run starts from; --resume goes on with the run's own settings")
        rest = ["--config", str(saved), "--run.directory", own.resume, *rest]
    parsed = parse(parser, rest)
    for name in ("preset", "resume"):
        parsed.pop(name, None)
    text = parser.dump(parsed)
    built = _built(parser, parsed)
    if own.resume is not None:
        if Path(str(built.run.directory)).resolve() != Path(own.resume).resolve():
            raise ValueError(
                f"`run.directory` must be {own.resume}, which --resume goes on in; got {built.run.directory}"
            )
        _check_kept(built, _built(parser, parser.parse_args(["--config", str(saved)])))
    data = built.data
    for name, value in (
        ("data.source", data.source or data.dataset),
        ("data.dev_source", data.dev_source or data.dataset),
        ("run.directory", built.run.directory),
    ):
        if value is None:
            raise ValueError(f"--{name} is needed; `rnnsearch train --help` explains it")
    return built, Path(str(built.run.directory)), own.resume is not None, text


def _built(parser: Any, parsed: Any) -> TrainSettings:
    groups = parser.instantiate(parsed)
    return TrainSettings(**{entry.name: groups[entry.name] for entry in fields(TrainSettings)})


def _check_kept(given: TrainSettings, saved: TrainSettings) -> None:
    for group, names in KEPT.items():
        for name in names:
            before, now = (getattr(getattr(settings, group), name) for settings in (saved, given))
            if now != before:
                raise ValueError(f"`{group}.{name}` stays what it was at the run's start, {before!r}; got {now!r}")


def _add_own(parser: Any) -> None:
    parser.add_argument("--preset", choices=tuple(PRESETS), help="defaults to start from: sizes and how to train them")
    parser.add_argument("--resume", metavar="DIRECTORY", help="go on with the run in DIRECTORY, with its settings")


def _run(
    settings: TrainSettings,
    directory: Path,
    resume: bool,
    text: str,
    processes: Processes,
    monitor: Monitor,
    interrupted: Any,
) -> int:
    data, run = settings.data, settings.run
    if not resume and (directory / CHECKPOINTS).exists():
        raise ValueError(f"{directory} holds a run already: --resume {directory}, or take another --run.directory")
    check_directory("--run.directory", directory)
    if processes.count > 1:
        _check_no_pipes(data)
    if run.metric == "bleu":
        scores.bleu()  # that it cannot be had is said now, not at the first measure
    skips = Skips(data.on_bad_line, monitor.say)
    corpus, dev_corpus = _read(data, skips)
    dev_text = list(dev_corpus)
    texts = {
        name: {"pairs": len(text), "sha256": text.digest} for name, text in (("training", corpus), ("dev", dev_corpus))
    }
    fresh = not (directory / snapshots.INITIAL / segmentation.FILE).exists() or not resume
    if fresh and processes.first:
        directory.mkdir(parents=True, exist_ok=True)
        # A run that ended before its first checkpoint may have left a model of other settings.
        (directory / snapshots.INITIAL / segmentation.FILE).unlink(missing_ok=True)
        write_atomically(
            {directory / CONFIG: text.encode(), directory / TEXTS: (json.dumps(texts, indent=1) + "\n").encode()}
        )
        _begin(settings, corpus).save(directory / snapshots.INITIAL)
    processes.gather(None)  # the others wait for what the first one writes
    _check_texts(directory / TEXTS, texts)
    translator = Translator.from_pretrained(directory / snapshots.INITIAL, backend=run.backend, device="cpu")
    stream = BatchStream(
        corpus,
        translator.encode,
        size=settings.batch.size,
        tokens=settings.batch.tokens,
        sort=settings.batch.sort,
        max_length=data.max_length,
        seed=run.seed,
    )
    dev = DevText(
        [source for source, _ in dev_text],
        [target for _, target in dev_text],
        [translator.encode(*pair) for pair in dev_text],
    )
    trainer = Trainer(
        settings,
        directory,
        translator,
        stream,
        dev,
        processes=processes,
        monitor=monitor,
        interrupted=interrupted,
    )
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    monitor.say(
        f"{len(corpus):,} pairs, {len(dev_text):,} to measure on, {parameters:,} parameters, {processes.device}"
    )
    if resume and snapshots.latest(directory / CHECKPOINTS) is not None:  # else it ended before its first save
        trainer.resume()
    number = trainer.run()
    for why, count in skips.counts.items():
        monitor.say(f"left out: {count} ({why})")
    return 128 + number if number else 0


def _check_no_pipes(data: DataOptions) -> None:
    for name in ("source", "target", "dev_source", "dev_target"):
        path = getattr(data, name)
        if path is not None and Path(path).exists() and not Path(path).is_file():
            raise ValueError(
                f"`data.{name}` must be a file where several processes train: each reads all of it; {path} is none"
            )


def _read(data: DataOptions, skips: Skips) -> tuple[Corpus, Corpus]:
    """The training and the dev text."""
    keys = (data.source_key, data.target_key)

    def from_dataset(split: str) -> Corpus:
        return DatasetText(str(data.dataset), split, skips, config=data.dataset_config, keys=keys)

    if data.dataset is not None:
        corpus = from_dataset(data.dataset_split)
    else:
        corpus = ParallelText(str(data.source), data.target, skips, keys=keys)
    if data.dev_source is None:
        return corpus, from_dataset(data.dataset_dev_split)
    return corpus, ParallelText(data.dev_source, data.dev_target, skips, keys=keys)


def _check_texts(path: Path, texts: dict[str, dict[str, Any]]) -> None:
    """The position in the data, and the best measure so far, are of the text that the run began with."""
    try:
        began_with = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}, which says what text the run began with, cannot be read ({error})") from error
    for name, now in texts.items():
        before = began_with.get(name, {})
        if now != before:
            raise CorpusError(
                f"the {name} text is not the one that the run began with, as {path} tells: {before.get('pairs')} "
                f"usable pairs then, {now['pairs']} now; give it as it was, or begin another run"
            )


def _begin(settings: TrainSettings, corpus: Corpus) -> Translator:
    """The segmentation and vocabularies of the corpus, and a model with weights drawn from the seed."""
    source, target, vocabularies = _learn(settings.data, corpus)
    sizes = {name: value for name, value in vars(settings.model).items() if name != "init"}
    torch.manual_seed(settings.run.seed)
    model = RNNSearch(RNNSearchConfig(len(vocabularies[0]), len(vocabularies[1]), **sizes), *vocabularies)
    model.reset_parameters(settings.model.init)
    return Translator(model, source, target)


def _learn(data: DataOptions, corpus: Corpus) -> tuple[Segmentation, Segmentation, list[Vocabulary]]:
    kinds = (data.source_segmentation or data.segmentation, data.segmentation)
    shared = None
    if data.sentencepiece_model is not None:
        shared = SentencePiece(Path(data.sentencepiece_model).read_bytes())
    elif kinds == (SentencePiece.kind, SentencePiece.kind) and data.joint:
        shared = SentencePiece.learn((text for pair in corpus for text in pair), data.vocabulary_size)
    segmentations: list[Segmentation] = []
    vocabularies = []
    for side, kind in enumerate(kinds):
        lines = (pair[side] for pair in corpus)
        if kind in PLAIN:
            plain = PLAIN[kind]()
            vocabularies.append(
                segmentation.learn_vocabulary(plain, lines, size=data.vocabulary_size, min_count=data.min_count)
            )
            segmentations.append(plain)
        else:
            pieces = shared or SentencePiece.learn(lines, data.vocabulary_size)
            vocabularies.append(pieces.vocabulary())
            segmentations.append(pieces)
    return segmentations[0], segmentations[1], vocabularies
