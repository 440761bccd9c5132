"""Everything there is to check on a GPU, in one run: is it right, is it clean, is it fast.

    python bench/gpu_check.py                      everything, in hours
    python bench/gpu_check.py --quick --minutes 10 what says most in ten minutes

Each stage is a process of its own with a time limit; what it prints and how it ended lie in a folder as it goes, and
report.md there, written anew after every stage, holds the table for the README (what was promised, and what was
measured) and the end of every stage's output. A stage that failed does not stop the others. Run again, it goes on with
what has not passed yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import rnnsearch
import torch
from machine import ROOT, commit, header
from promises import OUTPUTS, report

import rnnsearch_kernels

PACKAGES = (rnnsearch_kernels, rnnsearch)
BENCH = Path(__file__).resolve().parent
SANITIZER_EXIT = 86
# A stage that would have less is not begun.
LEAST_S = 10.0
TEST_PROCESSES = 8
# By what is in a test's name: its device, or that it needs one. The sources' own tests need a compiler.
ON_A_GPU = "(cuda or gpu) and not test_cuda_ and not test_gpu_check"


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
    selftest = Stage("selftest", (sys.executable, "-m", "rnnsearch_kernels"), 900)
    found = [
        selftest,
        _grid(selftest),
        _tests("tests", 3600),
        *(_sanitizer(tool, 1800) for tool in ("memcheck", "racecheck", "initcheck")),
        _program("beam_waits", 600),
        _rates(600),
    ]
    for program, workloads, flags in (
        ("decode_speed", ("tiny", "small", "paper", "speech"), ()),
        ("scan_speed", ("paper", "small", "speech16"), ("--all",)),
        ("loss_speed", ("small", "paper"), ()),
        ("train_speed", ("small", "paper"), ("--all",)),
    ):
        found += [_timed(program, workload, folder, 2400, *flags) for workload in workloads]
    return found


def quick_stages(folder: Path) -> list[Stage]:
    """What says most in ten minutes: right, then fast, then clean; a stage's limit leaves the next ones time."""
    ours = _ours()

    def training(name: str, workload: str, limit_s: float, *contenders: str) -> Stage:
        flags = ("--part", "scan", "--pass", "forward+backward", "--dtype", "bfloat16", "--quick")
        flags += ("--contender", ",".join(contenders))
        return _timed("scan_speed", workload, folder, limit_s, *flags, name=f"scan_speed-{workload}-{name}")

    # Each backend in processes of its own: after an illegal access nothing else runs in one.
    return [
        *(_program("small_shapes", 150, name) for name in ours),
        *(_grid(_program("small_shapes", 60, name)) for name in ours if name == "cuda"),
        *(training(name, workload, 60, "eager", "graph", name) for workload in ("paper", "speech16") for name in ours),
        *(
            _timed("decode_speed", "paper", folder, 60, "--quick", "--backend", name, name=f"decode_speed-paper-{name}")
            for name in ours
        ),
        _program("beam_waits", 60),
        _rates(60),
        *(training(name, "small", 60, "eager", "graph", name) for name in ours),
        *(
            training("compile", workload, 120, "compile", "compile_graph", *ours)
            for workload in ("paper", "small", "speech16")
        ),
        _tests("tests", 150, "-k", ON_A_GPU),
        _sanitizer("memcheck", 120),
        _sanitizer("racecheck", 120),
        _sanitizer("initcheck", 120),
    ]


def _ours() -> list[str]:
    return [
        backend.name
        for backend in rnnsearch_kernels.list_backends()
        if "cuda" in backend.devices and backend.missing is None
    ]


