"""Settings of the whole suite, and which backends a test runs over.

pytest --poison         every uninitialised tensor is filled with NaN, and nondeterministic ops are errors
pytest --cuda-sources   also what builds the CUDA kernels: for the host, under sanitizers, and for every target
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import rnnsearch_kernels as rk
from rnnsearch_kernels import backends, native
from rnnsearch_kernels.selftest import devices, runs_on

POISON = "RNNSEARCH_TEST_POISON"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--poison",
        action="store_true",
        default=os.environ.get(POISON) == "1",
        help=f"fill uninitialised memory with NaN and forbid nondeterministic ops (or {POISON}=1)",
    )
    parser.addoption(
        "--cuda-sources",
        action="store_true",
        help="also build and test the CUDA kernels' sources (tests/test_cuda_*.py), as CI does in a step of its own",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--cuda-sources"):
        return
    left_out = pytest.mark.skip(reason="pytest --cuda-sources builds the CUDA kernels")
    for item in items:
        if item.path.name.startswith("test_cuda_"):
            item.add_marker(left_out)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if config.getoption("--poison"):
        os.environ[POISON] = "1"
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is an error there


@pytest.fixture(autouse=True)
def settings(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread, a fixed seed, and under ``--poison`` NaN in every ``empty``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not request.config.getoption("--poison"):
        yield
        return
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def implementations(
    *ops: str, gradients: bool = False, dtype: torch.dtype = torch.float32
) -> list[tuple[str, str, str]]:
    """(op, backend, device) for every backend of this machine that can run it: what tests are parametrised by."""
    return [
        (op, backend.name, device)
        for op in ops
        for device in devices()
        for backend in rk.list_backends()
        if runs_on(backend, device) and backend.why_not(op, device, dtype, gradients) is None
    ]


@pytest.fixture(params=extension.isas() if (extension := native.extension()) else [])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native backend on each instruction set that it was built for and this machine has."""
    extension = native.extension()
    assert extension is not None
    before = extension.isa()
    extension.select_isa(request.param)
    yield request.param
    extension.select_isa(before)


@pytest.fixture
def own_backends(monkeypatch):
    """What the test registers is forgotten after it. The dispatcher keeps its overloads: every name is used once."""
    monkeypatch.setattr(backends, "_backends", dict(backends._backends))
    monkeypatch.setattr(backends, "_chosen", {})
