"""How fast is decoding here? With no arguments, about two minutes on a CPU.

Decodes held-out words with the shipped model on every backend, which must agree; then times the attention, the
decoder step, the beam decode step and whole beam searches beside plain PyTorch, each checked before it is timed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

# The profiler that counts memory announces itself on standard error otherwise; read when torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from baselines import why_not_compiled
from cases import Case, attention_case, beam_search_case, beam_step_case, scan_case, step_case
from checking import Mismatch, without_wrong
from command import command_line, run, settled, why_not_written
from held_out import decode_held_out
from machine import header
from overhead import step_overhead
from picture import draw, why_no_picture
from report import LEGEND, Row, heading, table, write_json
from timing import NOISY, NoiseProbe, arithmetic, interleaved, peak_mb, read_ms
from weights import Settings, Weights
from workloads import OVERHEAD, Workload

import rnnsearch_kernels


@dataclass(frozen=True)
class Effort:
    """How long to measure: seconds and rounds for a case, tokens for a search (None: all), words to decode."""

    budget_s: float
    least: int
    most: int
    search_least: int
    search_steps: int | None
    words: int | None


FULL = Effort(budget_s=0.6, least=5, most=60, search_least=3, search_steps=25, words=None)
QUICK = Effort(budget_s=0.05, least=3, most=5, search_least=2, search_steps=4, words=20)


def arguments(given: Sequence[str] | None) -> tuple[argparse.Namespace, Settings, list[Workload]]:
    parser = command_line(
        "decode_speed.py",
        __doc__,
        quick="few rounds, short searches and no torch.compile",
        everything="everything: searches to their full length, bfloat16 everywhere, the teacher-forced loop and "
        "torch.compile of it, which takes minutes",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw them, .png, .svg or .pdf")
    options, settings, workloads = settled(parser, given)
    if options.plot:
        reason = why_not_written(options.plot)
        if reason:
            parser.error(f"--plot: {reason}")
        reason = why_no_picture(options.plot)
        if reason:
            parser.error(reason)
    return options, settings, workloads


def cases(workload: Workload, settings: Settings, effort: Effort) -> Iterator[Callable[[], Case]]:
    """What is timed on a workload; each is built when its turn comes."""
    weights = Weights(workload, settings)
    yield partial(attention_case, weights)
    for sentences in workload.decode_batches:
        yield partial(step_case, weights, sentences)
        yield partial(beam_step_case, weights, sentences)
    steps = min(workload.target_length, effort.search_steps or workload.target_length)
    for sentences in workload.decode_batches:
        yield partial(beam_search_case, weights, sentences, steps)
    if settings.everything:
        yield partial(scan_case, weights)


def measure(case: Case, settings: Settings, effort: Effort, probe: NoiseProbe, threads: int) -> list[Row]:
    """Time, then weigh every contender of a case."""
    calls = {f"{contender.backend} {contender.dtype}": call for contender, call in case.calls.items()}
    before = probe.check()
    sizes = {dtype: case.cost.values * dtype.itemsize for dtype in settings.dtypes}
    reads = {dtype: read_ms(size, settings.device) for dtype, size in sizes.items()}
    if case.op in ("beam_search", "scan"):
        timings = interleaved(calls, settings.device, budget_s=effort.budget_s, least=effort.search_least, most=20)
    else:
        timings = interleaved(calls, settings.device, budget_s=effort.budget_s, least=effort.least, most=effort.most)
    # Memory is as fast as it is at that moment: its floor is the better of before and after.
    reads = {dtype: min(reads[dtype], read_ms(size, settings.device)) for dtype, size in sizes.items()}
    noise = max(before, probe.check())
    rows = []
    for contender in case.calls:
        timing = timings[f"{contender.backend} {contender.dtype}"]
        computed = case.cost.compute_ms(contender.dtype, settings.device, threads)
        read = reads[contender.dtype]
        rows.append(
            Row(
                workload=case.workload.name,
                op=case.op,
                pass_="forward",
                backend=contender.backend,
                dtype=str(contender.dtype).removeprefix("torch."),
                device=settings.device.type,
                threads=threads,
                sentences=case.sentences,
                rows=case.rows,
                steps=case.steps,
                median_ms=timing.median_ms,
                p25_ms=timing.p25_ms,
                p75_ms=timing.p75_ms,
                peak_mb=peak_mb(case.calls[contender], settings.device),
                floor_ms=max(computed, read) * case.steps,
                floor="arithmetic" if computed > read else "memory",
                noisy=noise > NOISY,
            )
        )
    return rows


def overhead_rows(settings: Settings, probe: NoiseProbe, threads: int) -> Iterator[list[Row]]:
    """The step overhead of each backend with kernels of its own to tell apart."""
    if settings.device.type != "cpu":
        return  # calls return before their kernels end: the parts cannot be told apart by differences
    compiled = {backend.name for backend in rnnsearch_kernels.list_backends() if backend.compiled}
    weights = Weights(OVERHEAD, settings)
    for backend in settings.able(torch.float32, "linear", "decoder_step"):
        if backend not in compiled:
            continue
        before = probe.check()
        parts = step_overhead(weights, backend)
        noise = max(before, probe.check())
        yield [
            Row(
                workload=OVERHEAD.name,
                op=f"step_{part}",
                pass_="forward",
                backend=backend,
                dtype="float32",
                device=settings.device.type,
                threads=threads,
                sentences=OVERHEAD.batch,
                rows=OVERHEAD.batch,
                steps=1,
                median_ms=timing.median_ms,
                p25_ms=timing.p25_ms,
                p75_ms=timing.p75_ms,
                peak_mb=None,
                floor_ms=None,
                floor=None,
                noisy=noise > NOISY,
            )
            for part, timing in parts.items()
        ]


def introduction(options: argparse.Namespace, settings: Settings) -> Iterator[str]:
    """Where and with what; what cannot run, and why."""
    yield from header(settings.device, options.threads)
    key = settings.device, options.threads
    sizes = {f"{size >> 20} MB": size for size in (2**20, 2**24, 2**27)}
    rates = ", ".join(f"{name} {size / read_ms(size, settings.device) / 1e6:.0f}" for name, size in sizes.items())
    yield f"measured  reading GB/s: {rates}"
    rates = ", ".join(f"{str(dtype)[6:]} {arithmetic(dtype, *key) / 1e9:.0f}" for dtype in settings.dtypes)
    yield f"          large products GFLOP/s: {rates}"
    for backend in rnnsearch_kernels.list_backends():
        state = backend.missing or f"has {', '.join(backend.ops)}"
        yield f"backend   {backend.name}: {state if backend.missing or backend.name != 'reference' else 'has every op'}"
    reason = "left out by --quick" if options.quick else why_not_compiled(settings.device.type)
    if reason:
        yield f"compile   {reason}"
    elif not settings.everything:
        yield "compile   attention and steps in float32; the whole loop and bfloat16 with --all (minutes)"
    if settings.device.type != "cuda":
        yield "graph     no CUDA graphs on a CPU"


def main(given: Sequence[str] | None = None) -> int:
    options, settings, workloads = arguments(given)
    effort = QUICK if options.quick else FULL
    if options.all or settings.device.type == "cuda":  # where a search of a few tokens is mostly what comes before them
        effort = replace(effort, search_steps=None)
    torch.set_num_threads(options.threads)
    begin = time.perf_counter()
    rows: list[Row] = []
    status = 0

    def complain(what: object) -> None:
        nonlocal status
        status = 1
        print(f"MISMATCH, so it is not timed: {what}", file=sys.stderr, flush=True)

    with torch.inference_mode():
        probe = NoiseProbe(settings.device)
        for line in introduction(options, settings):
            print(line, flush=True)
        print()
        try:
            for line in decode_held_out(settings.backends, settings.device, effort.words):
                print(line, flush=True)
        except Mismatch as error:
            complain(error)
        for workload in workloads:
            print(f"\n{workload}\n{heading()}", flush=True)
            for build in cases(workload, settings, effort):
                if settings.compile:
                    torch.compiler.reset()  # nobody pays for the guards of earlier cases
                case, _, complaints = without_wrong(build())
                for complaint in complaints:
                    complain(complaint)
                if not case.calls:
                    continue
                found = measure(case, settings, effort, probe, options.threads)
                rows += found
                print("\n".join(table(found)), flush=True)
                if options.json:
                    write_json(options.json, rows)
        print(f"\n{OVERHEAD}: FusedBahdanauDecoder.step, inference mode, float32, µs")
        none = True
        for parts in overhead_rows(settings, probe, options.threads):
            rows += parts
            none = False
            total, kernel, dispatch, outside = (f"{row.median_ms * 1e3:.1f}" for row in parts)
            print(
                f"    {parts[0].backend:<14}total {total}{'~' * parts[0].noisy} = in the kernels {kernel} "
                f"+ outside them {outside}, of which {dispatch} for two op calls with nothing to do"
            )
        if none:
            print("    not measured: only a CPU backend with kernels can be told from what surrounds them")
    noise = f"noise: the same work differed by up to {probe.worst:.0%} between and within probes"
    print(f"\n{LEGEND}\n{noise}; {time.perf_counter() - begin:.0f} s")
    if options.json:
        write_json(options.json, rows)
    if options.plot:
        draw(options.plot, rows, "  ·  ".join(line[10:] for line in header(settings.device, options.threads)))
    return status


if __name__ == "__main__":
    run(main)
