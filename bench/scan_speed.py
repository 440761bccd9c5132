"""How fast is training here? Teacher-forced decoding and the encoder's GRU, forward, and forward with every gradient.

Results and all gradients are checked against float64 first. ``products`` is the time of the same matrix products alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

# The profiler that counts memory announces itself on standard error otherwise; read when torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from baselines import why_not_compiled
from cases import Case, Contender
from checking import without_wrong, worst
from command import command_line, run, settled
from machine import header
from report import Row, write_json
from scan_cases import PRODUCTS, contender_names, forward_of, gru_case, name_of, products, scan_case
from timing import NOISY, Call, NoiseProbe, interleaved, outside_products, peak_mb, saved_mb
from weights import Settings, Weights
from workloads import Workload

PASSES = {"forward": False, "forward+backward": True}
CASES = {"scan": scan_case, "gru": gru_case}
PARTS = {name_of(op, after): (op, after) for op in CASES for after in (True, False)}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in Settings.dtypes}

HEADING = f"    {'backend':<22}{'dtype':<10}{'median ms':>9}  {'p25 – p75':<18}{'× eager':>7}{'× products':>12}"
HEADING += f"{'outside':>9}{'peak MB':>9}{'saved MB':>10}{'error':>9}"
LEGEND = """\
median and quartiles of interleaved calls, keys and input gates included; × eager: the first row over this one, where
that is eager or nn.GRU; × products: this row over the same matrix products in the same dtype alone; outside: the share
of its time that is not in the library's matrix products, of one profiled call; autocast: float32 parameters and inputs,
products in bfloat16; peak: allocated through PyTorch during a call, without what a CUDA graph keeps; saved: kept from
the forward pass for the backward pass, beside inputs and parameters; error: against float64, the largest RMS error of a
result or gradient over its largest value; ~ : the machine was noisy meanwhile"""


def arguments(given: Sequence[str] | None) -> tuple[argparse.Namespace, Settings, list[Workload]]:
    parser = command_line(
        "scan_speed.py",
        __doc__,
        quick="three rounds",
        everything="also the reference in every dtype, and the loop around a compiled step",
    )
    for flag, known in (("part", PARTS), ("pass", PASSES), ("dtype", DTYPES)):
        parser.add_argument(f"--{flag}", metavar="NAMES", help=f"of {', '.join(known)}; all by default")
    parser.add_argument(
        "--contender",
        metavar="NAMES",
        help="whom to time, such as 'eager,compile,cpu,cpu autocast,products'; all by default, compile with --all",
    )
    options, settings, workloads = settled(parser, given)
    try:
        options.part = chosen("part", options.part, PARTS)
        options.pass_ = chosen("pass", getattr(options, "pass"), PASSES)
        dtypes = tuple(DTYPES[name] for name in chosen("dtype", options.dtype, DTYPES))
        contenders = chosen("contender", options.contender, contender_names(settings)) if options.contender else None
    except ValueError as error:
        parser.error(str(error))
    why_not = why_not_compiled(settings.device.type)
    named = contenders is not None and any(name.startswith("compile") for name in contenders)
    if named and why_not:
        parser.error(f"--contender: {why_not}")
    settings = replace(settings, dtypes=dtypes, contenders=contenders, compile=settings.compile or named)
    return options, settings, workloads


def chosen(flag: str, names: str | None, known: Iterable[str]) -> tuple[str, ...]:
    """Those of a comma-separated list, in their own order; all for None."""
    known = tuple(known)
    wanted = known if names is None else names.split(",")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"--{flag} must be of {list(known)}; got {unknown[0]!r}")
    return tuple(name for name in known if name in wanted)


def right(case: Case, found: dict[tuple[str, Contender], float]) -> tuple[Case, list[str]]:
    """``case`` without those whose results are wrong, and what is wrong with them; everybody's error goes to
    ``found``."""
    case, everybody, complaints = without_wrong(case)
    found.update({(case.op, contender): worst(errors) for contender, errors in everybody.items()})
    return case, complaints


def saved(call: Call) -> float | None:
    """:func:`timing.saved_mb` of a call that has a backward pass, and is no graph's."""
    parts = forward_of(call)
    return None if parts is None else saved_mb(*parts)


