"""`rnnsearch translate`: texts, files and pipes through a model."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import signal
import stat
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from rnnsearch.corpus import CorpusError, LineFile, Skips
from rnnsearch.decoding import DecodingOptions
from rnnsearch.lines import Line, file_lines, pipe_lines
from rnnsearch.parts import Parts, replacing
from rnnsearch.processes import Processes, joined
from rnnsearch.progress import progress_bar
from rnnsearch.records import Records
from rnnsearch.translator import Translator

Advance = Callable[[int], Any] | None
CHUNK_LINES = 1024  # sorted by length together

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


def main(arguments: Sequence[str]) -> int:
    command = read_command(arguments)
    settings = command.settings
    with _terminated(), joined(settings.device) as processes:
        if processes.count > 1 and (settings.input is None or settings.output is None):
            raise ValueError("several processes share out the lines of a file: --input and --output are needed")
        file = None if settings.input is None or _pipe(settings.input) else LineFile(Path(settings.input))
        if settings.output is not None:
            _check_output(Path(settings.output), file)
        translator = Translator(
            command.models,
            backend=settings.backend,
            device=processes.device,
            dtype=getattr(torch, settings.dtype),
            say=_say,
            **vars(command.decoding),
        )
        work = Work(command, translator, processes)
        size = command.decoding.batch_size
        if command.texts:
            work.stream([[Line(f"text {number}", number, text) for number, text in enumerate(command.texts, 1)]])
        elif settings.input is None:
            if sys.stdin.isatty():
                _say("reading the terminal, a text a line; Ctrl-D ends")
            work.stream(pipe_lines(sys.stdin.fileno(), "standard input", size))
        elif file is None:  # a pipe with a name
            with open(settings.input, "rb", buffering=0) as pipe:
                work.stream(pipe_lines(pipe.fileno(), settings.input, size))
        elif settings.output is None:
            work.file(file)
        else:
            parts = Parts(Path(settings.output), len(file))
            try:
                work.whole_file(file, parts, _plan(command, file) if processes.first else {})
            except KeyboardInterrupt:
                if processes.first:
                    _say(f"what is done is in {parts.folder}; the same command goes on from there")
                raise
        work.report()
    return 0


def _check_output(output: Path, file: LineFile | None) -> None:
    """What would fail at the end is said at the beginning."""
    if output.is_dir() or not output.parent.is_dir():
        raise ValueError(f"--output must be a file in a directory that exists; got {output}")
    if file is not None and output.exists() and output.samefile(file.path):
        raise ValueError(f"--output must be another file than --input; both are {output}")


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
        help="a trained model, run/best say; several decide together",
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
    parsed = parser.parse_args(_underscored(arguments, parser))
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


def _underscored(arguments: Sequence[str], parser: Any) -> list[str]:
    """``--beam-size`` is ``--beam_size``, for those who write it so."""
    known = {option for action in parser._actions for option in action.option_strings}
    options = list(arguments)
    end = options.index("--") if "--" in options else len(options)
    for place, argument in enumerate(options[:end]):
        name, equals, value = argument.partition("=")
        other = "--" + name[2:].replace("-", "_")
        if name.startswith("--") and name not in known and other in known:
            options[place] = other + equals + value
    return options


class Work:
    """One command's lines through its translator."""

    def __init__(self, command: Command, translator: Translator, processes: Processes) -> None:
        settings = command.settings
        self.settings, self.translator, self.processes = settings, translator, processes
        self.records = Records(settings.format, settings.scores, settings.attention)
        self.skips = Skips(settings.on_bad_line, _say, "an empty line stands for it")

    def stream(self, groups: Iterable[Sequence[Line]], advance: Advance = None) -> None:
        """Each group of lines as soon as it is there, to standard output or into a file that takes its place whole."""
        with _sink(self.settings.output) as write:
            for lines in groups:
                write(self._translated(lines, advance))

    def file(self, file: LineFile) -> None:
        """To standard output, chunk by chunk."""
        chunks = [range(start, min(start + CHUNK_LINES, len(file))) for start in range(0, len(file), CHUNK_LINES)]
        with progress_bar(len(file), self.settings.progress) as bar:

            def read() -> Iterator[list[Line]]:
                for chunk in chunks:
                    yield file_lines(file, chunk)
                    bar.update(chunk.stop - bar.n)  # empty lines too

            self.stream(read(), bar.update)

    def whole_file(self, file: LineFile, parts: Parts, plan: dict[str, Any]) -> None:
        """Into a file, by any number of processes; what some earlier ones did is not done again."""
        processes = self.processes
        if processes.first:
            parts.begin(plan, processes.count)
        processes.gather(None)  # the others wait for what the first one writes
        chunks = parts.chunks()

        def made() -> int:
            return sum(len(chunk) for number, chunk in enumerate(chunks) if parts.made(number))

        with progress_bar(len(file), self.settings.progress if processes.first else "never") as bar:
            bar.update(made())
            for number, chunk in processes.shard(list(enumerate(chunks))):
                if not parts.made(number):
                    parts.write(number, self._translated(file_lines(file, chunk), bar.update))
                    bar.update(made() - bar.n)  # other processes' too
            processes.gather(None)
            bar.update(len(file) - bar.n)
        if processes.first:
            parts.merge()

    def report(self) -> None:
        """What was left out, in all processes together."""
        counts: Counter[str] = sum(self.processes.gather(self.skips.counts), Counter())
        if self.processes.first:
            for why, count in counts.items():
                _say(f"an empty line stands for {count} ({why})")

    def _translated(self, lines: Sequence[Line], advance: Advance) -> str:
        """A record for each line."""
        most = self.settings.max_source_length
        checked, sources = [], []
        for line in lines:
            tokens = self.translator.source.split(line.text)
            if most and len(tokens) > most:
                line, tokens = line._replace(problem=f"more than {most} tokens"), []
            if line.problem is not None:
                self.skips(line.where, line.problem)
            checked.append(line)
            sources.append(tokens)
        try:
            found = self.translator.of_tokens(sources, advance)
        except MemoryError as error:
            where = lines[0].where + (f" to {lines[-1].number}" if len(lines) > 1 else "")
            raise RuntimeError(f"{where}: {error}; --max_source_length leaves such texts out") from error
        entries = zip(checked, sources, found, strict=True)
        return "".join(self.records(self.translator, line, tokens, best) for line, tokens, best in entries)


