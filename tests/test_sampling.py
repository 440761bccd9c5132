"""Samples are drawn from the model's distribution, and are a text's own."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from rnnsearch.data import pad
from rnnsearch.sampling import sample
from small_model import SOURCE, TARGET, make_model
from test_beam_search import BOS, EOS, Toy

ORDERS = pytest.mark.parametrize("attend_after", [False, True])
SENTENCES = [SOURCE.encode(word) for word in ("abc", "f", "abcdef", "cab")]


def draw(toy: Toy, *, step=None, seeds=None, **options):
    seeds = range(len(toy.lengths)) if seeds is None else seeds
    return sample(step or toy.step, toy.state(), toy.memory, bos_id=BOS, eos_id=EOS, seeds=list(seeds), **options)


@pytest.mark.parametrize("form", ["step", "topk_step"])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 3}, {"ban_ids": (3,), "top_k": 4}, {"min_length": 2}],
    ids=str,
)
def test_tokens_come_as_often_as_their_probability_says(form: str, options: dict) -> None:
    toy, count = Toy([3], vocabulary_size=6, seed=1), 20000
    limits = {"max_length": options.get("min_length", 1)}
    found = draw(toy, step=getattr(toy, form), n_best=count, **limits, **options)
    log_probs = torch.tensor(toy.following(0)(())[0]).double()
    log_probs[[*options.get("ban_ids", ()), *([EOS] if "min_length" in options else [])]] = -math.inf
    if options.get("top_k"):
        log_probs[log_probs < log_probs.sort(descending=True).values[options["top_k"] - 1]] = -math.inf
    wanted = (log_probs / options.get("temperature", 1.0)).softmax(0)
    counts = torch.bincount(found.tokens[0, :, 0], minlength=6)
    assert counts[wanted == 0].eq(0).all()
    # Five standard deviations of a count: under one in a million for each token.
    assert ((counts - count * wanted).abs() <= 5 * (count * wanted * (1 - wanted)).sqrt()).all()


def test_every_sample_has_its_own_scores_and_attention() -> None:
    toy = Toy([4, 2], vocabulary_size=5, seed=3)
    found = draw(toy, n_best=6, max_length=3, temperature=1.5, length_penalty="average")
    assert found.attn_weights is not None
    assert set(found.finished.flatten().tolist()) == {True, False}
    for sentence in range(2):
        for rank in range(6):
            length = int(found.lengths[sentence, rank])
            tokens = found.tokens[sentence, rank].tolist()
            scores = []
            for t in range(length):
                log_probs, weights = toy.following(sentence)(tuple(tokens[:t]))
                scores.append(log_probs[tokens[t]])
                assert found.attn_weights[sentence, rank, t].tolist() == weights
            assert found.token_scores[sentence, rank, :length].tolist() == scores
            assert float(found.scores[sentence, rank]) == pytest.approx(sum(scores) / length, rel=1e-5)
            ended = tokens[length - 1] == EOS
            assert bool(found.finished[sentence, rank]) == ended and (ended or length == 3)
            assert EOS not in tokens[: length - 1] and set(tokens[length:]) <= {EOS}
            assert found.token_scores[sentence, rank, length:].eq(0).all()
            assert found.attn_weights[sentence, rank, length:].eq(0).all()


def test_lengths_and_repeated_sequences_are_held_to() -> None:
    toy = Toy([4, 2], vocabulary_size=5, seed=4)
    found = draw(toy, n_best=30, max_length=9, min_length=5, no_repeat_ngram_size=2)
    for row, length in zip(found.tokens.view(-1, found.tokens.shape[2]).tolist(), found.lengths.view(-1), strict=True):
        assert 5 <= length <= 9
        pairs = Counter(itertools.pairwise(row[:length]))
        assert max(pairs.values()) == 1
    by_source = draw(toy, n_best=30, max_length_factor=4.5)
    assert by_source.lengths[0].max() <= 18 and by_source.lengths[1].max() <= 16


@ORDERS
def test_a_text_has_the_same_samples_alone_in_any_batch_and_at_any_place(attend_after: bool) -> None:
    model = make_model(attend_after=attend_after, dtype=torch.float32, scale=1.0)
    words = [list(word) for word in ("abc", "f", "abcde", "cab", "?", "abc")]
    options = {"search": "sample", "n_best": 4, "temperature": 1.5, "max_length": 8}

    def drawn(sources: list[list[str]], **changes) -> list:
        found = model.translate(sources, **{**options, **changes})
        return [[entry.tokens for entry in samples] for samples in found]

    together = drawn(words)
    assert [drawn([word])[0] for word in words] == together
    assert drawn(words[::-1], batch_size=2) == together[::-1]
    assert together[0] == together[5]
    assert len({tuple(tokens) for tokens in together[0]}) > 1  # samples of one text differ
    assert drawn(words, seed=2) != together
    assert [len(entry) for entry in drawn(words, n_best=2)] == [2] * 6


@ORDERS
@torch.no_grad()
def test_the_models_samples_carry_its_own_log_probabilities(attend_after: bool) -> None:
    model = make_model(attend_after=attend_after)
    source, lengths = pad(SENTENCES, 0)
    found = model.generate(source, lengths, search=sample, seeds=[5, 6, 7, 8], n_best=2, max_length=6, temperature=0.7)
    for row in range(len(SENTENCES)):
        for rank in range(2):
            length = int(found.lengths[row, rank])
            tokens = found.tokens[row, rank, :length]
            target = torch.cat([torch.tensor([1]), tokens[:-1]]).unsqueeze(0)
            wanted = model(torch.tensor([SENTENCES[row]]), None, target).log_softmax(-1)[0]
            torch.testing.assert_close(
                found.token_scores[row, rank, :length].double(), wanted.gather(1, tokens.unsqueeze(1)).squeeze(1),
                rtol=1e-5, atol=1e-6,
            )  # fmt: skip
            assert not {0, 1} & set(tokens.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be finite and above 0; got 0.0"),
        ({"top_k": -1}, "`top_k` must be at least 0; got -1"),
        ({"n_best": 0}, "`n_best` must be at least 1; got 0"),
        ({"max_length": 3, "min_length": 4}, "`max_length` must be at least 1 and `min_length` = 4; got 3"),
        ({"ban_ids": (EOS,)}, "no hypothesis could end"),
        ({"seeds": [1]}, "`seeds` must be one for each of 2 sentences; got 1"),
        ({"ban_ids": (0, 2, 3, 4), "min_length": 2}, "there is no token to draw in row 0"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        draw(Toy([3, 2], vocabulary_size=5, seed=0), **options)


def test_a_nan_is_an_error_and_no_sample() -> None:
    model = make_model()
    with torch.no_grad():
        model.output.bias[5] = torch.nan
    with pytest.raises(ValueError, match="`step` returned a NaN"):
        model.translate([["a"]], search="sample")
    assert TARGET.tokens[5] == "v"
