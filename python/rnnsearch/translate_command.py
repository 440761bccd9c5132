"""`rnnsearch translate`: texts, files and pipes through a model."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rnnsearch.checkpoint import replacing
from rnnsearch.corpus import CorpusError, LineFile, Skips
from rnnsearch.lines import Line, file_lines, pipe_lines
from rnnsearch.outputs import check_file
from rnnsearch.parts import Parts
from rnnsearch.processes import Processes, joined
from rnnsearch.progress import progress_bar, say
from rnnsearch.records import Records
from rnnsearch.translate_options import Command, read_command
from rnnsearch.translator import Translator

Advance = Callable[[int], Any] | None
CHUNK_LINES = 1024  # sorted by length together
LOOK_SECONDS = 2  # between looks at what other processes have done, for the bar


def main(arguments: Sequence[str]) -> int:
    command = read_command(arguments)
    settings = command.settings
    with _terminated(), joined(command.translator.placement.device) as processes:
        file = None if settings.input is None or _pipe(settings.input) else LineFile(Path(settings.input))
        if processes.count > 1 and (file is None or settings.output is None):
            raise ValueError("several processes share out the lines of a file: --input and --output are needed")
        if settings.output is not None:
            check_file("--output", Path(settings.output), {"--input": None if file is None else file.path})
        translator = command.translator.translator(device=processes.device, quiet=not processes.first)
        work = Work(command, translator, processes)
        size = command.translator.decoding.batch_size
        if command.texts:
            work.stream([[Line(f"text {number}", number, text) for number, text in enumerate(command.texts, 1)]])
        elif settings.input is None:
            if sys.stdin.isatty():
                say("reading the terminal, a text a line; Ctrl-D ends")
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
            except (KeyboardInterrupt, SystemExit):
                if processes.first:
                    say(f"what is done is in {parts.folder}; the same command goes on from there")
                raise
        work.report()
    return 0


class Work:
    """One command's lines through its translator."""

    def __init__(self, command: Command, translator: Translator, processes: Processes) -> None:
        settings = command.settings
        self.settings, self.translator, self.processes = settings, translator, processes
        self.records = Records(settings.format, settings.scores, settings.attention)
        self.skips = Skips(settings.on_bad_line, say, "an empty line stands for it")

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
            looked = time.monotonic()
            for number, chunk in processes.shard(list(enumerate(chunks))):
                if not parts.made(number):
                    parts.write(number, self._translated(file_lines(file, chunk), bar.update))
                if not bar.disable and time.monotonic() - looked > LOOK_SECONDS:
                    bar.update(made() - bar.n)
                    looked = time.monotonic()
            processes.gather(None)
            bar.update(len(file) - bar.n)
        if processes.first:
            parts.merge()

    def report(self) -> None:
        """What was left out, in all processes together."""
        counts: Counter[str] = sum(self.processes.gather(self.skips.counts), Counter())
        if self.processes.first:
            for why, count in counts.items():
                say(f"an empty line stands for {count} ({why})")

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
    settings, decoding = command.settings, command.translator.decoding
    options = {name: value for name, value in vars(decoding).items() if name not in ("batch_size", "dictionary")}
    shown = ("format", "scores", "attention", "on_bad_line", "max_source_length")
    directories = command.translator.directories()
    models = [sorted(path for path in directory.iterdir() if path.is_file()) for directory in directories]
    return {
        "input": _digest([file.path]),
        "model": [_digest(paths) for paths in models],
        "dictionary": None if decoding.dictionary is None else _digest([Path(str(decoding.dictionary))]),
        "dtype": command.translator.placement.dtype,
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
