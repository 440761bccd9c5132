"""Training: the loss by hand, batches, optimizers, interruption; and the pronunciation task's data."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rnnsearch import RNNSearch, RNNSearchConfig, Vocabulary
from rnnsearch.data import Pair, batches, collate, encode_pairs, pad
from rnnsearch.loss import sequence_loss
from rnnsearch.pronunciation import (
    MODEL_DIRECTORY,
    clean,
    edit_distance,
    evaluate,
    examples,
    read_words,
    some,
    split,
    split_of,
    write_words,
)
from rnnsearch.training import EpochReport, TrainingOptions, dev_loss, make_optimizer, rate_factor, train

LETTERS = Vocabulary(["<pad>", "<s>", "</s>", "<unk>", *"abcd"])


def reversals(count: int, seed: int) -> list[Pair]:
    """Words of two to four letters and the same backwards."""
    generator = torch.Generator().manual_seed(seed)
    words = []
    for _ in range(count):
        length = int(torch.randint(2, 5, (), generator=generator))
        words.append("".join("abcd"[i] for i in torch.randint(0, 4, (length,), generator=generator)))
    return encode_pairs([(word, word[::-1]) for word in words], LETTERS, LETTERS)


def small_model(seed: int = 0, dropout: float = 0.0) -> RNNSearch:
    torch.manual_seed(seed)
    config = RNNSearchConfig(
        len(LETTERS),
        len(LETTERS),
        embedding_size=16,
        encoder_size=32,
        hidden_size=32,
        attention_size=16,
        readout_size=16,
        embedding_dropout=dropout,
        memory_dropout=dropout,
        state_dropout=dropout,
        readout_dropout=dropout,
    )
    model = RNNSearch(config, LETTERS, LETTERS)
    model.reset_parameters("xavier")
    return model


def test_the_loss_equals_hand_arithmetic_over_real_tokens_only() -> None:
    # Two sentences of 2 and 1 tokens over 3 words; 0 is padding. exp(logits) are the weights below.
    weights = torch.tensor([[[1.0, 2.0, 5.0], [2.0, 1.0, 1.0]], [[1.0, 8.0, 1.0], [9.0, 90.0, 1.0]]])
    target = torch.tensor([[2, 1], [1, 0]])
    by_hand = -(math.log(5 / 8) + math.log(1 / 4) + math.log(8 / 10)) / 3
    assert float(sequence_loss(weights.log(), target, 0)) == pytest.approx(by_hand, rel=1e-6)
    uniform = -(
        (math.log(1 / 8) + math.log(2 / 8) + math.log(5 / 8))
        + (math.log(2 / 4) + math.log(1 / 4) + math.log(1 / 4))
        + (math.log(1 / 10) + math.log(8 / 10) + math.log(1 / 10))
    ) / (3 * 3)
    smoothed = float(sequence_loss(weights.log(), target, 0, 0.3))
    assert smoothed == pytest.approx(0.7 * by_hand + 0.3 * uniform, rel=1e-6)


def test_the_loss_takes_logits_and_normalises_them_once() -> None:
    logits, target = torch.randn(2, 3, 5), torch.tensor([[1, 2, 3], [4, 1, 2]])
    shifted = logits + 7.0  # a shift cancels in one softmax
    torch.testing.assert_close(sequence_loss(logits, target, 0), sequence_loss(shifted, target, 0))
    log_probs = logits.log_softmax(-1).gather(2, target.unsqueeze(2))
    torch.testing.assert_close(sequence_loss(logits, target, 0), -log_probs.mean())


def test_padding_does_not_change_the_dev_loss() -> None:
    model, pairs = small_model(), reversals(40, seed=3)
    torch.testing.assert_close(dev_loss(model, pairs, 40), dev_loss(model, pairs, 1), rtol=1e-5, atol=1e-6)


def test_the_dev_loss_is_without_dropout() -> None:
    model, pairs = small_model(dropout=0.5).train(), reversals(20, seed=3)
    assert dev_loss(model, pairs, 20) == dev_loss(model, pairs, 20) == dev_loss(small_model(), pairs, 20)
    assert model.training


def test_adadelta_is_the_papers() -> None:
    model = small_model()
    optimizer = make_optimizer(model, TrainingOptions(optimizer="adadelta"))
    weight = model.output.bias
    before, gradient = weight.detach().clone(), torch.linspace(-1, 1, len(weight))
    weight.grad = gradient.clone()
    optimizer.step()
    # Zeiler 2012, algorithm 1, from zero accumulators; rho 0.95, eps 1e-6.
    step = -math.sqrt(1e-6) / (0.05 * gradient.square() + 1e-6).sqrt() * gradient
    torch.testing.assert_close(weight.detach(), before + step)


def test_the_learning_rate_rises_and_falls() -> None:
    options = TrainingOptions(warmup_steps=9)
    factors = [rate_factor(step, 100, options) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(0.98, abs=0.01)
    assert factors[-1] < 0.001 and factors[20:] == sorted(factors[20:], reverse=True)
    assert rate_factor(50, 100, TrainingOptions(decay=False)) == 1.0
    assert rate_factor(50, 100, TrainingOptions(optimizer="adadelta")) == 1.0


def test_batches_hold_every_pair_once_and_little_padding() -> None:
    pairs = [Pair([*range(4, 4 + length), 2], [4, 2]) for length in range(1, 41) for _ in range(5)]
    drawn = list(batches(pairs, 8, generator=torch.Generator().manual_seed(0)))
    assert sorted(id(pair) for batch in drawn for pair in batch) == sorted(map(id, pairs))
    assert max(len(batch) for batch in drawn) == 8
    spread = [max(len(p.source) for p in batch) - min(len(p.source) for p in batch) for batch in drawn]
    assert sum(spread) / len(spread) < 3  # unsorted: about 32
    again = list(batches(pairs, 8, generator=torch.Generator().manual_seed(0)))
    other = list(batches(pairs, 8, generator=torch.Generator().manual_seed(1)))
    assert drawn == again and drawn != other


def test_collate_shifts_the_target() -> None:
    batch = collate([Pair([4, 5, 2], [6, 7, 2]), Pair([4, 2], [5, 2])], pad_id=0, bos_id=1)
    assert batch.source.tolist() == [[4, 5, 2], [4, 2, 0]]
    assert batch.source_lengths is not None and batch.source_lengths.tolist() == [3, 2]
    assert batch.target_input.tolist() == [[1, 6, 7], [1, 5, 0]]
    assert batch.target.tolist() == [[6, 7, 2], [5, 2, 0]]
    assert batch.tokens == 5
    assert collate([Pair([4, 2], [5, 2])], pad_id=0, bos_id=1).source_lengths is None
    with pytest.raises(ValueError, match="none may be empty"):
        pad([[1], []], 0)


OPTIONS = TrainingOptions(epochs=2, batch_size=16, learning_rate=5e-3, clip_norm=1.0)


def test_training_learns_and_is_decided_by_its_seed(tmp_path: Path) -> None:
    def run(seed: int, epochs: int) -> tuple[RNNSearch, list[EpochReport]]:
        model = small_model(dropout=0.1)
        torch.seed()  # whatever was drawn before
        options = TrainingOptions(epochs=epochs, batch_size=32, learning_rate=1e-2, seed=seed)
        return model, train(model, reversals(800, 1), reversals(60, 2), options, save=lambda model: None)

    model, reports = run(1, 5)
    assert reports[-1].dev_loss < 0.2 < 0.6 < reports[0].dev_loss
    assert [entry.tokens for entry in model.translate(["abcd"], beam_size=3)[0]] == [list("dcba")]
    first, second, third = (run(seed, 1) for seed in (7, 7, 8))
    assert first[1][0].dev_loss == second[1][0].dev_loss != third[1][0].dev_loss
    for left, right in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(left, right)


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    original = torch.optim.Adam.step

    def step(self, *arguments, **options):
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    options = TrainingOptions(epochs=1, batch_size=8, clip_norm=0.01)
    train(small_model(), reversals(40, 1), reversals(8, 2), options, save=lambda model: None)
    assert len(norms) == 5 and all(norm <= 0.01 + 1e-6 for norm in norms)


def test_only_the_best_model_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0, 0.5, 0.5])
    monkeypatch.setattr("rnnsearch.training.dev_loss", lambda *arguments: next(losses))
    saved: list[int] = []
    seen: list[EpochReport] = []
    reports = train(
        small_model(),
        reversals(16, 1),
        reversals(8, 2),
        TrainingOptions(epochs=5, batch_size=8),
        save=lambda model: saved.append(len(seen) + 1),
        on_epoch=seen.append,
    )
    assert saved == [1, 2, 4] == [report.epoch for report in reports if report.best]
    assert seen == reports


@pytest.mark.parametrize("during", ["save", "epoch"])
def test_ctrl_c_leaves_the_best_model_whole(tmp_path: Path, during: str) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def save(model: RNNSearch) -> None:
        if during == "save":
            interrupt()
        model.save_pretrained(tmp_path)

    def on_epoch(report: EpochReport) -> None:
        if during == "epoch":
            interrupt()

    handler = signal.getsignal(signal.SIGINT)
    model = small_model()
    reports = train(model, reversals(40, 1), reversals(8, 2), OPTIONS, save=save, on_epoch=on_epoch)
    assert len(reports) == 1  # of two
    assert signal.getsignal(signal.SIGINT) is handler
    loaded = RNNSearch.from_pretrained(tmp_path)
    assert dev_loss(loaded, reversals(8, 2), 8) == pytest.approx(reports[0].dev_loss)


@pytest.fixture
def sigint_raises() -> Iterator[None]:
    """As in a terminal; a job in a shell's background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_raises")
