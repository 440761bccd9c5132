"""Beam search against brute force and against a plain search in Python lists."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import NamedTuple

import pytest
import torch
from plain_beam_search import Plain, brute_force, plain_beam_search
from rnnsearch.beam_search import SHORTEST_MAX_LENGTH, BeamSearchOutput, beam_search
from torch import Tensor

BOS, EOS = 0, 1


@pytest.fixture(autouse=True, params=["shrinking", "fixed"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of this file runs on both engines; those of what only one does leave the other out."""
    only = request.node.get_closest_marker("only")
    if only is not None and request.param not in only.args:
        pytest.skip(f"of {only.args[0]} alone")
    monkeypatch.setitem(globals(), "beam_search", partial(beam_search, engine=request.param))
    return request.param


class Memory(NamedTuple):
    memory: Tensor
    key_padding_mask: Tensor | None


class Toy:
    """A decoder whose log-probabilities are read from a table by sentence and prefix: the same numbers for the
    plain search as for the batched one, alone or in any batch."""

    states = 1009

    def __init__(self, lengths: list[int], vocabulary_size: int, seed: int, *, sharpness: float = 1.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        count, longest = len(lengths), max(lengths)
        self.lengths, self.vocabulary_size = lengths, vocabulary_size
        logits = sharpness * torch.randn(count, self.states, vocabulary_size, generator=generator)
        self.log_probs = logits.log_softmax(-1)
        mask = torch.arange(longest) >= torch.tensor(lengths).unsqueeze(1)
        scores = 2 * torch.randn(count, self.states, longest, generator=generator)
        self.attn_weights = scores.masked_fill(mask.unsqueeze(1), -math.inf).softmax(-1)
        self.memory = Memory(torch.zeros(count, longest, 1), mask if mask.any() else None)
        self.rows: list[int] = []

    def state(self) -> Tensor:
        return torch.full((len(self.lengths),), 7, dtype=torch.int64)

    def step(self, tokens: Tensor, state: Tensor, memory: Memory, memory_index: Tensor) -> tuple:
        assert memory is self.memory  # neither tiled nor reordered
        self.rows.append(len(tokens))
        state = (state * 31 + tokens + 1) % self.states
        return self.log_probs[memory_index, state], state, self.attn_weights[memory_index, state]

    def topk_step(self, tokens: Tensor, state: Tensor, memory: Memory, memory_index: Tensor) -> tuple:
        log_probs, state, attn_weights = self.step(tokens, state, memory, memory_index)

        def topk(k: int, banned_ids: Tensor | None) -> tuple[Tensor, Tensor]:
            kept = log_probs.clone()
            for row, banned in enumerate([] if banned_ids is None else banned_ids.tolist()):
                kept[row, [id for id in banned if 0 <= id < self.vocabulary_size]] = -math.inf
            return kept.topk(min(k, self.vocabulary_size))

        return topk, state, attn_weights

    def following(self, sentence: int):
        def following(prefix: tuple[int, ...]) -> tuple[list[float], list[float]]:
            state = 7
            for token in (BOS, *prefix):
                state = (state * 31 + token + 1) % self.states
            return self.log_probs[sentence, state].tolist(), self.attn_weights[sentence, state].tolist()

        return following

    def search(self, **options) -> BeamSearchOutput:
        return beam_search(self.step, self.state(), self.memory, bos_id=BOS, eos_id=EOS, **options)


def assert_same(found: BeamSearchOutput, sentence: int, wanted: list[Plain]) -> None:
    assert int((found.lengths[sentence] > 0).sum()) == len(wanted)
    for rank, hypothesis in enumerate(wanted):
        length = int(found.lengths[sentence, rank])
        assert tuple(found.tokens[sentence, rank, :length].tolist()) == hypothesis.tokens
        assert bool(found.finished[sentence, rank]) == hypothesis.finished
        assert float(found.scores[sentence, rank]) == pytest.approx(hypothesis.score, rel=1e-5, abs=1e-5)
        token_scores = found.token_scores[sentence, rank]
        assert token_scores[:length].tolist() == pytest.approx(hypothesis.token_scores, abs=1e-6)
        assert token_scores[length:].eq(0).all()
        assert found.tokens[sentence, rank, length:].eq(EOS).all()
        if found.attn_weights is not None:
            attn_weights = found.attn_weights[sentence, rank]
            torch.testing.assert_close(attn_weights[:length], torch.tensor(hypothesis.attn_weights), rtol=0, atol=0)
            assert attn_weights[length:].eq(0).all()


PENALTIES = [
    {"length_penalty": "none", "alpha": 0.6, "coverage_penalty": 0.0},
    {"length_penalty": "average", "alpha": 0.6, "coverage_penalty": 0.0},
    {"length_penalty": "wu", "alpha": 1.3, "coverage_penalty": 0.0},
    {"length_penalty": "wu", "alpha": 0.0, "coverage_penalty": 0.4},
    {"length_penalty": "average", "alpha": 0.6, "coverage_penalty": 0.2},
]


@pytest.mark.parametrize("penalties", PENALTIES, ids=lambda value: "-".join(map(str, value.values())))
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_that_holds_everything_equals_brute_force(penalties: dict, seed: int) -> None:
    toy = Toy([4, 2], vocabulary_size=4, seed=seed)
    found = toy.search(beam_size=81, n_best=9, max_length=5, **penalties)
    for sentence, real in enumerate(toy.lengths):
        wanted = brute_force(
            toy.following(sentence),
            vocabulary_size=4,
            eos_id=EOS,
            n_best=9,
            max_length=5,
            real=real,
            penalties=penalties,
        )
        assert_same(found, sentence, wanted)


@pytest.mark.parametrize("seed", range(120))
def test_equals_a_plain_search_under_every_option(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 6) for _ in range(draw.randint(1, 5))]
    vocabulary_size = draw.choice([3, 4, 6, 9])
    beam_size = draw.randint(1, 6)
    n_best = draw.randint(1, beam_size)
    max_length = draw.choice([None, 1, 2, 5, 9])
    factor = draw.choice([0.5, 3.0, 4.5])
    min_length = draw.randint(0, min(max_length or 6, 6))
    ban_ids = draw.choice([(), (2,), (0, 2)])
    ngram = draw.choice([0, 0, 1, 2, 3])
    penalties = {
        "length_penalty": draw.choice(["none", "average", "wu"]),
        "alpha": draw.choice([0.0, 0.6, 1.0, 2.0]),
        "coverage_penalty": draw.choice([0.0, 0.0, 0.3]),
    }
    toy = Toy(lengths, vocabulary_size, seed, sharpness=draw.choice([0.5, 1.5, 4.0]))
    found = beam_search(
        draw.choice([toy.step, toy.topk_step]),
        toy.state(),
        toy.memory,
        bos_id=BOS,
        eos_id=EOS,
        beam_size=beam_size,
        n_best=n_best,
        max_length=max_length,
        max_length_factor=factor,
        min_length=min_length,
        ban_ids=ban_ids,
        no_repeat_ngram_size=ngram,
        return_attn=draw.random() < 0.8,
        **penalties,
    )
    for sentence, real in enumerate(lengths):
        wanted = plain_beam_search(
            toy.following(sentence),
            eos_id=EOS,
            beam_size=beam_size,
            n_best=n_best,
            max_length=max_length or max(math.ceil(factor * real), SHORTEST_MAX_LENGTH, min_length),
            min_length=min_length,
            ban_ids=ban_ids,
            ngram=ngram,
            real=real,
            penalties=penalties,
        )
        assert_same(found, sentence, wanted)


