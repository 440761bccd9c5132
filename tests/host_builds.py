"""Programs of tests/cuda_host: the CUDA kernels' sources, compiled for the CPU, plainly and under the sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
COMPILER = shutil.which("g++")
# Polls, each a yield, after which a wait was in vain: some tenths of a second, as a thread that is awaited may wait
# that long for a core of a machine that does other things.
PATIENCE = 1 << 18

FLAGS = {
    "plain": [],
    "thread": ["-fsanitize=thread", "-g1", "-DFOR_SANITIZER"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-DFOR_SANITIZER"],
}


class HostBuilds:
    """One source; called with a key of ``FLAGS``, the program, compiled at its first use."""

    def __init__(self, source: str, directory: Path) -> None:
        self.source, self.directory = ROOT / "tests" / "cuda_host" / source, directory

    def __call__(self, name: str) -> Path:
        out = self.directory / name
        if not out.exists():
            command = ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-pthread", *FLAGS[name]]
            subprocess.run([*command, "-I", ROOT / "csrc" / "cuda", self.source, "-o", out], check=True)
        return out


def race_shows(run: Callable[[Path], subprocess.CompletedProcess[bytes]], build: HostBuilds) -> bool:
    """Whether ThreadSanitizer, which ends what had a race with 66, sees one in ``run``. It remembers four accesses to a
    word, so that a race may escape it once, as one in some hundred runs was seen to: it must not three times."""
    program = build("thread")
    return any(found.returncode == 66 and b"data race" in found.stderr for found in (run(program) for _ in range(3)))


def results(run: subprocess.CompletedProcess[bytes], *shapes: tuple[int, ...]) -> list[Tensor]:
    """What a program that ended well wrote."""
    assert run.returncode == 0, run.stderr.decode()
    flat = torch.frombuffer(bytearray(run.stdout), dtype=torch.float32).double()
    parts = flat.split([torch.Size(shape).numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
