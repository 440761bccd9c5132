"""How fast is training, from text to the optimizer's step? Whole updates of RNNSearch models, and each part's share.

Ours on every backend, the reference among them, beside plain PyTorch: nn.GRU around the README's loop, its step
compiled, and every position embedded by itself. The loss and all gradients are checked against float64 first, and the
losses of all agree at every update. Minibatches are read, segmented and padded ahead by a thread, and freed memory
stays with the process, as `rnnsearch train` has both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# The profiler that counts memory announces itself on standard error otherwise; read when torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from checking import Mismatch, check
from command import command_line, run, settled
from machine import header
from report import Row, write_json
from rnnsearch.ahead import Ahead
from rnnsearch.data import Batch
from rnnsearch.freed_memory import keep_freed_memory
from timing import NOISY, NoiseProbe, Timing, peak_mb
from update import PARTS, Update, checked_case, contenders, text_shares
from weights import Settings
from workloads import Workload

WHOLE, DATA = "update", "waiting for data"
# Losses and gradient norms of contenders that began with the same weights, relative.
AGREE = {"float32": 1e-3, "bf16": 3e-2}
LEGEND = """\
median and quartiles of interleaved updates, the wait for the minibatch included; the share of each part of its own
update: waiting for the minibatch, encoder, decoder with its keys, embeddings and input gates, readout and loss, all
gradients, the clipped step of Adam (paper: Adadelta); × reference: the reference's time over this one's; tokens/s: of
the target, ends counted; peak: allocated through PyTorch during an update, gradients and what the first step allocates
included; ~ : the machine was noisy meanwhile"""


def arguments(given: Sequence[str] | None) -> tuple[argparse.Namespace, Settings, list[Workload]]:
    parser = command_line(
        "train_speed.py",
        __doc__,
        quick="one round, ours and the reference only",
        everything="also plain PyTorch without torch.compile, and float32 under bfloat16 autocast",
        default="small,paper",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="updates of each that are timed (5, or 1 with --quick)")
    options, settings, workloads = settled(parser, given)
    if options.rounds is None:
        options.rounds = 1 if options.quick else 5
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {options.rounds}")
    return options, settings, workloads


def measure(workload: Workload, settings: Settings, rounds: int, probe: NoiseProbe) -> list[Row]:
    """Check every contender, then let all of them make the same updates in turn."""
    device = settings.device
    updates = {name: Update(workload, name, device) for name in contenders(settings)}
    samples: dict[str, list[list[float]]] = {name: [] for name in updates}
    with tempfile.TemporaryDirectory() as folder, Ahead(text_shares(workload, Path(folder), device), 20) as ready:
        first = next(ready).batch
        check(checked_case(workload, updates, first))
        peaks = {name: _first_update(update, first) for name, update in updates.items()}
        for update in updates.values():  # by the second one the heap is as large as it will be
            update(first)
        _compare(updates)
        before = probe.check()
        for round_ in range(rounds):
            waited = ready.waited
            batch = next(ready).batch
            waiting = (ready.waited - waited) * 1e3
            names = list(updates)
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                parts = updates[name](batch)
                samples[name].append([waiting + sum(parts), waiting, *parts])
            _compare(updates)
        noisy = max(before, probe.check()) > NOISY
    return [
        Row(
            workload=workload.name,
            op="update",
            pass_=part,
            backend=name,
            dtype="float32",
            device=device.type,
            threads=torch.get_num_threads(),
            sentences=workload.batch,
            rows=first.tokens,
            steps=1,
            median_ms=timing.median_ms,
            p25_ms=timing.p25_ms,
            p75_ms=timing.p75_ms,
            peak_mb=peaks[name] if part == WHOLE else None,
            floor_ms=None,
            floor=None,
            noisy=noisy,
        )
        for name, found in samples.items()
        for part, timing in zip((WHOLE, DATA, *PARTS), map(_timing, zip(*found, strict=True)), strict=True)
    ]


def _first_update(update: Update, batch: Batch) -> float:
    """Warms up too."""
    return peak_mb(lambda: update(batch), update.device)


def _timing(samples: Sequence[float]) -> Timing:
    values = [*samples] * (1 if len(samples) > 1 else 2)  # a single one has no quartiles
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(statistics.median(values), low, high, min(values))


def _compare(updates: dict[str, Update]) -> None:
    first_name, first = next(iter(updates.items()))
    for name, update in updates.items():
        for what in ("loss", "norm"):
            ours, theirs = getattr(update, what), getattr(first, what)
            if not abs(ours - theirs) <= AGREE[update.precision] * abs(theirs):
                raise Mismatch(f"update: the {what} of {name} is {ours}, that of {first_name} {theirs}")


def table(rows: Sequence[Row]) -> Iterator[str]:
    parts = (DATA, *PARTS)
    yield f"    {'':<18}{'median ms':>10}  {'p25 – p75':<20}{'× reference':>11}{'tokens/s':>10}{'peak MB':>9}"
    wholes = {row.backend: row for row in rows if row.pass_ == WHOLE}
    for name, row in wholes.items():
        over = f"{wholes['reference'].median_ms / row.median_ms:.2f}" if "reference" in wholes else ""
        quartiles = f"{row.p25_ms:.0f} – {row.p75_ms:.0f}"
        speed = f"{row.rows / row.median_ms * 1e3:,.0f}"
        line = f"    {name:<18}{row.median_ms:>10.0f}{'~' if row.noisy else ' '} {quartiles:<20}{over:>11}{speed:>10}"
        yield line + f"{row.peak_mb:>9.0f}"
    yield f"    {'share':<18}" + "".join(f"{part:>18}" for part in parts)
    for name, row in wholes.items():
        shares = {part.pass_: part.median_ms / row.median_ms for part in rows if part.backend == name}
        yield f"    {name:<18}" + "".join(f"{shares[part]:>18.1%}" for part in parts)


def main(given: Sequence[str] | None = None) -> int:
    options, settings, workloads = arguments(given)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    begin = time.perf_counter()
    rows: list[Row] = []
    probe = NoiseProbe(settings.device)
    for line in header(settings.device, options.threads):
        print(line, flush=True)
    try:
        for workload in workloads:
            torch.compiler.reset()
            print(f"\n{workload}", flush=True)
            found = measure(workload, settings, options.rounds, probe)
            rows += found
            print("\n".join(table(found)), flush=True)
    except Mismatch as error:
        print(f"MISMATCH, so nothing more is timed: {error}", file=sys.stderr)
        return 1
    print(f"\n{LEGEND}\n{time.perf_counter() - begin:.0f} s; noise: up to {probe.worst:.0%} between and within probes")
    if options.json:
        write_json(options.json, rows)
    return 0


if __name__ == "__main__":
    run(main)
