"""The Triton kernels where there is no GPU: every ``interpreted_*.py`` in a process whose kernels are interpreted."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rnnsearch_kernels import triton

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
@pytest.mark.parametrize("module", sorted(path.name for path in HERE.glob("interpreted_*.py")))
def test_interpreted(module):
    # Triton reads the variable when a kernel is decorated, so it must stand before the process begins.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / module)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_it_says_why_it_is_missing(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton.why_missing() == "triton is not installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.version.hip", None, raising=False)
    assert "is a build without a GPU" in str(triton.why_missing()) and triton.devices() == ("cuda",)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.why_missing() is None and "cpu" in triton.devices()


def test_a_gpu_older_than_ampere_is_refused(monkeypatch):
    monkeypatch.setattr("torch.version.hip", None, raising=False)
    triton.refuse_old_gpu.cache_clear()
    for index, capability in enumerate([(7, 5), (8, 0), (9, 0)]):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, found=capability: found)
        device = torch.device("cuda", index)
        if capability >= (8, 0):
            triton.refuse_old_gpu(device)
            continue
        with pytest.raises(RuntimeError, match="8.0 or later; cuda:0 has 7.5".replace(".", r"\.")):
            triton.refuse_old_gpu(device)
    triton.refuse_old_gpu.cache_clear()


@needs_triton
def test_the_interpreter_runs_outside_of_the_tests():
    script = (
        "import torch, rnnsearch_kernels as rk\n"
        "input, weight = torch.ones(2, 5), torch.ones(3, 5)\n"
        "assert torch.equal(rk.linear(input, weight, None, backend='triton'), input @ weight.t())\n"
        "query, keys, memory = torch.ones(2, 3), torch.ones(2, 4, 3), torch.ones(2, 4, 5)\n"
        "context, _ = rk.additive_attention(query, keys, memory, torch.ones(3), backend='triton')\n"
        "assert torch.allclose(context, torch.ones(2, 5))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
