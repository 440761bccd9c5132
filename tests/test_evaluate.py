"""`rnnsearch evaluate`: its numbers are those of sacreBLEU's own command and of BLEU's definition."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from rnnsearch import scores
from rnnsearch.cli import main
from rnnsearch.segmentation import Words
from rnnsearch.translator import Translator
from small_model import make_model

pytest.importorskip("sacrebleu")
WORDS = ["Ein", "Hund", "läuft", "über", "die", "grüne", "Wiese", ",", "und", "2", "Kinder", "sehen", "ihm", "zu", "."]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty references of 3 to 14 words, their sources, and two systems' translations of them."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(3)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    references = [[WORDS[draw(len(WORDS))] for _ in range(3 + draw(12))] for _ in range(60)]
    for name, rate in (("ours", 8), ("theirs", 4)):
        dropped = [" ".join(word for word in words if draw(rate)) for words in references]
        Path(name).write_text("".join(f"{line}\n" for line in dropped), encoding="utf-8")
    Path("reference").write_text("".join(" ".join(words) + "\n" for words in references), encoding="utf-8")
    Path("source").write_text("".join(f"{' '.join('abcdefg'[: 1 + draw(7)])}\n" for _ in references))
    return tmp_path


def lines(name: str) -> list[str]:
    return Path(name).read_text(encoding="utf-8").splitlines()


def evaluate(*options: str) -> dict:
    assert main(["evaluate", *options, "--json", "out.json"]) == 0
    return json.loads(Path("out.json").read_text(encoding="utf-8"))


def plain_bleu(hypotheses: list[str], references: list[str]) -> float:
    """Papineni et al. 2002, section 2.3, of tokens between white space; every order must have a match."""
    logarithm, hypothesis_length, reference_length = 0.0, 0, 0
    matches, totals = [0] * 4, [0] * 4
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        left, right = hypothesis.lower().split(), reference.lower().split()
        hypothesis_length, reference_length = hypothesis_length + len(left), reference_length + len(right)
        for n in range(4):
            counts = [Counter(zip(*(side[k:] for k in range(n + 1)), strict=False)) for side in (left, right)]
            matches[n] += sum((counts[0] & counts[1]).values())
            totals[n] += sum(counts[0].values())
    logarithm = sum(math.log(match / total) for match, total in zip(matches, totals, strict=True)) / 4
    return 100 * math.exp(logarithm + min(0.0, 1 - reference_length / hypothesis_length))


def test_bleu_chrf_confidence_and_signature_are_those_of_sacrebleus_own_command(text, capsys):
    report = evaluate("--hypotheses", "ours", "--reference", "reference", "--resamples", "100")
    command = [sys.executable, "-m", "sacrebleu", "reference", "-i", "ours", "-m", "bleu", "chrf", "-w", "9"]
    done = subprocess.run([*command, "--confidence", "--confidence-n", "100"], capture_output=True, check=True)
    found = report["systems"][0]["scores"]
    printed = capsys.readouterr().out
    for name, theirs in zip(("BLEU", "chrF"), json.loads(done.stdout), strict=True):
        assert found[name]["value"] == pytest.approx(theirs["score"], abs=1e-8)
        for ours, key in (("mean", "confidence_mean"), ("confidence", "confidence_var")):  # theirs in float32
            assert found[name][ours] == pytest.approx(theirs[key], rel=1e-6) and found[name][ours] > 0
        assert found[name]["signature"] == theirs["signature"] and theirs["signature"] in printed
        assert f"{theirs['score']:.2f} ± {theirs['confidence_var']:.2f}" in printed


def test_tokenised_bleu_is_bleu_of_lower_cased_words(text):
    Path("ours").write_text(Path("ours").read_text(encoding="utf-8").upper(), encoding="utf-8")
    report = evaluate("--hypotheses", "ours", "--reference", "reference", "--tokenised", "--resamples", "0")
    found = report["systems"][0]["scores"]["tokenised BLEU"]
    assert found["value"] == pytest.approx(plain_bleu(lines("ours"), lines("reference")), abs=1e-8)
    assert "case:lc" in found["signature"] and "tok:none" in found["signature"]
    assert found["confidence"] is None and report["systems"][0]["scores"]["BLEU"]["value"] < found["value"]


def test_raw_text_is_tokenised_and_tokens_are_put_together(text):
    pytest.importorskip("sacremoses")
    Path("tokens").write_text("ein hund ( 2 jahre ) läuft , sagt er .\n")
    Path("raw").write_text("Ein Hund (2 Jahre) läuft, sagt er.\n")
    report = evaluate("--hypotheses", "raw", "--reference", "tokens", "--tokenised", "de", "--resamples", "0")
    assert report["systems"][0]["scores"]["tokenised BLEU"]["value"] == pytest.approx(100)
    assert report["systems"][0]["scores"]["BLEU"]["value"] < 90
    Path("raw").write_text("ein hund (2 jahre) läuft, sagt er.\n")
    report = evaluate("--hypotheses", "tokens", "--reference", "raw", "--detokenise", "de", "--resamples", "0")
    assert report["systems"][0]["scores"]["chrF"]["value"] == pytest.approx(100)


def test_every_sentence_is_in_the_one_bucket_of_its_length(text, capsys):
    options = ["--hypotheses", "ours", "--reference", "reference", "--tokenised", "--resamples", "0"]
    buckets = evaluate(*options, "--lengths", "2", "5", "9")["systems"][0]["lengths"]
    assert [(bucket["shortest"], bucket["longest"]) for bucket in buckets] == [(3, 5), (6, 9), (10, None)]
    assert sum(bucket["sentences"] for bucket in buckets) == 60
    for bucket in buckets:
        places = [
            place
            for place, line in enumerate(lines("reference"))
            if bucket["shortest"] <= len(line.split()) <= (bucket["longest"] or 99)
        ]
        picked = [[lines(name)[place] for place in places] for name in ("ours", "reference")]
        assert bucket["score"]["value"] == pytest.approx(plain_bleu(*picked), abs=1e-8)
        assert bucket["mean_length"] == pytest.approx(sum(len(line.split()) for line in picked[1]) / len(places))
    assert "10+" in capsys.readouterr().out
    with_source = evaluate(*options, "--source", "source", "--lengths", "2", "5", "9")
    assert with_source["lengths_of"] == "source" and with_source["systems"][0]["lengths"][0]["longest"] == 2


def test_an_empty_reference_has_length_0_and_is_counted(text, capsys):
    Path("reference").write_text("\na b c d\n")
    Path("translated").write_text("a\na b c d\n")
    report = evaluate("--hypotheses", "translated", "--reference", "reference", "--resamples", "0")
    buckets = report["systems"][0]["lengths"]
    assert [(bucket["shortest"], bucket["sentences"], bucket["mean_length"]) for bucket in buckets] == [(0, 2, 2)]
    assert "0-10" in capsys.readouterr().out


def test_bleu_is_silent_of_tokens(caplog):
    """sacreBLEU logs three lines of them at every call."""
    texts = ["a b c d ."] * 100
    assert scores.looks_tokenised(texts) and not scores.looks_tokenised(texts[1:])
    assert scores.score(scores.bleu, texts, texts, resamples=0).value == pytest.approx(100)
    assert not caplog.records


def test_systems_are_drawn_side_by_side(text, capsys):
    pytest.importorskip("matplotlib")
    for picture in ("lengths.png", "lengths.svg"):
        evaluate("--hypotheses", "ours", "theirs", "--reference", "reference", "--resamples", "20", "--plot", picture)
    assert Path("lengths.png").read_bytes().startswith(b"\x89PNG")
    drawn = Path("lengths.svg").read_text(encoding="utf-8")
    assert all(said in drawn for said in ("ours", "theirs", "sentence length (words of the reference)"))
    out = capsys.readouterr().out
    assert "ours, 60 sentences" in out and "theirs, 60 sentences" in out


@pytest.fixture
def model(text: Path) -> Path:
    Translator(make_model(dtype=torch.float32), Words(), Words()).save(text / "model")
    return text / "model"


def test_a_model_is_measured_by_what_it_writes(text, model, capsys):
    shared = ("--source", "source", "--reference", "reference", "--resamples", "50")
    by_model = evaluate("--model", "model", *shared, "--beam-size", "2", "--write", "written")
    translator = Translator.from_pretrained(model, beam_size=2)
    assert lines("written") == translator(lines("source"))
    by_file = evaluate("--hypotheses", "written", *shared)
    assert by_file["systems"][0]["scores"] == by_model["systems"][0]["scores"]
    assert by_model["decoding"]["beam_size"] == 2 and by_file["decoding"] is None


def test_models_translate_together_and_as_they_are_asked_to(text, model):
    shared = ("--source", "source", "--reference", "reference", "--resamples", "0", "--write", "written")
    Path("words.tsv").write_text("g\tgee\n")
    given: dict = {"length_penalty": "average", "unknown": "replace", "no_repeat_ngram_size": 2, "max_length": 4}
    given |= {"coverage_penalty": 0.2, "dictionary": "words.tsv", "ban": ("u",)}
    options = [f"--{name}={value}" for name, value in given.items() if name != "ban"]
    evaluate("--model", "model", "--model", "model", *shared, *options, "--ban", "u")
    assert lines("written") == Translator(["model", "model"], **given)(lines("source"))
    given = {"search": "sample", "temperature": 1.5, "seed": 4, "max_length": 5}
    evaluate("--model", "model", *shared, *(f"--{name}={value}" for name, value in given.items()))
    assert lines("written") == Translator("model", **given)(lines("source"))


def test_sentences_without_unknown_words_are_measured_apart(text, model, capsys):
    """The model knows a to f and u to z."""
    Path("pairs.tsv").write_text("a b\tu v w x\na g\tu v w x\na b\tu v w k\nc d e\tz y x w\n")
    Path("translated").write_text("u v w x\nz\nz\nz y x u\n")
    report = evaluate("--hypotheses", "translated", "--source", "pairs.tsv", "--vocabulary", "model", "--tokenised")
    found = report["systems"][0]["no_unk"]
    wanted = scores.score(scores.tokenised_bleu, ["u v w x", "z y x u"], ["u v w x", "z y x w"], resamples=1000)
    assert found["sentences"] == 2 and found["score"]["value"] == wanted.value
    assert "no UNK" in capsys.readouterr().out
    Path("pairs.tsv").write_text("g\tu\n")
    Path("translated").write_text("u\n")
    assert evaluate("--hypotheses", "translated", "--source", "pairs.tsv", "--vocabulary", "model")["systems"][0][
        "no_unk"
    ] == {"sentences": 0, "score": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hypotheses", "short", "--reference", "reference"], "short has 1 lines; there are 60 references"),
        (["--hypotheses", "latin", "--reference", "reference"], "latin, line 2: not UTF-8"),
        (["--hypotheses", "ours", "--reference", "void"], "void is empty"),
        (["--hypotheses", "ours", "--source", "source", "--reference", "short"], "source has 60 lines and short has 1"),
        (["--hypotheses", "ours", "--reference", "nowhere"], "nowhere cannot be read"),
        (["--model", "nowhere", "--source", "source", "--reference", "reference"], "nowhere is not a directory"),
    ],
)
def test_text_that_cannot_be_measured_is_named(text, options, message, capsys):
    Path("short").write_text("a\n")
    Path("latin").write_bytes(b"a\n\xff\n")
    Path("void").write_text("")
    assert main(["evaluate", *options, "--resamples", "0"]) == 1
    err = capsys.readouterr().err
    assert message in err and err.startswith("rnnsearch: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--reference is needed"),
        (["--reference", "r"], "give --model, --hypotheses or --words"),
        (["--hypotheses", "h"], "--reference is needed"),
        (["--model", "m", "--reference", "r"], "--model needs --source"),
        (["--hypotheses", "h", "--reference", "r", "--write", "w"], "--write writes the translations of --model"),
        (["--hypotheses", "h", "--reference", "r", "--vocabulary", "m"], "--vocabulary needs --source"),
        (["--hypotheses", "h", "--reference", "r", "--detokenise", "de", "--tokenised"], "give it a language"),
        (
            ["--hypotheses", "h", "--reference", "r", "--lengths", "5", "5"],
            "--lengths must rise from 1 or more; got 5 5",
        ),
        (["--hypotheses", "h", "--reference", "r", "--resamples", "-1"], "--resamples must be at least 0; got -1"),
        (
            ["--hypotheses", "h", "--reference", "r", "--beam_size", "9"],
            "--beam_size says how a model translates: give",
        ),
        (["--words", "shipped", "--reference", "r"], "--reference is about translations, --words about pronunciations"),
        (["--words", "shipped", "--lengths", "5"], "--lengths is about translations, --words about pronunciations"),
        (["--words", "shipped", "--model", "m", "--model", "n"], "--words measures one model"),
    ],
)
def test_options_that_do_not_go_together_are_named(options, message, capsys):
    assert main(["evaluate", *options]) == 1
    err = capsys.readouterr().err
    assert message in err and err.startswith("rnnsearch: ") and err.count("\n") == 1


def test_what_could_not_be_written_is_said_before_a_model_is_read(text, capsys, monkeypatch):
    """There is no model nor source to read."""
    Path("folder").mkdir()
    model = ["--model", "nowhere", "--source", "source", "--reference", "reference"]
    for options, message in (
        (["--json", "no/such.json"], "--json must be a file in a directory that exists; got no/such.json"),
        (["--write", "folder"], "--write must be a file in a directory that exists; got folder"),
        (["--write", "reference"], "--write must be another file than --reference; both are reference"),
        (["--plot", "no/such.png"], "--plot must be a file in a directory that exists; got no/such.png"),
        (["--plot", "lengths"], "--plot must end in .png, .svg or .pdf; got lengths"),
        (["--plot", "lengths.xyz"], "--plot must end in .png, .svg or .pdf; got lengths.xyz"),
        (["--json", "/proc/out.json"], "--json: /proc cannot be written to"),
    ):
        if "/proc" not in message or Path("/proc").is_dir():
            assert main(["evaluate", *model, *options]) == 1
            assert message in capsys.readouterr().err
    for name in ("one", "other"):
        Path(name).write_text("")
        options = ["--hypotheses", "one", "other", "--reference", "reference", "--json", name]
        assert main(["evaluate", *options]) == 1
        assert f"--json must be another file than --hypotheses {name}; both are {name}" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["evaluate", *model, "--plot", "lengths.png"]) == 1
    assert "pip install 'rnnsearch-kernels[plot]'" in capsys.readouterr().err


def test_a_file_of_settings_says_what_the_command_line_says(text, model, capsys):
    options = ["--model", "model", "--source", "source", "--reference", "reference", "--lengths", "3", "7"]
    options += ["--tokenised", "--ban", "u", "--beam-size", "2", "--resamples=0"]
    wanted = evaluate(*options)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["evaluate", *options, "--print_config"])
    Path("settings.yaml").write_text(capsys.readouterr().out)
    assert evaluate("--config", "settings.yaml") == wanted and wanted["decoding"]["ban"] == ["u"]


def test_one_of_several_need_be_no_list_in_a_file_of_settings(text, model):
    shared = "source: source\nreference: reference\nresamples: 0\n"
    cases = [("model: [model]\nban: [u]\n", "model: model\nban: u\n")]
    cases += [("hypotheses: [reference]\nlengths: [7]\n", "hypotheses: reference\nlengths: 7\n")]
    for listed, single in cases:
        found = []
        for settings in (listed, single):
            Path("settings.yaml").write_text(shared + settings)
            found.append(evaluate("--config", "settings.yaml"))
        assert found[0] == found[1]


def test_the_command_line_adds_to_one_that_need_be_no_list(text, model):
    shared = ["--source", "source", "--reference", "reference", "--resamples=0", "--ban", "v"]
    wanted = evaluate(*shared, "--model", "model", "--ban", "u")["decoding"]
    Path("settings.yaml").write_text("model: model\nban: u\n")
    found = evaluate("--config", "settings.yaml", *shared)["decoding"]
    assert sorted(found["ban"]) == sorted(wanted["ban"]) == ["u", "v"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lengths: 1.5", "`lengths` must be an integer or a list of them; got 1.5"),
        ("lengths: [10, x]", "`lengths` must be an integer or a list of them; got [10, 'x']"),
        ("lengths: {a: 1}", "`lengths` must be an integer or a list of them; got {'a': 1}"),
        ("lengths:", "`lengths` must be an integer or a list of them; got None"),
        ("lengths: true", "`lengths` must be an integer or a list of them; got True"),
        ("hypotheses: 3", "`hypotheses` must be a string or a list of them; got 3"),
        ("hypotheses: [3]", "`hypotheses` must be a string or a list of them; got [3]"),
        ("model: 3", "`model` must be a string or a list of them; got 3"),
        ("ban: [a, 7]", "`ban` must be a string or a list of them; got ['a', 7]"),
    ],
)
def test_a_setting_of_several_that_is_none_names_the_field_what_is_wanted_and_what_was_given(
    setting, message, text, capsys
):
    Path("settings.yaml").write_text(f"reference: reference\n{setting}\n")
    assert main(["evaluate", "--config", "settings.yaml"]) == 1
    assert capsys.readouterr().err == f"rnnsearch: {message}\n"


def test_a_language_of_tokens_is_text_in_a_file_of_settings(text, capsys):
    for value in ("3", "true", "[de]"):
        Path("settings.yaml").write_text(f"hypotheses: ours\nreference: reference\ntokenised: {value}\n")
        with pytest.raises(SystemExit):
            main(["evaluate", "--config", "settings.yaml"])
        assert 'Parser key "tokenised"' in capsys.readouterr().err


def test_a_length_on_the_command_line_that_is_no_number_is_named(text, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--hypotheses", "ours", "--reference", "reference", "--lengths", "5", "x"])
    assert "argument --lengths: each must be an integer; got 5 x" in capsys.readouterr().err


def test_tokens_are_spoken_of_where_they_may_be_a_mistake(text, capsys):
    Path("tokens").write_text("a b c d .\n" * 100)
    shared = ["--hypotheses", "tokens", "--reference", "tokens", "--resamples", "0"]
    evaluate(*shared)
    assert capsys.readouterr().err.count("tokens looks tokenised: --detokenise LANGUAGE puts it together") == 1
    evaluate(*shared, "--tokenised")
    assert capsys.readouterr().err == ""


def test_a_pipe_is_measured_as_a_file(text):
    wanted = evaluate("--hypotheses", "ours", "--reference", "reference", "--resamples", "0")
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_bytes, args=(Path("reference").read_bytes(),))
    writer.start()
    found = evaluate("--hypotheses", "ours", "--reference", "pipe", "--resamples", "0")
    writer.join()
    assert found == {**wanted, "reference": "pipe"}


def test_without_sacrebleu_it_says_what_to_install(text, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    assert main(["evaluate", "--hypotheses", "ours", "--reference", "reference"]) == 1
    assert "pip install 'rnnsearch-kernels[evaluate]'" in capsys.readouterr().err
