"""Times launch configurations of the Triton kernels on this GPU and prints rows for the tables in triton/configs.py.

    python bench/tune_triton.py > rows.txt

Tuning happens here and never at a user's first call. A row belongs to a GPU family, the bytes of a number in storage
and a size class; it is one for all batches and lengths, since a row of a batch must come out alike whatever stands
beside it. So a candidate is judged over all workloads of the class at once, by the geometric mean of its times over
those of the row in use. What a candidate computes is held against float64 before it is timed.
"""

from __future__ import annotations

import argparse
import math
import os
import random
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
from rnnsearch_kernels.families import family_of
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import INFERENCE_ONLY, SIZES, error_ratio, example, widen
from rnnsearch_kernels.triton import configs

Call = Callable[[], Any]
DTYPES = {2: torch.bfloat16, 4: torch.float32}
# A row is replaced for a gain above what timing one row twice may show.
GAIN = 0.02


Sizes = Callable[[Workload], dict[str, int]]


@dataclass(frozen=True)
class Tunable:
    """A table of configs.py: the ops that its rows launch, what is tried, a workload's sizes, and the one of them that
    the table goes by."""

    table: str
    ops: tuple[str, ...]
    tried: Mapping[str, tuple[int, ...]]
    sizes: Sizes
    by: Callable[[Workload], int]

    @property
    def rows(self) -> configs.Table:
        found: configs.Table = getattr(configs, self.table)
        return found

    def classes(self, itemsize: int) -> list[int]:
        return list(self.rows[configs.DEFAULT][itemsize])

    def of_class(self, workloads: Sequence[Workload], itemsize: int, largest: int) -> list[Workload]:
        smaller = max((each for each in self.classes(itemsize) if each < largest), default=0)
        return [workload for workload in workloads if smaller < self.by(workload) <= largest]


def training(w: Workload) -> dict[str, int]:
    return {
        "B": w.batch, "N": w.batch, "S": w.source_length, "T": w.target_length,
        "H": w.hidden_size, "A": w.attention_size, "M": w.memory_size,
    }  # fmt: skip


def joined(w: Workload) -> dict[str, int]:
    """The old states of a decoder's step and the weights of query and hidden gates."""
    return {"N": w.batch, "I": w.hidden_size, "O": w.attention_size + 3 * w.hidden_size}


def vocabulary(w: Workload) -> dict[str, int]:
    rows = w.beam_size * w.decode_batches[-1]
    return {"N": rows, "L": w.readout_size, "V": w.vocabulary_size, "K": w.beam_size, "R": 1}


WARPS = {"num_warps": (2, 4, 8)}
PIPELINE = {**WARPS, "num_stages": (2, 3, 4)}
STRIPS = (8, 16, 32, 64)
TANH = {"TANH": (configs.EXACT, configs.SHARED, configs.APPROXIMATE)}
# Blocks of positions: fewer and longer, and a launch less, or more of them for more programs.
ATTENTION = {
    "BLOCK_S": (16, 32, 64),
    "BLOCK_A": (64, 128),
    "BLOCK_W": (32, 64, 128),
    "STAGES": (2, 3),
    **TANH,
    "num_warps": (4, 8),
}
GATE_PRODUCTS = {"BLOCK_B": (16, 32), "BLOCK_H": (16, 32), "BLOCK_K": (64, 128), **PIPELINE}
SCAN, SCAN_BACKWARD = ("decoder_scan",), ("decoder_scan_backward",)
TUNABLES = (
    Tunable("ATTEND", SCAN, ATTENTION, training, lambda w: w.attention_size),
    Tunable(
        "MERGE",
        ("additive_attention", "additive_attention_backward"),
        {"BLOCK_S": (64, 128, 256), "BLOCK_C": (8, 16, 32), "BLOCK_W": (32, 64, 128), **WARPS},
        training,
        lambda w: w.attention_size,
    ),
    Tunable("ATTEND_BACKWARD", SCAN_BACKWARD, ATTENTION, training, lambda w: w.attention_size),
    Tunable(
        "GRAD_KEYS",
        SCAN_BACKWARD,
        {"BLOCK_S": STRIPS, "BLOCK_A": (32, 64, 128), **TANH, **WARPS},
        training,
        lambda w: w.attention_size,
    ),
    Tunable(
        "PROJECTION",
        SCAN,
        {"BLOCK_ROWS": (16, 32, 64), "BLOCK_COLUMNS": (16, 32, 64), "BLOCK_K": (32, 64, 128), **PIPELINE},
        training,
        lambda w: joined(w)["O"],
    ),
    Tunable("DECODER", ("decoder_step",), GATE_PRODUCTS, training, lambda w: w.hidden_size),
    Tunable("DECODER_BACKWARD", SCAN_BACKWARD, GATE_PRODUCTS, training, lambda w: w.hidden_size),
    Tunable(
        "LINEAR",
        ("linear",),
        {"BLOCK_ROWS": (16, 32), "BLOCK_COLUMNS": (16, 32, 64), "BLOCK_K": (32, 64, 128), **PIPELINE},
        joined,
        lambda w: joined(w)["O"],
    ),
    Tunable(
        "VOCABULARY",
        ("vocabulary_topk",),
        {"BLOCK_ROWS": (16, 32), "BLOCK_COLUMNS": (32, 64, 128, 256), "BLOCK_K": (32, 64), **PIPELINE},
        vocabulary,
        lambda w: w.vocabulary_size,
    ),
    Tunable(
        "GRU_SCAN",
        ("gru_scan", "gru_scan_backward"),
        {"BLOCK_B": (16, 32), "BLOCK_H": (16, 32, 64), "BLOCK_K": (32, 64, 128), **PIPELINE},
        training,
        lambda w: w.hidden_size,
    ),
)


