"""``vocabulary_topk`` in one pass over the vocabulary.

A program takes some rows and a tile of the vocabulary: its logits live in registers, and what it writes are their
maximum, Σ exp(logit - maximum), and the tile's best K as sorted keys. A second kernel, one program a row, joins the
sums and merges the tiles' lists.

A key is one 64-bit integer that orders as the choice does: the logit's bits above, made monotone, and below them a
number that falls with the id, so that of equal logits the lowest id is the largest key, and no two keys are equal.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import VOCABULARY
from .launch import blocks, compute_type, config_of, ends_contiguous, precision
from .product import load_bias, rows_product

# Below every key: that of no token.
NO_KEY = tl.constexpr(-(2**63) + 1)
LAST_ID = tl.constexpr(2**31 - 1)
LOW_BITS = tl.constexpr(2**32 - 1)
SIGNLESS = tl.constexpr(2**31 - 1)


@triton.jit
def key_of(logit, token_id):
    # -0 and 0 are equal; an int32's order is that of the floats once the negative ones' bits are turned over.
    bits = tl.where(logit == 0.0, 0.0, logit).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ SIGNLESS, bits)
    return (ordered.to(tl.int64) << 32) | (LAST_ID - token_id)


@triton.jit
def logit_of(key):
    ordered = (key >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ SIGNLESS, ordered).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=("rows", "banned_count", "banned_stride", "kept"))
def vocabulary_tile_kernel(
    readout_ptr,  # (N, L)
    weight_ptr,  # (V, L)
    bias_ptr,  # (V,) or None
    banned_ptr,  # (N, R) or None
    banned_stride,
    banned_count,
    maxima_ptr,  # (N, tiles)
    sums_ptr,  # (N, tiles)
    keys_ptr,  # (N, tiles, kept)
    rows,
    vocabulary,
    tiles,
    kept,
    FEATURES: tl.constexpr,
    READOUT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    tile = tl.program_id(0) // row_blocks
    row = (tl.program_id(0) % row_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tile.to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    row_exists, column_exists = row < rows, column < vocabulary
    logits = rows_product(
        readout_ptr,
        row,
        row_exists,
        weight_ptr,
        column,
        column_exists,
        FEATURES,
        READOUT_STRIDE,
        WEIGHT_STRIDE,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
        BLOCK_K,
        COMPUTE,
        PRECISION,
    )
    logits = tl.where(column_exists[None, :], logits + load_bias(bias_ptr, column, column_exists), float("-inf"))

    # Where all are -inf the sum is 0; a NaN or a +inf among them makes it NaN, and so the row.
    maximum = tl.max(logits, axis=1)
    finite = tl.where(maximum == float("-inf"), 0.0, maximum)
    place = row * tiles + tile
    tl.store(maxima_ptr + place, maximum, mask=row_exists)
    tl.store(sums_ptr + place, tl.sum(tl.exp(logits - finite[:, None]), axis=1), mask=row_exists)

    # A banned token is one of probability zero for the choice, not for the sum.
    keys = tl.where(column_exists[None, :], key_of(logits, column[None, :]), NO_KEY)
    if banned_ptr is not None:
        impossible = key_of(tl.full(column.shape, float("-inf"), tl.float32), column)
        index = 0
        while index < banned_count:
            banned = tl.load(banned_ptr + row * banned_stride + index, mask=row_exists, other=-1)
            hit = (column[None, :] == banned[:, None]) & column_exists[None, :]
            keys = tl.where(hit, impossible[None, :], keys)
            index += 1
    index = 0
    while index < kept:
        best = tl.max(keys, axis=1)
        tl.store(keys_ptr + place * kept + index, best, mask=row_exists)
        keys = tl.where(keys == best[:, None], NO_KEY, keys)
        index += 1


@triton.jit(do_not_specialize=("kept", "k"))
def vocabulary_merge_kernel(
    maxima_ptr,  # (N, tiles)
    sums_ptr,  # (N, tiles)
    keys_ptr,  # (N, tiles, kept), each list largest first
    log_probs_ptr,  # (N, K)
    token_ids_ptr,  # (N, K)
    tiles,
    kept,
    k,
    BLOCK_TILES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, BLOCK_TILES)
    exists = tile < tiles
    maxima = tl.load(maxima_ptr + row * tiles + tile, mask=exists, other=float("-inf"))
    sums = tl.load(sums_ptr + row * tiles + tile, mask=exists, other=0.0)
    maximum = tl.max(maxima, axis=0)
    finite = tl.where(maximum == float("-inf"), 0.0, maximum)
    total = tl.sum(sums * tl.exp(maxima - finite), axis=0)
    log_total = tl.log(total)
    is_distribution = total > 0.0  # neither 0 nor NaN

    # Every list's first key not yet taken; the largest of them is the next choice.
    lists = keys_ptr + (row * tiles + tile) * kept
    taken = tl.zeros((BLOCK_TILES,), tl.int32)
    heads = tl.load(lists, mask=exists, other=NO_KEY)
    index = 0
    while index < k:
        best = tl.max(heads, axis=0)
        log_prob = (logit_of(best) - maximum) - log_total
        token_id = LAST_ID - (best & LOW_BITS)
        tl.store(log_probs_ptr + row * k + index, tl.where(is_distribution, log_prob, float("nan")))
        tl.store(token_ids_ptr + row * k + index, tl.where(is_distribution, token_id, index))
        won = heads == best
        taken += won.to(tl.int32)
        following = tl.load(lists + taken, mask=won & exists & (taken < kept), other=NO_KEY)
        heads = tl.where(won, following, heads)
        index += 1


def vocabulary_topk(
    readout: Tensor, weight: Tensor, bias: Tensor | None, banned_ids: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """The K largest of log_softmax(readout weightᵀ + bias) a row: log_probs (N, K) float32, token_ids (N, K)."""
    readout, weight, bias = ends_contiguous(readout), ends_contiguous(weight), ends_contiguous(bias)
    banned_ids = ends_contiguous(banned_ids)
    rows, features = readout.shape
    vocabulary = weight.shape[0]
    config = config_of(VOCABULARY, weight, vocabulary)
    tiles, row_blocks = blocks(vocabulary, config["BLOCK_COLUMNS"]), blocks(rows, config["BLOCK_ROWS"])
    kept = min(k, config["BLOCK_COLUMNS"])
    maxima = readout.new_empty((rows, tiles), dtype=torch.float32)
    sums = torch.empty_like(maxima)
    keys = readout.new_empty((rows, tiles, kept), dtype=torch.int64)
    vocabulary_tile_kernel[(tiles * row_blocks,)](
        readout_ptr=readout,
        READOUT_STRIDE=readout.stride(0),
        weight_ptr=weight,
        WEIGHT_STRIDE=weight.stride(0),
        bias_ptr=bias,
        banned_ptr=banned_ids,
        banned_stride=0 if banned_ids is None else banned_ids.stride(0),
        banned_count=0 if banned_ids is None else banned_ids.shape[1],
        maxima_ptr=maxima,
        sums_ptr=sums,
        keys_ptr=keys,
        rows=rows,
        vocabulary=vocabulary,
        FEATURES=features,
        tiles=tiles,
        kept=kept,
        COMPUTE=compute_type(weight.dtype),
        PRECISION=precision(),
        **config,
    )
    log_probs = readout.new_empty((rows, k), dtype=torch.float32)
    token_ids = readout.new_empty((rows, k), dtype=torch.int64)
    vocabulary_merge_kernel[(rows,)](
        maxima_ptr=maxima,
        sums_ptr=sums,
        keys_ptr=keys,
        log_probs_ptr=log_probs,
        token_ids_ptr=token_ids,
        tiles=tiles,
        kept=kept,
        k=k,
        BLOCK_TILES=triton.next_power_of_2(tiles),
    )
    return log_probs, token_ids
