"""`rnnsearch translate`: outputs that are whole or not there, pipes, several processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import translating
from rnnsearch import cli
from rnnsearch.parts import PLAN, Parts
from rnnsearch.translator import Translator
from translating import TEXTS, save_model, translate

model, source, wanted = translating.model, translating.source, translating.wanted  # fixtures
Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}"}


def test_an_output_appears_when_all_is_done_and_what_was_done_is_not_done_again(
    model: Path, source: Path, wanted: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.txt"
    translated: list[int] = []
    inner, write = Translator.of_tokens, Parts.write

    def counting(self, sources, *arguments, **options):
        translated.append(len(sources))
        return inner(self, sources, *arguments, **options)

    def interrupted(self, number, content):
        if len(translated) == 3:
            raise KeyboardInterrupt
        write(self, number, content)

    monkeypatch.setattr(Translator, "of_tokens", counting)
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", interrupted)
        assert translate(model, "--input", source, "--output", output) == 130
    err = capsys.readouterr().err
    assert f"what is done is in {output}.parts; the same command goes on from there" in err
    assert not output.exists() and translated == [3, 3, 3]
    assert translate(model, "--input", source, "--output", output, "--batch_size=2") == 0
    assert output.read_text() == "".join(f"{text}\n" for text in wanted)
    assert translated == [3, 3, 3, 3, 3]  # two of the four chunks of three lines were there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt"]
    assert translate(model, "--input", source, "--output", output, "--beam_size=1") == 0  # it is written over
    assert output.read_text() == "".join(f"{text}\n" for text in Translator(model, max_length=7, beam_size=1)(TEXTS))


@pytest.mark.parametrize("what", ["option", "input", "model"])
def test_a_translation_that_was_begun_in_another_way_is_not_gone_on_with(
    what: str, model: Path, source: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.txt"
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "merge", lambda self: 1 / 0)
        assert translate(model, "--input", source, "--output", output) == 1
    capsys.readouterr()
    options: list[str] = []
    if what == "option":
        options = ["--beam_size=2"]
    elif what == "input":
        source.write_text(source.read_text().replace("a b c\n", "a b d\n"))
    else:
        save_model(tmp_path / "other", scale=0.9)
        model = tmp_path / "other"
    assert translate(model, "--input", source, "--output", output, *options) == 1
    name = {"option": "beam_size", "input": "input", "model": "model"}[what]
    assert f"{output}.parts was begun with another `{name}`" in capsys.readouterr().err
    (tmp_path / "out.txt.parts" / PLAN).write_text("{")
    assert translate(model, "--input", source, "--output", output) == 1
    assert "is not JSON" in capsys.readouterr().err


def test_sigterm_leaves_no_half_file(
    model: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of texts, which cannot be gone on with."""
    inner = Translator.of_tokens

    def ended(self, sources, *arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return inner(self, sources, *arguments, **options)

    monkeypatch.setattr(Translator, "of_tokens", ended)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        translate(model, "a b", "--output", tmp_path / "out.txt")
    assert exit.value.code == 128 + signal.SIGTERM and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_pipe_is_answered_line_by_line(model: Path, wanted: list[str]) -> None:
    command = [sys.executable, "-m", "rnnsearch", "translate", "--model", str(model), "--max_length=7"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=ENVIRONMENT) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        for text, answer in list(zip(TEXTS, wanted, strict=True))[:4]:
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline().decode() == f"{answer}\n"  # before the next is written
        process.stdin.write("".join(f"{text}\n" for text in TEXTS).encode() + b"a b c")
        process.stdin.close()
        rest = process.stdout.read().decode()
        assert process.wait(60) == 0 and process.stderr.read() == b""
    assert rest.split("\n")[:-1] == [*wanted, wanted[0]]


def test_pipes_with_and_without_a_name_are_read_to_their_end(
    model: Path, wanted: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "".join(f"{text}\n" for text in TEXTS).encode()
    for named in (False, True):
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        with open(reading) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            options = ["--input", f"/dev/fd/{reading}"] if named else []
            output = tmp_path / f"{named}.txt"
            assert translate(model, *options, "--batch_size=5", "--output", output) == 0
        assert output.read_text() == "".join(f"{text}\n" for text in wanted)


# To start processes takes longer than what they do here.
IN_ONE_GROUP = """
import contextlib, json, sys
from rnnsearch import cli, translate_command

with translate_command.joined("cpu") as processes:
    assert processes.count == 2
    translate_command.joined = lambda device: contextlib.nullcontext(processes)
    for arguments in json.loads(sys.argv[1]):
        assert cli.main(["translate", *arguments]) == 0
    assert cli.main(["translate", "--model", arguments[1], "a b"]) == 1
"""


def test_two_processes_share_the_lines_and_go_on_with_what_one_left(
    model: Path, source: Path, wanted: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, left = tmp_path / "fresh.txt", tmp_path / "left.txt"
    shared = ["--model", str(model), "--max_length=7", "--input", str(source), "--progress=always"]
    write = Parts.write

    def interrupted(self, number, content):
        write(self, number, content)
        if number == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", interrupted)
        assert cli.main(["translate", *shared, "--output", str(left)]) == 130
    parts = Parts(left, len(TEXTS))
    kept = [parts.path(number).stat().st_mtime_ns for number in (0, 1)]
    assert not parts.made(2)
    script = tmp_path / "script.py"
    script.write_text(IN_ONE_GROUP)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    runs = [[*shared, "--output", str(path)] for path in (fresh, left)]
    assert kept == [parts.path(number).stat().st_mtime_ns for number in (0, 1)]
    done = subprocess.run([*command, json.dumps(runs)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for path in (fresh, left):
        assert path.read_text() == "".join(f"{text}\n" for text in wanted)
        assert not path.with_name(f"{path.name}.parts").exists()
    assert "several processes share out the lines of a file: --input and --output are needed" in done.stderr
    assert re.search(rf"100%.*{len(TEXTS)}/{len(TEXTS)}", done.stderr)


def test_a_half_written_part_is_none(model: Path, tmp_path: Path) -> None:
    parts = Parts(tmp_path / "out", 3)
    parts.begin({}, 1)
    (parts.folder / ".part-00000000.x").write_text("half")
    assert [parts.made(number) for number in range(len(parts.chunks()))] == [False] * 3
    for number in range(3):
        parts.write(number, f"{number}\n")
    parts.merge()
    assert (tmp_path / "out").read_text() == "0\n1\n2\n" and not parts.folder.exists()


def test_parts_that_an_interrupted_end_left_without_their_plan_are_not_taken(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "out.txt", lines=1)
    parts.begin({}, processes=1)
    parts.write(0, "of another model")
    (parts.folder / PLAN).unlink()
    parts.begin({}, processes=1)
    assert not parts.made(0)