def _plan(command: Command, file: LineFile) -> dict[str, Any]:
    """All that shows in the output."""
    settings, decoding = command.settings, command.decoding
    options = {name: value for name, value in vars(decoding).items() if name not in ("batch_size", "dictionary")}
    shown = ("format", "scores", "attention", "on_bad_line", "max_source_length", "dtype")
    models = [sorted(path for path in Path(model).iterdir() if path.is_file()) for model in command.models]
    return {
        "input": _digest([file.path]),
        "model": [_digest(paths) for paths in models],
        "dictionary": None if decoding.dictionary is None else _digest([Path(str(decoding.dictionary))]),
        **{name: getattr(settings, name) for name in shown},
        **options,
    }


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def _sink(output: str | None) -> Iterator[Callable[[str], None]]:
    if output is None:

        def write(text: str) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        yield write
        return
    with replacing(Path(output)) as file:

        def write_whole(text: str) -> None:
            file.write(text.encode())

        yield write_whole


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends as an exception does, so that nothing half done is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _pipe(path: str) -> bool:
    """Whether it can be read once only, as what a shell puts for <(zcat text.gz)."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror})") from error
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _say(text: str) -> None:
    """A line on stderr, above the bar where there is one."""
    tqdm.write(f"rnnsearch: {text}", file=sys.stderr)
