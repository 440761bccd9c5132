"""The model against the paper's equations, its decoding against its training."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from rnnsearch import RNNSearch, RNNSearchConfig, Vocabulary
from rnnsearch.beam_search import beam_search
from rnnsearch.continuations import reorder
from rnnsearch.data import pad
from rnnsearch.pronunciation import MODEL_DIRECTORY, read_words
from small_model import SOURCE, TARGET, make_model
from torch import Tensor

from rnnsearch_kernels import native


def gru(cell: torch.nn.GRUCell, x: Tensor, s: Tensor, reset_after: bool) -> Tensor:
    """One step for one sentence, as the equations have it."""
    w_r, w_z, w_n = cell.weight_ih.chunk(3)
    u_r, u_z, u_n = cell.weight_hh.chunk(3)
    (b_r, b_z, b_n), (c_r, c_z, c_n) = cell.bias_ih.chunk(3), cell.bias_hh.chunk(3)
    r = torch.sigmoid(w_r @ x + b_r + u_r @ s + c_r)
    z = torch.sigmoid(w_z @ x + b_z + u_z @ s + c_z)
    n = torch.tanh(w_n @ x + b_n + (r * (u_n @ s + c_n) if reset_after else u_n @ (r * s) + c_n))
    return (1 - z) * n + z * s


def paper_logits(model: RNNSearch, source: list[int], target: list[int]) -> Tensor:
    """Appendix A of the paper for one sentence, one step at a time."""
    after, decoder = model.config.reset_after, model.decoder
    h = [model.source_embedding.weight[token] for token in source]
    zero = torch.zeros(model.config.encoder_size, dtype=h[0].dtype)
    for layer in (model, *model.upper_cells):
        forward, backward = [zero], [zero]
        for t in range(len(h)):
            forward.append(gru(layer.forward_cell, h[t], forward[-1], after))
            backward.append(gru(layer.backward_cell, h[-1 - t], backward[-1], after))
        h = [torch.cat([left, right]) for left, right in zip(forward[1:], backward[:0:-1], strict=True)]
    s = torch.tanh(model.initial_state.weight @ backward[-1] + model.initial_state.bias)

    def attend(s: Tensor) -> Tensor:
        scores = [
            decoder.score.weight[0]
            @ torch.tanh(decoder.query_proj.weight @ s + decoder.key_proj.weight @ h_j + decoder.key_proj.bias)
            for h_j in h
        ]
        alpha = torch.softmax(torch.stack(scores), 0)
        return sum(alpha_j * h_j for alpha_j, h_j in zip(alpha, h, strict=True))

    logits, c = [], torch.zeros_like(h[0])
    for token in target:
        y = model.target_embedding.weight[token]
        if model.config.attend_after:
            s = gru(decoder.cell, torch.cat([y, c]), s, after)
        c = attend(s)
        t_tilde = model.readout.weight @ torch.cat([s, y, c]) + model.readout.bias  # the paper's s_{i-1}, not s_i
        t = torch.stack([max(t_tilde[2 * j], t_tilde[2 * j + 1]) for j in range(model.config.readout_size)])
        logits.append(model.output.weight @ t + model.output.bias)
        if not model.config.attend_after:
            s = gru(decoder.cell, torch.cat([y, c]), s, after)
    return torch.stack(logits)


SENTENCES = [[4, 5, 6, 2], [7, 2], [9, 8, 4, 4, 5, 2]]
TARGETS = [[1, 4, 5], [1, 9, 8, 4, 6], [1]]


ORDERS = pytest.mark.parametrize("attend_after", [False, True])


@ORDERS
@pytest.mark.parametrize(("reset_after", "encoder_layers"), [(False, 1), (True, 1), (True, 3)])
def test_logits_equal_the_papers_equations_in_a_padded_batch(
    reset_after: bool, encoder_layers: int, attend_after: bool
) -> None:
    model = make_model(reset_after=reset_after, encoder_layers=encoder_layers, attend_after=attend_after)
    source, lengths = pad(SENTENCES, 0)
    target, _ = pad(TARGETS, 0)
    logits = model(source, lengths, target)
    for row, (sentence, tokens) in enumerate(zip(SENTENCES, TARGETS, strict=True)):
        torch.testing.assert_close(logits[row, : len(tokens)], paper_logits(model, sentence, tokens))


@ORDERS
@pytest.mark.parametrize("reset_after", [False, True])
@torch.no_grad()
def test_decoding_steps_equal_teacher_forcing(reset_after: bool, attend_after: bool) -> None:
    model = make_model(reset_after=reset_after, attend_after=attend_after)
    source, lengths = pad(SENTENCES, 0)
    target = torch.tensor([[1, 4, 5, 6], [1, 9, 8, 7], [1, 5, 5, 4]])
    wanted = model(source, lengths, target).log_softmax(-1)
    memory, state = model.encode(source, lengths)
    # Two hypotheses a sentence: they share its memory.
    index = torch.tensor([0, 0, 1, 1, 2, 2])
    state = reorder(state, index)
    for t in range(target.shape[1]):
        topk, state, attn_weights = model.step(target[index, t], state, memory, index)
        log_probs, token_ids = topk(99, None)
        torch.testing.assert_close(log_probs, wanted[index, t].gather(1, token_ids))
        assert attn_weights is not None and attn_weights[2:4, 2:].eq(0).all()
        assert topk(2, token_ids[:, :1])[1][:, 0].equal(token_ids[:, 1])  # a ban is applied inside


@ORDERS
@torch.no_grad()
def test_a_long_source_whose_readout_is_not_prepared_decodes_alike(attend_after: bool) -> None:
    model = make_model(attend_after=attend_after)
    source = torch.randint(4, 10, (2, 3 * model.config.memory_size))
    target, index = torch.tensor([[1, 4, 5], [1, 9, 8]]), torch.arange(2)
    wanted = model(source, None, target).log_softmax(-1)
    memory, state = model.encode(source)
    assert memory.memory_gates is None and memory.values is None
    for t in range(target.shape[1]):
        topk, state, _ = model.step(target[:, t], state, memory, index)
        log_probs, token_ids = topk(99, None)
        torch.testing.assert_close(log_probs, wanted[:, t].gather(1, token_ids))


@ORDERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_of_tokens_changes_no_score(dtype: torch.dtype, attend_after: bool) -> None:
    model = make_model(dtype=dtype, attend_after=attend_after)
    source, lengths = pad(SENTENCES, 0)
    without = model.generate(source, lengths, beam_size=3, max_length=6)
    table = model.token_table()
    assert table.shape == (
        model.config.target_vocabulary_size,
        3 * model.config.hidden_size + 2 * model.config.readout_size,
    )
    with_table = model.generate(source, lengths, beam_size=3, max_length=6, token_table=table)
    assert with_table.tokens.equal(without.tokens)
    # The reference leaves its products to the library, whose last bits depend on the number of rows.
    bits = {} if native.extension() is None else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(with_table.scores, without.scores, **bits)


@ORDERS
def test_every_parameter_gets_a_gradient(attend_after: bool) -> None:
    model = make_model(attend_after=attend_after).train()
    source, lengths = pad(SENTENCES, 0)
    model(source, lengths, torch.tensor([[1, 4, 5]] * 3)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_papers_initialisation() -> None:
    torch.manual_seed(0)
    config = RNNSearchConfig.from_preset("tiny", source_vocabulary_size=300, target_vocabulary_size=300)
    model = RNNSearch(config)
    for cell in (model.forward_cell, model.backward_cell, model.decoder.cell):
        for gate in cell.weight_hh.chunk(3):
            torch.testing.assert_close(gate @ gate.T, torch.eye(256), atol=1e-5, rtol=0)
    for weight, deviation in (
        (model.decoder.query_proj.weight, 0.001),
        (model.decoder.key_proj.weight, 0.001),
        (model.decoder.cell.weight_ih, 0.01),
        (model.output.weight, 0.01),
        (model.source_embedding.weight[1:], 0.01),
    ):
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.05)
    assert model.decoder.score.weight.eq(0).all()
    assert all(parameter.eq(0).all() for name, parameter in model.named_parameters() if "bias" in name)
    with pytest.raises(ValueError, match="`scheme` must be 'paper' or 'xavier'; got 'kaiming'"):
        model.reset_parameters("kaiming")


def test_the_preset_has_the_papers_sizes() -> None:
    config = RNNSearchConfig.from_preset("rnnsearch-50", source_vocabulary_size=30000, target_vocabulary_size=30000)
    sizes = (config.embedding_size, config.encoder_size, config.memory_size, config.hidden_size)
    assert (*sizes, config.attention_size, config.readout_size) == (620, 1000, 2000, 1000, 1000, 500)
    assert not config.reset_after


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden_size": 0}, ValueError, "`hidden_size` must be at least 1; got 0"),
        ({"hidden_size": "7"}, TypeError, "`hidden_size` must be int; got '7'"),
        ({"hidden_size": True}, TypeError, "`hidden_size` must be int; got True"),
        ({"state_dropout": 1.0}, ValueError, "`state_dropout` must be at least 0 and below 1; got 1.0"),
        ({"eos_id": 1}, ValueError, "four different ids"),
        ({"unk_id": 10}, ValueError, r"four different ids in 0\.\.9"),
    ],
)
def test_a_bad_configuration_is_named(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RNNSearchConfig(**{"source_vocabulary_size": 10, "target_vocabulary_size": 10, **changes})
    with pytest.raises(
        ValueError, match=r"`preset` must be one of \['rnnsearch-50', 'small', 'tiny', 'pronunciation'\]; got 'huge'"
    ):
        RNNSearchConfig.from_preset("huge")


def test_special_tokens_must_be_those_of_the_vocabularies() -> None:
    moved = {"pad_id": 3, "bos_id": 2, "eos_id": 1, "unk_id": 0}
    config = RNNSearchConfig(len(SOURCE), len(SOURCE), **moved)
    RNNSearch(config)  # without vocabularies they may be any
    with pytest.raises(
        ValueError, match=r"the source vocabulary has .*'pad_id': 0.*; the configuration has .*'pad_id': 3"
    ):
        RNNSearch(config, SOURCE, SOURCE)


def test_the_backend_reaches_every_op() -> None:
    model = make_model()
    model.backend = model.decoder.backend = "nonsense"
    source, lengths = pad(SENTENCES, 0)
    good = make_model()
    memory, state = good.encode(source, lengths)
    tokens = index = torch.arange(3)
    for call in (
        lambda: model(source, lengths, source),
        lambda: model.encode(source, lengths),
        lambda: model.step(tokens, state, memory, index),
    ):
        with pytest.raises(ValueError, match=r"`backend` must be one of .*; got 'nonsense'"):
            call()
    with torch.no_grad():
        topk, _, _ = good.step(tokens, state, memory, index)
        with pytest.raises(ValueError, match=r"^`backend` must be one of"):  # which is no fault of the checkpoint
            RNNSearch.from_pretrained(MODEL_DIRECTORY, backend="nonsense")
        good.backend = "nonsense"
        with pytest.raises(ValueError, match="`backend` must be one of"):
            topk(3, None)


@ORDERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_generates_in_every_dtype(dtype: torch.dtype, attend_after: bool) -> None:
    model = make_model(dtype=dtype, attend_after=attend_after)
    source, lengths = pad(SENTENCES, 0)
    found = model.generate(source, lengths, beam_size=3, n_best=2, coverage_penalty=0.1)
    assert found.scores.dtype == found.token_scores.dtype == torch.float32
    assert found.scores.isfinite().all()
    assert not ((found.tokens == 0) | (found.tokens == 1)).any()


def test_translations_come_in_the_order_of_the_sources() -> None:
    model = make_model(scale=1.0)
    words = ["abc", "f", "abcdef", "cab", "?"]
    together = model.translate([list(word) for word in words], beam_size=3, n_best=2, batch_size=2)
    for word, translations in zip(words, together, strict=True):
        (alone,) = model.translate([list(word)], beam_size=3, n_best=2)
        assert [entry.tokens for entry in translations] == [entry.tokens for entry in alone]
        for entry in translations:
            assert entry.attn_weights.shape == (len(entry.token_scores), len(word) + 1)
            assert "<unk>" not in entry.tokens
            assert len(entry.token_scores) - len(entry.tokens) in (0, 1)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1; got 0"):
        model.translate([["a"]], batch_size=0)
    with pytest.raises(ValueError, match="translate needs both vocabularies"):
        RNNSearch(model.config).translate([["a"]])


def test_decoding_has_no_dropout_in_training_mode_and_leaves_every_mode_as_it_was() -> None:
    dropout = dict.fromkeys(("embedding_dropout", "memory_dropout", "state_dropout", "readout_dropout"), 0.5)
    model = make_model()
    model = RNNSearch(replace(model.config, **dropout), SOURCE, TARGET).double().eval()
    source, lengths = pad(SENTENCES, 0)
    options = {"beam_size": 3, "max_length": 6}
    wanted = model.generate(source, lengths, **options)
    (translated,) = model.translate([list("fade")], **options)[0]
    model.train().decoder.eval()  # one part frozen
    found = model.generate(source, lengths, **options)
    assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.scores, wanted.scores)
    (again,) = model.translate([list("fade")], **options)[0]
    assert (again.tokens, again.score) == (translated.tokens, translated.score)
    assert model.training and model.memory_dropout.training and not model.decoder.training
    with pytest.raises(ValueError, match="beam_size"):
        model.generate(source, lengths, beam_size=0)
    assert model.training and not model.decoder.training


def test_an_unknown_token_is_replaced_by_what_it_attended_to() -> None:
    model = make_model(scale=1.0)
    with torch.no_grad():
        model.output.bias[3] = 9.0  # it wants unknown tokens
    options = {"beam_size": 3, "max_length": 4, "min_length": 4}
    assert "<unk>" not in model.translate([list("fade")], **options)[0][0].tokens
    (raw,) = model.translate([list("fade")], ban_ids=(), **options)[0]
    (replaced,) = model.translate([list("fade")], replace_unknown=True, **options)[0]
    assert raw.tokens.count("<unk>") >= 2
    for token, other, weights in zip(raw.tokens, replaced.tokens, raw.attn_weights, strict=False):
        assert other == ("fade"[int(weights[:4].argmax())] if token == "<unk>" else token)


def test_a_word_gets_the_same_phonemes_alone_and_in_any_batch() -> None:
    """The shipped model on held-out words: batches of 1, 7 and 60, with whatever padding they bring."""
    model = RNNSearch.from_pretrained(MODEL_DIRECTORY)
    words = [list(word) for word in list(read_words(MODEL_DIRECTORY / "held_out.tsv"))[:60]]
    by_batch = [
        [[entry.tokens for entry in found] for found in model.translate(words, batch_size=size, beam_size=4, n_best=2)]
        for size in (60, 7, 1)
    ]
    assert by_batch[0] == by_batch[1] == by_batch[2]


def test_keys_are_computed_once_a_sentence_and_not_at_every_step() -> None:
    model = make_model()
    source, lengths = pad(SENTENCES, 0)
    wanted = model.generate(source, lengths, beam_size=3)
    with torch.inference_mode():
        memory, state = model.encode(source, lengths)
        model.decoder.key_proj.weight.fill_(torch.nan)
        model.decoder.key_proj.bias.fill_(torch.nan)
        options = {"bos_id": 1, "eos_id": 2, "ban_ids": (0, 1)}
        found = beam_search(model.step, state, memory, beam_size=3, **options)
    assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.scores, wanted.scores)


def test_two_searches_at_once_give_what_each_gives_alone() -> None:
    """The model holds no state between steps, so one model serves several threads."""
    model = make_model(dtype=torch.float32, scale=1.0)
    sources = [[4 + (i + j) % 6 for j in range(1 + i % 5)] + [2] for i in range(24)]

    def generate(source: list[int]) -> list:
        return model.generate(torch.tensor([source]), beam_size=4, n_best=2).tokens.tolist()

    alone = [generate(source) for source in sources]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(generate, sources)) == alone


def test_a_vocabulary_is_checked() -> None:
    with pytest.raises(ValueError, match="must begin with"):
        Vocabulary(["a", "b"])
    with pytest.raises(ValueError, match="each token once; got 1 repeats"):
        Vocabulary([*SOURCE.tokens, "a"])
    assert SOURCE.decode(SOURCE.encode("cab")) == ["c", "a", "b"]
    assert SOURCE.encode("c?") == [6, 3, 2]


@pytest.mark.parametrize("where", ["embedding_dropout", "memory_dropout", "state_dropout", "readout_dropout"])
def test_each_dropout_acts_in_training_alone(where):
    model = make_model()
    model.config = replace(model.config, **{where: 0.5})
    if where != "state_dropout":
        getattr(model, where).p = 0.5
    source, target = torch.tensor([[4, 5, 6, 2]]), torch.tensor([[1, 4, 5]])
    first, second = (model.train()(source, None, target) for _ in range(2))
    assert not torch.equal(first, second)
    torch.testing.assert_close(model.eval()(source, None, target), model.eval()(source, None, target), rtol=0, atol=0)
