"""The compiled extension, where it was built."""

from __future__ import annotations

import importlib
from types import ModuleType

_module: ModuleType | None = None
_missing: str | None = None

try:
    _module = importlib.import_module("rnnsearch_kernels._cpu")
except ModuleNotFoundError as error:
    if error.name != "rnnsearch_kernels._cpu":
        raise
    _missing = "the C++ extension was not built (no compiler at install time, or RNNSEARCH_NATIVE=0)"


def extension() -> ModuleType | None:
    """The pybind11 module: build information and instruction-set choice."""
    return _module


def ops() -> list[str]:
    """The ops it has kernels for."""
    return [] if _module is None else list(_module.ops())


def why_missing() -> str | None:
    return _missing
