"""`rnnsearch train-pronunciation`: CMUdict as parallel text, `rnnsearch train` with a preset, and its best model."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from rnnsearch import pronunciation, segmentation, train_command
from rnnsearch.checkpoint import write_atomically
from rnnsearch.model import RNNSearch
from rnnsearch.pronunciation import Pronunciations
from rnnsearch.trainer import BEST

PRESET = "pronunciation"
RUN, TRAIN, DEV = "run", "train.tsv", "dev.tsv"


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(list(arguments))
    directory, run = options.directory, options.directory / RUN
    if Path(arguments[0]) != directory:
        parser.error("DIRECTORY comes first, before the options")
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit must be at least 1; got {options.limit}")
    begun = (run / train_command.CONFIG).is_file()
    if begun:
        if options.limit is not None:
            parser.error(f"{run} goes on with the words that it began with: leave --limit out")
        given = ["--resume", str(run), *rest]
    else:
        text = [f"--data.source={directory / TRAIN}", f"--data.dev_source={directory / DEV}"]
        given = ["--preset", PRESET, *text, f"--run.directory={run}", *rest]
    _, where, *_ = train_command.read_settings(given)  # what is wrong with them is said before anything is written
    if where.resolve() != run.resolve():
        raise ValueError(f"the run is in {run}: leave --run.directory and --resume out; got {where}")
    if not begun:
        _write_text(directory, options.limit)
    status = train_command.main(given)
    if (run / BEST).is_dir():  # interrupted or not
        RNNSearch.from_pretrained(run / BEST).save_pretrained(directory, dtype=torch.float16)
        segmentation.save(directory, *segmentation.load(run / BEST))
    return status


def _write_text(directory: Path, limit: int | None) -> None:
    """Words and phonemes to train and to develop on, and some that are held out, which a model keeps beside it."""
    parts = pronunciation.split(pronunciation.read_cmudict())
    parts["train"] = dict(itertools.islice(parts["train"].items(), limit))
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically({directory / TRAIN: _lines(parts["train"]), directory / DEV: _lines(parts["dev"])})
    held_out = pronunciation.some(parts["test"], pronunciation.SHIPPED_WORDS)
    pronunciation.write_words(directory / pronunciation.HELD_OUT, held_out)


def _lines(words: Pronunciations) -> bytes:
    """One example a line for each pronunciation."""
    examples = ((word, phonemes) for word, found in words.items() for phonemes in found)
    return "".join(f"{word}\t{' '.join(phonemes)}\n" for word, phonemes in examples).encode()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rnnsearch train-pronunciation",
        usage="%(prog)s DIRECTORY [--limit N] [options of rnnsearch train]",
        description="Train the pronunciation model on CMUdict (needs the 'train' extra) and write it to DIRECTORY, as "
        "float16. The run itself, with everything that goes on from an interruption, is in DIRECTORY/run: the same "
        "command again goes on with it. It is `rnnsearch train --preset pronunciation`, whose options are taken too.",
        epilog="example: rnnsearch train-pronunciation model --run.precision bf16",
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    parser.add_argument("--limit", type=int, metavar="N", help="train on so many words only (all)")
    return parser
