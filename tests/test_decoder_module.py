"""FusedBahdanauDecoder is the loop that people write by hand, in one op."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import naive
import pytest
import tolerances
import torch
from conftest import implementations
from torch import nn
from torch.utils._pytree import tree_leaves

import rnnsearch_kernels as rk

E, H, M, A, B, S, T = 6, 5, 7, 4, 3, 8, 4
NAMES = ("cell", "query", "key", "score")
BIASES = ("bias", "query_bias", "key_bias", "score_bias")
BACKENDS = [backend for _, backend, device in implementations("decoder_scan", gradients=True) if device == "cpu"]


ORDERS = pytest.mark.parametrize("attend_after", [False, True], ids=["attends_first", "attends_after"])


def by_hand(input_order="input_context", attend_after=False, **biases) -> naive.HandWrittenDecoder:
    biases = dict.fromkeys(BIASES, True) | biases
    return naive.HandWrittenDecoder(E, H, M, A, input_order=input_order, attend_after=attend_after, **biases)


def fused(loop: naive.HandWrittenDecoder, backend: str = "auto") -> rk.FusedBahdanauDecoder:
    modules = {name: getattr(loop, name) for name in NAMES}
    return rk.FusedBahdanauDecoder.from_modules(
        **modules, input_order=loop.input_order, attend_after=loop.attend_after, backend=backend
    )


def inputs(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(B, T, E, dtype=dtype), torch.randn(B, S, M, dtype=dtype), torch.randn(B, H, dtype=dtype)


def gradients_by_name(loss, module, leaves) -> dict[str, torch.Tensor]:
    names = [name for name, _ in module.named_parameters()]
    grads = torch.autograd.grad(loss, [*module.parameters(), *leaves], allow_unused=True)
    renamed = [name.replace("query_proj", "query").replace("key_proj", "key") for name in names]
    return dict(zip([*renamed, "input", "memory", "state"], grads, strict=True))


@pytest.mark.parametrize("input_order", ["input_context", "context_input"])
@pytest.mark.parametrize("biases", list(itertools.product([True, False], repeat=4)), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@ORDERS
def test_it_equals_the_hand_written_loop_values_and_gradients(attend_after, backend, biases, input_order):
    loop = by_hand(input_order, attend_after, **dict(zip(BIASES, biases, strict=True)))
    decoder = fused(loop, backend)
    leaves = [value.requires_grad_() for value in inputs()]
    mask = torch.arange(S) >= torch.tensor([S, 3, 1])[:, None]
    theirs = loop(*leaves, key_padding_mask=mask)
    mine = decoder(*leaves, key_padding_mask=mask, need_weights=True)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerances.EXACT)
    wanted = gradients_by_name(sum((out * out.cos()).sum() for out in theirs), loop, leaves)
    found = gradients_by_name(sum((out * out.cos()).sum() for out in mine), decoder, leaves)
    if input_order == "context_input":  # ours reads [input ; context]
        context, input = wanted["cell.weight_ih"].split([M, E], 1)
        wanted["cell.weight_ih"] = torch.cat([input, context], 1)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, **tolerances.EXACT, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("prepared_for", ["training", "inference"])
@pytest.mark.parametrize(
    "backend", [backend for _, backend, device in implementations("decoder_step") if device == "cpu"]
)
@ORDERS
def test_steps_equal_the_hand_written_loop(attend_after, backend, prepared_for):
    if prepared_for == "training" and backend not in BACKENDS:
        pytest.skip(f"{backend} has no gradients of decoder_step")
    loop = by_hand(attend_after=attend_after)
    decoder = fused(loop, backend)
    input, memory, state = inputs()
    # short enough for memory_gates to be prepared
    memory = memory[:, :3] if prepared_for == "inference" else memory
    outputs, contexts, weights, last = loop(input, memory, state)
    with torch.set_grad_enabled(prepared_for == "training"):
        prepared = decoder.prepare_memory(memory)
        assert (prepared.memory_gates is not None) == (prepared_for == "inference" and not attend_after)
        context = {}
        for t in range(T):
            out = decoder.step(input[:, t], state, prepared, **context)
            state = out.state
            context = {"context": out.context} if attend_after else {}
            for mine, theirs in zip(out[:3], (outputs, contexts, weights), strict=True):
                torch.testing.assert_close(mine, theirs[:, t], **tolerances.EXACT)
        torch.testing.assert_close(state, last, **tolerances.EXACT)
        assert decoder.step(input[:, 0], state, prepared, need_weights=False).attn_weights is None


def test_a_context_to_begin_with_is_one_of_the_loop_split_in_two():
    decoder = fused(by_hand(attend_after=True))
    input, memory, state = inputs()
    leaves = [value.requires_grad_() for value in (input, memory, state)]
    whole = decoder(*leaves, need_weights=True)
    first = decoder(input[:, :2], memory, state, need_weights=True)
    second = decoder(input[:, 2:], memory, first.state, context=first.context[:, -1], need_weights=True)
    for one, two, wanted in zip(first[:3], second[:3], whole[:3], strict=True):
        torch.testing.assert_close(torch.cat([one, two], 1), wanted, **tolerances.EXACT)
    torch.testing.assert_close(second.state, whole.state, **tolerances.EXACT)
    parameters = [*leaves, *decoder.parameters()]
    losses = (out.output.square().sum() + out.context.cos().sum() for out in (whole, first, second))
    all_at_once, *halves = [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for loss in losses
    ]
    for wanted, *parts in zip(all_at_once, *halves, strict=True):
        torch.testing.assert_close(sum(parts), wanted, **tolerances.EXACT)


def test_a_context_is_refused_where_nothing_reads_it_and_where_its_shape_is_wrong():
    input, memory, state = inputs(torch.float32)
    before, after = rk.FusedBahdanauDecoder(E, H, M, A), rk.FusedBahdanauDecoder(E, H, M, A, attend_after=True)
    prepared = before.prepare_memory(memory)
    for call in (
        lambda decoder, context: decoder(input, memory, state, context=context),
        lambda decoder, context: decoder.step(input[:, 0], state, prepared, context=context),
    ):
        with pytest.raises(TypeError, match="`context` is for a decoder with `attend_after`"):
            call(before, memory[:, 0])
        with pytest.raises(ValueError, match=r"`context` must be \(N, M\) = \(3, 7\); got \(3, 5\)"):
            call(after, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "backend", [backend for _, backend, device in implementations("decoder_step") if device == "cpu"]
)
def test_gates_from_a_table_of_all_tokens_give_the_same_step(backend, dtype):
    decoder = rk.FusedBahdanauDecoder(E, H, M, A, backend=backend).to(dtype)
    embedding, tokens = torch.randn(30, E).to(dtype), torch.tensor([3, 29, 3])
    memory, state = torch.randn(3, S, M).to(dtype), torch.randn(3, H)
    with torch.inference_mode():
        table, prepared = decoder.input_gates(embedding), decoder.prepare_memory(memory)
        looked_up = decoder.step(None, state, prepared, input_gates=table[tokens])
        computed = decoder.step(embedding[tokens], state, prepared)
    for mine, theirs in zip(looked_up, computed, strict=True):
        torch.testing.assert_close(mine, theirs, **({"atol": 0, "rtol": 0} if backend == "cpu" else {}))


@ORDERS
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scan_from_gates_of_the_different_tokens_has_the_values_and_gradients_of_one_from_its_input(
    backend, attend_after
):
    decoder = rk.FusedBahdanauDecoder(E, H, M, A, attend_after=attend_after, backend=backend, dtype=torch.float64)
    embedding = torch.randn(5, E, dtype=torch.float64, requires_grad=True)
    _, memory, state = inputs()
    tokens, lengths = torch.randint(5, (memory.shape[0], 4)), torch.tensor([4, 2, 0])
    found = []
    for options in ({}, {"input_lengths": lengths}):
        for given in (
            {"input": embedding[tokens]},
            {"input": None, "input_gates": decoder.input_gates(embedding)[tokens]},
        ):
            out = decoder(memory=memory, state=state, **given, **options)
            loss = out.output.sum() + out.context.square().sum() + out.state.sin().sum()
            found.append([out.output, out.context, *torch.autograd.grad(loss, [embedding, *decoder.cell.parameters()])])
        for computed, looked_up in zip(*found[-2:], strict=True):
            torch.testing.assert_close(looked_up, computed, **tolerances.EXACT)
    # Gates behind a row's end may be anything, and have no gradient.
    gates = decoder.input_gates(embedding)[tokens].detach()
    gates[1, 2:], gates[2] = torch.nan, torch.nan
    out = decoder(None, memory, state, input_gates=gates.requires_grad_(), input_lengths=lengths)
    assert out.output.equal(found[-1][0]) and out.context.equal(found[-1][1])
    loss = out.output.sum() + out.context.square().sum() + out.state.sin().sum()
    grad, *grads = torch.autograd.grad(loss, [gates, *decoder.parameters()], allow_unused=True)
    assert grad[1, 2:].eq(0).all() and grad[2].eq(0).all() and all(x.isfinite().all() for x in grads if x is not None)


@pytest.mark.parametrize("keeps_weights", [True, False])
def test_beside_memory_gates_a_step_sums_whatever_values_are_given(keeps_weights):
    decoder = rk.FusedBahdanauDecoder(E, H, M, A, dtype=torch.float64)
    input, memory, state = inputs()
    projection = torch.randn(M, M, dtype=torch.float64)  # so that no size tells the two apart
    with torch.no_grad():
        prepared = decoder.prepare_memory(memory[:, : M // 2])
        assert prepared.memory_gates is not None
        plain = decoder.step(input[:, 0], state, prepared)
        if not keeps_weights:
            prepared = prepared._replace(weights=None)
        with_values = prepared._replace(values=prepared.memory @ projection)
        projected = decoder.step(input[:, 0], state, with_values)
    torch.testing.assert_close(projected.context, plain.context @ projection, **tolerances.EXACT)
    torch.testing.assert_close(projected.state, plain.state, **tolerances.EXACT)
    with pytest.raises(RuntimeError, match="`values` of a PreparedMemory are for inference"):
        decoder.step(input[:, 0], state, with_values)
    with pytest.raises(ValueError, match="with `values` must have `memory_gates`"):
        decoder.step(input[:, 0], state, with_values._replace(memory_gates=None))


def test_hypotheses_share_a_sentence_through_memory_index():
    decoder = fused(by_hand())
    _, memory, _ = inputs()
    index, mask = torch.tensor([2, 0, 2, 1, 0]), torch.rand(B, S) < 0.3
    rows, states = torch.randn(5, E, dtype=torch.float64), torch.randn(5, H, dtype=torch.float64)
    with torch.inference_mode():
        shared = decoder.prepare_memory(memory, key_padding_mask=mask)
        tiled = decoder.prepare_memory(memory[index], key_padding_mask=mask[index])
        mine, theirs = decoder.step(rows, states, shared, memory_index=index), decoder.step(rows, states, tiled)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerances.EXACT)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("reset_after", [False, True])
def test_it_equals_a_loop_over_either_gru_with_and_without_dropout_of_the_state(reset_after, dropout):
    decoder = rk.FusedBahdanauDecoder(E, H, M, A, reset_after=reset_after, dtype=torch.float64)
    input, memory, state = inputs()
    mask = (torch.rand(B, H, dtype=torch.float64) < 0.5) * 2.0 if dropout else torch.ones(B, H, dtype=torch.float64)
    out = decoder(input, memory, state, state_mask=mask if dropout else None)
    weight, keys = decoder.cell.weight_ih, decoder.key_proj(memory)
    for t in range(T):
        context, _ = naive.additive_attention(
            decoder.query_proj(mask * state), keys, memory, decoder.score.weight[0], None, None
        )
        gates = torch.cat([input[:, t], context], 1) @ weight.t() + decoder.cell.bias_ih
        cell = decoder.cell
        state = torch.stack(
            [
                naive.gru_one(g, s, kept, cell.weight_hh, cell.bias_hh, reset_after)[0]
                for g, s, kept in zip(gates, state, mask, strict=True)
            ]
        )
        torch.testing.assert_close(out.output[:, t], state, **tolerances.EXACT)


@ORDERS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_steps_with_a_state_mask_are_the_scan_with_it(dtype, attend_after):
    decoder = rk.FusedBahdanauDecoder(E, H, M, A, attend_after=attend_after, dtype=dtype)
    input, memory, _ = inputs(dtype)
    allowed = tolerances.EXACT if dtype == torch.float64 else tolerances.AUTOCAST
    mask = (torch.rand(B, H) < 0.5).to(dtype) * 2  # in the module's dtype: what is accumulated takes it exactly
    out, state, prepared = decoder(input, memory, state_mask=mask), None, decoder.prepare_memory(memory)
    context = {}
    for t in range(T):
        step = decoder.step(input[:, t], state, prepared, state_mask=mask, **context)
        torch.testing.assert_close(step.output, out.output[:, t], **allowed)
        state = step.state
        context = {"context": step.context} if attend_after else {}


def test_a_bool_state_mask_is_refused():
    """It lacks the 1 / (1 - p)."""
    decoder, (input, memory, _) = rk.FusedBahdanauDecoder(E, H, M, A), inputs(torch.float32)
    with pytest.raises(TypeError, match=r"`state_mask` must be torch\.float32 .*got torch\.bool"):
        decoder(input, memory, state_mask=torch.ones(B, H, dtype=torch.bool))


@ORDERS
def test_lengths_are_masks_and_the_state_stops_at_a_rows_end(attend_after):
    decoder = fused(by_hand(attend_after=attend_after))
    input, memory, state = inputs()
    memory_lengths, input_lengths = torch.tensor([S, 3, 0]), torch.tensor([0, T, 2])
    mask = torch.arange(S) >= memory_lengths[:, None]
    past, padded = torch.arange(T) >= input_lengths[:, None], mask
    one = decoder(input, memory, state, key_padding_mask=mask, input_lengths=input_lengths, need_weights=True)
    other = decoder(
        input.masked_fill(past[..., None], float("nan")),
        memory.masked_fill(padded[..., None], float("nan")),
        state,
        memory_lengths=memory_lengths,
        input_lengths=input_lengths,
        need_weights=True,
    )
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)
    assert all((value[past] == 0).all() for value in one[:3])
    assert torch.equal(one.state[0], state[0])
    assert torch.equal(one.state[1], one.output[1, -1]) and torch.equal(one.state[2], one.output[2, 1])


@ORDERS
def test_nan_in_padding_reaches_no_gradient_of_the_module(attend_after):
    decoder = fused(by_hand(attend_after=attend_after))
    input, memory, _ = inputs()
    lengths = {"memory_lengths": torch.tensor([S, 3, 0]), "input_lengths": torch.tensor([0, T, 2])}
    input[2, 2:], memory[1, 3:], memory[2] = float("nan"), float("nan"), float("nan")
    leaves = [input.requires_grad_(), memory.requires_grad_()]
    loss = sum(out.square().sum() for out in decoder(*leaves, **lengths, need_weights=True))
    for grad in torch.autograd.grad(loss, [*leaves, *decoder.parameters()]):
        assert grad.isfinite().all()
    with torch.no_grad():
        prepared = decoder.prepare_memory(memory, memory_lengths=lengths["memory_lengths"])
        assert all(out.isfinite().all() for out in decoder.step(input[:, 0].nan_to_num(), None, prepared))


def test_the_gradient_of_the_score_bias_is_zero_and_not_none():
    decoder = fused(by_hand())
    input, memory, _ = inputs()
    decoder(input, memory).output.sum().backward()
    assert torch.equal(decoder.score.bias.grad, torch.zeros(1, dtype=torch.float64))


def test_it_trains_where_only_some_parameters_do():
    decoder = fused(by_hand())
    decoder.requires_grad_(False)
    decoder.key_proj.requires_grad_()
    input, memory, _ = inputs()
    decoder(input, memory).output.sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is not None] == [
        "key_proj.weight",
        "key_proj.bias",
    ]


def same_outputs(one, other):
    given = inputs(one.cell.weight_hh.dtype)
    return all(map(torch.equal, one(*given, need_weights=True), other(*given, need_weights=True)))


def test_state_dict_names_are_those_of_the_modules_people_have_and_round_trip():
    decoder = rk.FusedBahdanauDecoder(E, H, M, A, query_bias=True, score_bias=True)
    assert list(decoder.state_dict()) == [
        *("cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh"),
        *("query_proj.weight", "query_proj.bias", "key_proj.weight", "key_proj.bias"),
        *("score.weight", "score.bias"),
    ]
    other = rk.FusedBahdanauDecoder(E, H, M, A, query_bias=True, score_bias=True)
    assert not same_outputs(decoder, other)
    file = io.BytesIO()
    torch.save(decoder.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same_outputs(decoder, other)


def test_deepcopy_and_pickle_give_an_independent_equal_module():
    decoder = fused(by_hand(), backend="reference")
    for other in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        assert same_outputs(decoder, other) and other.backend == "reference"
        with torch.no_grad():
            other.cell.weight_hh.add_(1)
        assert not same_outputs(decoder, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_to_another_dtype_keeps_the_state_in_the_accumulate_dtype(dtype):
    decoder = fused(by_hand())
    input, memory, state = inputs()
    exact = decoder(input, memory, state)
    decoder.to(dtype)
    out = decoder(input.to(dtype), memory.to(dtype), state, need_weights=True)
    assert (out.output.dtype, out.context.dtype) == (dtype, dtype)
    assert (out.attn_weights.dtype, out.state.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(out.output.double(), exact.output, **tolerances.AUTOCAST)
    with torch.no_grad():
        step = decoder.step(input[:, 0].to(dtype), state, decoder.prepare_memory(memory.to(dtype)))
    torch.testing.assert_close(step.output.double(), exact.output[:, 0], **tolerances.AUTOCAST)


def test_autocast_gives_bfloat16_contexts_close_to_float32_and_gradients_in_the_parameters_dtype():
    decoder = fused(by_hand()).float()
    input, memory, state = inputs(torch.float32)
    exact = decoder(input, memory, state, need_weights=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = decoder(input, memory, state, need_weights=True)
        stepped = decoder.step(input[:, 0], state, decoder.prepare_memory(memory))
    assert (out.output.dtype, out.context.dtype, out.state.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    for one, other in zip(out, exact, strict=True):
        torch.testing.assert_close(one.float(), other, **tolerances.AUTOCAST)
    torch.testing.assert_close(stepped.output, exact.output[:, 0], **tolerances.AUTOCAST)
    out.output.square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in decoder.parameters())


def test_prepared_memory_cannot_be_changed_and_is_not_by_stepping():
    decoder = fused(by_hand())
    input, memory, _ = inputs()
    with torch.no_grad():
        prepared = decoder.prepare_memory(memory)
        before = [value.clone() for value in tree_leaves(prepared) if value is not None]
        first, second = (decoder.step(input[:, 0], None, prepared) for _ in range(2))
    with pytest.raises(AttributeError):
        prepared.keys = prepared.memory
    assert all(map(torch.equal, before, [value for value in tree_leaves(prepared) if value is not None]))
    assert all(map(torch.equal, first, second))


def test_a_memory_prepared_for_inference_steps_with_gradients_whatever_its_length():
    decoder = fused(by_hand())
    input, memory, _ = inputs()
    grads = []
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            prepared = decoder.prepare_memory(memory[:, :2])
        assert (prepared.memory_gates is not None) == (mode is torch.no_grad)
        out = decoder.step(input[:, 0], None, prepared).output
        grads.append(torch.autograd.grad(out.sum(), [decoder.cell.weight_ih, decoder.query_proj.weight]))
    assert all(map(torch.equal, *grads))


def test_a_memory_prepared_without_gradients_does_not_take_them_from_a_later_step():
    decoder = fused(by_hand())
    input, memory, _ = inputs()
    with torch.no_grad():
        prepared = decoder.prepare_memory(memory)
    assert prepared.memory_gates is None and prepared.weights is not None
    decoder.step(input[:, 0], None, prepared).output.sum().backward()
    for parameter in (decoder.cell.weight_ih, decoder.cell.bias_hh, decoder.query_proj.weight, decoder.score.weight):
        assert parameter.grad is not None


def test_scheduled_sampling_over_step_has_the_gradients_of_the_scan():
    decoder = fused(by_hand())
    input, memory, state = inputs()
    found = []
    for stepping in (True, False):
        if stepping:
            prepared, carried, outputs = decoder.prepare_memory(memory), state, []
            for t in range(T):
                out = decoder.step(input[:, t], carried, prepared)
                carried = out.state
                outputs.append(out.output)
            output = torch.stack(outputs, 1)
        else:
            output = decoder(input, memory, state).output
        found.append(torch.autograd.grad(output.square().sum(), [p for n, p in decoder.named_parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **tolerances.EXACT)


def test_repr_names_the_sizes_the_convention_and_the_backend():
    text = repr(rk.FusedBahdanauDecoder(E, H, M, A, reset_after=False))
    assert "input_size=6, hidden_size=5, memory_size=7, attention_size=4, attend_after=False, " in text
    assert "reset_after=False, backend='auto'" in text


def test_attention_size_is_the_hidden_size_unless_given():
    assert rk.FusedBahdanauDecoder(E, H, M).attention_size == H


def test_from_modules_copies_and_keeps_what_is_frozen():
    loop = by_hand()
    loop.query.requires_grad_(False)
    decoder = fused(loop)
    assert not decoder.query_proj.weight.requires_grad and decoder.cell.weight_hh.requires_grad
    before = loop.cell.weight_hh.clone()
    with torch.no_grad():
        decoder.cell.weight_hh.add_(1)
    assert torch.equal(loop.cell.weight_hh, before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"cell": nn.LSTMCell(E + M, H)},
            TypeError,
            "`cell` must be an nn.GRUCell, the only recurrence here; got",
        ),
        ({"cell": nn.GRU(E + M, H)}, TypeError, "`cell` must be an nn.GRUCell.* got GRU"),
        ({"query": nn.Conv1d(H, A, 1)}, TypeError, "`query` must be an nn.Linear; got Conv1d"),
        ({"query": nn.Linear(H + 1, A)}, ValueError, r"`query.weight` must be \(4, 5\); got \(4, 6\)"),
        ({"key": nn.Linear(M, A + 1)}, ValueError, r"`key.weight` must be \(4, 7\); got \(5, 7\)"),
        ({"score": nn.Linear(A, 2)}, ValueError, r"`score.weight` must be \(1, 4\); got \(2, 4\)"),
        ({"cell": nn.GRUCell(M, H)}, ValueError, "must read input and context, more than M = 7 features; got 7"),
        ({"input_order": "both"}, ValueError, "`input_order` must be 'input_context' or 'context_input'; got 'both'"),
        (
            {"score": nn.utils.parametrizations.weight_norm(nn.Linear(A, 1))},
            TypeError,
            "`score` must be an nn.Linear with a weight of its own.*got ParametrizedLinear",
        ),
    ],
)
def test_from_modules_says_what_it_cannot_represent(change, error, message):
    loop = naive.HandWrittenDecoder(E, H, M, A, **dict.fromkeys(BIASES, True), dtype=torch.float32)
    given = {name: getattr(loop, name) for name in NAMES} | change
    with pytest.raises(error, match=message):
        rk.FusedBahdanauDecoder.from_modules(**given)