def test_ctrl_c_ends_the_run_after_the_minibatch_and_a_second_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    original = torch.optim.Adam.step

    def step(self, *arguments, **options):
        steps.append(len(steps))
        if len(steps) == 4:  # the first of the second epoch's three
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    reports = train(small_model(), reversals(40, 1), reversals(8, 2), OPTIONS, save=lambda model: None)
    assert len(reports) == 1 and len(steps) == 4

    def twice(report: EpochReport) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(small_model(), reversals(40, 1), reversals(8, 2), OPTIONS, save=lambda model: None, on_epoch=twice)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = small_model()
    with torch.no_grad():
        model.output.bias.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        train(model, reversals(8, 1), reversals(8, 2), OPTIONS, save=lambda model: None)


def test_progress_shows_loss_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    train(small_model(), reversals(40, 1), reversals(8, 2), OPTIONS, save=lambda model: None, progress=True)
    shown = capsys.readouterr().err
    assert "loss" in shown and "tokens/s" in shown and "6/6" in shown and "<00:00" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, r"`optimizer` must be one of \('adam', 'adadelta'\); got 'sgd'"),
        ({"epochs": 0}, "`epochs` must be at least 1; got 0"),
        ({"clip_norm": 0.0}, r"`clip_norm` must be above 0; got 0\.0"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be at least 0 and below 1; got 1\.0"),
    ],
)
def test_a_bad_training_option_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**changes)
    with pytest.raises(ValueError, match="got 0 and 8"):
        train(small_model(), [], reversals(8, 2), OPTIONS, save=lambda model: None)


# The pronunciation task.

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
    assert (list("read"), ["R", "IY", "D"]) in examples(clean(ENTRIES))


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
    assert evaluate(RNNSearch.from_pretrained(MODEL_DIRECTORY), words).word_error <= 0.30


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
    model = small_model()
    said = {"ab": "xy", "ba": "xyz", "cd": ""}

    class Said:
        def __init__(self, tokens: str) -> None:
            self.tokens = list(tokens)

    def translate(words, **options):
        return [[Said(said["".join(word)])] for word in words]

    monkeypatch.setattr(model, "translate", translate)
    references = {"ab": [["q"], ["x", "y"]], "ba": [["x", "y"], ["p", "q", "r", "s"]], "cd": [["x", "y"]]}
    found = evaluate(model, references)
    assert (found.words, found.wrong_words, found.phonemes, found.wrong_phonemes) == (3, 2, 6, 3)
    with pytest.raises(ValueError, match="there are no words"):
        evaluate(model, {})


@pytest.mark.parametrize(
    ("left", "right", "distance"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_edit_distance(left: str, right: str, distance: int) -> None:
    assert edit_distance(left, right) == edit_distance(right, left) == distance
