"""The compiled extensions, where they were built: ``_cpu`` and, beside a torch with CUDA, ``_cuda``."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

Found = tuple[ModuleType | None, str | None]


def _load(name: str, without: str) -> Found:
    """The extension, or why it is missing; ``without`` says what left it out of the installation."""
    try:
        return importlib.import_module(f"rnnsearch_kernels.{name}"), None
    except ModuleNotFoundError as error:
        if error.name != f"rnnsearch_kernels.{name}":
            raise
        return None, without


def _load_cuda() -> Found:
    """It is linked with torch's CUDA libraries: a build for another CUDA can fail to load, which is no crash."""
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} is a build without CUDA"
    try:
        return _load(
            "_cuda", "the CUDA extension was not built (no matching nvcc at install time, or RNNSEARCH_CUDA=0)"
        )
    except ImportError as error:
        return None, f"the CUDA extension could not be loaded: {error}"


_cpu, _why_no_cpu = _load(
    "_cpu", "the C++ extension was not built (no compiler at install time, or RNNSEARCH_NATIVE=0)"
)
_cuda, _why_no_cuda = _load_cuda()


def extension() -> ModuleType | None:
    """The pybind11 module: build information and instruction-set choice."""
    return _cpu


def ops() -> list[str]:
    """The ops it has kernels for."""
    return [] if _cpu is None else list(_cpu.ops())


def why_missing() -> str | None:
    return _why_no_cpu


def cuda() -> ModuleType | None:
    """The CUDA extension's pybind11 module."""
    return _cuda


def cuda_ops(per_step: str) -> list[str]:
    """The ops it has kernels for; ``per_step`` is the backend that is to run what fits in no single launch."""
    if _cuda is None:
        return []
    _cuda.set_per_step_backend(per_step)
    return list(_cuda.ops())


def why_no_cuda() -> str | None:
    return _why_no_cuda


def raise_if_stopped() -> None:
    """RuntimeError where blocks of a CUDA launch waited for one another in vain: the op, the step and the phase.

    That launch's results are NaN. Every call of an op of the ``cuda`` backend asks first, so this is for the last one:
    call it after ``torch.cuda.synchronize()``. By itself it waits for nothing.
    """
    if _cuda is not None:
        _cuda.raise_if_stopped()
