"""What is timed: every op on a workload, with all its contenders, and the truth to check them against first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from baselines import Eager, EagerSearch, attention, compiled, graphed
from costs import attention_cost, beam_step_cost, scan_cost, step_cost
from rnnsearch.beam_search import beam_search
from rnnsearch.model import RNNSearch
from timing import Call, Cost
from torch import Tensor
from weights import Settings, Weights, rounded
from workloads import Workload

from rnnsearch_kernels import FusedBahdanauDecoder, PreparedMemory, additive_attention

BOS, EOS = 1, 2


class Contender(NamedTuple):
    backend: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Case:
    """One op at one size.

    calls      every contender; its results are tensors
    truth      dtype -> what float64 computes from inputs and weights as that dtype has rounded them
    pairs      (results, truth) -> [(result, what it should be)]
    cost       what any implementation has to read and compute, ``steps`` times
    sentences  how many a call decodes or attends to, rows how many hypotheses
    """

    workload: Workload
    op: str
    sentences: int
    rows: int
    calls: Mapping[Contender, Call]
    truth: Callable[[torch.dtype], Any]
    pairs: Callable[[Any, Any], list[tuple[Tensor, Tensor]]]
    cost: Cost
    steps: int = 1


def attention_case(weights: Weights) -> Case:
    """additive_attention over the whole batch: one query for each sentence."""
    w, settings = weights.workload, weights.settings
    query = weights.randn(w.batch, w.attention_size)
    keys = weights.randn(w.batch, w.source_length, w.attention_size)
    memory = weights.randn(w.batch, w.source_length, w.memory_size)
    score_weight = rounded(weights.randn(w.attention_size) * (3 * w.attention_size**-0.5))
    inputs = {dtype: [x.to(dtype) for x in (query, keys, memory, score_weight)] for dtype in settings.dtypes}
    calls: dict[Contender, Call] = {}
    for dtype, given in inputs.items():
        add_baselines(calls, settings, dtype, attention, given)
        for name in settings.able(dtype, "additive_attention"):
            calls[Contender(name, dtype)] = partial(additive_attention, *given, backend=name)

    def truth(dtype: torch.dtype) -> Any:
        return attention(*(x.double() for x in inputs[dtype]))

    cost = attention_cost(w, w.batch, w.batch)
    return Case(w, "additive_attention", w.batch, w.batch, calls, truth, one_by_one, cost)


def step_case(weights: Weights, sentences: int) -> Case:
    """FusedBahdanauDecoder.step for the beams of ``sentences`` sentences."""
    w, settings = weights.workload, weights.settings
    rows = sentences * w.beam_size
    memory, input_t, state = _decode_inputs(weights, sentences)
    index = torch.arange(sentences, device=settings.device).repeat_interleave(w.beam_size)

    def ours(decoder: FusedBahdanauDecoder, prepared: PreparedMemory, input_t: Tensor) -> Any:
        decoded = decoder.step(input_t, state, prepared, memory_index=index)
        return decoded.state, decoded.context, decoded.attn_weights

    calls: dict[Contender, Call] = {}
    for dtype in settings.dtypes:
        given, values = [x.to(dtype) for x in (input_t, state)], memory.to(dtype)
        eager, hoisted = weights.eager(dtype), weights.hoisted(dtype)
        add_baselines(calls, settings, dtype, eager.step, [*given, *eager.prepare(values, w.beam_size)])
        gates = hoisted.step_inputs(given[0])
        calls[Contender("eager_hoisted", dtype)] = partial(hoisted.step, gates, given[1], *hoisted.prepare(values, 1))
        for name in settings.able(dtype, "linear", "decoder_step"):
            decoder = weights.model(name, dtype).decoder
            calls[Contender(name, dtype)] = partial(ours, decoder, decoder.prepare_memory(values), given[0])

    def truth(dtype: torch.dtype) -> Any:
        double = weights.double(dtype)
        return double.step(input_t.double(), state.double(), *double.prepare(memory.double(), w.beam_size))

    return Case(w, "step", sentences, rows, calls, truth, one_by_one, step_cost(w, sentences, rows))


def beam_step_case(weights: Weights, sentences: int) -> Case:
    """A beam decode step: tokens, embedding, input gates, attention, GRU, maxout readout, the best K + 1 tokens."""
    w, settings = weights.workload, weights.settings
    rows, k = sentences * w.beam_size, w.beam_size + 1
    memory, _, state = _decode_inputs(weights, sentences)
    tokens = torch.randint(4, w.vocabulary_size, (rows,)).to(settings.device)
    index = torch.arange(sentences, device=settings.device).repeat_interleave(w.beam_size)

    def ours(model: RNNSearch, prepared: PreparedMemory, table: Tensor) -> Any:
        topk, new_state, attn_weights = model.step(tokens, state, prepared, index, token_table=table)
        return *topk(k, None), new_state, attn_weights

    calls: dict[Contender, Call] = {}
    for dtype in settings.dtypes:
        given, values = (tokens, state.to(dtype)), memory.to(dtype)
        eager, hoisted = weights.eager(dtype), weights.hoisted(dtype)
        add_baselines(calls, settings, dtype, eager.beam_step, [*given, *eager.prepare(values, w.beam_size), k])
        calls[Contender("eager_hoisted", dtype)] = partial(hoisted.beam_step, *given, *hoisted.prepare(values, 1), k)
        for name in settings.able(dtype, "linear", "decoder_step", "vocabulary_topk"):
            model = weights.model(name, dtype)
            calls[Contender(name, dtype)] = partial(ours, model, model.prepare(values), model.token_table())

    def truth(dtype: torch.dtype) -> Any:
        double = weights.double(dtype)
        keys, values = double.prepare(memory.double(), w.beam_size)
        return double.vocabulary_step(tokens, state.double(), keys, values)

    def pairs(results: Any, truth: Any) -> list[tuple[Tensor, Tensor]]:
        """Near ties may come in either order: values must be right by rank, and for the tokens given to them."""
        log_probs, new_state, attn_weights = truth
        by_rank, by_id = log_probs.topk(k).values, log_probs.gather(1, results[1])
        return [(results[0], by_rank), (results[0], by_id), (results[2], new_state), (results[3], attn_weights)]

    return Case(w, "beam_step", sentences, rows, calls, truth, pairs, beam_step_cost(w, sentences, rows))


def beam_search_case(weights: Weights, sentences: int, steps: int) -> Case:
    """A whole beam search of ``steps`` tokens from the memory on, keys and everything else prepared in it."""
    w, settings = weights.workload, weights.settings
    memory, _, _ = _decode_inputs(weights, sentences)
    state = rounded(torch.tanh(weights.randn(sentences, w.hidden_size)))
    search = partial(beam_search, bos_id=BOS, eos_id=EOS, beam_size=w.beam_size, min_length=steps, max_length=steps)

    def theirs(eager: Eager, values: Tensor) -> Any:
        # On a CUDA device too: what people write asks in every step which sentences are done.
        prepared = PreparedMemory(values, eager.key(values), None, None)
        return search(EagerSearch(eager), state.to(values.dtype), prepared, engine="shrinking")[:2]

    def ours(model: RNNSearch, values: Tensor) -> Any:
        # As RNNSearch.generate has it: the graph of a step is kept from search to search.
        return search(model.step, state, model.prepare(values), graph_key=model._graph_key(None))[:2]

    calls: dict[Contender, Call] = {}
    for dtype in settings.dtypes:
        values = memory.to(dtype)
        calls[Contender("eager", dtype)] = partial(theirs, weights.eager(dtype), values)
        able = settings.able(dtype, "linear", "decoder_step", "vocabulary_topk")
        for name in able if settings.everything else able[:1]:
            calls[Contender(name, dtype)] = partial(ours, weights.model(name, dtype), values)

    def pairs(results: Any, double: Eager) -> list[tuple[Tensor, Tensor]]:
        """The score of the best hypothesis is what forced decoding in float64 gives it."""
        keys, values = double.prepare(memory.double(), 1)
        new_state, score = state.double(), torch.zeros(sentences, device=settings.device).double()
        token = torch.full((sentences,), BOS, device=settings.device)
        for t in range(steps):
            log_probs, new_state, _ = double.vocabulary_step(token, new_state, keys, values)
            token = results[0][:, 0, t]
            score = score + log_probs.gather(1, token[:, None])[:, 0]
        return [(results[1][:, 0], score)]

    rows = sentences * w.beam_size
    cost = beam_step_cost(w, sentences, rows)
    return Case(w, "beam_search", sentences, rows, calls, weights.double, pairs, cost, steps)


def scan_case(weights: Weights) -> Case:
    """FusedBahdanauDecoder.forward: T steps, teacher-forced, beside the loop and the compiled loop."""
    w, settings = weights.workload, weights.settings
    input = weights.randn(w.batch, w.target_length, w.input_size)
    memory = weights.randn(w.batch, w.source_length, w.memory_size)
    state = rounded(torch.tanh(weights.randn(w.batch, w.hidden_size)))

    def ours(decoder: FusedBahdanauDecoder, input: Tensor, memory: Tensor) -> Any:
        return decoder(input, memory, state)[:2]

    calls: dict[Contender, Call] = {}
    for dtype in settings.dtypes:
        given = [x.to(dtype) for x in (input, state, memory)]
        add_baselines(calls, settings, dtype, weights.eager(dtype), given)
        calls[Contender("eager_hoisted", dtype)] = partial(weights.hoisted(dtype), *given)
        for name in settings.able(dtype, "decoder_scan"):
            calls[Contender(name, dtype)] = partial(ours, weights.model(name, dtype).decoder, given[0], given[2])

    def truth(dtype: torch.dtype) -> Any:
        return weights.double(dtype)(input.double(), state.double(), memory.double())

    return Case(w, "scan", w.batch, w.batch, calls, truth, one_by_one, scan_cost(w))


def add_baselines(
    calls: dict[Contender, Call], settings: Settings, dtype: torch.dtype, function: Callable[..., Any], given: list[Any]
) -> None:
    """The function as it is, compiled, and as a CUDA graph where there is CUDA."""
    call = partial(function, *given)
    calls[Contender("eager", dtype)] = call
    if settings.compile and (dtype == torch.float32 or settings.everything):
        calls[Contender("compile", dtype)] = partial(compiled(function), *given)
    if settings.device.type == "cuda":
        calls[Contender("graph", dtype)] = graphed(call)


def _decode_inputs(weights: Weights, sentences: int) -> tuple[Tensor, Tensor, Tensor]:
    """memory (B, S, M), input_t (N, E) and state (N, H) for the beams of B sentences."""
    w = weights.workload
    rows = sentences * w.beam_size
    memory = weights.randn(sentences, w.source_length, w.memory_size) * 0.5
    return memory, weights.randn(rows, w.input_size), rounded(torch.tanh(weights.randn(rows, w.hidden_size)))


def one_by_one(results: Any, truth: Any) -> list[tuple[Tensor, Tensor]]:
    return list(zip(results, truth, strict=True))
