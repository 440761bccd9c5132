"""What `rnnsearch translate` is asked for: its options, on the command line or in a YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from rnnsearch.command_line import spelled
from rnnsearch.decoding import DecodingOptions

EPILOG = """examples:
  rnnsearch translate --model run/best "ein Haus am Meer"
  rnnsearch translate --model run/best --input test.de --output test.en
                        a progress bar; whatever ends it, the same command goes on
  rnnsearch translate --model run/best < test.de > test.en
  tail -f news.de | rnnsearch translate --model run/best
                        every line as soon as it comes
  rnnsearch translate --model run/best --beam_size 12 --n_best 3 --scores true "ein Haus"
  rnnsearch translate --model run/best --format jsonl --attention true "ein Haus"
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
        device: cpu or cuda; auto takes what is there.
        dtype: of the weights.
        backend: which implementation of the ops.
    """

    input: str | None = None
    output: str | None = None
    format: Literal["text", "jsonl"] = "text"
    scores: bool = False
    attention: bool = False
    on_bad_line: Literal["skip", "error"] = "skip"
    max_source_length: int = 1000
    progress: Literal["auto", "always", "never"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    backend: str = "auto"

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
    decoding: DecodingOptions
    models: list[str]
    texts: list[str]


def read_command(arguments: Sequence[str]) -> Command:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="rnnsearch translate",
        description="Translate texts, files and pipes with a model that `rnnsearch train` wrote. Every option below is "
        "a key of the YAML file too.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below")
    parser.add_argument("texts", nargs="*", default=[], metavar="TEXT", help="a text to translate")
    parser.add_argument(
        "--model",
        action="append",
        metavar="DIRECTORY",
        help="a trained model, run/best or a checkpoint; several decide together",
    )
    parser.add_class_arguments(TranslateSettings)
    # What can be given several times, or as a file alone.
    parser.add_class_arguments(DecodingOptions, skip={"ban", "dictionary"})
    parser.add_argument("--ban", action="append", metavar="TOKEN", help="a token that never comes; may be repeated")
    parser.add_argument(
        "--dictionary",
        type=str | None,
        metavar="FILE",
        help="with --unknown replace: source word, tab, target word a line; what it has for the source word is put",
    )
    parsed = parser.parse_args(spelled(arguments, parser))
    if not parsed.model:
        raise ValueError("--model is needed: a directory that `rnnsearch train` wrote, such as run/best")
    if parsed.texts and parsed.input is not None:
        raise ValueError("a TEXT and --input are two inputs: give one of them")
    values = {**vars(parsed), "ban": tuple(parsed.ban or ())}
    for number, text in enumerate(parsed.texts, 1):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"text {number} is not UTF-8")
    return Command(
        TranslateSettings(**{field.name: values[field.name] for field in fields(TranslateSettings)}),
        DecodingOptions(**{field.name: values[field.name] for field in fields(DecodingOptions)}),
        list(parsed.model),
        list(parsed.texts),
    )
