"""The decoder as a module: the drop-in for a Python loop over attention and ``GRUCell``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .backends import AUTO, check_backend
from .checks import check_lengths, check_mask, check_tensor, padding_mask
from .conversion import check_modules, copy_parameters, input_first
from .functional import linear
from .ops import AUTOCAST_DEVICES
from .orders import past_end, scan_after, scan_before, step_after, step_before
from .reference.dtypes import accumulate_dtype
from .values import DecoderOutput, DecoderWeights, PreparedMemory


class FusedBahdanauDecoder(nn.Module):
    """A GRU decoder with additive attention (Bahdanau et al. 2014, arXiv:1409.0473), fused.

        query_t   = query_proj(s_{t-1})
        context_t = Σ_j α_tj memory_j,  α_t = softmax_j(score(tanh(query_t + key_proj(memory_j))))
        s_t       = GRUCell([input_t ; context_t], s_{t-1})

    Parameters are those of the modules people already have: ``cell`` (a ``GRUCell`` over [input ; context]),
    ``query_proj``, ``key_proj`` and ``score`` (Linears). :meth:`from_modules` takes a hand-written decoder's.

    With ``attend_after`` the state moves on first and attends then, as in Listen, Attend and Spell (Chan et al. 2016,
    arXiv:1508.01211, eq. 6-8), Tacotron and decoders with input feeding:

        s_t       = GRUCell([input_t ; context_{t-1}], s_{t-1}),  context_0 = 0 unless given
        query_t   = query_proj(s_t)
        context_t = Σ_j α_tj memory_j,  α_t = softmax_j(score(tanh(query_t + key_proj(memory_j))))

    Args:
        input_size: E. hidden_size: H. memory_size: M.
        attention_size: A; H by default.
        bias: the cell's two biases.
        attend_after: whether the attention's query is the new state; False, as in the paper: the old one.
        reset_after: True as ``nn.GRUCell`` and cuDNN; False as the paper: n = tanh(g_n + U_n (r ∘ s)).
        query_bias, key_bias, score_bias: which of the three Linears have a bias. That of the score cancels in
            the softmax; its gradient is zero.
        backend: ``"auto"`` or a backend's name.

    The state is carried in float32 (float64 in a float64 module) whatever the parameters' dtype.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        attention_size: int | None = None,
        *,
        bias: bool = True,
        attend_after: bool = False,
        reset_after: bool = True,
        query_bias: bool = False,
        key_bias: bool = True,
        score_bias: bool = False,
        backend: str = AUTO,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        attention_size = hidden_size if attention_size is None else attention_size
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("memory_size", memory_size),
            ("attention_size", attention_size),
        ):
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1; got {size}")
        check_backend(backend)
        made = {"device": device, "dtype": dtype}
        self.input_size, self.hidden_size = input_size, hidden_size
        self.memory_size, self.attention_size = memory_size, attention_size
        self.attend_after, self.reset_after, self.backend = attend_after, reset_after, backend
        self.cell = nn.GRUCell(input_size + memory_size, hidden_size, bias=bias, **made)
        self.query_proj = nn.Linear(hidden_size, attention_size, bias=query_bias, **made)
        self.key_proj = nn.Linear(memory_size, attention_size, bias=key_bias, **made)
        self.score = nn.Linear(attention_size, 1, bias=score_bias, **made)

    @classmethod
    def from_modules(
        cls,
        cell: nn.GRUCell,
        query: nn.Linear,
        key: nn.Linear,
        score: nn.Linear,
        *,
        input_order: str = "input_context",
        attend_after: bool = False,
        backend: str = AUTO,
    ) -> FusedBahdanauDecoder:
        """A decoder with copies of a hand-written one's parameters.

        Args:
            cell: over the concatenation of input and context. The later calls of ``cell`` do not see what is
                trained here, nor the other way round: everything is copied.
            query, key, score: the Linears of ``score(tanh(query(state) + key(memory)))``, each with or without
                a bias.
            input_order: ``"input_context"`` where the cell reads cat([input, context]), ``"context_input"``
                where it reads cat([context, input]).
            attend_after: True where the loop calls the cell first, on the last step's context, and attends with the
                state that comes out of it.

        Raises:
            TypeError: a module of another kind, which this decoder cannot represent.
            ValueError: sizes that do not fit together.
        """
        check_modules(cell, query, key, score, input_order)
        decoder = cls(
            cell.input_size - key.in_features,
            cell.hidden_size,
            key.in_features,
            query.out_features,
            bias=cell.bias,
            query_bias=query.bias is not None,
            key_bias=key.bias is not None,
            score_bias=score.bias is not None,
            attend_after=attend_after,
            backend=backend,
            device=cell.weight_hh.device,
            dtype=cell.weight_hh.dtype,
        )
        copy_parameters(decoder.cell, cell)
        if input_order == "context_input":
            input_first(decoder.cell, decoder.memory_size)
        for own, theirs in ((decoder.query_proj, query), (decoder.key_proj, key), (decoder.score, score)):
            copy_parameters(own, theirs)
        return decoder

    def extra_repr(self) -> str:
        return (
            f"input_size={self.input_size}, hidden_size={self.hidden_size}, memory_size={self.memory_size}, "
            f"attention_size={self.attention_size}, attend_after={self.attend_after}, reset_after={self.reset_after}, "
            f"backend={self.backend!r}"
        )

    def _weights(self) -> DecoderWeights:
        cell = self.cell
        input_weight, context_weight = cell.weight_ih.split([self.input_size, self.memory_size], 1)
        score_weight = self.score.weight[0]
        if self.score.bias is not None and torch.is_grad_enabled():
            # A constant added to every score leaves the softmax as it is: the bias has a gradient, and it is 0.
            score_weight = score_weight + 0 * self.score.bias
        return DecoderWeights(
            input_weight,
            cell.bias_ih,
            score_weight,
            self.query_proj.weight,
            self.query_proj.bias,
            context_weight,
            cell.weight_hh,
            cell.bias_hh,
        )

    def _state_mask(self, state_mask: Tensor | None, weights: DecoderWeights) -> Tensor | None:
        if state_mask is None:
            return None
        check_tensor("state_mask", state_mask)
        # A bool mask lacks the 1 / (1 - p), so it is left for the op to refuse.
        dtype = accumulate_dtype(weights.hidden_weight.dtype)
        return state_mask.to(dtype) if state_mask.is_floating_point() else state_mask

    def _initial_state(self, state: Tensor | None, rows: Tensor, weights: DecoderWeights) -> Tensor:
        dtype = accumulate_dtype(weights.hidden_weight.dtype)
        if state is None:
            return rows.new_zeros(rows.shape[0], self.hidden_size, dtype=dtype)
        return state if state.dtype == dtype else state.to(dtype)

    def prepare_memory(
        self,
        memory: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        memory_lengths: Tensor | None = None,
    ) -> PreparedMemory:
        """Everything about the memory that :meth:`step` needs, computed once.

        Keys and gates hold what the parameters were at this moment: prepare again after changing them. Without
        gradients the step's parameters are looked up here once, and ``memory_gates`` are prepared where S ≤ M / 2:
        then a step reads S · 3H values of them instead of the 3H · M of the context weight, and preparing pays for
        itself within about a tenth of S steps.

        Args:
            memory: (B, S, M), in the parameters' dtype; in any under autocast.
            key_padding_mask: (B, S) bool, True = ignore. memory_lengths: (B,) int64, the alternative.
        """
        self._check_memory(memory)
        check_mask(key_padding_mask, memory)
        mask = padding_mask(key_padding_mask, memory_lengths, memory)
        memory = _zero_padding(memory, mask)
        # An exported graph serves every S, so it cannot choose by S.
        may_choose = not torch.is_grad_enabled() and not torch.compiler.is_exporting()
        storage = self.key_proj.weight.dtype
        keys = linear(memory, self.key_proj.weight, self.key_proj.bias, backend=self.backend).to(storage)
        weights = self._weights() if may_choose else None
        memory_gates = None
        if weights is not None and self.prepares_gates(memory.shape[1]):
            memory_gates = linear(memory, weights.context_weight, backend=self.backend).to(storage)
        return PreparedMemory(memory, keys, memory_gates, mask, weights)

    def prepares_gates(self, length: int) -> bool:
        """Whether :meth:`prepare_memory` prepares the gates of a memory of S = ``length``.

        A step sums in another order then, so rows are the same bits in a batch as alone where all its memories, padded
        to the longest, are on one side. With ``attend_after`` none are: a step multiplies the context it was given.
        """
        return not self.attend_after and 2 * length <= self.memory_size

    def input_gates(self, input: Tensor) -> Tensor:
        """The input's part of a step's gates, input_weight input + bias: (N, E) -> (N, 3H), accumulate dtype.

        A decoder that reads tokens can compute those of a whole vocabulary once, ``table =
        decoder.input_gates(embedding.weight)``, and :meth:`step` from ``input_gates=table[tokens]``: what the step
        computes from ``embedding(tokens)``, bit for bit where a row's product does not depend on its batch (the native
        backend). :meth:`forward` takes ``table[tokens]`` of tokens (B, T) likewise.
        """
        self._check_input("input", input)
        weights = self._weights()
        return linear(input, weights.input_weight, weights.input_bias, backend=self.backend)

    def _check_input(self, name: str, input: Tensor) -> None:
        check_tensor(name, input)
        if input.dim() != 2 or input.shape[1] != self.input_size:
            raise ValueError(f"`{name}` must be (N, E) = (N, {self.input_size}); got {tuple(input.shape)}")

    def step(
        self,
        input_t: Tensor | None,
        state: Tensor | None,
        memory: PreparedMemory,
        *,
        input_gates: Tensor | None = None,
        context: Tensor | None = None,
        state_mask: Tensor | None = None,
        memory_index: Tensor | None = None,
        need_weights: bool = True,
    ) -> DecoderOutput:
        """One step; a function of its arguments, differentiable.

        Args:
            input_t: (N, E); None where ``input_gates`` are given.
            input_gates: (N, 3H), from :meth:`input_gates`, in place of ``input_t``.
            state: (N, H); None for zeros.
            memory: from :meth:`prepare_memory`.
            context: (N, M), with ``attend_after``, the last step's; None for zeros.
            state_mask: (N, H), dropout of the state as in :meth:`forward`.
            memory_index: (N,) int64, the sentence of each row; without it row i attends to sentence i. Inference
                only.
            need_weights: whether to return the attention weights.
        """
        if (input_t is None) == (input_gates is None):
            raise TypeError("give `input_t` (N, E) or `input_gates` (N, 3H), one of the two")
        if not isinstance(memory, PreparedMemory):
            raise TypeError(f"`memory` must be what `prepare_memory` gave; got {type(memory).__name__}")
        if input_t is not None:
            self._check_input("input_t", input_t)
        self._check_context(context, memory.memory.shape[0] if memory_index is None else memory_index.shape[0])
        if memory.values is not None and memory.memory_gates is None and not self.attend_after:
            raise ValueError("a PreparedMemory with `values` must have `memory_gates`")
        if memory.values is not None and torch.is_grad_enabled():
            raise RuntimeError("`values` of a PreparedMemory are for inference: call under torch.no_grad()")
        weights, memory_gates = memory.weights, memory.memory_gates
        if torch.is_grad_enabled():
            # What was prepared may have been taken without gradients.
            weights, memory_gates = None, None
        if weights is None:
            weights = self._weights()
        if input_gates is None:
            assert input_t is not None
            input_gates = linear(input_t, weights.input_weight, weights.input_bias, backend=self.backend)
        else:
            check_tensor("input_gates", input_gates)
        given = (input_gates, self._initial_state(state, input_gates, weights), memory, weights)
        options: dict[str, Any] = {
            "state_mask": self._state_mask(state_mask, weights),
            "memory_index": memory_index,
            "reset_after": self.reset_after,
            "backend": self.backend,
        }
        if self.attend_after:
            new_state, context, attn_weights = step_after(*given, context=context, **options)
        else:
            new_state, context, attn_weights = step_before(*given, memory_gates=memory_gates, **options)
        output = new_state.to(memory.keys.dtype if input_t is None else input_t.dtype)
        return DecoderOutput(output, context, attn_weights if need_weights else None, new_state)

    def _check_context(self, context: Tensor | None, rows: int) -> None:
        if context is None:
            return
        if not self.attend_after:
            raise TypeError("`context` is for a decoder with `attend_after`: this one's steps begin with their own")
        check_tensor("context", context)
        if tuple(context.shape) != (rows, self.memory_size):
            raise ValueError(f"`context` must be (N, M) = ({rows}, {self.memory_size}); got {tuple(context.shape)}")

    def forward(
        self,
        input: Tensor | None,
        memory: Tensor,
        state: Tensor | None = None,
        *,
        input_gates: Tensor | None = None,
        context: Tensor | None = None,
        state_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        memory_lengths: Tensor | None = None,
        input_lengths: Tensor | None = None,
        need_weights: bool = False,
    ) -> DecoderOutput:
        """All T steps, teacher-forced.

        Args:
            input: (B, T, E); None where ``input_gates`` are given.
            input_gates: (B, T, 3H), storage or accumulate dtype, in place of ``input``: rows that :meth:`input_gates`
                made. Of a minibatch's tokens each different one need be multiplied only once.
            memory: (B, S, M).
            state: (B, H); None for zeros.
            context: (B, M), with ``attend_after``, what the first step's cell reads; None for zeros.
            state_mask: (B, H), dropout of the state, one mask for all steps, its entries 0 or 1 / (1 - p); a constant.
                Query and gates read state_mask ∘ s, and the update gate carries s on. None, as for evaluation, is no
                dropout.
            key_padding_mask: (B, S) bool, True = ignore. memory_lengths: (B,) int64, the alternative.
            input_lengths: (B,) int64 in 0..T; from there on the state is frozen and the results are zero.
            need_weights: whether to return the attention weights.

        Returns:
            :class:`DecoderOutput` with the state after each row's last step.
        """
        if (input is None) == (input_gates is None):
            raise TypeError("give `input` (B, T, E) or `input_gates` (B, T, 3H), one of the two")
        if input_gates is None:
            assert input is not None
            _check_steps("input", "E", input, self.input_size)
            steps = input
        else:
            _check_steps("input_gates", "3H", input_gates, 3 * self.hidden_size)
            steps = input_gates
        self._check_memory(memory)
        self._check_context(context, memory.shape[0])
        check_mask(key_padding_mask, memory)
        mask = padding_mask(key_padding_mask, memory_lengths, memory)
        check_lengths("input_lengths", input_lengths, steps.shape[0], steps.shape[1], "T")
        memory = _zero_padding(memory, mask)
        if input_lengths is not None:
            steps = steps.masked_fill(past_end(input_lengths, steps.shape[1]), 0)
        weights = self._weights()
        gates = steps
        if input_gates is None:
            gates = nn.functional.linear(steps, weights.input_weight, weights.input_bias)
        keys = self.key_proj(memory)
        given = (gates, self._initial_state(state, gates, weights), keys, memory.to(keys.dtype), weights)
        options: dict[str, Any] = {
            "state_mask": self._state_mask(state_mask, weights),
            "key_padding_mask": mask,
            "input_lengths": input_lengths,
            "reset_after": self.reset_after,
            "backend": self.backend,
        }
        if self.attend_after:
            states, contexts, attn_weights, last = scan_after(*given, context=context, **options)
        else:
            states, contexts, attn_weights, last = scan_before(*given, **options)
        output = states.to(keys.dtype if input is None else input.dtype)
        return DecoderOutput(output, contexts, attn_weights if need_weights else None, last)

    def _check_memory(self, memory: Tensor) -> None:
        check_tensor("memory", memory)
        if memory.dim() != 3 or memory.shape[2] != self.memory_size or memory.shape[1] < 1:
            raise ValueError(
                f"`memory` must be (B, S, M) = (B, S, {self.memory_size}) with S at least 1; got {tuple(memory.shape)}"
            )
        wanted, device = self.key_proj.weight.dtype, memory.device.type
        if memory.dtype != wanted and not (device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)):
            raise TypeError(f"`memory` must be {wanted} as the decoder's parameters; got {memory.dtype}")


def _check_steps(name: str, letter: str, steps: Tensor, features: int) -> None:
    check_tensor(name, steps)
    if steps.dim() != 3 or steps.shape[2] != features or steps.shape[1] < 1:
        raise ValueError(
            f"`{name}` must be (B, T, {letter}) = (B, T, {features}) with T at least 1; got {tuple(steps.shape)}"
        )


def _zero_padding(memory: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """0 · NaN is NaN: what is padded must not reach a product."""
    return memory if key_padding_mask is None else memory.masked_fill(key_padding_mask[..., None], 0)