def candidates(
    tunable: Tunable, family: str, itemsize: int, largest: int, most: int | None = None
) -> list[configs.Config]:
    """The row in use, then every combination of what is tried, or ``most`` of them, drawn alike every time."""
    in_use = configs.chosen(tunable.rows, family, itemsize, largest)
    tried = dict(tunable.tried)
    if "TANH" in tried and not family.startswith("sm_"):  # an instruction that AMD's compiler ends the process over
        tried["TANH"] = tuple(form for form in tried["TANH"] if form != configs.APPROXIMATE)
    combinations = [dict(zip(tried, values, strict=True)) for values in product(*tried.values())]
    others = [config for config in combinations if config != in_use]
    return [in_use, *(others if most is None else random.Random(0).sample(others, min(most, len(others))))]


@contextmanager
def using(table: configs.Table, family: str, itemsize: int, largest: int, config: configs.Config) -> Iterator[None]:
    """``config`` in the place of the row in use; no loop replays a graph that was captured with another row."""
    before = table.get(family)
    rows = {**table[configs.DEFAULT], **(before or {})}
    table[family] = {**rows, itemsize: {**rows[itemsize], largest: config}}
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
        args = example(BY_NAME[name], dtype, sizes={**SIZES, **tunable.sizes(workload)}, absent=INFERENCE_ONLY)
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
    largest: int,
    workloads: Sequence[Workload],
    device: str,
    measure: Callable[[Call], float],
    say: Callable[[str], None],
    most: int | None = None,
) -> tuple[configs.Config, float]:
    """The fastest row, and its time over that of the row in use: the geometric mean over the workloads."""
    dtype, place = DTYPES[itemsize], (tunable.rows, family, itemsize, largest)
    made = [calls(tunable, workload, dtype, device) for workload in workloads]
    in_use, *others = candidates(tunable, family, itemsize, largest, most)
    with using(*place, in_use):
        base = [time_of(each, dtype, measure) for each in made]
    fastest, least = in_use, 1 - GAIN
    for config in others:
        try:
            with using(*place, config):
                times = [time_of(each, dtype, measure) for each in made]
        except Exception as error:  # too much shared memory, a compiler's refusal, a wrong result: not this one
            say(f"{tunable.table} {config}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        ratio = math.exp(sum(math.log(new / old) for new, old in zip(times, base, strict=True)) / len(base))
        if ratio < least:
            fastest, least = config, ratio
    return fastest, 1.0 if fastest is in_use else least


Found = Mapping[int, Mapping[int, tuple[configs.Config, float | None]]]


def row(family: str, found: Found) -> list[str]:
    """A family's row as it stands in configs.py; of each class the time over that of the row before, None where no
    workload of the class was measured."""
    lines = [f'    "{family}": {{']
    for itemsize, classes in found.items():
        lines.append(f"        {itemsize}: {{")
        for largest, (config, ratio) in classes.items():
            name = "LARGEST" if largest == configs.LARGEST else str(largest)
            said = "not measured" if ratio is None else f"{ratio:.2f} of the row before"
            lines.append(f"            {name}: {str(config).replace(chr(39), chr(34))},  # {said}")
        lines.append("        },")
    return [*lines, "    },"]


def tuned(
    tunable: Tunable,
    family: str,
    workloads: Sequence[Workload],
    device: str,
    measure: Callable[[Call], float],
    say: Callable[[str], None],
    most: int | None = None,
) -> Found:
    """A family's row of a table: the best of every class that has a workload."""
    found: dict[int, dict[int, tuple[configs.Config, float | None]]] = {}
    for itemsize in DTYPES:
        found[itemsize] = {}
        for largest in tunable.classes(itemsize):
            members = tunable.of_class(workloads, itemsize, largest)
            found[itemsize][largest] = (
                best(tunable, family, itemsize, largest, members, device, measure, say, most)
                if members
                else (configs.chosen(tunable.rows, family, itemsize, largest), None)
            )
    return found


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
    parser.add_argument(
        "--most", type=int, metavar="N", help="candidates of a row; all by default, each of which is compiled first"
    )
    options = parser.parse_args(given)
    if options.most is not None and options.most < 1:
        parser.error(f"--most must be at least 1; got {options.most}")
    try:
        workloads = named(options.workload)
    except ValueError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        parser.error("times are taken on a GPU, and this torch sees none; nothing was measured")

    device = torch.device("cuda", torch.cuda.current_device())
    for line in [*header(device, 1), f"workloads {', '.join(workload.name for workload in workloads)}"]:
        print(f"# {line}")
    for tunable in TUNABLES:
        if options.table in (None, tunable.table):
            found = tuned(tunable, family_of(device), workloads, str(device), measured, complain, options.most)
            print(f"{tunable.table}:", *row(family_of(device), found), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
