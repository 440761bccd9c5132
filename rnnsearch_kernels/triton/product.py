"""``linear``, and the product that it shares with the vocabulary: rows with rows, summed tile by tile.

A tile of rows and the tile along the features are of one size whatever the number of rows, and no sum is split: a row
is summed in an order that depends on nothing beside it. Sizes and strides are constants of the kernel: only then are
rows known to be aligned, loads wide and copied ahead of the products.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .configs import LINEAR, Table
from .launch import blocks, compute_type, config_of, ends_contiguous, precision, rows_for


@triton.jit
def rows_product(
    input_ptr,
    row,
    row_exists,
    weight_ptr,
    column,
    column_exists,
    FEATURES: tl.constexpr,
    INPUT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(BLOCK_ROWS, BLOCK_COLUMNS) float32: input rows times weight rows, over ``features``. Indices are 64-bit."""
    product = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in range(0, FEATURES, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        inner_exists = inner < FEATURES
        input = tl.load(
            input_ptr + row[:, None] * INPUT_STRIDE + inner[None, :],
            mask=row_exists[:, None] & inner_exists[None, :],
            other=0.0,
        )
        weight = tl.load(
            weight_ptr + column[None, :] * WEIGHT_STRIDE + inner[:, None],
            mask=column_exists[None, :] & inner_exists[:, None],
            other=0.0,
        )
        product = tl.dot(input.to(COMPUTE), weight.to(COMPUTE), product, input_precision=PRECISION)
    return product


@triton.jit
def load_bias(bias_ptr, column, column_exists):
    """(1, columns) float32; zeros where there is no bias."""
    bias = tl.zeros(column.shape, tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + column, mask=column_exists, other=0.0).to(tl.float32)
    return bias[None, :]


@triton.jit(do_not_specialize=("rows",))
def linear_kernel(
    input_ptr,  # (N, I)
    weight_ptr,  # (O, I)
    bias_ptr,  # (O,) or None
    output_ptr,  # (N, O) float32
    rows,
    outputs,
    FEATURES: tl.constexpr,
    INPUT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Neighbouring programs share their columns' weights, which are read from far away once.
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    row = (tl.program_id(0) % row_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (tl.program_id(0) // row_blocks).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    row_exists, column_exists = row < rows, column < outputs
    output = rows_product(
        input_ptr,
        row,
        row_exists,
        weight_ptr,
        column,
        column_exists,
        FEATURES,
        INPUT_STRIDE,
        WEIGHT_STRIDE,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
        BLOCK_K,
        COMPUTE,
        PRECISION,
    )
    output += load_bias(bias_ptr, column, column_exists)
    tl.store(
        output_ptr + row[:, None] * outputs + column[None, :],
        output,
        mask=row_exists[:, None] & column_exists[None, :],
    )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, table: Table = LINEAR) -> Tensor:
    """``output = input weightᵀ + bias`` (N, O) in float32, every row by itself."""
    input, weight, bias = ends_contiguous(input), ends_contiguous(weight), ends_contiguous(bias)
    rows, features = input.shape
    outputs = weight.shape[0]
    output = rows_for(input, rows, outputs)
    config = config_of(table, weight, outputs)
    grid = (blocks(rows, config["BLOCK_ROWS"]) * blocks(outputs, config["BLOCK_COLUMNS"]),)
    linear_kernel[grid](
        input_ptr=input,
        INPUT_STRIDE=input.stride(0),
        weight_ptr=weight,
        WEIGHT_STRIDE=weight.stride(0),
        bias_ptr=bias,
        output_ptr=output,
        rows=rows,
        outputs=outputs,
        FEATURES=features,
        COMPUTE=compute_type(weight.dtype),
        PRECISION=precision(),
        **config,
    )
    return output
