"""The Triton backend: what it has, and where it can run. Importing this imports no Triton.

``KERNELS`` is the whole list; a launcher's module is imported at its first call. On CPU tensors the kernels run in
Triton's interpreter where ``TRITON_INTERPRET=1`` was set before the start, which is for tests.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from .graphs import run_loop

# Op -> the module of this package that holds the launcher of that name.
MODULES: dict[str, str] = {
    "additive_attention": "attention",
    "additive_attention_backward": "attention_backward",
    "decoder_step": "decoder",
    "decoder_scan": "decoder",
    "decoder_scan_backward": "decoder_backward",
    "linear": "product",
    "gru_scan": "gru_scan",
    "gru_scan_backward": "gru_scan_backward",
    "vocabulary_topk": "vocabulary",
}

# Loops over steps, whose launches become one CUDA graph.
LOOPS = ("decoder_scan", "decoder_scan_backward", "gru_scan", "gru_scan_backward")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def devices() -> tuple[str, ...]:
    return ("cuda", "cpu") if interpreting() else ("cuda",)


def why_missing() -> str | None:
    """Looks for no GPU: that would start the driver in every process that imports the package."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.version.cuda is None and torch.version.hip is None and not interpreting():
        return f"torch {torch.__version__} is a build without a GPU"
    return None


@cache
def refuse_old_gpu(device: torch.device) -> None:
    """RuntimeError on NVIDIA GPUs older than Ampere, for which Triton makes no products of bfloat16 or TF32."""
    if device.type != "cuda" or torch.version.hip is not None:
        return
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise RuntimeError(
            f"the triton backend needs a GPU of compute capability 8.0 or later; {device} has {major}.{minor}: "
            "choose backend='reference'"
        )


def _launcher(op: str, module: str) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{module}"), op)(*args)

    def kernel(*args: Any) -> Any:
        refuse_old_gpu(args[0].device)
        with torch.cuda.device_of(args[0]):  # Triton launches on the current device
            return run_loop(op, launch, args) if op in LOOPS else launch(*args)

    return kernel


KERNELS: dict[str, Callable[..., Any]] = {op: _launcher(op, module) for op, module in MODULES.items()}
