"""RNNSearch: Bahdanau, Cho, Bengio 2014, arXiv:1409.0473, appendix A."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rnnsearch import checkpoint
from rnnsearch.config import RNNSearchConfig
from rnnsearch.embedded import Embedded, embed
from rnnsearch.stepping import RNNSearchSteps, maxout
from rnnsearch.translation import Translation, evaluating
from rnnsearch.vocabulary import Vocabulary
from rnnsearch_kernels import FusedBahdanauDecoder, check_backend, gru_scan, linear

__all__ = ["RNNSearch", "Translation", "evaluating"]


class RNNSearch(RNNSearchSteps):
    """A bidirectional GRU encoder, a GRU decoder with additive attention, and a maxout readout.

        h_j  = [forward GRU ; backward GRU](E_x x)_j                      the memory (B, S, M)
        s_0  = tanh(W_s h←_1)
        t̃_i  = U_o s_{i-1} + V_o E_y y_{i-1} + C_o c_i                    (2L)
        t_i  = max of adjacent pairs of t̃_i                               (L)
        p(y_i) ∝ exp(W_o t_i)

    with c_i and s_i of :class:`rnnsearch_kernels.FusedBahdanauDecoder`. There c_i follows from s_{i-1}, which has not
    read y_{i-1}. With ``config.attend_after`` s_i moves on first, from y_{i-1} and c_{i-1} (c_0 = 0), and c_i follows
    from s_i; so does t̃_i = U_o s_i + V_o E_y y_{i-1} + C_o c_i. With ``config.encoder_layers`` above 1 further pairs of
    GRUs each read the annotations of the pair below, as in ``nn.GRU``; h_j and h←_1 are the last one's.

    Args:
        config: sizes and options.
        source_vocabulary, target_vocabulary: needed by :meth:`translate` and :meth:`save_pretrained` only.
        backend: that of the ops, ``"auto"`` or a backend's name.
    """

    def __init__(
        self,
        config: RNNSearchConfig,
        source_vocabulary: Vocabulary | None = None,
        target_vocabulary: Vocabulary | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for side, vocabulary, size in (
            ("source", source_vocabulary, config.source_vocabulary_size),
            ("target", target_vocabulary, config.target_vocabulary_size),
        ):
            if vocabulary is not None and len(vocabulary) != size:
                raise ValueError(f"the {side} vocabulary must have {size} tokens; got {len(vocabulary)}")
            if vocabulary is not None and vocabulary.special_ids != config.special_ids:
                raise ValueError(
                    f"the {side} vocabulary has {vocabulary.special_ids}; the configuration has {config.special_ids}"
                )
        self.config, self.backend = config, backend
        self.source_vocabulary, self.target_vocabulary = source_vocabulary, target_vocabulary
        embedding, encoder, hidden = config.embedding_size, config.encoder_size, config.hidden_size
        self.source_embedding = nn.Embedding(config.source_vocabulary_size, embedding, padding_idx=config.pad_id)
        self.target_embedding = nn.Embedding(config.target_vocabulary_size, embedding, padding_idx=config.pad_id)
        self.forward_cell = nn.GRUCell(embedding, encoder)
        self.backward_cell = nn.GRUCell(embedding, encoder)
        self.upper_cells = nn.ModuleList(
            _EncoderLayer(config.memory_size, encoder) for _ in range(config.encoder_layers - 1)
        )
        self.initial_state = nn.Linear(encoder, hidden)
        self.decoder = FusedBahdanauDecoder(
            embedding,
            hidden,
            config.memory_size,
            config.attention_size,
            attend_after=config.attend_after,
            reset_after=config.reset_after,
            backend=backend,
        )
        self.readout = nn.Linear(hidden + embedding + config.memory_size, 2 * config.readout_size)
        self.output = nn.Linear(config.readout_size, config.target_vocabulary_size)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.memory_dropout = nn.Dropout(config.memory_dropout)
        self.readout_dropout = nn.Dropout(config.readout_dropout)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, scheme: str = "paper") -> None:
        """Draw the weights anew. Recurrent matrices are orthogonal and biases 0 in both schemes.

        ``"paper"``, appendix B.1: W_a and U_a N(0, 0.001²), v_a 0, the rest N(0, 0.01²).
        ``"xavier"``, for a quicker start with Adam: the rest uniform by fan-in and fan-out (Glorot and Bengio
        2010), embeddings N(0, 0.3²).
        """
        if scheme not in ("paper", "xavier"):
            raise ValueError(f"`scheme` must be 'paper' or 'xavier'; got {scheme!r}")
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.zero_()
            elif name.endswith("weight_hh"):
                for gate in parameter.chunk(3):
                    nn.init.orthogonal_(gate)
            elif scheme == "xavier" and "embedding" in name:
                parameter.normal_(0.0, 0.3)
            elif scheme == "xavier":
                nn.init.xavier_uniform_(parameter)
            elif name == "decoder.score.weight":
                parameter.zero_()
            elif name in ("decoder.query_proj.weight", "decoder.key_proj.weight"):
                parameter.normal_(0.0, 0.001)
            else:
                parameter.normal_(0.0, 0.01)
        for embedding in (self.source_embedding, self.target_embedding):
            embedding.weight[self.config.pad_id].zero_()

    def forward(self, source: Tensor, source_lengths: Tensor | None, target: Tensor) -> Tensor:
        """Teacher-forced logits.

        Args:
            source: (B, S) int64, padded. source_lengths: (B,) int64; None where nothing is padded.
            target: (B, T) int64, what the decoder reads: beginning of sentence first, no end of sentence.

        Returns:
            Logits (B, T, V) of the token that follows each position; those after a padded one mean nothing.
        """
        return self._linear(self.output, self.readouts(source, source_lengths, target))

    def readouts(self, source: Tensor, source_lengths: Tensor | None, target: Tensor) -> Tensor:
        """What the last product of :meth:`forward` reads: t_i (B, T, L), dropout included."""
        return self.aligned(source, source_lengths, target)[0]

    def aligned(self, source: Tensor, source_lengths: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`readouts`, and the attention weights (B, T, S) that each position was read with."""
        memory, state = self._memory(source, source_lengths)
        embedded = self._embed(self.target_embedding, target)
        shared = embedded.places is not None
        decoded = self.decoder(
            None if shared else embedded.rows,
            memory,
            state,
            input_gates=embedded.at_places(self.decoder.input_gates) if shared else None,
            memory_lengths=source_lengths,
            state_mask=self._state_mask(state),
            need_weights=True,
        )
        states = decoded.output
        if not self.config.attend_after:
            states = torch.cat([state.unsqueeze(1).to(states.dtype), states[:, :-1]], dim=1)
        return self.readout_dropout(self._readout(states, embedded, decoded.context)), decoded.attn_weights

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write weights (as ``dtype``, or as they are), configuration and vocabularies; see :mod:`checkpoint`."""
        if self.source_vocabulary is None or self.target_vocabulary is None:
            raise ValueError("save_pretrained needs both vocabularies: give them to RNNSearch")
        checkpoint.save(
            directory,
            weights=self.state_dict(),
            config=self.config.to_dict(),
            vocabularies={"source": self.source_vocabulary.tokens, "target": self.target_vocabulary.tokens},
            dtype=dtype,
        )

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, dtype: torch.dtype = torch.float32, backend: str = "auto"
    ) -> RNNSearch:
        """The model that :meth:`save_pretrained` wrote, in ``dtype`` and in evaluation mode.

        Raises:
            CheckpointError: a file is missing, is not what it should be, or holds weights that are not finite or
                do not fit the configuration.
            ValueError: there is no such backend.
        """
        check_backend(backend)
        saved = checkpoint.load(directory)
        with checkpoint.explained(directory):
            vocabularies = [Vocabulary(saved.vocabularies[side]) for side in ("source", "target")]
            with torch.device("meta"):  # no weights are drawn only to be replaced
                model = cls(RNNSearchConfig(**saved.config), *vocabularies, backend=backend)
        checkpoint.check_weights(directory, saved.weights, model.state_dict())
        model.load_state_dict(saved.weights, assign=True)
        return model.to(dtype).eval()

    def _memory(self, source: Tensor, source_lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """The annotations (B, S, M) and s_0 (B, H)."""
        input = self._embed(self.source_embedding, source)
        layers: list[Any] = [self, *self.upper_cells]
        for layer in layers:
            forward_states = self._encode(layer.forward_cell, input, source_lengths, reverse=False)
            backward_states = self._encode(layer.backward_cell, input, source_lengths, reverse=True)
            memory = torch.cat([forward_states, backward_states], dim=2).to(input.rows.dtype)
            input = Embedded(self.memory_dropout(memory))
        return input.rows, torch.tanh(self._linear(self.initial_state, backward_states[:, 0]))

    def _embed(self, embedding: nn.Embedding, tokens: Tensor) -> Embedded:
        return embed(embedding, tokens, self.embedding_dropout)

    def _encode(self, cell: nn.GRUCell, input: Embedded, lengths: Tensor | None, *, reverse: bool) -> Tensor:
        gates = input.at_places(lambda rows: self._product(rows, cell.weight_ih, cell.bias_ih))
        carried = torch.float64 if cell.weight_hh.dtype == torch.float64 else torch.float32
        state = torch.zeros(gates.shape[0], cell.hidden_size, dtype=carried, device=gates.device)
        return gru_scan(
            gates,
            state,
            cell.weight_hh,
            cell.bias_hh,
            state_mask=self._state_mask(state),
            lengths=lengths,
            reverse=reverse,
            reset_after=self.config.reset_after,
            backend=self.backend,
        )

    def _state_mask(self, state: Tensor) -> Tensor | None:
        """For a state (B, H): 0 or 1 / (1 - p), drawn once for all steps; None where nothing is dropped."""
        if not self.training or self.config.state_dropout == 0:
            return None
        return nn.functional.dropout(torch.ones_like(state, requires_grad=False), self.config.state_dropout)

    def _readout(self, state: Tensor, embedded: Embedded, context: Tensor) -> Tensor:
        """t_i. In the paper's order the state is that from before it moved on."""
        if embedded.places is None:
            return maxout(self._linear(self.readout, torch.cat([state, embedded.rows, context], dim=-1)))
        of_state, of_token, of_context = self._readout_weights()
        wide = embedded.at_places(lambda rows: self._product(rows, of_token, self.readout.bias))
        wide = wide + self._product(state, of_state, None)
        return maxout(wide + self._product(context, of_context, None))

    def _linear(self, module: nn.Linear, input: Tensor) -> Tensor:
        return self._product(input, module.weight, module.bias)

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Where rows must not depend on their batch, the op; where gradients are wanted, the library's product."""
        if torch.is_grad_enabled():
            return nn.functional.linear(input.to(weight.dtype), weight, bias)
        return linear(input, weight, bias, backend=self.backend)


class _EncoderLayer(nn.Module):
    """The cells of one of the encoder's layers above the first."""

    def __init__(self, input_size: int, encoder_size: int) -> None:
        super().__init__()
        self.forward_cell = nn.GRUCell(input_size, encoder_size)
        self.backward_cell = nn.GRUCell(input_size, encoder_size)
