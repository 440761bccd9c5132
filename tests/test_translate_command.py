"""`rnnsearch translate`: texts, files, pipes and several processes; what it writes, and that it loses nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rnnsearch import cli, translate_command
from rnnsearch.parts import PLAN, Parts
from rnnsearch.segmentation import Words
from rnnsearch.translate_options import read_command
from rnnsearch.translator import Translator
from small_model import make_model

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}"}
TEXTS = ["a b c", "f", "", "a b c d e", "c  a b", "?", "e", "d a", "b b b b", " ", "f e d", "a"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "best"
    Translator(make_model(dtype=torch.float32, scale=1.0), Words(), Words()).save(directory)
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


@pytest.fixture
def wanted(model: Path) -> list[str]:
    return Translator(model, max_length=7)(TEXTS)


def translate(model: Path, *options: object) -> int:
    return cli.main(["translate", "--model", str(model), "--max_length=7", *map(str, options)])


def test_texts_on_the_command_line_give_a_line_each(model: Path, wanted: list[str], capsys: Capture) -> None:
    assert translate(model, *TEXTS[:4]) == 0
    assert capsys.readouterr() == ("".join(f"{text}\n" for text in wanted[:4]), "")


def test_a_file_gives_its_lines_in_order_whatever_the_batches(
    model: Path, source: Path, wanted: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size, chunk in ((64, 1024), (2, 5), (1, 1)):
        monkeypatch.setattr(translate_command, "CHUNK_LINES", chunk)
        assert translate(model, "--input", source, "--batch-size", size) == 0
        assert capsys.readouterr() == ("".join(f"{text}\n" for text in wanted), "")


def test_a_last_line_without_an_end_and_windows_ends_are_lines(model: Path, tmp_path: Path, capsys: Capture) -> None:
    for content in (b"a b\r\nf\r\n", b"a b\nf"):
        (tmp_path / "in.txt").write_bytes(content)
        assert translate(model, "--input", tmp_path / "in.txt") == 0
        assert capsys.readouterr().out.splitlines() == Translator(model, max_length=7)(["a b", "f"])
    (tmp_path / "in.txt").write_bytes(b"")
    assert translate(model, "--input", tmp_path / "in.txt") == 0 and capsys.readouterr().out == ""
    assert translate(model, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt") == 0
    assert (tmp_path / "out.txt").read_bytes() == b""


def test_n_best_gives_as_many_lines_for_each_text_with_falling_scores(model: Path, capsys: Capture) -> None:
    assert translate(model, "a b c", "", "f", "--n_best=3", "--scores=true") == 0
    lines = capsys.readouterr().out.split("\n")[:-1]
    assert len(lines) == 9 and lines[3:6] == ["", "", ""]
    translator = Translator(model, max_length=7, n_best=3)
    found = [entry for text in ("a b c", "f") for entry in translator.hypotheses([text])[0]]
    for line, entry in zip([*lines[:3], *lines[6:]], found, strict=True):
        score, text = line.split("\t")
        assert text == translator.text(entry) and float(score) == pytest.approx(entry.score, abs=1e-6)


def test_jsonl_has_tokens_scores_and_alignments(model: Path, source: Path, capsys: Capture) -> None:
    assert translate(model, "--input", source, "--format=jsonl", "--attention=true", "--n_best=2") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["line"] for record in records] == list(range(1, len(TEXTS) + 1))
    assert [record["source"] for record in records] == TEXTS
    translator = Translator(model, max_length=7, n_best=2)
    for record, text, found in zip(records, TEXTS, translator.hypotheses(TEXTS), strict=True):
        assert record["source_tokens"] == text.split() and len(record["translations"]) == len(found)
        for described, entry in zip(record["translations"], found, strict=True):
            assert described["text"] == " ".join(entry.tokens) and described["tokens"] == entry.tokens
            assert described["score"] == pytest.approx(entry.score, abs=1e-6)
            assert described["token_scores"] == pytest.approx(entry.token_scores, abs=1e-6)
            assert described["finished"] == entry.finished
            torch.testing.assert_close(torch.tensor(described["attn_weights"]), entry.attn_weights, rtol=0, atol=6e-5)
            assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in described["attn_weights"])
            attended = entry.attn_weights[: len(entry.tokens)].argmax(dim=1).tolist()
            links = [[at, target] for target, at in enumerate(attended) if at < len(text.split())]
            assert described["links"] == links
    assert translate(model, "a", "--format=jsonl") == 0
    assert "attn_weights" not in json.loads(capsys.readouterr().out)["translations"][0]


BAD = b"a b\nbad \xff\nc\na a a a a\n"


def test_bad_lines_are_named_counted_and_leave_an_empty_line(model: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(BAD)
    assert translate(model, "--input", path, "--max_source_length=4") == 0
    done = capsys.readouterr()
    good = Translator(model, max_length=7)(["a b", "c"])
    assert done.out.split("\n") == [good[0], "", good[1], "", ""]
    assert done.err.splitlines() == [
        f"rnnsearch: {path}, line 2: not UTF-8 (invalid start byte); an empty line stands for it",
        f"rnnsearch: {path}, line 4: more than 4 tokens; an empty line stands for it",
        "rnnsearch: an empty line stands for 1 (not UTF-8 (invalid start byte))",
        "rnnsearch: an empty line stands for 1 (more than 4 tokens)",
    ]
    assert translate(model, "--input", path, "--format=jsonl") == 0
    record = json.loads(capsys.readouterr().out.splitlines()[1])
    assert record["problem"] == "not UTF-8 (invalid start byte)" and record["translations"] == []


def test_bad_lines_are_an_error_where_that_is_asked_for(model: Path, tmp_path: Path, capsys: Capture) -> None:
    path, output = tmp_path / "in.txt", tmp_path / "out.txt"
    path.write_bytes(BAD)
    assert translate(model, "--input", path, "--output", output, "--on_bad_line=error") == 1
    assert capsys.readouterr().err == f"rnnsearch: {path}, line 2: not UTF-8 (invalid start byte)\n"
    assert not output.exists()


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
        Translator(make_model(dtype=torch.float32, scale=0.9), Words(), Words()).save(tmp_path / "other")
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


def test_a_bar_is_shown_on_files_where_it_is_asked_for(model: Path, source: Path, capsys: Capture) -> None:
    assert translate(model, "--input", source, "--progress=always") == 0
    assert re.search(rf"100%.*{len(TEXTS)}/{len(TEXTS)} .*lines/s", capsys.readouterr().err)
    assert translate(model, "--input", source) == 0
    assert capsys.readouterr().err == ""  # stderr is no terminal


def test_samples_and_ensembles_are_the_translators(model: Path, tmp_path: Path, capsys: Capture) -> None:
    options = {"search": "sample", "temperature": 1.5, "top_k": 4, "seed": 3, "n_best": 2}
    assert translate(model, "a b c", "f", *(f"--{name}={value}" for name, value in options.items())) == 0
    found = Translator(model, max_length=7, **options).hypotheses(["a b c", "f"])
    lines = [" ".join(entry.tokens) for samples in found for entry in samples]
    assert capsys.readouterr().out.splitlines() == lines
    Translator(make_model(dtype=torch.float32, scale=0.7), Words(), Words()).save(tmp_path / "other")
    assert translate(model, "--model", tmp_path / "other", "a b c") == 0
    assert capsys.readouterr().out == Translator([model, tmp_path / "other"], max_length=7)("a b c") + "\n"


def test_where_memory_does_not_suffice_it_is_said_and_goes_on(
    model: Path, source: Path, wanted: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnnsearch.model import RNNSearch

    encode = RNNSearch.encode

    def limited(self, source, source_lengths=None):
        if len(source) > limited.most:
            torch.empty(1 << 60, dtype=torch.uint8)
        return encode(self, source, source_lengths)

    limited.most = 3  # type: ignore[attr-defined]
    monkeypatch.setattr(RNNSearch, "encode", limited)
    assert translate(model, "--input", source) == 0
    done = capsys.readouterr()
    assert done.out == "".join(f"{text}\n" for text in wanted)
    assert done.err.splitlines()[-1].endswith("going on with 3")
    limited.most = 0  # type: ignore[attr-defined]
    assert translate(model, "--input", source) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{source}, line 1 to {len(TEXTS)}: memory does not suffice for a text of 5 tokens alone" in last


def test_a_file_of_settings_says_what_the_command_line_says(model: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ["--n_best=2", "--ban=y", "--ban=u", "--length_penalty=wu", "--scores=true", "--unknown=keep"]
    assert translate(model, *options, "a b c") == 0
    wanted = capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        translate(model, *options, "--print_config")
    assert exit.value.code == 0
    (tmp_path / "settings.yaml").write_text(capsys.readouterr().out)
    assert cli.main(["translate", "--config", str(tmp_path / "settings.yaml"), "a b c"]) == 0
    assert capsys.readouterr().out == wanted
    assert cli.main(["translate", "--config", str(tmp_path / "settings.yaml"), "a b c", "--n_best=1"]) == 0
    assert capsys.readouterr().out == wanted.splitlines(keepends=True)[0]


def test_the_examples_of_the_help_are_commands_that_it_takes(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["translate", "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    examples = re.findall(r"^  .*?rnnsearch (translate .*)$", shown, re.MULTILINE)
    assert len(examples) == 10
    for example in examples:
        arguments = shlex.split(example.partition(" < ")[0])
        command = read_command(arguments[1:])
        assert command.models[0].startswith("run")
    for term in ("beam search", "Wu et al. 2016", "UTF-8", "OUTPUT.parts"):
        assert term in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend=nonsense", "a"], "`backend` must be one of"),
        (["--input=nowhere.txt"], "nowhere.txt cannot be read (No such file or directory)"),
        (["--input=.", "--output=x"], ". cannot be read (Is a directory)"),
        (["--input=x", "a"], "a TEXT and --input are two inputs"),
        (["--output=no/such/place", "a"], "--output must be a file in a directory that exists; got no/such/place"),
        (["--n_best=9", "a"], "`n_best` must be at most `beam_size` = 5; got 9"),
        (["--temperature=2", "a"], "`temperature` is for `search` 'sample' only"),
        (["--attention=true", "a"], "`attention` needs `format` to be jsonl"),
        (["--format=jsonl", "--scores=true", "a"], "`scores` is for `format` text"),
        (["--ban=no", "a"], "which has no 'no'"),
        (["--ban=</s>", "a"], "no hypothesis could end"),
        (["--unknown=replace", "--dictionary=none.tsv", "a"], "none.tsv cannot be read"),
        (["--min_length=9", "a"], "`max_length` must be at least 1 and `min_length` = 9; got 7"),
        (["--batch_size=0", "a"], "`batch_size` must be at least 1; got 0"),
        (["a\udcff"], "text 1 is not UTF-8"),
    ],
)
def test_an_error_is_one_sentence_and_status_1(
    options: list[str], message: str, model: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert translate(model, *options) == 1
    err = capsys.readouterr().err
    assert message in err and err.startswith("rnnsearch: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_is_translated_with_must_be_said_and_may_not_be_written_over(
    model: Path, source: Path, capsys: Capture
) -> None:
    assert cli.main(["translate", "a"]) == 1
    assert "--model is needed: a directory that `rnnsearch train` wrote" in capsys.readouterr().err
    assert translate(model, "--input", source, "--output", source) == 1
    assert "--output must be another file than --input" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        translate(model, "--search=depth", "a")
    assert exit.value.code == 2 and "search" in capsys.readouterr().err


def test_a_half_written_part_is_none(model: Path, tmp_path: Path) -> None:
    parts = Parts(tmp_path / "out", 3)
    parts.begin({}, 1)
    (parts.folder / ".part-00000000.x").write_text("half")
    assert [parts.made(number) for number in range(len(parts.chunks()))] == [False] * 3
    for number in range(3):
        parts.write(number, f"{number}\n")
    parts.merge()
    assert (tmp_path / "out").read_text() == "0\n1\n2\n" and not parts.folder.exists()