def _tests(name: str, limit_s: float, *flags: str) -> Stage:
    side_by_side = ("-n", str(TEST_PROCESSES)) if importlib.util.find_spec("xdist") else ()
    # A line for each test as it ends (the configuration is quiet): what is out of time has said what failed until then.
    command = (sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", *side_by_side, *flags)
    return Stage(name, (*command, str(ROOT / "tests")), limit_s)


def _program(program: str, limit_s: float, *arguments: str) -> Stage:
    return Stage("-".join((program, *arguments)), (sys.executable, f"{program}.py", *arguments), limit_s)


def _grid(stage: Stage) -> Stage:
    """With the scans of `cuda` as whole grids where they would be clusters."""
    return replace(stage, name=f"{stage.name}-grid", env={**stage.env, "RNNSEARCH_CUDA_CLUSTERS": "0"})


def _rates(limit_s: float) -> Stage:
    missing = None if shutil.which("nvcc") else "nvcc is not here, which compiles its kernels"
    return replace(_program("cuda_rates", limit_s), missing=missing)


def _timed(program: str, workload: str, folder: Path, limit_s: float, *flags: str, name: str | None = None) -> Stage:
    name = name or f"{program}-{workload}"
    file = ("--json", str(folder / f"{name}.rows.json"))
    command = (sys.executable, f"{program}.py", "--device", "cuda", "--workload", workload, *flags, *file)
    return Stage(name, command, limit_s)


def _sanitizer(tool: str, limit_s: float) -> Stage:
    program = compute_sanitizer()
    # With the caching allocator, an access past one tensor's end would lie inside another's memory.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = (str(program), "--tool", tool, "--error-exitcode", str(SANITIZER_EXIT))
    missing = None if program else "compute-sanitizer is not here: pip install nvidia-cuda-sanitizer-api"
    return Stage(tool, (*command, sys.executable, "small_shapes.py"), limit_s, env, missing)


def search_path() -> str:
    """Where this process has found the packages: a stage runs in another folder."""
    given = [str(Path(folder).resolve()) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return os.pathsep.join([*given, *(str(Path(module.__file__ or "").resolve().parents[1]) for module in PACKAGES)])


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


def perform(stage: Stage, folder: Path, left_s: float = float("inf")) -> dict[str, object]:
    """Run a stage in at most ``left_s``; its output goes to ``NAME.txt``, how it ended to ``NAME.json``, which is also
    returned."""
    begin = time.perf_counter()
    log = folder / f"{stage.name}.txt"
    record: dict[str, object] = {"stage": stage.name, "command": list(stage.command), "commit": commit()}
    if stage.missing is not None:
        log.write_text(stage.missing + "\n")
        status = "missing"
    elif left_s < LEAST_S:
        log.write_text("there was no time left for it\n")
        status = "not begun"
    else:
        with log.open("w") as output:
            try:
                process = subprocess.Popen(
                    stage.command,
                    cwd=BENCH,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": search_path(), **stage.env},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                status = _wait(process, min(stage.limit_s, left_s))
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
    """By this command, at this very commit; what was measured of another is measured again."""
    try:
        record = json.loads((folder / f"{stage.name}.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    same = (record.get("commit"), record.get("command")) == (commit(), list(stage.command))
    return same and record.get("status") == "passed"


def run_stages(
    chosen: Sequence[Stage],
    folder: Path,
    *,
    again: bool,
    minutes: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Each stage's status by name, in order; a stage that fails does not keep the next from its turn. All together take
    ``minutes`` at most."""
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    statuses: dict[str, str] = {}
    for stage in chosen:
        if not again and passed_before(stage, folder):
            statuses[stage.name] = "passed"
            say(f"{stage.name:<22} passed before")
            continue
        record = perform(stage, folder, end - time.monotonic())
        statuses[stage.name] = str(record["status"])
        (folder / "report.md").write_text("\n".join(report(folder)) + "\n")
        say(f"{stage.name:<22} {record['status']:<12} {record['seconds']:>8} s   {folder / stage.name}.txt")
    return statuses


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("gpu-check"), help="where everything is written")
    parser.add_argument("--stage", metavar="NAMES", help="stages, comma-separated; --list names them")
    parser.add_argument("--quick", action="store_true", help="what says most in ten minutes")
    parser.add_argument("--minutes", type=float, metavar="N", help="for all stages together; no limit by default")
    parser.add_argument("--again", action="store_true", help="also what has passed before")
    parser.add_argument("--list", action="store_true", help="name the stages with their limits and end")
    options = parser.parse_args(given)
    options.folder = options.folder.absolute()
    options.stages = quick_stages(options.folder) if options.quick else stages(options.folder)
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"--minutes must be above 0; got {options.minutes:g}")
    if options.stage:
        names = options.stage.split(",")
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
    statuses = run_stages(
        options.stages,
        options.folder,
        again=options.again,
        minutes=options.minutes,
        say=lambda line: print(line, flush=True),
    )
    lines = list(report(options.folder))
    (options.folder / "report.md").write_text("\n".join(lines) + "\n")
    print("\n" + "\n".join(lines[: lines.index(OUTPUTS)]))
    return 0 if all(status == "passed" for status in statuses.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
