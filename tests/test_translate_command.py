"""`rnnsearch translate`: texts and files, what it writes, how it fails."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import translating
from rnnsearch import cli, translate_command, translate_options
from rnnsearch.translate_options import read_command
from rnnsearch.translator import Translator
from translating import TEXTS, save_model, translate

model, source, wanted = translating.model, translating.source, translating.wanted  # fixtures
Capture = pytest.CaptureFixture[str]


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
        assert text == translator.text(entry) and float(score) == pytest.approx(entry.score, abs=1e-5)


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
    save_model(tmp_path / "other", scale=0.7)
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
        assert command.translator.models[0].parts[0].startswith("run")
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
        (["--output=/dev/null", "a"], "--output must be a file in a directory that exists; got /dev/null"),
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


@pytest.mark.parametrize("command", ["translate", "align"])
def test_without_a_model_the_one_that_ships_translates(
    command: str, model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(translate_options, "DEFAULT_MODEL", model)
    assert cli.main([command, "--model", str(model), "a b c"]) == 0
    wanted = capsys.readouterr()
    assert cli.main([command, "a b c"]) == 0
    said = f"rnnsearch: translating with the model that ships, {model.name}; --model takes another\n"
    assert capsys.readouterr() == (wanted.out, said + wanted.err)
    monkeypatch.setattr(translate_options, "DEFAULT_MODEL", tmp_path / "none")
    assert cli.main([command, "a b c"]) == 1
    assert capsys.readouterr().err == (
        "rnnsearch: --model is needed: a directory that `rnnsearch train` wrote, such as run/best; no translation "
        "model came with this installation\n"
    )


def test_an_input_may_not_be_written_over(model: Path, source: Path, capsys: Capture) -> None:
    assert translate(model, "--input", source, "--output", source) == 1
    assert "--output must be another file than --input" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        translate(model, "--search=depth", "a")
    assert exit.value.code == 2 and "search" in capsys.readouterr().err
