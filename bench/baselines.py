"""What people write today, once each; every contender here shares its weights with ours, so outputs can be checked.

``Eager`` is the loop of the README: Linear, tanh, softmax, bmm, cat, GRUCell, with the memory tiled for every
hypothesis of a beam. ``Hoisted`` is what a careful user makes of it: input gates looked up or computed beforehand,
one product for everything that reads the state, the memory shared by a sentence's hypotheses. In both the keys are
computed once and before the clock starts: who computes them at every step, as several toolkits do, is slower still.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch
from rnnsearch.model import RNNSearch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnsearch_kernels import FusedBahdanauDecoder, PreparedMemory


def attention(query: Tensor, keys: Tensor, memory: Tensor, score_weight: Tensor) -> tuple[Tensor, Tensor]:
    """query (B, A), keys (B, S, A), memory (B, S, M), score_weight (A,) -> context (B, M), attn_weights (B, S)."""
    scores = F.linear(torch.tanh(query.unsqueeze(1) + keys), score_weight.unsqueeze(0)).squeeze(-1)
    attn_weights = torch.softmax(scores, dim=-1)
    return torch.bmm(attn_weights.unsqueeze(1), memory).squeeze(1), attn_weights


def tile(values: Tensor, beam_size: int) -> Tensor:
    """(B, …) -> (B·K, …), every sentence once for each of its hypotheses."""
    return values.repeat_interleave(beam_size, dim=0)


class Eager(nn.Module):
    """The README's loop, and around it the beam decode step as everyone writes it."""

    name = "eager"

    def __init__(self, decoder: FusedBahdanauDecoder, model: RNNSearch | None = None) -> None:
        super().__init__()
        self.cell, self.query, self.key, self.score = (
            decoder.cell,
            decoder.query_proj,
            decoder.key_proj,
            decoder.score,
        )
        if model is not None:
            self.embedding, self.readout, self.output = model.target_embedding, model.readout, model.output

    def prepare(self, memory: Tensor, beam_size: int) -> tuple[Tensor, Tensor]:
        """Keys and memory for ``beam_size`` hypotheses of each sentence."""
        return tile(self.key(memory), beam_size), tile(memory, beam_size)

    def step_inputs(self, input: Tensor) -> Tensor:
        """What a step takes of ``input`` (B, T, E)."""
        return input

    def step(self, input_t: Tensor, state: Tensor, keys: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        context, attn_weights = attention(self.query(state), keys, memory, self.score.weight[0])
        return self.cell(torch.cat([input_t, context], dim=-1), state), context, attn_weights

    def forward(self, input: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """All T steps, teacher-forced: states (B, T, H), contexts (B, T, M)."""
        keys, inputs = self.key(memory), self.step_inputs(input)
        states, contexts = [], []
        for t in range(input.shape[1]):
            state, context, _ = self.step(inputs[:, t], state, keys, memory)
            states.append(state)
            contexts.append(context)
        return torch.stack(states, dim=1), torch.stack(contexts, dim=1)

    def vocabulary_step(
        self, tokens: Tensor, state: Tensor, keys: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (N,) -> log_probs (N, V), new state (N, H), attn_weights (N, S)."""
        embedded = self.embedding(tokens)
        new_state, context, attn_weights = self.step(embedded, state, keys, memory)
        return self.log_probs(torch.cat([state, embedded, context], dim=-1)), new_state, attn_weights

    def beam_step(
        self, tokens: Tensor, state: Tensor, keys: Tensor, memory: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """tokens (N,) -> log_probs (N, k), token_ids (N, k), new state (N, H), attn_weights (N, S)."""
        log_probs, new_state, attn_weights = self.vocabulary_step(tokens, state, keys, memory)
        return *log_probs.topk(k), new_state, attn_weights

    def log_probs(self, joined: Tensor) -> Tensor:
        """Maxout readout and vocabulary: [state ; embedded ; context] (N, H + E + M) -> (N, V)."""
        readout = self.readout(joined)
        readout = readout.view(*readout.shape[:-1], -1, 2).amax(dim=-1)
        return torch.log_softmax(self.output(readout), dim=-1)


class Hoisted(Eager):
    """Eager with everything moved out of the step that can be moved by hand."""

    name = "eager_hoisted"

    def __init__(self, decoder: FusedBahdanauDecoder, model: RNNSearch | None = None) -> None:
        super().__init__(decoder, model)
        cell, embedding_size = decoder.cell, decoder.input_size
        self.input_weight = cell.weight_ih[:, :embedding_size].detach()
        self.context_weight = cell.weight_ih[:, embedding_size:].detach().contiguous()
        query_bias = torch.zeros_like(self.query.weight[:, 0]) if self.query.bias is None else self.query.bias
        self.state_weight = torch.cat([self.query.weight, cell.weight_hh]).detach()
        self.state_bias = torch.cat([query_bias, cell.bias_hh]).detach()
        # At decode time the gates of every token are a table; its memory is what this baseline pays.
        self.gate_table = None if model is None else self.step_inputs(model.target_embedding.weight.detach())

    def step_inputs(self, input: Tensor) -> Tensor:
        return F.linear(input, self.input_weight, self.cell.bias_ih.detach())

    def prepare(self, memory: Tensor, beam_size: int) -> tuple[Tensor, Tensor]:
        """Nothing is tiled."""
        return self.key(memory), memory

    def step(self, input_gates: Tensor, state: Tensor, keys: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As Eager's, but from input gates (N, 3H); N = K rows for each of the memory's B sentences."""
        hidden = state.shape[1]
        query, hidden_gates = F.linear(state, self.state_weight, self.state_bias).split(
            [self.query.out_features, 3 * hidden], dim=1
        )
        grouped = query.view(keys.shape[0], -1, 1, keys.shape[2])
        scores = F.linear(torch.tanh(grouped + keys.unsqueeze(1)), self.score.weight).squeeze(-1)
        attn_weights = torch.softmax(scores, dim=-1)
        context = torch.bmm(attn_weights, memory).view(-1, memory.shape[2])
        gates = torch.addmm(input_gates, context, self.context_weight.t())
        reset, update = torch.sigmoid(gates[:, : 2 * hidden] + hidden_gates[:, : 2 * hidden]).chunk(2, dim=1)
        candidate = torch.tanh(torch.addcmul(gates[:, 2 * hidden :], reset, hidden_gates[:, 2 * hidden :]))
        new_state = torch.lerp(candidate, state, update)
        return new_state, context, attn_weights.view(-1, attn_weights.shape[-1])

    def vocabulary_step(
        self, tokens: Tensor, state: Tensor, keys: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert self.gate_table is not None
        new_state, context, attn_weights = self.step(self.gate_table[tokens], state, keys, memory)
        log_probs = self.log_probs(torch.cat([state, self.embedding(tokens), context], dim=-1))
        return log_probs, new_state, attn_weights


class EagerSearch:
    """Eager's step for :func:`rnnsearch.beam_search.beam_search`, with the memory tiled once and not per step."""

    def __init__(self, eager: Eager) -> None:
        self.eager = eager
        self._index: Tensor | None = None
        self._tiled: tuple[Tensor, Tensor] | None = None

    def __call__(self, tokens: Tensor, state: Tensor, memory: PreparedMemory, memory_index: Tensor) -> Any:
        if self._tiled is None or self._index is not memory_index:
            # The search makes a new index where rows were added or sentences have left: only then.
            self._index = memory_index
            self._tiled = memory.keys[memory_index], memory.memory[memory_index]
        keys, values = self._tiled
        log_probs, new_state, attn_weights = self.eager.vocabulary_step(tokens, state, keys, values)

        def topk(k: int, banned_ids: Tensor | None) -> tuple[Tensor, Tensor]:
            if banned_ids is not None:
                log_probs.scatter_(1, banned_ids, float("-inf"))
            best = log_probs.topk(min(k, log_probs.shape[1]))
            return best.values, best.indices

        return topk, new_state, attn_weights


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` for exactly the shapes it is called with."""
    return torch.compile(function, dynamic=False, fullgraph=True)


def why_not_compiled(device: str) -> str | None:
    """torch.compile needs a C++ compiler for a CPU; the reason where it has none."""
    if device != "cpu":
        return None
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        compiler = get_cpp_compiler()
    except Exception as error:  # InvalidCxxCompiler has moved between torch versions
        return f"torch.compile found no C++ compiler ({type(error).__name__})"
    return None if shutil.which(compiler) else f"torch.compile's C++ compiler {compiler!r} is not on the path"


def graphed(function: Callable[[], Any]) -> Callable[[], Any]:
    """``function`` recorded as a CUDA graph; a replay returns the same tensors, filled anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()

    def replay() -> Any:
        graph.replay()
        return results

    return replay
