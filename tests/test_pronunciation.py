"""The pronunciation task: what is taken from the dictionary, how it is split, and how it is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
from rnnsearch.pronunciation import (
    MODEL_DIRECTORY,
    clean,
    edit_distance,
    evaluate,
    load,
    read_words,
    some,
    split,
    split_of,
    write_words,
)
from rnnsearch.segmentation import Characters, Words
from rnnsearch.translator import Translator
from small_model import make_model

ENTRIES = [
    ("Read", ["R", "EH1", "D"]),
    ("read", ["R", "IY1", "D"]),
    ("record", ["R", "AH0", "K", "AO1", "R", "D"]),
    ("record", ["R", "AH1", "K", "AO0", "R", "D"]),
    ("a.m.", ["EY1", "EH1", "M"]),
    ("7-up", ["S", "EH1"]),
    ("'s", ["EH1", "S"]),
    ("'", ["K"]),
]


def test_the_dictionary_is_cleaned() -> None:
    assert clean(ENTRIES) == {
        "'s": [["EH", "S"]],
        "read": [["R", "EH", "D"], ["R", "IY", "D"]],
        "record": [["R", "AH", "K", "AO", "R", "D"]],
    }


def test_the_split_is_by_word_and_a_possessive_follows_its_word() -> None:
    words = [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyz"]
    splits = [split_of(word) for word in words]
    assert 0.03 < splits.count("test") / len(words) < 0.07 and 0 < splits.count("dev") / len(words) < 0.025
    assert [split_of(word + "'s") for word in words] == splits
    assert [split_of(word + "'") for word in words] == splits
    parts = split({word: [] for word in words})
    assert [len(parts[name]) for name in ("train", "dev", "test")] == [
        splits.count(n) for n in ("train", "dev", "test")
    ]


def test_held_out_words_are_held_out() -> None:
    words = read_words(MODEL_DIRECTORY / "held_out.tsv")
    assert 300 <= len(words) <= 900
    assert {split_of(word) for word in words} == {"test"}


def test_the_shipped_model_has_at_most_30_percent_word_error() -> None:
    words = some(read_words(MODEL_DIRECTORY / "held_out.tsv"), 300)
    assert evaluate(load(MODEL_DIRECTORY), words).word_error <= 0.30


def test_words_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    words = {"read": [["R", "EH", "D"], ["R", "IY", "D"]], "a": [["AH"]]}
    write_words(path, words)
    assert read_words(path) == words
    path.write_text("Read\tR EH1 D\nread\tR IY1 D\n")  # as dictionaries write it
    assert read_words(path) == {"read": words["read"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"read\tR EH D\nalone\n", "line 2: a word, a tab and a pronunciation are wanted; got 'alone'"),
        (b"read\t\n", r"line 1: a word, a tab and a pronunciation are wanted; got 'read\\t'"),
        (b"read\tR EH D\t \n", "line 1: a word, a tab and a pronunciation are wanted"),
        ("naïve\tN AY IY V\n".encode(), "line 1: a word is made of the letters a to z and apostrophes; got 'naïve'"),
        (b"\xd0\xff\n", r"words\.tsv is not UTF-8 text"),
    ],
)
def test_a_bad_file_of_words_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "words.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_words(tmp_path / "words.tsv")


def test_any_listed_pronunciation_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    said = {"ab": "xy", "ba": "xyz", "cd": ""}

    class Said:
        def __init__(self, tokens: str) -> None:
            self.tokens = list(tokens)

    def translate(words, **options):
        return [[Said(said["".join(word)])] for word in words]

    monkeypatch.setattr(model, "translate", translate)
    translator = Translator(model, Characters(), Words())
    references = {"ab": [["q"], ["x", "y"]], "ba": [["x", "y"], ["p", "q", "r", "s"]], "cd": [["x", "y"]]}
    found = evaluate(translator, references)
    assert (found.words, found.wrong_words, found.phonemes, found.wrong_phonemes) == (3, 2, 6, 3)
    with pytest.raises(ValueError, match="there are no words"):
        evaluate(translator, {})


@pytest.mark.parametrize(
    ("left", "right", "distance"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_edit_distance(left: str, right: str, distance: int) -> None:
    assert edit_distance(left, right) == edit_distance(right, left) == distance