def test_a_sentence_gets_the_same_tokens_alone_and_in_any_batch() -> None:
    toy = Toy([3, 6, 1, 5, 6, 2], vocabulary_size=12, seed=3)
    options = {"beam_size": 4, "n_best": 3, "length_penalty": "average", "coverage_penalty": 0.1}
    together = toy.search(**options)
    for sentence, real in enumerate(toy.lengths):
        alone = Toy([real], vocabulary_size=12, seed=0)
        alone.log_probs = toy.log_probs[sentence : sentence + 1]
        alone.attn_weights = toy.attn_weights[sentence : sentence + 1, :, :real]  # without the padding of the batch
        found = alone.search(**options)
        length = found.tokens.shape[2]
        assert torch.equal(found.lengths[0], together.lengths[sentence])
        assert torch.equal(found.tokens[0], together.tokens[sentence, :, :length])
        torch.testing.assert_close(found.scores[0], together.scores[sentence], rtol=1e-6, atol=1e-6)


def test_every_hypothesis_carries_its_alignment_and_token_scores() -> None:
    toy = Toy([5, 3], vocabulary_size=8, seed=5)
    found = toy.search(beam_size=5, n_best=5)
    assert found.attn_weights is not None
    real = torch.arange(found.tokens.shape[2]) < found.lengths.unsqueeze(-1)
    torch.testing.assert_close(found.attn_weights.sum(-1), real.float())
    assert found.attn_weights[1, :, :, 3:].eq(0).all()  # padding
    torch.testing.assert_close(found.token_scores.sum(-1), found.scores)
    assert toy.search(return_attn=False).attn_weights is None


