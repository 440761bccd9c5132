"""Everything there is to check on a GPU, in one run: is it right, is it clean, is it fast.

Each stage is a process of its own with a time limit; what it prints and how it ended lie in a folder as it goes. A
stage that failed does not stop the others. Run again, it goes on with what has not passed yet. At its end it prints the
table for the README: what was promised, and what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from machine import ROOT, commit, header
from promises import summary

BENCH = Path(__file__).resolve().parent
SANITIZER_EXIT = 86


@dataclass(frozen=True)
class Stage:
    """A command, run in ``bench/``. ``missing`` says why it cannot be run, where it cannot."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    env: Mapping[str, str] = field(default_factory=dict)
    missing: str | None = None


def stages(folder: Path) -> list[Stage]:
    """Right first, then clean, then fast."""
    python = sys.executable
    found = [
        Stage("selftest", (python, "-m", "rnnsearch_kernels"), 900),
        Stage("tests", (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests")), 3600),
        *(_sanitizer(tool) for tool in ("memcheck", "racecheck", "initcheck")),
        Stage("beam_waits", (python, "beam_waits.py"), 600),
    ]
    for program, workloads, flags in (
        ("decode_speed", ("tiny", "small", "paper", "speech"), ()),
        ("scan_speed", ("paper", "small", "speech16"), ("--all",)),
        ("loss_speed", ("small", "paper"), ()),
        ("train_speed", ("small", "paper"), ("--all",)),
    ):
        for workload in workloads:
            name = f"{program}-{workload}"
            file = ("--json", str(folder / f"{name}.rows.json"))
            command = (python, f"{program}.py", "--device", "cuda", "--workload", workload, *flags, *file)
            found.append(Stage(name, command, 2400))
    return found


def _sanitizer(tool: str) -> Stage:
    program = compute_sanitizer()
    # With the caching allocator, an access past one tensor's end would lie inside another's memory.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = (str(program), "--tool", tool, "--error-exitcode", str(SANITIZER_EXIT))
    missing = None if program else "compute-sanitizer is not here: pip install nvidia-cuda-sanitizer-api"
    return Stage(tool, (*command, sys.executable, "small_shapes.py"), 1800, env, missing)


def compute_sanitizer() -> Path | None:
    """On the path, with a CUDA toolkit, or from the package nvidia-cuda-sanitizer-api."""
    on_path = shutil.which("compute-sanitizer")
    if on_path:
        return Path(on_path)
    folders = [Path(folder) / "nvidia" for folder in sys.path if folder]
    folders += [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    for folder in folders:
        for place in ("cu*/compute-sanitizer/compute-sanitizer", "*/bin/compute-sanitizer", "bin/compute-sanitizer"):
            for program in sorted(folder.glob(place)):
                if os.access(program, os.X_OK):
                    return program
    return None


def perform(stage: Stage, folder: Path) -> dict[str, object]:
    """Run a stage; its output goes to ``NAME.txt``, how it ended to ``NAME.json``, which is also returned."""
    begin = time.perf_counter()
    log = folder / f"{stage.name}.txt"
    record: dict[str, object] = {"stage": stage.name, "command": list(stage.command), "commit": commit()}
    if stage.missing is not None:
        log.write_text(stage.missing + "\n")
        status = "missing"
    else:
        with log.open("w") as output:
            try:
                process = subprocess.Popen(
                    stage.command,
                    cwd=BENCH,
                    env={**os.environ, **stage.env},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                status = _wait(process, stage.limit_s)
                record["exit"] = process.returncode
            except OSError as error:
                output.write(f"{error}\n")
                status = "failed"
    record.update(status=status, seconds=round(time.perf_counter() - begin, 1))
    (folder / f"{stage.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _wait(process: subprocess.Popen, limit_s: float) -> str:
    try:
        return "passed" if process.wait(timeout=limit_s) == 0 else "failed"
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        if process.poll() is None:  # out of time, or interrupted: with everything it started
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def passed_before(stage: Stage, folder: Path) -> bool:
    """At this very commit; what was measured of another is measured again."""
    try:
        record = json.loads((folder / f"{stage.name}.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return record.get("status") == "passed" and record.get("commit") == commit()


def run_stages(
    chosen: Sequence[Stage], folder: Path, *, again: bool, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Each stage's status by name, in order; a stage that fails does not keep the next from its turn."""
    statuses: dict[str, str] = {}
    for stage in chosen:
        if not again and passed_before(stage, folder):
            statuses[stage.name] = "passed"
            say(f"{stage.name:<22} passed before")
            continue
        record = perform(stage, folder)
        statuses[stage.name] = str(record["status"])
        say(f"{stage.name:<22} {record['status']:<12} {record['seconds']:>8} s   {folder / stage.name}.txt")
    return statuses


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("gpu-check"), help="where everything is written")
    parser.add_argument("--only", metavar="NAMES", help="stages, comma-separated; --list names them")
    parser.add_argument("--again", action="store_true", help="also what has passed before")
    parser.add_argument("--list", action="store_true", help="name the stages with their limits and end")
    options = parser.parse_args(given)
    options.folder = options.folder.absolute()
    options.stages = stages(options.folder)
    if options.only:
        names = options.only.split(",")
        known = [stage.name for stage in options.stages]
        unknown = [name for name in names if name not in known]
        if unknown:
            parser.error(f"a stage must be one of {known}; got {unknown[0]!r}")
        options.stages = [stage for stage in options.stages if stage.name in names]
    return options


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    if options.list:
        for stage in options.stages:
            print(f"{stage.name:<22} {stage.limit_s:>6.0f} s   {' '.join(stage.command)}")
        return 0
    if not torch.cuda.is_available():
        print(f"nothing was checked: this torch ({torch.__version__}) sees no CUDA device", file=sys.stderr)
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = header(torch.device("cuda"), torch.get_num_threads())
    (options.folder / "machine.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)
    statuses = run_stages(options.stages, options.folder, again=options.again, say=lambda line: print(line, flush=True))
    table = "\n".join(summary(options.folder))
    (options.folder / "summary.md").write_text(table + "\n")
    print(f"\n{table}")
    return 0 if all(status == "passed" for status in statuses.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
