"""What a decoder's old state is multiplied with: the query's weight and the hidden gates', in one launch.

    query | u = e [query_weight ; hidden_weight]ᵀ + biases      (u of r and z alone where the reset comes before n's)

The weights stay where they are: joining them would read and write them once more.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .attention_parts import all_over
from .configs import Table
from .launch import blocks, compute_type, config_of, precision, rows_for
from .product import load_bias, rows_product


@triton.jit
def project(
    block,
    entering_ptr,
    row,
    row_exists,
    weight_ptr,
    bias_ptr,
    output_ptr,
    OUTPUTS: tl.constexpr,
    H: tl.constexpr,
    INPUT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Block ``block`` of a product's columns, with its bias."""
    column = block.to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    exists = column < OUTPUTS
    output = rows_product(
        entering_ptr,
        row,
        row_exists,
        weight_ptr,
        column,
        exists,
        H,
        INPUT_STRIDE,
        WEIGHT_STRIDE,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
        BLOCK_K,
        COMPUTE,
        PRECISION,
    )
    output += load_bias(bias_ptr, column, exists)
    place = row[:, None] * OUTPUTS + column[None, :]
    tl.store(output_ptr + place, output, mask=row_exists[:, None] & exists[None, :])


@triton.jit(do_not_specialize=("rows",), do_not_specialize_on_alignment=("within_ptr",))
def projection_kernel(
    entering_ptr,  # (N, H): the old state as it enters the products
    query_weight_ptr,  # (A, H)
    query_bias_ptr,  # (A,) or None
    hidden_weight_ptr,  # (3H, H)
    hidden_bias_ptr,  # (3H,) or None
    within_ptr,  # (N,) or None: rows that still have steps; where no row of a program has, nothing is written
    query_ptr,  # (N, A) float32
    hidden_gates_ptr,  # (N, THROUGH) float32
    rows,
    A: tl.constexpr,
    H: tl.constexpr,
    THROUGH: tl.constexpr,  # 3H, or 2H where the reset comes before n's product
    INPUT_STRIDE: tl.constexpr,
    QUERY_WEIGHT_STRIDE: tl.constexpr,
    HIDDEN_WEIGHT_STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Neighbouring programs share their columns' weights, which are read from far away once.
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    if all_over(within_ptr, tl.program_id(0) % row_blocks, rows, BLOCK_ROWS):
        return
    row = (tl.program_id(0) % row_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_exists = row < rows
    block = tl.program_id(0) // row_blocks
    query_blocks = tl.cdiv(A, BLOCK_COLUMNS)
    if block < query_blocks:
        project(
            block,
            entering_ptr,
            row,
            row_exists,
            query_weight_ptr,
            query_bias_ptr,
            query_ptr,
            A,
            H,
            INPUT_STRIDE,
            QUERY_WEIGHT_STRIDE,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_K,
            COMPUTE,
            PRECISION,
        )
    else:
        project(
            block - query_blocks,
            entering_ptr,
            row,
            row_exists,
            hidden_weight_ptr,
            hidden_bias_ptr,
            hidden_gates_ptr,
            THROUGH,
            H,
            INPUT_STRIDE,
            HIDDEN_WEIGHT_STRIDE,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_K,
            COMPUTE,
            PRECISION,
        )


def project_state(
    entering: Tensor,
    query_weight: Tensor,
    query_bias: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    reset_after: bool,
    within: Tensor | None,
    table: Table,
) -> tuple[Tensor, Tensor]:
    """The query (N, A) and u (N, 3H), or u of r and z alone (N, 2H), from the old state as it enters the products; of
    rows that are not ``within`` (N,) anything."""
    (rows, hidden), features = entering.shape, query_weight.shape[0]
    through = 3 * hidden if reset_after else 2 * hidden
    query, hidden_gates = rows_for(entering, rows, features), rows_for(entering, rows, through)
    config = config_of(table, hidden_weight, features + through)
    columns = blocks(features, config["BLOCK_COLUMNS"]) + blocks(through, config["BLOCK_COLUMNS"])
    projection_kernel[(blocks(rows, config["BLOCK_ROWS"]) * columns,)](
        entering_ptr=entering,
        query_weight_ptr=query_weight,
        query_bias_ptr=query_bias,
        hidden_weight_ptr=hidden_weight,
        hidden_bias_ptr=hidden_bias,
        within_ptr=within,
        query_ptr=query,
        hidden_gates_ptr=hidden_gates,
        rows=rows,
        A=features,
        H=hidden,
        THROUGH=through,
        INPUT_STRIDE=entering.stride(0),
        QUERY_WEIGHT_STRIDE=query_weight.stride(0),
        HIDDEN_WEIGHT_STRIDE=hidden_weight.stride(0),
        COMPUTE=compute_type(hidden_weight.dtype),
        PRECISION=precision(),
        **config,
    )
    return query, hidden_gates
