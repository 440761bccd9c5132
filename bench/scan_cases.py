"""What ``scan_speed.py`` times: teacher-forced decoding and the encoder's GRU, forward and with every gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from baselines import Eager, compiled, graphed
from cases import Case, Contender, one_by_one
from costs import scan_cost
from timing import Call, Cost
from torch import Tensor, nn
from torch.nn import functional as F
from weights import Settings, Weights, rounded

from rnnsearch_kernels import FusedBahdanauDecoder, gru_scan

AUTOCAST = " autocast"

PRODUCTS = "products"

Loop = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


class HoistedTraining(Eager):
    """Eager with everything moved out of the loop that can be moved by hand, and differentiable."""

    name = "eager_hoisted"

    def forward(self, input: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        hidden, embedding = state.shape[1], input.shape[2]
        input_weight, context_weight = self.cell.weight_ih.split([embedding, memory.shape[2]], dim=1)
        state_weight = torch.cat([self.query.weight, self.cell.weight_hh])
        query_bias = state_weight.new_zeros(self.query.out_features) if self.query.bias is None else self.query.bias
        state_bias = torch.cat([query_bias, self.cell.bias_hh])
        keys, input_gates = self.key(memory), F.linear(input, input_weight, self.cell.bias_ih)
        states, contexts = [], []
        for gates_t in input_gates.unbind(1):
            query, hidden_gates = F.linear(state, state_weight, state_bias).split(
                [self.query.out_features, 3 * hidden], dim=1
            )
            scores = F.linear(torch.tanh(query.unsqueeze(1) + keys), self.score.weight).squeeze(-1)
            context = torch.bmm(torch.softmax(scores, dim=-1).unsqueeze(1), memory).squeeze(1)
            gates = torch.addmm(gates_t, context, context_weight.t())
            reset, update = torch.sigmoid(gates[:, : 2 * hidden] + hidden_gates[:, : 2 * hidden]).chunk(2, dim=1)
            candidate = torch.tanh(torch.addcmul(gates[:, 2 * hidden :], reset, hidden_gates[:, 2 * hidden :]))
            state = torch.lerp(candidate, state, update)
            states.append(state)
            contexts.append(context)
        return torch.stack(states, dim=1), torch.stack(contexts, dim=1)


class CompiledStep(Eager):
    """Eager's loop around its step, compiled."""

    name = "compile"

    def __init__(self, decoder: FusedBahdanauDecoder) -> None:
        super().__init__(decoder)
        self.step = compiled(self.step)  # type: ignore[method-assign]


# What a CUDA graph of a whole loop, and of its backward pass, is called in the tables.
GRAPHED: dict[type[Eager], str] = {Eager: "graph", CompiledStep: "compile_graph"}


