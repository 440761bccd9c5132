"""Where a number was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

import rnnsearch_kernels

ROOT = Path(__file__).resolve().parent.parent


def header(device: torch.device, threads: int) -> list[str]:
    """Machine, versions and commit, a line each."""
    lines = [
        f"date      {time.strftime('%d %B %Y', time.gmtime()).lstrip('0')}",
        f"machine   {_processor()}, {os.cpu_count()} cores; {threads} thread{'s' * (threads > 1)} used",
        f"software  rnnsearch-kernels {rnnsearch_kernels.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}",
        f"commit    {commit()}",
    ]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, count = properties.name, properties.multi_processor_count
        runtime = f"CUDA {torch.version.cuda}" if torch.version.hip is None else f"ROCm {torch.version.hip}"
        lines.insert(2, f"device    {name}, {count} SMs, {runtime}, Triton {_version('triton')}")
    return lines


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
    except OSError:
        pass  # not a Linux
    return f"{platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=10", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
