"""``python -m rnnsearch_kernels``: what is here, what ``auto`` picks and why, and whether every backend is right.

The exit status is 0 only where each available backend agrees with the reference in float64.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import textwrap
from collections.abc import Iterable, Iterator

import torch

from . import __version__, native
from .autograd import BACKWARD
from .backends import Backend, list_backends, pick
from .checks import STORAGE_DTYPES
from .schema import OPS
from .selftest import LONG, Outcome, check, devices, runs_on

WIDTH = 100
FORWARD = [op.name for op in OPS if not op.name.endswith("_backward")]


def main() -> int:
    """Print the report; the exit status."""
    for line in (*versions(), "", *choices()):
        print(line)
    print()
    outcomes: list[Outcome] = []
    for line in self_test(outcomes):
        print(line, flush=True)
    wrong = [outcome for outcome in outcomes if outcome.complaint is not None]
    print()
    if wrong:
        print(f"FAILED: {len(wrong)} of {len(outcomes)} checks. Do not trust the results of this installation.")
    else:
        print(f"All is well: {len(outcomes)} checks passed.")
    return 1 if wrong else 0


def versions() -> Iterator[str]:
    """The software and the machine, a line each."""
    yield f"rnnsearch_kernels {__version__}"
    triton = _version("triton")
    yield _item("software", f"Python {platform.python_version()}, torch {torch.__version__}, triton {triton}")
    threads = torch.get_num_threads()
    yield _item("machine", f"{_processor()}, {threads} thread{'s' * (threads != 1)}, {platform.system()}")
    for index in range(torch.cuda.device_count()):
        yield _item("GPU", f"{torch.cuda.get_device_name(index)}, CUDA {torch.version.cuda}")
    if not torch.cuda.is_available():
        yield _item("GPU", "none that torch can use")
    yield _item("CUDA kernels", _cuda_kernels())
    extension = native.extension()
    if extension is None:
        yield _item("extension", str(native.why_missing()))
        return
    built = extension.build_info()
    yield _item("extension", f"built with {built['compiler']} for torch >= {built['torch_target']}")
    yield _item("flags", built["flags"])
    unusable = [isa for isa in built["isas"] if isa not in extension.isas()]
    beside = f"; built, not on this machine: {', '.join(unusable)}" if unusable else ""
    yield _item("instructions", f"{extension.isa()} of {', '.join(extension.isas())}{beside}")


def _cuda_kernels() -> str:
    extension = native.cuda()
    if extension is None:
        return f"none: {native.why_no_cuda()}"
    built = extension.build_info()
    return f"built for compute capability {built['targets']} and torch >= {built['torch_target']}"


def choices() -> Iterator[str]:
    """What ``auto`` picks for every op, device and dtype, and why what is not picked cannot run."""
    for device in devices():
        yield _row(f"auto on {device}", [_short(dtype) for dtype in STORAGE_DTYPES])
        for op in FORWARD:
            yield _row(op, [_picked(op, device, dtype, False) for dtype in STORAGE_DTYPES])
            if BACKWARD.get(op) is not None:
                yield _row("  with gradients", [_picked(op, device, dtype, True) for dtype in STORAGE_DTYPES])
        for backend in list_backends():
            reasons = dict.fromkeys(
                reason
                for gradients in (False, True)
                for op in FORWARD
                for dtype in STORAGE_DTYPES
                if (reason := backend.why_not(op, device, dtype, gradients)) is not None
            )
            if not reasons and (reason := backend.why_not_auto(device)) is not None:
                reasons = {reason: None}
            if reasons:
                yield _item(backend.name, "not everywhere: " + "; ".join(reasons), 2)


def self_test(outcomes: list[Outcome]) -> Iterator[str]:
    """Each available backend against the reference in float64; what was found is added to ``outcomes``."""
    for device in devices():
        for backend in list_backends():
            if runs_on(backend, device):
                for label in _instruction_sets(backend):
                    found = list(check(backend, device))
                    outcomes += found
                    yield from _table(f"{backend.name}{label} on {device}", found)
                if device == "cuda":
                    found = list(check(backend, device, LONG))
                    outcomes += found
                    yield from _table(f"{backend.name} on {device}, {LONG['S']} source positions", found)
    yield "The numbers are the largest error of results and gradients, over what is allowed."


def _instruction_sets(backend: Backend) -> Iterator[str]:
    """Once for each instruction set that the native backend can use here, with that one selected."""
    extension = native.extension()
    if extension is None or backend.name != "cpu":
        yield ""
        return
    before = extension.isa()
    try:
        for isa in extension.isas():
            extension.select_isa(isa)
            yield f" ({isa})"
    finally:
        extension.select_isa(before)


def _table(title: str, outcomes: list[Outcome]) -> Iterator[str]:
    dtypes = list(dict.fromkeys(outcome.dtype for outcome in outcomes))
    yield _row(title, [_short(dtype) for dtype in dtypes])
    for op in dict.fromkeys(outcome.op for outcome in outcomes):
        by_dtype = {outcome.dtype: outcome for outcome in outcomes if outcome.op == op}
        yield _row(f"  {op}", [_verdict(by_dtype.get(dtype)) for dtype in dtypes])
    for outcome in outcomes:
        if outcome.complaint is not None:
            yield _item("FAILED", f"{outcome.backend} {outcome.op} {_short(outcome.dtype)}: {outcome.complaint}", 2)


def _verdict(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    return f"{outcome.worst:.2f}" if outcome.complaint is None else "FAILED"


def _picked(op: str, device: str, dtype: torch.dtype, gradients: bool) -> str:
    backend, _ = pick(op, device, dtype, gradients)
    return "none" if backend is None else backend.name


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _row(title: str, cells: Iterable[str]) -> str:
    return f"{title:<40}" + "".join(f"{cell:>14}" for cell in cells)


def _item(name: str, text: str, indent: int = 0) -> str:
    column = " " * 14
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=" " * indent + f"{name:<{14 - indent}}",
        subsequent_indent=column,
        break_on_hyphens=False,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
