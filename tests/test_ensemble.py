"""Several models decide together: the mean of their probabilities, held against a plain search over it."""

from __future__ import annotations

import pytest
import torch
from plain_beam_search import plain_beam_search
from rnnsearch import RNNSearch, RNNSearchConfig, Vocabulary
from rnnsearch.ensemble import Ensemble
from small_model import SIZES, SOURCE, TARGET, make_model

WORDS = [list(word) for word in ("abc", "f", "abcde", "cab")]
ORDERS = pytest.mark.parametrize("attend_after", [False, True])


def other_model(
    *, attend_after: bool = False, dtype=torch.float64, source=SOURCE, target=TARGET, scale: float = 1.0
) -> RNNSearch:
    """Of other sizes than make_model's, and with the other GRU."""
    torch.manual_seed(1)
    sizes = {**SIZES, "hidden_size": 9}
    config = RNNSearchConfig(len(source), len(target), attend_after=attend_after, reset_after=True, **sizes)
    model = RNNSearch(config, source, target)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, scale)
    return model.to(dtype).eval()


@ORDERS
@torch.no_grad()
def test_beam_search_is_over_the_mean_of_the_probabilities(attend_after: bool) -> None:
    models = [make_model(scale=1.0), other_model(attend_after=attend_after)]
    ensemble = Ensemble(models)
    found = ensemble.translate(WORDS, beam_size=4, n_best=3, max_length=6, ban_ids=(3,))
    for word, hypotheses in zip(WORDS, found, strict=True):
        source = torch.tensor([SOURCE.encode(word)])

        def following(prefix: tuple[int, ...], source=source):
            target = torch.tensor([[1, *prefix]])
            probabilities = sum(model(source, None, target)[0, -1].softmax(-1) for model in models) / 2
            return probabilities.log().tolist(), [0.0]

        wanted = plain_beam_search(
            following,
            eos_id=2,
            beam_size=4,
            n_best=3,
            max_length=6,
            min_length=0,
            ban_ids=(0, 1, 3),
            ngram=0,
            real=0,
            penalties={"length_penalty": "none", "alpha": 0.6, "coverage_penalty": 0.0},
        )
        assert [entry.tokens for entry in hypotheses] == [TARGET.decode(entry.tokens) for entry in wanted]
        assert [entry.score for entry in hypotheses] == pytest.approx([entry.score for entry in wanted], abs=1e-5)
        assert [entry.finished for entry in hypotheses] == [entry.finished for entry in wanted]


def test_the_attention_is_the_mean_of_the_models() -> None:
    models = [make_model(scale=1.0), other_model()]
    found = Ensemble(models).translate(WORDS, beam_size=3, max_length=5)
    for word, (best, *_) in zip(WORDS, found, strict=True):
        source = torch.tensor([SOURCE.encode(word)])
        tokens = [1, *(TARGET.tokens.index(token) for token in best.tokens)][: len(best.token_scores)]
        parts = []
        for model in models:
            with torch.inference_mode():
                memory, state = model.encode(source)
                weights = []
                for token in tokens:
                    _, state, attention = model.step(torch.tensor([token]), state, memory, torch.tensor([0]))
                    assert attention is not None
                    weights.append(attention[0])
            parts.append(torch.stack(weights))
        torch.testing.assert_close(best.attn_weights.double(), sum(parts).double() / 2, rtol=1e-5, atol=1e-6)


def test_a_model_and_itself_are_the_model() -> None:
    model = make_model(scale=1.0)
    alone = model.translate(WORDS, beam_size=4, n_best=2)
    both = Ensemble([model, model]).translate(WORDS, beam_size=4, n_best=2)
    for left, right in zip(alone, both, strict=True):
        assert [entry.tokens for entry in left] == [entry.tokens for entry in right]
        assert [entry.score for entry in left] == pytest.approx([entry.score for entry in right], abs=1e-5)


@ORDERS
@pytest.mark.parametrize("search", ["beam", "sample"])
def test_a_text_has_the_same_translations_alone_and_in_any_batch(search: str, attend_after: bool) -> None:
    models = [make_model(dtype=torch.float32, scale=1.0), other_model(attend_after=attend_after, dtype=torch.float32)]
    ensemble = Ensemble(models)

    def translations(sources: list[list[str]], size: int) -> list:
        found = ensemble.translate(sources, search=search, n_best=2, batch_size=size, max_length=9)
        return [[entry.tokens for entry in hypotheses] for hypotheses in found]

    together = translations(WORDS, 4)
    assert translations(WORDS, 3) == together == [translations([word], 1)[0] for word in WORDS]


@ORDERS
@pytest.mark.parametrize("engine", ["fixed", "shrinking"])
def test_every_engine_searches_it(engine: str, attend_after: bool) -> None:
    ensemble = Ensemble([make_model(scale=1.0), other_model(attend_after=attend_after)])
    options = {"beam_size": 3, "n_best": 2, "coverage_penalty": 0.3, "no_repeat_ngram_size": 2}
    wanted = ensemble.translate(WORDS, **options)
    found = ensemble.translate(WORDS, engine=engine, **options)
    assert [[entry.tokens for entry in one] for one in found] == [[entry.tokens for entry in one] for one in wanted]


def test_models_of_different_vocabularies_are_refused_with_the_first_difference() -> None:
    more = Vocabulary([*TARGET.tokens, "more"])
    changed = Vocabulary([*SOURCE.tokens[:-1], "g"])
    with pytest.raises(ValueError, match="the same target vocabulary; number 1 and number 2 differ: 10 and 11 tokens"):
        Ensemble([make_model(), other_model(target=more)])
    with pytest.raises(ValueError, match=r"same source vocabulary; .* number 3 differ: token 9 is 'f' and 'g'"):
        Ensemble([make_model(), other_model(), other_model(source=changed)])
    with pytest.raises(ValueError, match="at least one model"):
        Ensemble([])
