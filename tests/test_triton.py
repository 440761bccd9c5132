"""The Triton kernels where there is no GPU: every ``interpreted_*.py`` in a process whose kernels are interpreted."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
