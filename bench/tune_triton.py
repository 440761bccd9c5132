"""Times launch configurations of the Triton kernels on this GPU and prints rows for the tables in triton/configs.py.

    python bench/tune_triton.py > rows.txt

Tuning happens here and never at a user's first call. A row belongs to a GPU family and the bytes of a number in
storage; it is one for all batches and lengths, since a row of a batch must come out alike whatever stands beside it. So
a candidate is judged over all workloads at once, by the geometric mean of its times over those of the row in use. What
a candidate computes is held against float64 before it is timed.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from command import run
from machine import header
from workloads import WORKLOADS, Workload, named

from rnnsearch_kernels import reference
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import SIZES, error_ratio, example, widen
from rnnsearch_kernels.triton import configs

Call = Callable[[], Any]
DTYPES = {2: torch.bfloat16, 4: torch.float32}
# A row is replaced for a gain above what timing one row twice may show.
GAIN = 0.02


@dataclass(frozen=True)
class Tunable:
    """A table of configs.py: the ops that its rows launch, what is tried, and the sizes of a workload."""

    table: str
    ops: tuple[str, ...]
    tried: Mapping[str, tuple[int, ...]]
    sizes: Callable[[Workload], dict[str, int]]


PIPELINE = {"num_warps": (2, 4, 8), "num_stages": (2, 3, 4)}
TUNABLES = (
    Tunable(
        "LINEAR",
        ("linear",),
        {"BLOCK_ROWS": (16, 32), "BLOCK_COLUMNS": (16, 32, 64), "BLOCK_K": (32, 64, 128), **PIPELINE},
        lambda w: {"N": w.beam_size * w.decode_batches[-1], "I": w.hidden_size, "O": 3 * w.hidden_size},
    ),
    Tunable(
        "VOCABULARY",
        ("vocabulary_topk",),
        {"BLOCK_ROWS": (16, 32), "BLOCK_COLUMNS": (64, 128, 256), "BLOCK_K": (32, 64), **PIPELINE},
        lambda w: {
            "N": w.beam_size * w.decode_batches[-1],
            "L": w.readout_size,
            "V": w.vocabulary_size,
            "K": w.beam_size,
            "R": 1,
        },
    ),
    Tunable(
        "GRU_SCAN",
        ("gru_scan", "gru_scan_backward"),
        {"BLOCK_B": (16, 32), "BLOCK_H": (16, 32, 64), "BLOCK_K": (32, 64, 128), **PIPELINE},
        lambda w: {"B": w.batch, "T": w.target_length, "H": w.hidden_size},
    ),
)


def candidates(tunable: Tunable, family: str, itemsize: int) -> list[configs.Config]:
    """The row in use, then every combination of what is tried."""
    in_use = configs.chosen(getattr(configs, tunable.table), family, itemsize)
    combinations = [dict(zip(tunable.tried, values, strict=True)) for values in product(*tunable.tried.values())]
    return [in_use, *(config for config in combinations if config != in_use)]


@contextmanager
def using(table: configs.Table, family: str, itemsize: int, config: configs.Config) -> Iterator[None]:
    """``config`` in the place of the row in use; no loop replays a graph that was captured with another row."""
    before = table.get(family)
    table[family] = {**(before or {}), itemsize: config}
    try:
        with patch.dict(os.environ, RNNSEARCH_CUDA_GRAPHS="0"):
            yield
    finally:
        if before is None:
            del table[family]
        else:
            table[family] = before


def calls(tunable: Tunable, workload: Workload, dtype: torch.dtype, device: str) -> list[tuple[Call, list[Any]]]:
    """Every op of ``tunable`` on the sizes of a workload, with its results in float64."""
    made = []
    for name in tunable.ops:
        args = example(BY_NAME[name], dtype, sizes={**SIZES, **tunable.sizes(workload)})
        truth = getattr(reference, name)(*widen(args).values())
        values = [value.to(device) if isinstance(value, torch.Tensor) else value for value in args.values()]
        made.append((partial(overload_of(name, "triton"), *values), as_list(truth)))
    return made


def as_list(results: Any) -> list[Any]:
    return list(results) if isinstance(results, tuple) else [results]


def time_of(made: Sequence[tuple[Call, list[Any]]], dtype: torch.dtype, measure: Callable[[Call], float]) -> float:
    """Milliseconds of all calls; ValueError where a result is wrong."""
    total = 0.0
    for call, truth in made:
        for got, want in zip(as_list(call()), truth, strict=True):
            # Ids of near ties may come in another order than float64's; their log-probabilities are held.
            if got.is_floating_point() and not error_ratio(got, want, dtype) <= 1:
                raise ValueError("a wrong result")
        total += measure(call)
    return total


def best(
    tunable: Tunable,
    family: str,
    itemsize: int,
    workloads: Sequence[Workload],
    device: str,
    measure: Callable[[Call], float],
    say: Callable[[str], None],
) -> tuple[configs.Config, float]:
    """The fastest row, and its time over that of the row in use: the geometric mean over the workloads."""
    dtype, table = DTYPES[itemsize], getattr(configs, tunable.table)
    made = [calls(tunable, workload, dtype, device) for workload in workloads]
    in_use, *others = candidates(tunable, family, itemsize)
    with using(table, family, itemsize, in_use):
        base = [time_of(each, dtype, measure) for each in made]
    fastest, least = in_use, 1 - GAIN
    for config in others:
        try:
            with using(table, family, itemsize, config):
                times = [time_of(each, dtype, measure) for each in made]
        except Exception as error:  # too much shared memory, a compiler's refusal, a wrong result: not this one
            say(f"{tunable.table} {config}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        ratio = math.exp(sum(math.log(new / old) for new, old in zip(times, base, strict=True)) / len(base))
        if ratio < least:
            fastest, least = config, ratio
    return fastest, 1.0 if fastest is in_use else least


def row(family: str, found: Mapping[int, tuple[configs.Config, float]]) -> list[str]:
    """A family's row as it stands in configs.py."""
    lines = [f'        {itemsize}: {str(config).replace(chr(39), chr(34))},  # {ratio:.2f} of the row before'
             for itemsize, (config, ratio) in found.items()]  # fmt: skip
    return [f'    "{family}": {{', *lines, "    },"]


def measured(call: Call) -> float:
    """Milliseconds of a call replayed as a CUDA graph: what it costs without its launches from Python."""
    from triton.testing import do_bench_cudagraph

    return float(do_bench_cudagraph(call, rep=20, return_mode="median"))


def complain(line: str) -> None:
    print(line, file=sys.stderr)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tune_triton.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--workload", metavar="NAMES", help=f"of {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--table", choices=[tunable.table for tunable in TUNABLES], help="one table; all by default")
    options = parser.parse_args(given)
    try:
        workloads = named(options.workload)
    except ValueError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        parser.error("times are taken on a GPU, and this torch sees none; nothing was measured")
    from rnnsearch_kernels.triton.launch import family

    device = torch.device("cuda", torch.cuda.current_device())
    for line in [*header(device, 1), f"workloads {', '.join(workload.name for workload in workloads)}"]:
        print(f"# {line}")
    for tunable in TUNABLES:
        if options.table in (None, tunable.table):
            found = {
                itemsize: best(tunable, family(device), itemsize, workloads, str(device), measured, complain)
                for itemsize in DTYPES
            }
            print(f"{tunable.table}:", *row(family(device), found), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
