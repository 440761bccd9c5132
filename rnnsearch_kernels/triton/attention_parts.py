"""What the kernels of attention are made of, forward and backward: positions, scores, weighted sums."""

from __future__ import annotations

import triton
import triton.language as tl

from .tanh import tile_tanh

# What depends on the batch, on S or on T: one binary for all, so that a row's bits do not depend on them, and nothing
# is compiled in the middle of a loop.
VARIABLE = (
    "source",
    "chunks",
    "query_stride",
    "keys_stride_b",
    "padding_stride",
    "memory_stride_b",
    "memory_gates_stride_b",
    "attn_weights_stride",
    "context_stride",
    "input_gates_stride",
    "state_stride",
    "new_state_stride",
    "gates_stride",
    "outside_stride",
    "grad_output_stride",
    "values_stride_b",
    "grad_scores_stride",
    "grad_query_stride",
    "grad_state_stride",
    "old_state_stride",
)
# What may be a step's part of a tensor of all steps, and so is aligned as its step has it. ``step_but`` leaves out what
# a kernel multiplies: rows that are not known to be aligned are read number by number, and wait in no pipeline. Where
# its width is a multiple of 16 bytes, every step is aligned, so that there is one binary for all of them, too.
OF_A_STEP = (
    "padding_ptr",
    "within_ptr",
    "attn_weights_ptr",
    "context_ptr",
    "input_gates_ptr",
    "new_state_ptr",
    "gates_ptr",
    "outside_ptr",
    "grad_output_ptr",
    "grad_scores_ptr",
    "grad_query_ptr",
    "grad_state_ptr",
    "old_state_ptr",
)


def step_but(operand: str) -> tuple[str, ...]:
    return tuple(name for name in OF_A_STEP if name != operand)


@triton.jit
def is_over(within_ptr, row):
    """Whether a row is past its length, so that its program may return: what it would leave, zeros and the state that
    was carried there, is there."""
    over = False
    if within_ptr is not None:
        over = tl.load(within_ptr + row) == 0
    return over


@triton.jit
def all_over(within_ptr, block, rows, BLOCK_ROWS: tl.constexpr):
    """:func:`is_over` of a block of rows."""
    over = False
    if within_ptr is not None:
        row = block.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        over = tl.max(tl.load(within_ptr + row, mask=row < rows, other=0).to(tl.int32), axis=0) == 0
    return over


@triton.jit
def sentence_of(index_ptr, row):
    """The sentence that a row attends to, 64-bit."""
    sentence = row
    if index_ptr is not None:
        sentence = tl.load(index_ptr + row)
    return sentence


@triton.jit
def real_positions(padding_ptr, padding_stride, sentence, position, source):
    """Which positions exist and are not padding."""
    real = position < source
    if padding_ptr is not None:
        padding = tl.load(padding_ptr + sentence * padding_stride + position, mask=real, other=1)
        real = real & (padding == 0)
    return real


@triton.jit
def row_start(ptr, sentence, stride_b, first_position, STRIDE: tl.constexpr, ALIGN: tl.constexpr):
    """Where position ``first_position`` of a sentence begins; ALIGN numbers are known to divide it."""
    start = tl.multiple_of(sentence * stride_b, ALIGN)
    return ptr + start + first_position.to(tl.int64) * STRIDE


@triton.jit
def load_positions(start, real, column, exists, STRIDE: tl.constexpr, BLOCK_S: tl.constexpr):
    """Columns of BLOCK_S positions, float32; zero where not real."""
    place = tl.arange(0, BLOCK_S)[:, None] * STRIDE + column[None, :]
    return tl.load(start + place, mask=real[:, None] & exists[None, :], other=0.0).to(tl.float32)


@triton.jit
def scores_of(
    query,
    keys,
    score_weight_ptr,
    real,
    A: tl.constexpr,
    KEYS_STRIDE: tl.constexpr,
    TANH: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    """Scores of BLOCK_S positions, -inf where not real, from where the row's query and the positions' keys begin."""
    terms = tl.zeros((BLOCK_S, BLOCK_A), tl.float32)
    for first in tl.range(0, A, BLOCK_A, num_stages=STAGES):
        feature = first + tl.arange(0, BLOCK_A)
        exists = feature < A
        key = load_positions(keys, real, feature, exists, KEYS_STRIDE, BLOCK_S)
        query_block = tl.load(query + feature, mask=exists, other=0.0).to(tl.float32)
        weight = tl.load(score_weight_ptr + feature, mask=exists, other=0.0).to(tl.float32)
        terms += weight[None, :] * tile_tanh(query_block[None, :] + key, TANH)
    return tl.where(real, tl.sum(terms, axis=1), float("-inf"))


@triton.jit
def weighted_sum(weights, values, real, column, exists, STRIDE: tl.constexpr, BLOCK_S: tl.constexpr):
    """Σ_j weights_j values_j of a block of columns."""
    return tl.sum(weights[:, None] * load_positions(values, real, column, exists, STRIDE, BLOCK_S), axis=0)