def measure(
    cases: Sequence[Case],
    pass_: str,
    weights: Weights,
    least: int,
    probe: NoiseProbe,
    errors: Mapping[tuple[str, Contender], float],
) -> list[Row]:
    """Time all cases in turn, the same products among them."""
    settings = weights.settings
    calls = {(case.op, *contender): call for case in cases for contender, call in case.calls.items()}
    if cases[0].op == "scan" and settings.takes(PRODUCTS):
        for dtype in settings.dtypes:
            calls["scan", PRODUCTS, dtype] = products(weights, dtype, backward=PASSES[pass_])
    before = probe.check()
    named_calls = {" ".join(map(str, key)): call for key, call in calls.items()}
    timings = interleaved(named_calls, settings.device, budget_s=1.0, least=least, most=40)
    noisy = max(before, probe.check()) > NOISY
    peaks = {key: None if key[1] == PRODUCTS else peak_mb(call, settings.device) for key, call in calls.items()}
    on_cpu = settings.device.type == "cpu"
    outside = {key: outside_products(call) if on_cpu else None for key, call in calls.items()}
    # A compiled function would be compiled again for the hooks that count.
    kept = {key: None if key[1].startswith("compile") else saved(call) for key, call in calls.items()}
    return [
        Row(
            workload=weights.workload.name,
            op=op,
            pass_=pass_,
            backend=backend,
            dtype=str(dtype).removeprefix("torch."),
            device=settings.device.type,
            threads=torch.get_num_threads(),
            sentences=weights.workload.batch,
            rows=weights.workload.batch,
            steps=1,
            median_ms=timing.median_ms,
            p25_ms=timing.p25_ms,
            p75_ms=timing.p75_ms,
            peak_mb=peaks[op, backend, dtype],
            floor_ms=None,
            floor=None,
            noisy=noisy,
            outside_products=outside[op, backend, dtype],
            saved_mb=kept[op, backend, dtype],
            error=errors.get((op, Contender(backend, dtype))),
        )
        for (op, backend, dtype), timing in zip(calls, timings.values(), strict=True)
    ]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """All contenders of one pass; ``rows`` start with eager, or with nn.GRU."""
    first = rows[0]
    yield f"  {first.op} {first.pass_}"
    for row in rows:
        name = row.backend + row.op.removeprefix(first.op).replace("_", " ")
        line = f"    {name:<22}{row.dtype:<10}{row.median_ms:>9.1f}{'~' if row.noisy else ' '}"
        line += f" {f'{row.p25_ms:.1f} – {row.p75_ms:.1f}':<18}"
        line += f"{first.median_ms / row.median_ms:>7.2f}" if first.backend in ("eager", "nn.GRU") else f"{'':>7}"
        products = [other for other in rows if (other.backend, other.dtype) == (PRODUCTS, row.dtype)]
        line += f"{row.median_ms / products[0].median_ms:>12.2f}" if products else f"{'':>12}"
        line += f"{row.outside_products:>9.0%}" if row.outside_products is not None else f"{'':>9}"
        line += f"{row.peak_mb:>9.1f}" if row.peak_mb is not None else f"{'':>9}"
        line += f"{row.saved_mb:>10.1f}" if row.saved_mb is not None else f"{'':>10}"
        line += f"{row.error:>9.2g}" if row.error is not None else ""
        yield line.rstrip()


def main(given: Sequence[str] | None = None) -> int:
    options, settings, workloads = arguments(given)
    least = 3 if options.quick else 7
    torch.set_num_threads(options.threads)
    begin = time.perf_counter()
    rows: list[Row] = []
    probe = NoiseProbe(settings.device)
    for line in header(settings.device, options.threads):
        print(line, flush=True)
    status = 0
    for workload in workloads:
        weights = Weights(workload, settings)
        print(f"\n{workload}\n{HEADING}", flush=True)
        for pass_, op in itertools.product(options.pass_, CASES):
            torch.compiler.reset()
            parts = [after for name, after in (PARTS[part] for part in options.part) if name == op]
            cases = []
            found: dict[tuple[str, Contender], float] = {}
            for after in parts:
                case, complaints = right(CASES[op](weights, backward=PASSES[pass_], reset_after=after), found)
                for complaint in complaints:
                    print(f"MISMATCH, so it is not timed: {complaint}", file=sys.stderr, flush=True)
                    status = 1
                cases += [case] if case.calls else []
            if not cases:
                continue
            timed = measure(cases, pass_, weights, least, probe, found)
            rows += timed
            print("\n".join(table(timed)), flush=True)
            if options.json:
                write_json(options.json, rows)
    if not rows:
        if not status:
            print("nothing was timed: none of these contenders is in these parts and dtypes", file=sys.stderr)
        return status or 2
    print(f"\n{LEGEND}\n{time.perf_counter() - begin:.0f} s; noise: up to {probe.worst:.0%} between and within probes")
    return status


if __name__ == "__main__":
    run(main)
