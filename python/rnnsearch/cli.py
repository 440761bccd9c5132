"""The command `rnnsearch`: each command is a line in COMMANDS."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from rnnsearch.checkpoint import CheckpointError

# The room of each, with `main(arguments) -> status`, imported when it is asked for.
COMMANDS = {
    "align": ("rnnsearch.align_command", "show what each word of a translation attended to"),
    "evaluate": ("rnnsearch.evaluate_command", "measure translations (BLEU, chrF) or pronunciations (word error)"),
    "pronounce": ("rnnsearch.pronounce_command", "print the phonemes of English words"),
    "train": ("rnnsearch.train_command", "train a translation model on parallel text"),
    "train-pronunciation": ("rnnsearch.train_pronunciation_command", "train the pronunciation model on CMUdict"),
    "translate": ("rnnsearch.translate_command", "translate texts, files and pipes"),
    "average": ("rnnsearch.average_command", "make one model of several checkpoints"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done. 1: it could not be done, and stderr says why. 2: wrong usage. 130: interrupted. 141: the reader of
    stdout has gone, as in ``rnnsearch pronounce ... | head -1``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = given[0] if given and given[0] in COMMANDS else _parser().parse_args(given).command
        status = int(importlib.import_module(COMMANDS[command][0]).main(given[1:]))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _drop_output()
        return 141
    except (CheckpointError, ValueError, RuntimeError, OSError, MemoryError, ArithmeticError) as error:
        print(f"rnnsearch: {error}", file=sys.stderr)
        if isinstance(error, OSError):
            _drop_output()
        return 1
    except KeyboardInterrupt:
        print("rnnsearch: interrupted", file=sys.stderr)
        return 130


def _drop_output() -> None:
    """What stdout could not take is not tried again when Python ends, which would complain a second time."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rnnsearch",
        description="RNNSearch (Bahdanau, Cho, Bengio 2014): an attention model that ships with English pronunciation.",
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name, (_, help) in COMMANDS.items():
        commands.add_parser(name, help=f"{help} (rnnsearch {name} --help)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
