"""Every launch configuration, in one place to tune: by what a kernel does, GPU family and size class.

Nothing here has been measured: there was no GPU. The numbers are chosen so that nothing spills and two programs fit
a multiprocessor of sm_80, sm_90 and sm_100 (tests/test_triton_compile.py holds this). No choice depends on the number
of rows or steps: a row's order of summation is its own.
"""

from __future__ import annotations

Config = dict[str, int]

# Scores of BLOCK_S positions a program, BLOCK_A of their features at a time.
SCORE: Config = {"BLOCK_S": 16, "BLOCK_A": 128, "num_warps": 4}

# BLOCK_W columns of what the weights sum a program, BLOCK_S positions at a time.
REDUCE: Config = {"BLOCK_S": 32, "BLOCK_W": 64, "num_warps": 4}

# The weights' gradient: BLOCK_S positions a program, BLOCK_W columns at a time.
GRAD_WEIGHTS: Config = {"BLOCK_S": 16, "BLOCK_W": 128, "num_warps": 4}

# The query's gradient: BLOCK_A features a program, BLOCK_S positions at a time.
GRAD_QUERY: Config = {"BLOCK_S": 32, "BLOCK_A": 32, "num_warps": 4}

# The keys' gradient: BLOCK_S positions and BLOCK_A features a program, over all steps.
GRAD_KEYS: Config = {"BLOCK_S": 16, "BLOCK_A": 64, "num_warps": 4}

# The gates: BLOCK_H units of one row a program.
GATES: Config = {"BLOCK_H": 256, "num_warps": 4}

# By GPU family, then by the bytes of a number in storage. A family without a row of its own has DEFAULT's;
# bench/tune_triton.py prints rows as they stand here.
Table = dict[str, dict[int, Config]]
DEFAULT = "default"


def chosen(table: Table, family: str, itemsize: int) -> Config:
    """``family`` as :func:`launch.family` names it."""
    return {**table[DEFAULT], **table.get(family, {})}[itemsize]


# linear: BLOCK_COLUMNS outputs of BLOCK_ROWS rows a program, BLOCK_K features of their sums at a time.
LINEAR: Table = {
    DEFAULT: {
        2: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4},
        4: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 4},
    },
}

# vocabulary_topk: as LINEAR, a program's columns being its tile of the vocabulary.
VOCABULARY: Table = {
    DEFAULT: {
        2: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
        4: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 128, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
    },
}

# gru_scan, forward and backward: BLOCK_H units of BLOCK_B rows a program, BLOCK_K factors of their sums at a time.
GRU_SCAN: Table = {
    DEFAULT: {
        2: {"BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
        4: {"BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
    },
}