def test_lengths_count_the_end_of_sentence() -> None:
    toy = Toy([3], vocabulary_size=5, seed=1)
    found = toy.search(beam_size=3, min_length=4, max_length=8)
    length = int(found.lengths[0, 0])
    assert length >= 4
    assert found.finished[0, 0] and found.tokens[0, 0, length - 1] == EOS
    assert (found.tokens[0, 0, : length - 1] != EOS).all()


@pytest.mark.only("shrinking")
def test_stops_when_nothing_can_win_and_not_before() -> None:
    def search(second_step: list[float]) -> tuple[BeamSearchOutput, int]:
        calls = 0

        def step(tokens: Tensor, state: Tensor, memory: None, memory_index: Tensor) -> tuple:
            nonlocal calls
            calls += 1
            row = [0.5, 0.4, 0.1] if calls == 1 else second_step
            return torch.tensor([row] * len(tokens)).log(), state, None

        found = beam_search(
            step, torch.zeros(1), None, bos_id=0, eos_id=1, beam_size=2, max_length=9, return_attn=False
        )
        return found, calls

    # An end at 0.4 while 0.5 is still alive: the search must go on, and finds 0.5 * 0.9 = 0.45.
    found, calls = search([0.05, 0.9, 0.05])
    assert found.tokens[0, 0].tolist() == [0, 1] and calls == 2
    # Now nothing that lives after the second step can reach 0.4 any more: it stops at once.
    found, calls = search([0.4, 0.2, 0.4])
    assert found.tokens[0, 0].tolist() == [1] and calls == 2


@pytest.mark.only("shrinking")
def test_a_settled_sentence_leaves_the_batch() -> None:
    toy = Toy([4, 4], vocabulary_size=6, seed=2, sharpness=0.1)
    toy.log_probs[0] = torch.tensor([-9.0, -1e-4, -9.0, -9.0, -9.0, -9.0])  # ends at once
    toy.search(beam_size=3, max_length=6)
    assert toy.rows[0] == 2 and toy.rows[1:] == [3] * (len(toy.rows) - 1) and len(toy.rows) > 2


def test_a_banned_unknown_token_never_fills_the_beam() -> None:
    toy = Toy([4], vocabulary_size=5, seed=4)
    toy.log_probs[..., 2] = -0.01  # the unknown token is all that the model wants
    assert (toy.search(beam_size=3, n_best=3, max_length=6).tokens == 2).any()
    assert not (toy.search(beam_size=3, n_best=3, max_length=6, ban_ids=(2,)).tokens == 2).any()


