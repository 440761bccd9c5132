"""Every launch configuration, in one place to tune: by kernel, GPU family, bytes of a number, and size class.

A size class holds the sizes up to its own, the last one all: a model belongs to a class, whatever it is given. No
choice depends on the number of rows, on steps or on source positions, which are the batch's: a row's order of summation
is its own.

Nothing here has been measured: there was no GPU. The numbers are chosen so that nothing spills and two programs fit
a multiprocessor of sm_80, sm_90 and sm_100 (tests/test_triton_compile.py holds this); a smaller class has smaller
blocks where there would be fewer programs than multiprocessors. bench/tune_triton.py measures, and prints rows as they
stand here.
"""

from __future__ import annotations

import sys

Config = dict[str, int]
Classes = dict[int, Config]  # by the largest size of the class
# By GPU family, then by the bytes of a number in storage. A family without a row of its own has DEFAULT's.
Table = dict[str, dict[int, Classes]]

DEFAULT = "default"
LARGEST = sys.maxsize


def chosen(table: Table, family: str, itemsize: int, size: int) -> Config:
    """``family`` as :func:`families.family_of` names it; ``size`` is the one that the table's comment names."""
    classes = {**table[DEFAULT], **table.get(family, {})}[itemsize]
    return classes[min(largest for largest in classes if size <= largest)]


def alike(classes: Classes) -> Table:
    """A table whose kernels compute in float32 whatever the storage: one row for both."""
    return {DEFAULT: {2: classes, 4: classes}}


# How the scores' tanh is made: tanh.py has the forms and their errors.
EXACT, SHARED, APPROXIMATE = 0, 1, 2

# Attention: BLOCK_S positions a program, BLOCK_A of their features and BLOCK_W columns of their values at a time, and
# STAGES times as much on its way. A source of up to BLOCK_S positions takes one launch, a longer one is split. By A:
# where a position costs little, one program has as many as most sentences, and the second launch is spared. At the
# paper's sizes a row's 50 000 tanh and 400 KB would keep one multiprocessor busy for about 11 µs, with 52 of 132 idle:
# spread over all of them it is 8 with the second launch.
ATTEND: Table = {
    DEFAULT: {
        2: {
            512: {"BLOCK_S": 64, "BLOCK_A": 64, "BLOCK_W": 64, "STAGES": 3, "TANH": SHARED, "num_warps": 8},
            LARGEST: {"BLOCK_S": 16, "BLOCK_A": 128, "BLOCK_W": 128, "STAGES": 3, "TANH": SHARED, "num_warps": 4},
        },
        4: {
            512: {"BLOCK_S": 64, "BLOCK_A": 32, "BLOCK_W": 32, "STAGES": 3, "TANH": SHARED, "num_warps": 8},
            LARGEST: {"BLOCK_S": 16, "BLOCK_A": 64, "BLOCK_W": 64, "STAGES": 3, "TANH": SHARED, "num_warps": 4},
        },
    },
}

# The merge of a source that was split: BLOCK_W columns a program, BLOCK_C parts at a time, BLOCK_S weights. By A.
MERGE = alike({LARGEST: {"BLOCK_S": 128, "BLOCK_C": 16, "BLOCK_W": 64, "num_warps": 4}})

# Attention's way back, as ATTEND; BLOCK_W columns of what the weights' gradient is made of. By A.
ATTEND_BACKWARD: Table = {
    DEFAULT: {
        2: {
            512: {"BLOCK_S": 64, "BLOCK_A": 64, "BLOCK_W": 64, "STAGES": 3, "TANH": SHARED, "num_warps": 8},
            LARGEST: {"BLOCK_S": 16, "BLOCK_A": 128, "BLOCK_W": 128, "STAGES": 3, "TANH": SHARED, "num_warps": 4},
        },
        4: {
            512: {"BLOCK_S": 64, "BLOCK_A": 32, "BLOCK_W": 32, "STAGES": 3, "TANH": SHARED, "num_warps": 8},
            LARGEST: {"BLOCK_S": 16, "BLOCK_A": 64, "BLOCK_W": 64, "STAGES": 3, "TANH": SHARED, "num_warps": 4},
        },
    },
}

# The keys' gradient: BLOCK_S positions and BLOCK_A features a program, over all steps. By A.
GRAD_KEYS = alike({LARGEST: {"BLOCK_S": 16, "BLOCK_A": 64, "TANH": SHARED, "num_warps": 4}})

# linear: BLOCK_COLUMNS outputs of BLOCK_ROWS rows a program, BLOCK_K features of their sums at a time. By O.
LINEAR: Table = {
    DEFAULT: {
        2: {
            1024: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 16, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4},
            LARGEST: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4},
        },
        4: {
            1024: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 4},
            LARGEST: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 4},
        },
    },
}

# vocabulary_topk: as LINEAR, a program's columns being its tile of the vocabulary. By V.
VOCABULARY: Table = {
    DEFAULT: {
        2: {
            2048: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
            16384: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
            LARGEST: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
        },
        4: {
            2048: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
            16384: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
            LARGEST: {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 128, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
        },
    },
}

# gru_scan, forward and backward: BLOCK_H units of BLOCK_B rows a program, BLOCK_K factors of a sum at a time. By H.
GRU_SCAN: Table = {
    DEFAULT: {
        2: {LARGEST: {"BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}},
        4: {LARGEST: {"BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}},
    },
}

# decoder_scan's product of the old state, as LINEAR: a training batch has more rows, among which its weights are read
# again for each block. By its outputs, A + 3H.
PROJECTION: Table = {
    DEFAULT: {
        2: {
            2048: {"BLOCK_ROWS": 32, "BLOCK_COLUMNS": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4},
            LARGEST: {"BLOCK_ROWS": 64, "BLOCK_COLUMNS": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
        },
        4: {LARGEST: {"BLOCK_ROWS": 32, "BLOCK_COLUMNS": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 4}},
    },
}

# A decoder's products that end in gates: BLOCK_H units of BLOCK_B rows a program, BLOCK_K factors at a time. By H.
DECODER: Table = {
    DEFAULT: {
        2: {LARGEST: {"BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}},
        4: {LARGEST: {"BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}},
    },
}

# The way back through the products of a decoder's state, as DECODER; their sums are longer, A + 3H. By H.
DECODER_BACKWARD: Table = {
    DEFAULT: {
        2: {LARGEST: {"BLOCK_B": 32, "BLOCK_H": 16, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4}},
        4: {LARGEST: {"BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 4}},
    },
}
