"""The ordinary CUDA kernels without a GPU, as test_cuda_host.py has the scans': against the equations in double."""

from __future__ import annotations

import subprocess

import pytest
from host_builds import COMPILER, HostBuilds

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")


@pytest.mark.parametrize("name", ["plain", "thread", "address"])
@pytest.mark.parametrize("source", ["attention_host.cpp", "step_host.cpp"])
def test_kernels_are_the_equations(source: str, name: str, tmp_path) -> None:
    program = HostBuilds(source, tmp_path)(name)
    run = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
