"""What every benchmark's command line has: its flags, what is refused before the run, an end without a traceback."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from baselines import why_not_compiled
from weights import Settings
from workloads import WORKLOADS, Workload, named

import rnnsearch_kernels


def command_line(
    program: str, description: str | None, *, quick: str, everything: str, default: str | None = None
) -> argparse.ArgumentParser:
    """The flags that every benchmark has; ``quick`` and ``everything`` say what --quick and --all do here, ``default``
    names the workloads that are measured where none is named."""
    parser = argparse.ArgumentParser(prog=program, description=(description or "").split("\n\n")[0])
    others = " and ".join(workload.name for workload in WORKLOADS.values() if not workload.default)
    parser.add_argument(
        "--workload",
        metavar="NAMES",
        default=default,
        help=f"of {', '.join(WORKLOADS)}; {default or f'all but {others}'} by default",
    )
    parser.add_argument("--backend", metavar="NAMES", help="which of our backends; all that can run by default")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--all", action="store_true", help=everything)
    return parser


def settled(
    parser: argparse.ArgumentParser, given: Sequence[str] | None
) -> tuple[argparse.Namespace, Settings, list[Workload]]:
    """The flags read and held against what is here; what cannot be done ends the run with a sentence."""
    options = parser.parse_args(given)
    try:
        workloads = named(options.workload)
        device = torch.device(options.device)
        backends = usable(options.backend, device)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    if options.threads < 1:
        parser.error(f"--threads must be at least 1; got {options.threads}")
    if device.type not in ("cpu", "cuda"):
        parser.error(f"--device must be cpu or cuda; got {device}")
    if device.type == "cuda" and torch.cuda.device_count() <= (device.index or 0):
        parser.error(f"--device {device}: this torch sees no such CUDA device")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # events and streams are made on the current one
    reason = why_not_written(options.json) if options.json else None
    if reason:
        parser.error(f"--json: {reason}")
    settings = Settings(
        device=device,
        backends=backends,
        compile=not options.quick and why_not_compiled(device.type) is None,
        everything=options.all,
    )
    return options, settings, workloads


def usable(names: str | None, device: torch.device) -> tuple[str, ...]:
    """Our backends by name, or all that can run on ``device``, the fastest first."""
    known = {backend.name: backend for backend in rnnsearch_kernels.list_backends()}
    reasons = {
        name: backend.missing or backend.why_not(backend.ops[0], device.type, backend.dtypes[0], False)
        for name, backend in known.items()
    }
    if names is None:
        return tuple(name for name, reason in reasons.items() if reason is None)
    for name in names.split(","):
        if name not in known:
            raise ValueError(f"a backend must be one of {list(known)}; got {name!r}")
        if reasons[name]:
            raise ValueError(f"backend {name!r} cannot run: {reasons[name]}")
    return tuple(dict.fromkeys(names.split(",")))


def why_not_written(path: Path) -> str | None:
    """Why a file cannot be written, asked before minutes are spent on what it would hold; None where it can."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"there is no folder {folder} to write {path.name} in"
    if path.is_dir():
        return f"{path} is a folder"
    if path.exists() and not os.access(path, os.W_OK):
        return f"{path} is there and cannot be written"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"nothing can be written in {folder} ({error.strerror})"


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with what ``main`` returns; 130 after Ctrl-C, 141 where nobody reads what is printed (``| head``)."""
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # Python would flush once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status)
