"""The command `rnnsearch`: each command is a line in COMMANDS or a parser below."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rnnsearch import pronunciation
from rnnsearch.checkpoint import CheckpointError
from rnnsearch.model import RNNSearch

# Commands that have a room of their own, with `main(arguments) -> status`: imported when they are asked for.
COMMANDS = {
    "align": ("rnnsearch.align_command", "show what each word of a translation attended to"),
    "evaluate": ("rnnsearch.evaluate_command", "measure translations (BLEU, chrF) or pronunciations (word error)"),
    "train": ("rnnsearch.train_command", "train a translation model on parallel text"),
    "train-pronunciation": ("rnnsearch.train_pronunciation_command", "train the pronunciation model on CMUdict"),
    "translate": ("rnnsearch.translate_command", "translate texts, files and pipes"),
    "average": ("rnnsearch.average_command", "make one model of several checkpoints"),
}


class UserError(Exception):
    """Something the user can put right; the message is one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done. 1: it could not be done, and stderr says why. 2: wrong usage. 130: interrupted. 141: the reader of
    stdout has gone, as in ``rnnsearch pronounce ... | head -1``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] in COMMANDS:
            status = importlib.import_module(COMMANDS[given[0]][0]).main(given[1:])
        else:
            options = _parser().parse_args(given)
            status = int(options.run(options))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _drop_output()
        return 141
    except (UserError, CheckpointError, ValueError, RuntimeError, OSError, ArithmeticError) as error:
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
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    pronounce = commands.add_parser(
        "pronounce",
        help="print the phonemes of English words",
        description="Print the phonemes (ARPAbet, without stress) of English words, one line a pronunciation.",
        epilog="example: rnnsearch pronounce thought --plot thought.png",
    )
    pronounce.add_argument("words", nargs="+", metavar="WORD", help="letters a to z and apostrophes")
    pronounce.add_argument("--n-best", type=_positive, default=1, metavar="N", help="pronunciations a word (1)")
    pronounce.add_argument("--scores", action="store_true", help="also print each one's log-probability")
    pronounce.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the alignment of one word")
    _add_decoding(pronounce)
    pronounce.set_defaults(run=_pronounce)

    for name, (_, help) in COMMANDS.items():
        commands.add_parser(name, help=f"{help} (rnnsearch {name} --help)")

    return parser


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--beam-size", type=_positive, default=5, metavar="K", help="beam size (5)")
    parser.add_argument(
        "--model",
        type=Path,
        default=pronunciation.MODEL_DIRECTORY,
        metavar="DIRECTORY",
        help="a model that train-pronunciation wrote (the one that ships)",
    )
    parser.add_argument("--backend", default="auto", help="which implementation of the ops (auto)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value


def _load(options: argparse.Namespace) -> RNNSearch:
    return RNNSearch.from_pretrained(options.model, backend=options.backend)


def _pronounce(options: argparse.Namespace) -> int:
    words = [word.lower().replace("’", "'") for word in options.words]
    for word in words:
        if not pronunciation.is_word(word):
            raise UserError(f"{pronunciation.NO_WORD}; got {word!r}")
    if options.plot is not None and len(words) > 1:
        raise UserError(f"--plot draws one word; got {len(words)}")
    beam_size = max(options.beam_size, options.n_best)
    found = _load(options).translate([list(word) for word in words], beam_size=beam_size, n_best=options.n_best)
    for word, translations in zip(words, found, strict=True):
        for translation in translations:
            fields = [word, " ".join(translation.tokens)]
            if options.scores:
                fields.append(f"{translation.score:.3f}")
            print("\t".join(fields))
    if options.plot is not None:
        from rnnsearch.plot import plot_alignment

        plot_alignment(options.plot, [*words[0]], found[0][0].tokens, found[0][0].attn_weights)
        print(f"alignment drawn in {options.plot}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