@pytest.mark.parametrize("step", ["step", "topk_step"])
def test_a_ban_of_what_is_no_token_bans_nothing(step: str) -> None:
    toy = Toy([4], vocabulary_size=5, seed=4)
    found = [
        beam_search(getattr(toy, step), toy.state(), toy.memory, bos_id=BOS, eos_id=EOS, beam_size=3, ban_ids=ban_ids)
        for ban_ids in ((2,), (2, -1, 5, 999))
    ]
    assert torch.equal(found[0].tokens, found[1].tokens) and torch.equal(found[0].scores, found[1].scores)


def test_a_search_inside_a_step_disturbs_nothing() -> None:
    """No state but what is passed: searches may be nested, and run at the same time."""
    toy, other = Toy([4, 2], vocabulary_size=6, seed=1), Toy([3], vocabulary_size=7, seed=2)
    inner = []

    def step(*arguments) -> tuple:
        inner.append(other.search(beam_size=3).tokens)
        return toy.step(*arguments)

    options = {"bos_id": BOS, "eos_id": EOS, "beam_size": 4, "n_best": 2, "no_repeat_ngram_size": 2}
    found = beam_search(step, toy.state(), toy.memory, **options)
    assert torch.equal(found.tokens, toy.search(beam_size=4, n_best=2, no_repeat_ngram_size=2).tokens)
    assert all(torch.equal(tokens, other.search(beam_size=3).tokens) for tokens in inner)


def test_a_hypothesis_cut_at_max_length_says_so_and_stands_last() -> None:
    toy = Toy([2], vocabulary_size=5, seed=6)
    toy.log_probs[..., EOS] = -30.0
    found = toy.search(beam_size=2, n_best=2, max_length=3)
    assert not found.finished.any() and found.lengths.tolist() == [[3, 3]]
    assert (found.tokens != EOS).all()


def test_missing_hypotheses_have_length_zero() -> None:
    toy = Toy([2], vocabulary_size=3, seed=6)
    found = toy.search(beam_size=4, n_best=4, max_length=3, ban_ids=(0, 2))
    assert found.lengths.tolist() == [[1, 0, 0, 0]]
    assert found.scores[0, 1:].eq(-math.inf).all()
    nothing = toy.search(beam_size=2, n_best=2, min_length=2, max_length=3, ban_ids=(0, 2))
    assert nothing.lengths.eq(0).all() and nothing.scores.eq(-math.inf).all() and not nothing.finished.any()
    assert nothing.attn_weights is not None and nothing.attn_weights.shape == (1, 2, 0, 2)


def test_a_nested_state_is_reordered_with_its_rows() -> None:
    toy = Toy([3, 3], vocabulary_size=7, seed=8)

    def step(tokens: Tensor, state: tuple, memory: Memory, memory_index: Tensor) -> tuple:
        number, (doubled,) = state
        assert torch.equal(doubled[:, 0], 2 * number)
        log_probs, number, attn_weights = toy.step(tokens, number, memory, memory_index)
        return log_probs, (number, (2 * number.unsqueeze(1),)), attn_weights

    state = toy.state()
    found = beam_search(step, (state, (2 * state.unsqueeze(1),)), toy.memory, bos_id=BOS, eos_id=EOS, beam_size=4)
    assert torch.equal(found.tokens, toy.search(beam_size=4).tokens)


