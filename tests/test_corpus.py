"""Text on disk: what is read, what is left out and named, how it becomes tokens and minibatches."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections import Counter
from pathlib import Path

import pytest
from rnnsearch import segmentation
from rnnsearch.checkpoint import CheckpointError
from rnnsearch.corpus import CorpusError, ParallelText, Skips, read_lines, read_pairs
from rnnsearch.data import Pair
from rnnsearch.segmentation import Characters, SentencePiece, Words, learn_vocabulary
from rnnsearch.stream import BatchStream, Minibatch, Position, cut_batches


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


def skips(said: list[str] | None = None, on_bad_line: str = "skip") -> Skips:
    return Skips(on_bad_line, (said if said is not None else []).append)


def test_the_three_formats_hold_the_same_pairs(tmp_path):
    pairs = [("ein  Haus", "a house"), ("zwei", "two\u2028")]  # U+2028 ends no line of a corpus
    plain = ParallelText(
        write(tmp_path / "a.de", *(left for left, _ in pairs)),
        write(tmp_path / "a.en", *(right for _, right in pairs)),
        skips(),
    )
    tabbed = ParallelText(write(tmp_path / "a.tsv", *("\t".join(pair) for pair in pairs)), None, skips())
    records = [json.dumps({"de": left, "en": right}) for left, right in pairs]
    jsonl = ParallelText(write(tmp_path / "a.jsonl", *records), None, skips(), keys=("de", "en"))
    assert list(plain) == list(tabbed) == list(jsonl) == pairs
    assert plain.digest == tabbed.digest == jsonl.digest


def test_no_other_pairs_have_the_same_digest(tmp_path):
    texts = [
        ["a\tbc", "d\te"],
        ["d\te", "a\tbc"],
        ["ab\tc", "d\te"],
        ["a\tbc"],
        ["a\tbcd", "d\te"],
        ["a\tbc", "", "d\te"],
    ]
    digests = [ParallelText(write(tmp_path / "a.tsv", *lines), None, skips()).digest for lines in texts]
    assert len(set(digests)) == 5 and digests[5] == digests[0]  # an empty line is no pair


def test_half_a_character_in_a_jsonl_file_is_left_out(tmp_path):
    path = write(tmp_path / "a.jsonl", r'{"source": "\ud800", "target": "x"}', '{"source": "a", "target": "x"}', "[]")
    said: list[str] = []
    assert list(ParallelText(path, None, skips(said))) == [("a", "x")]
    assert "line 1: not UTF-8" in said[0] and "line 3: not a JSON object" in said[1]


BAD = {
    "empty": (["a", " ", "c"], ["x", "y", "z"], r"a\.de, line 2: empty"),
    "empty target": (["a", "b", "c"], ["x", "", "z"], r"a\.en, line 2: empty"),
    "not UTF-8": (["a", b"\xff", "c"], ["x", "y", "z"], r"a\.de, line 2: not UTF-8"),
    "target not UTF-8": (["a", "b", "c"], ["x", b"\xff", "z"], r"a\.en, line 2: not UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_left_out_counted_and_named_or_an_error(tmp_path, case):
    source, target, message = BAD[case]
    files = write(tmp_path / "a.de", *source), write(tmp_path / "a.en", *target)
    said: list[str] = []
    found = skips(said)
    assert list(ParallelText(*files, found)) == [("a", "x"), ("c", "z")]
    assert sum(found.counts.values()) == 1
    with pytest.raises(CorpusError, match=message):
        ParallelText(*files, skips(on_bad_line="error"))
    assert len(said) == 1 and said[0].startswith(str(tmp_path)) and "line 2" in said[0]


def test_files_that_cannot_be_a_corpus_say_why(tmp_path):
    three, two = write(tmp_path / "a.de", "a", "b", "c"), write(tmp_path / "a.en", "x", "y")
    with pytest.raises(CorpusError, match=r"a\.de has 3 lines and .*a\.en has 2"):
        ParallelText(three, two, skips())
    with pytest.raises(CorpusError, match="none cannot be read"):
        ParallelText(tmp_path / "none", two, skips())
    with pytest.raises(CorpusError, match="one side only"):
        ParallelText(three, None, skips())
    with pytest.raises(CorpusError, match=r"a\.tsv has no pair"):
        ParallelText(write(tmp_path / "a.tsv", "no tab"), None, skips())


def test_words_below_the_minimum_count_or_past_the_size_are_unknown():
    words = Words()
    vocabulary = learn_vocabulary(words, ["b b  a", "c\ta b", "d <unk> a"], size=100, min_count=2)
    assert vocabulary.tokens[4:] == ("a", "b")  # equally frequent: alphabetical
    assert vocabulary.encode(words.split("a c b")) == [4, vocabulary.unk_id, 5, vocabulary.eos_id]
    assert len(learn_vocabulary(words, ["a b c d"], size=6, min_count=1)) == 6


def test_text_that_is_written_like_a_special_token_is_unknown():
    vocabulary = learn_vocabulary(Words(), ["a </s> b"], size=9, min_count=1)
    encoded = vocabulary.encode(["a", "<pad>", "<s>", "</s>", "<unk>", "b"])
    assert encoded == [4, *[vocabulary.unk_id] * 4, 5, vocabulary.eos_id]


def test_every_segmentation_is_saved_and_gives_the_text_back(tmp_path):
    texts = ["der hund läuft", "ein kleiner hund", "… die katze läuft ﬁn"] * 4
    pieces = SentencePiece.learn(texts, 60)
    segmentation.save(tmp_path, pieces, Characters())
    source, target = segmentation.load(tmp_path)
    for each in (source, target, Words()):
        assert [each.join(each.split(text)) for text in texts] == texts
    vocabulary = pieces.vocabulary()
    assert vocabulary.unk_id not in vocabulary.encode(source.split(texts[0]))
    (tmp_path / "source.spm.model").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        segmentation.load(tmp_path)


def test_one_sentencepiece_model_of_both_sides_is_stored_once(tmp_path):
    joint, other = (SentencePiece.learn(texts, 30) for texts in (["der hund läuft"] * 4, ["a small dog"] * 4))
    segmentation.save(tmp_path, joint, other)
    segmentation.save(tmp_path, joint, SentencePiece(joint.model))  # what lies there is not taken for the target's
    source, target = segmentation.load(tmp_path)
    assert source.model == target.model == joint.model
    (tmp_path / "target.spm.model").unlink()
    assert [side.model for side in segmentation.load(tmp_path)] == [joint.model] * 2
    segmentation.save(tmp_path, joint, other)
    assert [side.model for side in segmentation.load(tmp_path)] == [joint.model, other.model]


def test_a_directory_that_has_a_sentencepiece_model_for_each_side_loads_as_ever(tmp_path):
    """As it was written before one of both sides was stored once."""
    pieces = SentencePiece.learn(["der hund läuft"] * 4, 30)
    for side in ("source", "target"):
        (tmp_path / f"{side}.spm.model").write_bytes(pieces.model)
    described = {side: {"kind": "sentencepiece"} for side in ("source", "target")}
    (tmp_path / segmentation.FILE).write_text(json.dumps(described))
    assert [side.model for side in segmentation.load(tmp_path)] == [pieces.model] * 2


def stream(tmp_path: Path, seed: int = 1, **options) -> BatchStream:
    lines = ["x " * (1 + place * 7 % 13) + str(place) for place in range(50)]
    corpus = ParallelText(write(tmp_path / "s", *lines), write(tmp_path / "t", *lines), skips())

    def encode(source: str, target: str) -> Pair:
        return Pair([int(source.split()[-1])] * len(source.split()), [0] * len(target.split()))

    settings = {"size": 4, "tokens": 0, "sort": 3, "max_length": 100, "seed": seed, **options}
    return BatchStream(corpus, encode, **settings)


def take(stream: BatchStream, position: Position, count: int) -> list[Minibatch]:
    return [entry for entry, _ in zip(stream(position), range(count), strict=False)]


@pytest.mark.parametrize("tokens", [0, 30])
def test_a_stream_goes_on_from_any_position_with_the_same_minibatches(tmp_path, tokens):
    all = take(stream(tmp_path, tokens=tokens), Position(), 40)
    assert all[-1].position.epoch >= 1
    for place in range(39):
        assert take(stream(tmp_path, tokens=tokens), all[place].position, 1) == [all[place + 1]]


def test_every_epoch_holds_every_pair_once_in_an_order_of_its_own(tmp_path):
    orders: list[list[int]] = [[], []]
    for pairs, position, _ in take(stream(tmp_path), Position(), 26):
        orders[position.epoch] += [pair.source[0] for pair in pairs]
    assert Counter(orders[0]) == Counter(orders[1]) == Counter(range(50))
    assert orders[0] != orders[1]
    assert orders[0] != [
        pair.source[0] for batch in take(stream(tmp_path, seed=2), Position(), 13) for pair in batch.pairs
    ]


def test_an_epochs_last_minibatch_is_known_as_such_though_only_unusable_pairs_follow_it(tmp_path):
    short = stream(tmp_path, size=1, sort=1, max_length=6)  # groups of one pair, many of them too long
    entries = take(short, Position(), 80)
    ends = 0
    for (_, position, _), (_, following, _) in itertools.pairwise(entries):
        last = following.epoch > position.epoch
        ends += last
        assert (position == Position(position.epoch, 50, 0)) == last
        assert take(short, position, 1)[0].position == following
    assert ends >= 3


@pytest.mark.parametrize("options", [{}, {"size": 1, "sort": 1}])
def test_too_long_pairs_are_left_out_and_named_once_wherever_a_run_goes_on(tmp_path, options):
    short = stream(tmp_path, max_length=6, **options)
    all = take(short, Position(), 80)
    too_long = {f"{tmp_path / 's'}, line {place + 1}" for place in range(50) if 1 + place * 7 % 13 + 1 > 6}
    for stop in range(79):
        parts = [*all[: stop + 1], *take(short, all[stop].position, 79 - stop)]
        named = [where for batch in parts for where, why in batch.left_out]
        assert len(named) == len(too_long) and set(named) == too_long
    with pytest.raises(ValueError, match="at most 1 tokens"):
        take(stream(tmp_path, max_length=1), Position(), 1)


def test_token_budgets_hold_with_padding():
    pairs = [Pair([1] * (1 + place % 9), [1] * (1 + place % 5)) for place in range(60)]
    batches = cut_batches(pairs, 100, 24)
    assert sum(map(len, batches)) == 60
    for batch in batches:
        widest = max(max(len(pair.source), len(pair.target)) for pair in batch)
        assert widest * len(batch) <= 24


def test_a_pipe_is_read_as_the_file_that_it_hands_over(tmp_path):
    """Twice as much as a pipe holds by itself, so the writer waits for the reader."""
    lines = [f"{number} {'x' * 50}" for number in range(2500)]
    content = "".join(f"{line}\n" for line in lines).encode()
    pipes = []
    for name in ("source", "target"):
        os.mkfifo(tmp_path / name)
        pipes.append(threading.Thread(target=(tmp_path / name).write_bytes, args=(content,)))
        pipes[-1].start()
    assert read_pairs(tmp_path / "source", tmp_path / "target") == [(line, line) for line in lines]
    for pipe in pipes:
        pipe.join()


def test_the_lines_that_are_asked_for_are_read_and_no_others(tmp_path):
    path = write(tmp_path / "a.tsv", "a\tx", b"\xff", "c\tz", "")
    assert read_pairs(path, None, lines=range(2, 3)) == [("c", "z")]
    assert read_lines(path, lines=range(2, 4)) == ["c\tz", ""]
    for read in (lambda lines: read_pairs(path, None, lines=lines), lambda lines: read_lines(path, lines=lines)):
        with pytest.raises(CorpusError, match=r"a\.tsv, line 2: not UTF-8"):
            read(range(2))
        with pytest.raises(CorpusError, match=r"a\.tsv has 4 lines; line 9 is asked for"):
            read(range(2, 9))
    with pytest.raises(CorpusError, match=r"a\.tsv, line 4: empty"):
        read_lines(path, lines=range(2, 4), empty=False)
    with pytest.raises(CorpusError, match=r"void is empty"):
        read_lines(write(tmp_path / "void"))
