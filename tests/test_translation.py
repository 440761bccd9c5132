"""A text is translated to the same bits alone and in any batch, by one model or several, by search or at random."""

from __future__ import annotations

import pytest
import torch
from rnnsearch.ensemble import Ensemble
from rnnsearch.translation import TranslationModel
from small_model import make_model
from test_ensemble import ORDERS, other_model

from rnnsearch_kernels import native

# Their lengths with the end lie on both sides of M / 2 = 6, up to which gates are prepared.
WORDS = [list(word) for word in ("abc", "f", "abcdefabc", "cab", "abcde", "?", "fedcbafe", "abcdef")]


@pytest.mark.skipif(native.extension() is None, reason="the reference leaves its products to the library")
@ORDERS
@pytest.mark.parametrize("search", ["beam", "sample"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_text_is_the_same_bits_alone_and_in_any_batch(count: int, search: str, attend_after: bool) -> None:
    models = [make_model(attend_after=attend_after, dtype=torch.float32, scale=1.0), other_model(dtype=torch.float32)]
    model: TranslationModel = models[0] if count == 1 else Ensemble(models)

    def translations(sources: list[list[str]], size: int) -> list:
        found = model.translate(sources, search=search, n_best=2, batch_size=size, max_length=9)
        return [
            [(entry.tokens, entry.score, entry.token_scores, entry.attn_weights.tolist()) for entry in one]
            for one in found
        ]

    alone = [translations([word], 1)[0] for word in WORDS]
    for size in (2, 3, 8):
        assert translations(WORDS, size) == alone
        assert translations(WORDS[::-1], size) == alone[::-1]


@ORDERS
def test_batches_end_where_gates_are_no_longer_prepared(attend_after: bool) -> None:
    model = make_model(attend_after=attend_after, dtype=torch.float32, scale=1.0)
    encode, sizes = model.encode, []

    def counted(source, source_lengths=None):
        sizes.append(tuple(source.shape))
        return encode(source, source_lengths)

    model.encode = counted  # type: ignore[method-assign]
    model.translate(WORDS, batch_size=64)
    assert sizes == [(3, 10), (5, 6)]
    assert [model.decoder.prepares_gates(length) for length in (6, 7)] == [not attend_after, False]


@pytest.mark.parametrize(
    ("options", "pays"),
    [
        ({"beam_size": 4}, False),  # 2 tokens of 4 hypotheses, and a vocabulary of 10
        ({"beam_size": 5}, True),
        ({"search": "sample"}, False),
        ({"search": "sample", "n_best": 5}, True),
        ({"beam_size": 4, "token_table": True}, True),
        ({"beam_size": 5, "token_table": False}, False),
    ],
    ids=str,
)
def test_a_table_of_tokens_is_made_where_it_pays(options: dict, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = make_model(dtype=torch.float32), []
    monkeypatch.setattr(model, "token_table", lambda: made.append(type(model).token_table(model)) or made[-1])
    model.translate([["f"]], max_length=3, **options)
    assert len(made) == pays


def test_no_table_larger_than_its_bound_is_made_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.float64):
        model = make_model(dtype=dtype)
        bound = model.token_table().nbytes
        for most in (bound, bound - 1):
            monkeypatch.setattr("rnnsearch.translation.TABLE_BYTES", most)
            assert model._table_pays(10) == (most == bound)


def test_each_model_of_an_ensemble_has_its_table_and_the_bits_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [make_model(dtype=torch.float32, scale=1.0), other_model(dtype=torch.float32)]
    ensemble, given = Ensemble(models), []
    assert [table.shape[1] for table in ensemble.token_table()] == [3 * 7 + 2 * 3, 3 * 9 + 2 * 3]
    step = type(models[0]).log_probs
    monkeypatch.setattr(
        type(models[0]), "log_probs", lambda *args, **named: given.append(named["token_table"]) or step(*args, **named)
    )
    for search in ("beam", "sample"):
        found = []
        for wanted in (True, False):
            given.clear()
            found.append(ensemble.translate(WORDS, search=search, n_best=2, max_length=6, token_table=wanted))
            assert given and all((table is not None) == wanted for table in given)
        for with_table, without in zip(*found, strict=True):
            assert [entry.tokens for entry in with_table] == [entry.tokens for entry in without]
            if native.extension() is not None:  # the reference leaves its products to the library
                assert [entry.token_scores for entry in with_table] == [entry.token_scores for entry in without]
    bound = sum(table.nbytes for table in ensemble.token_table())
    for most in (bound, bound - 1):
        monkeypatch.setattr("rnnsearch.translation.TABLE_BYTES", most)
        assert ensemble._table_pays(10) == (most == bound)
