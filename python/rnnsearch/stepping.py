"""RNNSearch one step at a time, as decoding reads it: without gradients, of hypotheses that share their sentences."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from rnnsearch.candidates import TopK
from rnnsearch.translation import TranslationModel
from rnnsearch_kernels import FusedBahdanauDecoder, PreparedMemory, linear, vocabulary_topk

# What a step hands on: s (N, H), or with attend_after (s, W_c c), (N, H) and (N, 3H).
State = Tensor | tuple[Tensor, Tensor]


class RNNSearchSteps(TranslationModel):
    """The steps of :class:`rnnsearch.model.RNNSearch`, where equations and names are explained."""

    backend: str
    decoder: FusedBahdanauDecoder
    target_embedding: nn.Embedding
    readout: nn.Linear
    output: nn.Linear

    def _memory(self, source: Tensor, source_lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """The annotations (B, S, M) and s_0 (B, H)."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> tuple[PreparedMemory, State]:
        """What :meth:`step` reads and the first state of sources (B, S), padded or not.

        The state is s_0 (B, H); with ``attend_after`` also W_c c_0 (B, 3H), the context's part of the next gates.
        """
        memory, state = self._memory(source, source_lengths)
        prepared = self.prepare(memory, source_lengths)
        if self.config.attend_after:
            return prepared, (state, state.new_zeros(state.shape[0], 3 * self.config.hidden_size))
        return prepared, state

    @torch.no_grad()
    def prepare(self, memory: Tensor, memory_lengths: Tensor | None = None) -> PreparedMemory:
        """Annotations (B, S, M) made ready for :meth:`step`. Where S ≤ M / 2, what gates and readout make of each
        position is prepared, too, W_c h_j (B, S, 3H) and C_o h_j (B, S, 2L): C_o Σ α_j h_j = Σ α_j C_o h_j.
        """
        prepared = self.decoder.prepare_memory(memory, memory_lengths=memory_lengths)
        # As the decoder, which chooses nothing by S for an exported graph.
        if torch.compiler.is_exporting() or not self._prepares_values(memory.shape[1]):
            return prepared
        *_, weight = self._readout_weights()
        if self.config.attend_after:
            weight = torch.cat([self._context_weight(), weight])
        values = linear(prepared.memory, weight, backend=self.backend)
        return prepared._replace(values=values.to(prepared.memory.dtype))

    @torch.no_grad()
    def token_table(self) -> Tensor:
        """(V, 3H + 2L): what a step computes of each target token alone, its input gates and its part of the readout.

        It holds what the parameters are now: make another after changing them. Where a row's product does not depend
        on its batch (the native backend), a step's results with it are the same bits as without. It costs what V rows
        of those products cost.
        """
        embedded, (_, of_token, _) = self.target_embedding.weight, self._readout_weights()
        readout = linear(embedded, of_token, backend=self.backend)
        return torch.cat([self.decoder.input_gates(embedded), readout], dim=1)

    @torch.no_grad()
    def step(
        self,
        tokens: Tensor,
        state: State,
        memory: PreparedMemory,
        memory_index: Tensor,
        *,
        token_table: Tensor | None = None,
    ) -> tuple[TopK, State, Tensor | None]:
        """One step of N hypotheses, for :func:`beam_search`; the (N, V) logits never leave the last op."""
        readout, new_state, attn_weights = self._advance(tokens, state, memory, memory_index, token_table)

        @torch.no_grad()
        def topk(k: int, banned_ids: Tensor | None) -> tuple[Tensor, Tensor]:
            return vocabulary_topk(
                readout,
                self.output.weight,
                self.output.bias,
                k=min(k, self.config.target_vocabulary_size),
                banned_ids=banned_ids,
                backend=self.backend,
            )

        return topk, new_state, attn_weights

    @torch.no_grad()
    def log_probs(
        self,
        tokens: Tensor,
        state: State,
        memory: PreparedMemory,
        memory_index: Tensor,
        *,
        token_table: Tensor | None = None,
    ) -> tuple[Tensor, State, Tensor]:
        """A step of N hypotheses with the log-probabilities (N, V) of every token."""
        readout, new_state, attn_weights = self._advance(tokens, state, memory, memory_index, token_table)
        logits = linear(readout, self.output.weight, self.output.bias, backend=self.backend)
        return logits.log_softmax(dim=-1), new_state, attn_weights

    def _prepares_values(self, length: int) -> bool:
        """Whether :meth:`prepare` makes values of sources of this length."""
        return 2 * length <= self.config.memory_size

    def _together(self, length: int, other: int) -> bool:
        return self._prepares_values(length) == self._prepares_values(other)

    def _graph_key(self, token_table: Tensor | None) -> Hashable | None:
        """All that the work of :meth:`step` depends on beside its arguments; None where a subclass has its own."""
        if type(self).step is not RNNSearchSteps.step:
            return None
        tensors = [*self.parameters(), *self.buffers(), *([] if token_table is None else [token_table])]
        device = self.output.weight.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        places = tuple((x.data_ptr(), tuple(x.shape), x.stride(), x.dtype) for x in tensors)
        return type(self), self.config, self.backend, self.decoder.backend, autocast, places

    def _advance(
        self,
        tokens: Tensor,
        state: State,
        memory: PreparedMemory,
        memory_index: Tensor,
        token_table: Tensor | None,
    ) -> tuple[Tensor, State, Tensor]:
        """t_i (N, L), what goes on to the next step, and the attention weights (N, S)."""
        of_state, of_token, of_context = self._readout_weights()
        if token_table is None:
            embedded = self.target_embedding(tokens)
            gates = self.decoder.input_gates(embedded)
            wide = linear(embedded, of_token, backend=self.backend)
        else:
            sizes = [3 * self.config.hidden_size, 2 * self.config.readout_size]
            gates, wide = token_table.index_select(0, tokens).split(sizes, dim=1)
        if isinstance(state, tuple):
            old_state, context_gates = state
            gates = gates + context_gates
        else:
            old_state = state
        decoded = self.decoder.step(None, old_state, memory, input_gates=gates, memory_index=memory_index)
        assert decoded.attn_weights is not None
        context, new_state = decoded.context, decoded.state
        if isinstance(state, tuple):
            if memory.values is None:
                context_gates = linear(context, self._context_weight(), backend=self.backend)
            else:
                context_gates, context = context.split([3 * self.config.hidden_size, 2 * self.config.readout_size], 1)
                # As the first ones: a graph is kept where a state has one dtype at every step.
                context_gates = context_gates.to(new_state.dtype)
            read, state = new_state, (new_state, context_gates)
        else:
            read, state = old_state, new_state
        wide += linear(read, of_state, self.readout.bias, backend=self.backend)
        if memory.values is None:
            wide += linear(context, of_context, backend=self.backend)
        else:
            wide += context
        return maxout(wide), state, decoded.attn_weights

    def _context_weight(self) -> Tensor:
        """W_c (3H, M), the context's part of the gates."""
        return self.decoder.cell.weight_ih[:, self.config.embedding_size :]

    def _readout_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """U_o (2L, H), V_o (2L, E) and C_o (2L, M): parts of one matrix."""
        config = self.config
        of_state, of_token, of_context = self.readout.weight.split(
            [config.hidden_size, config.embedding_size, config.memory_size], 1
        )
        return of_state, of_token, of_context


def maxout(wide: Tensor) -> Tensor:
    """The larger of each two neighbours: (..., 2L) -> (..., L)."""
    return torch.maximum(wide[..., 0::2], wide[..., 1::2])