def test_its_tokens_can_be_trained_on() -> None:
    toy = Toy([3], vocabulary_size=7, seed=8)
    tokens = toy.search(beam_size=2).tokens
    weight = torch.zeros(7, 2, requires_grad=True)
    torch.nn.functional.embedding(tokens, weight).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "`beam_size` must be at least 1; got 0"),
        ({"n_best": 0}, "`n_best` must be at least 1; got 0"),
        ({"n_best": 5, "beam_size": 4}, "`n_best` must be at most `beam_size` = 4; got 5"),
        ({"max_length": 0}, "`max_length` must be at least 1"),
        ({"max_length": 3, "min_length": 4}, "`max_length` must be at least 1 and `min_length` = 4; got 3"),
        ({"min_length": -1}, "`min_length` must be at least 0; got -1"),
        ({"max_length_factor": 0.0}, "`max_length_factor` must be finite and above 0; got 0.0"),
        ({"length_penalty": "google"}, r"`length_penalty` must be one of \('none', 'average', 'wu'\); got 'google'"),
        ({"alpha": -0.1}, "`alpha` must be finite and at least 0; got -0.1"),
        ({"coverage_penalty": math.nan}, "`coverage_penalty` must be finite and at least 0; got nan"),
        ({"engine": "fast"}, r"`engine` must be one of \('auto', 'shrinking', 'fixed', 'graph'\); got 'fast'"),
        ({"engine": "graph"}, "`engine` 'graph' needs a CUDA device; `state` is on cpu"),
        ({"no_repeat_ngram_size": -2}, "`no_repeat_ngram_size` must be at least 0; got -2"),
        ({"ban_ids": (3, EOS)}, r"`ban_ids` holds `eos_id` \(1\)"),
    ],
)
def test_a_bad_option_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Toy([3], vocabulary_size=5, seed=0).search(**options)


@pytest.mark.only("shrinking")
def test_a_bad_step_is_named() -> None:
    toy = Toy([3, 2], vocabulary_size=5, seed=0)

    def search(change, **options):
        def step(*arguments):
            return change(*toy.step(*arguments))

        return beam_search(step, toy.state(), toy.memory, bos_id=BOS, eos_id=EOS, **options)

    with pytest.raises(ValueError, match=r"`log_probs` of `step` must be \(N, V\) = \(2, V\); got \(1, 5\)"):
        search(lambda log_probs, state, attn: (log_probs[:1], state, attn))
    with pytest.raises(ValueError, match=r"`topk` of `step` must return .* \(N, k\) = \(2, 13\); got \(2,\) and"):
        search(lambda log_probs, state, attn: (lambda k, banned: log_probs.max(1), state, attn))
    with pytest.raises(ValueError, match="`step` returned no attn_weights"):
        search(lambda log_probs, state, attn: (log_probs, state, None))
    with pytest.raises(ValueError, match="`step` returned a NaN log-probability for sentence 0"):
        search(lambda log_probs, state, attn: (log_probs.index_fill(1, torch.tensor([4]), math.nan), state, attn))
    with pytest.raises(ValueError, match=r"`attn_weights` of `step` must be \(N, S\) = \(2, S\); got \(1, 3\)"):
        search(lambda log_probs, state, attn: (log_probs, state, attn[:1]))
    with pytest.raises(ValueError, match=r"`state` of `step` must have N = 2 rows; got \(1,\)"):
        search(lambda log_probs, state, attn: (log_probs, state[:1], attn))
    with pytest.raises(ValueError, match=r"the memory is of 2 sentences and `state` of 3"):
        beam_search(toy.step, torch.zeros(3), toy.memory, bos_id=BOS, eos_id=EOS)
    with pytest.raises(ValueError, match=r"read from `memory\.memory`"):
        beam_search(toy.step, toy.state(), None, bos_id=BOS, eos_id=EOS)
    with pytest.raises(ValueError, match="`state` has no rows"):
        beam_search(toy.step, torch.zeros(0), None, bos_id=BOS, eos_id=EOS, max_length=3)
    with pytest.raises(ValueError, match="`state` must be a tensor or a non-empty tuple"):
        beam_search(toy.step, None, None, bos_id=BOS, eos_id=EOS, max_length=3)
