"""What does the loss over the vocabulary cost, with its gradients, with the logits in memory and without?

Without: the op `vocabulary_loss` of the reference backend and of the one that `auto` takes.

Times the readout's last product and the cross-entropy of a whole minibatch of a workload, forward and backward, checks
the gradients against float64 on fewer rows first, and prints medians and peak memory. Freed memory stays with the
process, as `rnnsearch train` has it: otherwise who comes after another way pays for what that gave back.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial

# The profiler that counts memory announces itself on standard error otherwise; read when torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from command import command_line, run, settled
from machine import header
from report import Row, write_json
from rnnsearch.freed_memory import keep_freed_memory
from rnnsearch.loss import vocabulary_loss
from timing import NOISY, NoiseProbe, interleaved, peak_mb
from torch import Tensor
from weights import Settings
from workloads import Workload

from rnnsearch_kernels.backends import pick

PAD = 0
ROWS_CHECKED = 64


def arguments(given: Sequence[str] | None) -> tuple[argparse.Namespace, Settings, list[Workload]]:
    parser = command_line(
        "loss_speed.py", __doc__, quick="three rounds", everything="also bfloat16 where that is emulated"
    )
    return settled(parser, given)


def inputs(workload: Workload, rows: int, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """readout (N, L), weight (V, L) and bias (V,), all wanting gradients, and target (N,), a fifth of it padding."""
    generator = torch.Generator().manual_seed(11)
    sizes = [(rows, workload.readout_size), (workload.vocabulary_size, workload.readout_size)]
    drawn = [torch.randn(*size, generator=generator) for size in (*sizes, (workload.vocabulary_size,))]
    drawn[1] *= 3 * workload.readout_size**-0.5
    target = torch.randint(1, workload.vocabulary_size, (rows,), generator=generator)
    target[::5] = PAD
    return [x.to(device, dtype).requires_grad_() for x in drawn], target.to(device)


def loss_and_gradients(given: list[Tensor], target: Tensor, way: str, smoothing: float) -> list[Tensor]:
    """``way`` is ``"logits"``, or the backend of the op that keeps none."""
    options = {"way": way} if way == "logits" else {"way": "chunked", "backend": way}
    loss = vocabulary_loss(*given, target, pad_id=PAD, label_smoothing=smoothing, **options)
    return [loss.detach(), *torch.autograd.grad(loss, given)]


def check(workload: Workload, device: torch.device, dtype: torch.dtype, ways: Sequence[str]) -> None:
    """Twice the error of plain logits against float64, or 64 eps of the largest value, since sums cancel here."""
    given, target = inputs(workload, ROWS_CHECKED, device, dtype)
    double = [x.detach().double().requires_grad_() for x in given]
    logits = torch.nn.functional.linear(*double)
    loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=PAD, label_smoothing=0.1)
    truth = [loss.detach(), *torch.autograd.grad(loss, double)]
    plain: list[float] = []
    for way in ways:
        found = loss_and_gradients(given, target, way, 0.1)
        errors = [float((got.double() - want).square().mean().sqrt()) for got, want in zip(found, truth, strict=True)]
        plain = plain or errors
        for name, error, before, want in zip(("loss", "readout", "weight", "bias"), errors, plain, truth, strict=True):
            allowed = max(2 * before, 64 * torch.finfo(dtype).eps * float(want.abs().max()))
            if not error <= allowed:
                where = f"{workload.name} {way} {str(dtype)[6:]}"
                raise AssertionError(f"{where}: {name} is {error:.3g} (RMS) from float64; {allowed:.3g} is allowed")


def main(given: Sequence[str] | None = None) -> int:
    options, settings, workloads = arguments(given)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    best = pick("vocabulary_loss", settings.device, torch.float32, True)[0]
    ways = tuple(dict.fromkeys(("logits", "reference", best.name if best else "reference")))
    dtypes = settings.dtypes if settings.device.type == "cuda" or settings.everything else (torch.float32,)
    for line in header(settings.device, options.threads):
        print(line, flush=True)
    probe, rows = NoiseProbe(settings.device), []
    for workload in workloads:
        print(f"\n{workload}")
        print(f"    {'loss':<10}{'smoothing':<11}{'dtype':<10}{'median ms':>10}  {'p25 – p75':<20}{'peak MB':>8}")
        for dtype in dtypes:
            check(workload, settings.device, dtype, ways)
            given_, target = inputs(workload, workload.batch * workload.target_length, settings.device, dtype)
            calls = {
                f"{way} {smoothing}": partial(loss_and_gradients, given_, target, way, smoothing)
                for way in ways
                for smoothing in (0.0, 0.1)
            }
            before = probe.check()
            timings = interleaved(calls, settings.device, budget_s=1.0, least=3, most=3 if options.quick else 20)
            noisy = max(before, probe.check()) > NOISY
            for name, timing in timings.items():
                way, smoothing = name.split()
                row = Row(
                    workload=workload.name,
                    op=f"loss_smoothing_{smoothing}",
                    pass_="forward+backward",
                    backend=way,
                    dtype=str(dtype).removeprefix("torch."),
                    device=settings.device.type,
                    threads=options.threads,
                    sentences=workload.batch,
                    rows=len(target),
                    steps=1,
                    median_ms=timing.median_ms,
                    p25_ms=timing.p25_ms,
                    p75_ms=timing.p75_ms,
                    peak_mb=peak_mb(calls[name], settings.device),
                    floor_ms=None,
                    floor=None,
                    noisy=noisy,
                )
                rows.append(row)
                quartiles = f"{row.p25_ms:.1f} – {row.p75_ms:.1f}"
                print(
                    f"    {way:<10}{smoothing:<11}{row.dtype:<10}{row.median_ms:>10.1f}{'~' if noisy else ' '} "
                    f"{quartiles:<20}{row.peak_mb:>8.0f}",
                    flush=True,
                )
    if options.json:
        write_json(options.json, rows)
    return 0


if __name__ == "__main__":
    run(main)