def both(loop: Loop, leaves: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    """Results and gradients. The first leaves are the inputs, of which nothing is shared between calls."""
    results = loop(*inputs)
    return [*(result.detach() for result in results), *torch.autograd.grad(results, leaves, cotangents)]


def forward_of(call: Call) -> tuple[Call, Sequence[Tensor]] | None:
    """The forward pass alone of a call of both, and the leaves; None of another."""
    if not isinstance(call, partial) or call.func is not both:
        return None
    loop, leaves, inputs, _ = call.args
    return partial(loop, *inputs), leaves


def forward_only(loop: Loop, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return loop(*inputs)


def scan_case(weights: Weights, *, backward: bool, reset_after: bool = True) -> Case:
    """FusedBahdanauDecoder over T steps, keys and input gates included, beside the loops that it replaces."""
    w, settings = weights.workload, weights.settings
    given = [
        weights.randn(w.batch, w.target_length, w.input_size),
        rounded(torch.tanh(weights.randn(w.batch, w.hidden_size))),
        weights.randn(w.batch, w.source_length, w.memory_size) * 0.5,
    ]
    sizes = (w.hidden_size, w.memory_size)
    drawn = [weights.randn(w.batch, w.target_length, size) for size in sizes]

    def call(loop: Loop, module: nn.Module, dtype: torch.dtype) -> Call:
        inputs = [x.to(dtype) for x in given]
        if not backward:
            return partial(forward_only, loop, inputs)
        leaves = [x.requires_grad_() for x in inputs]
        leaves += [parameter for _, parameter in sorted(module.named_parameters())]
        return partial(both, loop, leaves, inputs, [x.to(dtype) for x in drawn])

    def fused(decoder: FusedBahdanauDecoder, input: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
        return decoder(input, memory, state)[:2]

    def trainable(dtype: torch.dtype, backend: str = "auto") -> FusedBahdanauDecoder:
        decoder = copy.deepcopy(weights.model(backend, dtype).decoder).requires_grad_()
        decoder.reset_after, decoder.backend = reset_after, backend
        return decoder

    def under_autocast(loop: Loop, dtype: torch.dtype, *given: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(settings.device.type, dtype):
            return tuple(result.float() for result in loop(*given))

    calls: dict[Contender, Call] = {}
    for dtype in settings.dtypes:
        if reset_after:
            on_gpu = settings.device.type == "cuda"
            loops: list[type[Eager]] = [Eager, HoistedTraining]
            if settings.compile and (settings.everything or settings.contenders) and (on_gpu or dtype == torch.float32):
                loops.append(CompiledStep)
            for loop in loops:
                module = loop(trainable(dtype))
                calls[Contender(loop.name, dtype)] = call(module, module, dtype)
                if on_gpu and loop in GRAPHED and settings.takes(GRAPHED[loop]):
                    calls[Contender(GRAPHED[loop], dtype)] = graphed(call(module, module, dtype))
        for name in settings.able(dtype, "decoder_scan", "decoder_scan_backward"):
            decoder = trainable(dtype, name)
            calls[Contender(name, dtype)] = call(partial(fused, decoder), Eager(decoder), dtype)
        if dtype == torch.bfloat16 and reset_after:
            # Float32 parameters and inputs; the backward pass is outside, as torch has it.
            loop = Eager(trainable(torch.float32))
            calls[Contender("eager" + AUTOCAST, dtype)] = call(
                partial(under_autocast, loop, dtype), loop, torch.float32
            )
            for name in settings.able(dtype, "decoder_scan", "decoder_scan_backward"):
                decoder = trainable(torch.float32, name)
                calls[Contender(name + AUTOCAST, dtype)] = call(
                    partial(under_autocast, partial(fused, decoder), dtype), Eager(decoder), torch.float32
                )

    def truth(dtype: torch.dtype) -> Any:
        decoder = copy.deepcopy(trainable(dtype)).double()
        decoder.backend = "reference"
        return call(partial(fused, decoder), Eager(decoder), torch.float64)()

    return Case(
        w, name_of("scan", reset_after), w.batch, w.batch, _taken(calls, settings), truth, one_by_one, scan_cost(w)
    )


def gru_case(weights: Weights, *, backward: bool, reset_after: bool = True) -> Case:
    """The encoder's GRU in one direction, input gates included; beside nn.GRU, which has one convention."""
    w, settings, dtype = weights.workload, weights.settings, torch.float32
    size = w.memory_size // 2
    torch.manual_seed(3)
    module = nn.GRU(w.input_size, size, batch_first=True).to(settings.device)
    input = weights.randn(w.batch, w.source_length, w.input_size)
    cotangent = weights.randn(w.batch, w.source_length, size)

    def theirs(gru: nn.GRU, input: Tensor) -> tuple[Tensor, ...]:
        return gru(input)[:1]

    def ours(backend: str, gru: nn.GRU, input: Tensor) -> tuple[Tensor, ...]:
        input_weight, weight, input_bias, bias = gru.parameters()
        gates, state = F.linear(input, input_weight, input_bias), input.new_zeros(input.shape[0], size)
        return (gru_scan(gates, state, weight, bias, reset_after=reset_after, backend=backend),)

    def call(loop: Callable[..., tuple[Tensor, ...]], gru: nn.GRU) -> Call:
        given = input.to(next(gru.parameters()).dtype)
        if not backward:
            return partial(forward_only, partial(loop, gru), [given])
        leaves = [given.requires_grad_(), *gru.parameters()]
        return partial(both, partial(loop, gru), leaves, [given], [cotangent.to(given.dtype)])

    calls: dict[Contender, Call] = {}
    if dtype in settings.dtypes and reset_after:
        calls[Contender("nn.GRU", dtype)] = call(theirs, module)
    for name in settings.able(dtype, "gru_scan", "gru_scan_backward") if dtype in settings.dtypes else ():
        calls[Contender(name, dtype)] = call(partial(ours, name), module)

    def truth(_: torch.dtype) -> Any:
        return call(partial(ours, "reference"), copy.deepcopy(module).double())()

    weights_read = 3 * size * (w.input_size + size)
    cost = Cost(weights_read, 2.0 * w.batch * w.source_length * weights_read)
    return Case(w, name_of("gru", reset_after), w.batch, w.batch, _taken(calls, settings), truth, one_by_one, cost)


def products(weights: Weights, dtype: torch.dtype, *, backward: bool) -> Call:
    """The matrix products of scan_case alone, by the library, in the layout that it is fastest in.

    In each step the query with the hidden gates, and the context's gates; keys and input gates for all steps at once;
    backwards as many in each step, and one for every weight and input. Without biases.
    """
    w, device = weights.workload, weights.settings.device
    rows, positions, gates = w.batch * w.target_length, w.batch * w.source_length, 3 * w.hidden_size
    wide = w.attention_size + gates

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    state, context = matrix(w.batch, w.hidden_size), matrix(w.batch, w.memory_size)
    memory, input = matrix(positions, w.memory_size), matrix(rows, w.input_size)
    from_state, from_context = matrix(w.hidden_size, wide), matrix(w.memory_size, gates)
    to_keys, to_gates = matrix(w.memory_size, w.attention_size), matrix(w.input_size, gates)
    steps = [(state, from_state), (context, from_context)]
    once = [(memory, to_keys), (input, to_gates)]
    if backward:
        steps += [(matrix(w.batch, gates), matrix(gates, w.memory_size))]
        steps += [(matrix(w.batch, wide), matrix(wide, w.hidden_size))]
        grads, grad_keys = matrix(rows, wide), matrix(positions, w.attention_size)
        once += [(grads.t(), matrix(rows, w.hidden_size)), (grads[:, :gates].t(), matrix(rows, w.memory_size))]
        once += [(grads[:, :gates].t(), input), (grads[:, :gates], matrix(gates, w.input_size))]
        once += [(grad_keys.t(), memory), (grad_keys, matrix(w.attention_size, w.memory_size))]

    def run() -> None:
        with torch.no_grad():
            for _ in range(w.target_length):
                for left, right in steps:
                    left @ right
            for left, right in once:
                left @ right

    return run


def name_of(op: str, reset_after: bool) -> str:
    return op if reset_after else f"{op}_reset_before"


def _taken(calls: dict[Contender, Call], settings: Settings) -> dict[Contender, Call]:
    return {contender: call for contender, call in calls.items() if settings.takes(contender.backend)}


def contender_names(settings: Settings) -> tuple[str, ...]:
    """Everybody whom a case may hold, and the products beside it."""
    ours = [name + ending for name in settings.backends for ending in ("", AUTOCAST)]
    loops = [loop.name for loop in (Eager, HoistedTraining, CompiledStep)]
    return *loops, *GRAPHED.values(), Eager.name + AUTOCAST, *ours, "nn.GRU", PRODUCTS
