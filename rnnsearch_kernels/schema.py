"""Every op, once: its name, its arguments and its results.

This list is the only place where an op's signature is written. From it come the dispatcher's schemas, the
shape and dtype checks with their messages, the fake (meta) kernels and the autocast rules, for every backend.

Sizes (single capitals are sizes and nothing else; ``3H`` is three times H):

    B  sentences in a batch      S  source length      T  target length      N  rows (B, or hypotheses)
    H  decoder hidden size       A  attention size     M  memory size        E  input (embedding) size
    L  readout size              V  vocabulary         K  candidates kept    R  banned tokens a row
    I, O  input and output features of a product

Roles decide the dtype of a tensor:

    storage     float32, float64, bfloat16 or float16; all storage tensors of a call share one dtype
    accumulate  float32 (float64 where storage is float64): whatever is carried, summed or normalised
    float       either of the two
    mask        bool, True = ignore
    index       int64

The gates of a GRU lie side by side in torch's order: r, z, n. ``gates`` of a result is what the backward pass
needs again: r, z, n and the hidden part of the candidate, u_n (``U_n s + b_n``, or ``U_n (r * s) + b_n`` when
the reset comes before the product).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

STORAGE, ACCUMULATE, FLOAT, MASK, INDEX = "storage", "accumulate", "float", "mask", "index"


@dataclass(frozen=True)
class Arg:
    """A tensor argument: its sizes by letter and its role. A constant has no gradient whatever its dtype."""

    name: str
    shape: tuple[str, ...]
    role: str
    optional: bool = False
    constant: bool = False


@dataclass(frozen=True)
class Flag:
    """An argument that is no tensor: ``kind`` is ``bool``, ``int`` or ``float``.

    An int may give a size its value; a float is a share, 0..1.
    """

    name: str
    kind: str
    size: str | None = None


@dataclass(frozen=True)
class Result:
    """A tensor result. ``role`` as for arguments, or the name of the argument whose dtype it takes."""

    name: str
    shape: tuple[str, ...]
    role: str


@dataclass(frozen=True)
class Op:
    name: str
    args: tuple[Arg | Flag, ...]
    results: tuple[Result, ...]

    @property
    def tensors(self) -> tuple[Arg, ...]:
        return tuple(arg for arg in self.args if isinstance(arg, Arg))

    def position(self, name: str) -> int:
        """Where the argument ``name`` stands."""
        return [arg.name for arg in self.args].index(name)

    def signature(self, overload: str) -> str:
        """The schema in the dispatcher's language; the overload name is the backend's."""
        args = ", ".join(
            f"{arg.kind} {arg.name}" if isinstance(arg, Flag) else f"Tensor{'?' * arg.optional} {arg.name}"
            for arg in self.args
        )
        results = ", ".join(f"Tensor {result.name}" for result in self.results)
        return f"{self.name}.{overload}({args}) -> ({results})"


def _arg(name: str, shape: str, role: str, *, constant: bool = False) -> Arg:
    """``_arg("hidden_bias?", "3H", STORAGE)``: a trailing ``?`` makes it optional."""
    return Arg(name.rstrip("?"), tuple(shape.split()), role, optional=name.endswith("?"), constant=constant)


def _result(name: str, shape: str, role: str) -> Result:
    return Result(name, tuple(shape.split()), role)


RESET_AFTER = Flag("reset_after", "bool")

# What an attention decoder is made of: shared by the step, the scan and the scan's backward.
_MEMORY = (
    _arg("keys", "B S A", STORAGE),
    _arg("memory", "B S M", STORAGE),
    _arg("score_weight", "A", STORAGE),
)
_DECODER_WEIGHTS = (
    _arg("query_weight", "A H", STORAGE),
    _arg("query_bias?", "A", STORAGE),
    _arg("context_weight", "3H M", STORAGE),
    _arg("hidden_weight", "3H H", STORAGE),
)
# What the context's part of the gates comes from, one at least; with memory_gates, context_weight is not read.
CONTEXT_GATES = ("context_weight", "memory_gates")
# Dropout of the state, one mask for all steps: wherever the old state enters a product it is state_mask ∘ state; the
# state that is carried on, z ∘ state, is not masked. None is a mask of ones.
_STATE_MASK = _arg("state_mask?", "B H", ACCUMULATE, constant=True)
_PADDING = _arg("key_padding_mask?", "B S", MASK)
_INDEX = _arg("memory_index?", "N", INDEX)

OPS: tuple[Op, ...] = (
    # output = input weightᵀ + bias; a row's result does not depend on how many rows there are.
    Op(
        "linear",
        (_arg("input", "N I", FLOAT), _arg("weight", "O I", STORAGE), _arg("bias?", "O", STORAGE)),
        (_result("output", "N O", ACCUMULATE),),
    ),
    # score_j = score_weight · tanh(query + keys_j), attn_weights = softmax(score),
    # context = Σ_j attn_weights_j memory_j
    Op(
        "additive_attention",
        (_arg("query", "N A", FLOAT), *_MEMORY, _PADDING, _INDEX),
        (_result("context", "N M", STORAGE), _result("attn_weights", "N S", ACCUMULATE)),
    ),
    Op(
        "additive_attention_backward",
        (
            _arg("grad_context", "B M", STORAGE),
            _arg("grad_attn_weights", "B S", ACCUMULATE),
            _arg("query", "B A", FLOAT),
            *_MEMORY,
            _PADDING,
            _arg("attn_weights", "B S", ACCUMULATE),
        ),
        (
            _result("grad_query", "B A", "query"),
            _result("grad_keys", "B S A", STORAGE),
            _result("grad_memory", "B S M", STORAGE),
            _result("grad_score_weight", "A", STORAGE),
        ),
    ),
    # One step: attention over the memory, then the GRU. memory_gates = memory context_weightᵀ, where it was
    # prepared; then memory may be anything that is wanted summed. memory_index and memory_gates are for inference.
    Op(
        "decoder_step",
        (
            _arg("input_gates", "N 3H", FLOAT),
            _arg("state", "N H", ACCUMULATE),
            _arg("state_mask?", "N H", ACCUMULATE, constant=True),
            *_MEMORY,
            *(replace(arg, optional=arg.optional or arg.name in CONTEXT_GATES) for arg in _DECODER_WEIGHTS),
            _arg("hidden_bias?", "3H", STORAGE),
            _PADDING,
            _INDEX,
            _arg("memory_gates?", "B S 3H", STORAGE),
            RESET_AFTER,
        ),
        (
            _result("new_state", "N H", ACCUMULATE),
            _result("context", "N M", STORAGE),
            _result("attn_weights", "N S", ACCUMULATE),
            _result("gates", "N 4H", ACCUMULATE),
        ),
    ),
    # T steps, teacher-forced. From input_lengths on, the state is frozen and every result is zero.
    Op(
        "decoder_scan",
        (
            _arg("input_gates", "B T 3H", FLOAT),
            _arg("state", "B H", ACCUMULATE),
            _STATE_MASK,
            *_MEMORY,
            *_DECODER_WEIGHTS,
            _arg("hidden_bias?", "3H", STORAGE),
            _PADDING,
            _arg("input_lengths?", "B", INDEX),
            RESET_AFTER,
        ),
        (
            _result("states", "B T H", ACCUMULATE),
            _result("contexts", "B T M", STORAGE),
            _result("attn_weights", "B T S", ACCUMULATE),
            _result("gates", "B T 4H", ACCUMULATE),
        ),
    ),
    Op(
        "decoder_scan_backward",
        (
            _arg("grad_states", "B T H", ACCUMULATE),
            _arg("grad_contexts", "B T M", STORAGE),
            _arg("grad_attn_weights", "B T S", ACCUMULATE),
            _arg("input_gates", "B T 3H", FLOAT),
            _arg("state", "B H", ACCUMULATE),
            _STATE_MASK,
            *_MEMORY,
            *_DECODER_WEIGHTS,
            _PADDING,
            _arg("input_lengths?", "B", INDEX),
            _arg("states", "B T H", ACCUMULATE),
            _arg("contexts", "B T M", STORAGE),
            _arg("attn_weights", "B T S", ACCUMULATE),
            _arg("gates", "B T 4H", ACCUMULATE),
            RESET_AFTER,
        ),
        (
            _result("grad_input_gates", "B T 3H", "input_gates"),
            _result("grad_state", "B H", ACCUMULATE),
            _result("grad_keys", "B S A", STORAGE),
            _result("grad_memory", "B S M", STORAGE),
            _result("grad_score_weight", "A", STORAGE),
            _result("grad_query_weight", "A H", STORAGE),
            _result("grad_query_bias", "A", STORAGE),
            _result("grad_context_weight", "3H M", STORAGE),
            _result("grad_hidden_weight", "3H H", STORAGE),
            _result("grad_hidden_bias", "3H", STORAGE),
        ),
    ),
    # T steps of the GRU alone. reverse: each row from its own end to its start. Past lengths the state is
    # frozen and every result is zero.
    Op(
        "gru_scan",
        (
            _arg("input_gates", "B T 3H", FLOAT),
            _arg("state", "B H", ACCUMULATE),
            _STATE_MASK,
            _arg("hidden_weight", "3H H", STORAGE),
            _arg("hidden_bias?", "3H", STORAGE),
            _arg("lengths?", "B", INDEX),
            Flag("reverse", "bool"),
            RESET_AFTER,
        ),
        (_result("states", "B T H", ACCUMULATE), _result("gates", "B T 4H", ACCUMULATE)),
    ),
    Op(
        "gru_scan_backward",
        (
            _arg("grad_states", "B T H", ACCUMULATE),
            _arg("input_gates", "B T 3H", FLOAT),
            _arg("state", "B H", ACCUMULATE),
            _STATE_MASK,
            _arg("hidden_weight", "3H H", STORAGE),
            _arg("lengths?", "B", INDEX),
            _arg("states", "B T H", ACCUMULATE),
            _arg("gates", "B T 4H", ACCUMULATE),
            Flag("reverse", "bool"),
            RESET_AFTER,
        ),
        (
            _result("grad_input_gates", "B T 3H", "input_gates"),
            _result("grad_state", "B H", ACCUMULATE),
            _result("grad_hidden_weight", "3H H", STORAGE),
            _result("grad_hidden_bias", "3H", STORAGE),
        ),
    ),
    # log_softmax(readout weightᵀ + bias), its K largest a row, largest first, ties by lowest id. banned_ids (-1
    # for none) keep their share of the probability and are never among the K. For inference.
    Op(
        "vocabulary_topk",
        (
            _arg("readout", "N L", FLOAT),
            _arg("weight", "V L", STORAGE),
            _arg("bias?", "V", STORAGE),
            _arg("banned_ids?", "N R", INDEX),
            Flag("k", "int", size="K"),
        ),
        (_result("log_probs", "N K", ACCUMULATE), _result("token_ids", "N K", INDEX)),
    ),
    # loss = -Σ_n ((1 - ε) log p_n(target_n) + ε / V Σ_v log p_n(v)), p_n = softmax(weight readout_n + bias), over the
    # rows n whose target is a token, and its derivatives: nothing of size (N, V) is kept. A target of -1 is none.
    Op(
        "vocabulary_loss",
        (
            _arg("readout", "N L", STORAGE),
            _arg("weight", "V L", STORAGE),
            _arg("bias?", "V", STORAGE),
            _arg("target", "N", INDEX),
            Flag("label_smoothing", "float"),
        ),
        (
            _result("loss", "", ACCUMULATE),
            _result("grad_readout", "N L", STORAGE),
            _result("grad_weight", "V L", ACCUMULATE),
            _result("grad_bias", "V", ACCUMULATE),
        ),
    ),
)

BY_NAME: dict[str, Op] = {op.name: op for op in OPS}
