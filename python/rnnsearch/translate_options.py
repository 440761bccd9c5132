"""What `rnnsearch translate` is asked for, on the command line or in a YAML file; and what it has in common with the
other commands that translate: models, where they run, and how they decode."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace

from rnnsearch.command_line import Several, add_settings, new_parser, parse, read_settings
from rnnsearch.decoding import DecodingOptions
from rnnsearch.progress import say
from rnnsearch.translator import Translator

# The translation model that ships.
DEFAULT_MODEL = Path(__file__).parent / "models" / "tatoeba-en-fr"

EPILOG = """examples:
  rnnsearch translate --model run/best "ein Haus am Meer"
  rnnsearch translate --model run/best --input test.de --output test.en
                        a progress bar; whatever ends it, the same command goes on
  rnnsearch translate --model run/best < test.de > test.en
  tail -f news.de | rnnsearch translate --model run/best
                        every line as soon as it comes
  rnnsearch translate --model run/best --beam_size 12 --n_best 3 --scores "ein Haus"
  rnnsearch translate --model run/best --format jsonl --attention "ein Haus"
                        tokens, scores, alignments
  rnnsearch translate --model run/best --search sample --temperature 0.7 --seed 2 "ein Haus"
  rnnsearch translate --model run1/best --model run2/best --input test.de
                        two models decide together: the mean of their probabilities
  rnnsearch translate --model run/best --unknown replace --dictionary words.tsv --input test.de
                        unknown words are looked up, or copied, by what they attended to
  torchrun --nproc-per-node 2 -m rnnsearch translate --model run/best --input test.de --output test.en
                        shared out by lines among processes that see the same files

An empty line stays an empty line. A line that is not UTF-8 or too long is named on stderr, counted, and has an empty
line in its place.
"""


@dataclass(frozen=True)
class Placement:
    """Where models run.

    Args:
        device: cpu or cuda; auto takes what is there.
        dtype: of the weights.
        backend: which implementation of the ops.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    backend: str = "auto"


@dataclass(frozen=True)
class TranslatorOptions:
    """What a command makes its :class:`Translator` of.

    models  directories; empty where none was given
    """

    models: list[Path]
    placement: Placement
    decoding: DecodingOptions

    def keywords(self) -> dict[str, Any]:
        """For a ``Translator``, or what makes one."""
        placed = {**vars(self.placement), "dtype": getattr(torch, self.placement.dtype)}
        return {**placed, **vars(self.decoding), "say": say}

    def directories(self) -> list[Path]:
        """The models, or the one that ships where none was given. Raises ValueError where there is none."""
        if not (self.models or DEFAULT_MODEL.is_dir()):
            raise ValueError(
                "--model is needed: a directory that `rnnsearch train` wrote, such as run/best; no translation model "
                "came with this installation"
            )
        return self.models or [DEFAULT_MODEL]

    def translator(self, *, quiet: bool = False, **changes: Any) -> Translator:
        """Raises as :meth:`directories` and as ``Translator``."""
        directories = self.directories()
        if not (self.models or quiet):
            say(f"translating with the model that ships, {DEFAULT_MODEL.name}; --model takes another")
        return Translator(directories, **{**self.keywords(), **changes})

    def changed(self, *besides: str) -> list[str]:
        """The options of decoding that are not what they are by default, ``besides`` left out."""
        defaults = vars(DecodingOptions())
        values = vars(self.decoding)
        return [name for name in defaults if name not in besides and values[name] != defaults[name]]


def add_translator_options(parser: ArgumentParser, *, leave_out: Collection[str] = (), shipped: bool = True) -> None:
    """
    Args:
        leave_out: fields of DecodingOptions that the command does not take.
        shipped: whether the model that ships is taken where none is given.
    """
    parser.add_argument(
        "--model",
        action=Several,
        repeated=True,
        metavar="DIRECTORY",
        help="a trained model, run/best or a checkpoint; given again, several decide together"
        + " (the one that ships)" * shipped,
    )
    special: dict[str, dict[str, Any]] = {
        "ban": {"action": Several, "repeated": True, "metavar": "TOKEN"},
        "dictionary": {"type": str | None, "metavar": "FILE"},
    }
    add_settings(parser, DecodingOptions, leave_out=leave_out, special=special)
    add_settings(parser, Placement)


def read_translator_options(parsed: Namespace) -> TranslatorOptions:
    models = [Path(directory) for directory in parsed.model or ()]
    return TranslatorOptions(models, read_settings(Placement, parsed), read_settings(DecodingOptions, parsed))


@dataclass(frozen=True)
class TranslateSettings:
    """What is translated, and what comes of it.

    Args:
        input: a file with a text a line. Without it and without a TEXT, standard input is read.
        output: a file, written when all is done and not before; standard output where not given. What is done before
            that is kept in OUTPUT.parts, and the same command goes on from there.
        format: lines of text, or jsonl: an object a line with tokens, scores and alignments.
        scores: with text, the score and a tab before each translation.
        attention: with jsonl, all attention weights too.
        on_bad_line: a line that is not UTF-8 or too long is counted (skip) or an error.
        max_source_length: a text of more tokens is too long; 0 is no limit.
        progress: a bar on stderr while a file is translated; auto has one on a terminal.
    """

    input: str | None = None
    output: str | None = None
    format: Literal["text", "jsonl"] = "text"
    scores: bool = False
    attention: bool = False
    on_bad_line: Literal["skip", "error"] = "skip"
    max_source_length: int = 1000
    progress: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        if self.scores and self.format != "text":
            raise ValueError("`scores` is for `format` text; jsonl has them always")
        if self.attention and self.format != "jsonl":
            raise ValueError("`attention` needs `format` to be jsonl")
        if self.max_source_length < 0:
            raise ValueError(f"`max_source_length` must be at least 0; got {self.max_source_length}")


@dataclass(frozen=True)
class Command:
    settings: TranslateSettings
    translator: TranslatorOptions
    texts: list[str]


def read_command(arguments: Sequence[str]) -> Command:
    parser = new_parser("translate", "[options] [TEXT ...]", "Translate texts, files and pipes.", EPILOG)
    parser.add_argument("texts", nargs="*", default=[], metavar="TEXT", help="a text to translate")
    add_translator_options(parser)
    add_settings(parser, TranslateSettings)
    parsed = parse(parser, arguments)
    if parsed.texts and parsed.input is not None:
        raise ValueError("a TEXT and --input are two inputs: give one of them")
    check_texts(parsed.texts)
    return Command(read_settings(TranslateSettings, parsed), read_translator_options(parsed), list(parsed.texts))


def check_texts(texts: Sequence[str]) -> None:
    """Raises ValueError for one that the terminal did not hand over as UTF-8."""
    for number, text in enumerate(texts, 1):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"text {number} is not UTF-8")
