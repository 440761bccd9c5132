"""How several backends share one device, decided here and nowhere else.

Every backend registers the ops it has. A call chooses one by name, or lets ``auto`` take the backend of the
highest rank that can run it; what cannot run says why. The choice looks at the op, the device, the storage dtype and
whether a derivative is wanted, so it is made once for each of those and then looked up.

A backend from outside the package:

    import rnnsearch_kernels as rk

    rk.register_backend(
        rk.Backend("mine", devices=("cpu",), dtypes=(torch.float32,), rank=5, kernels={"linear": my_linear})
    )
    rk.linear(input, weight, backend="mine")

Its kernels take the arguments of the op list by position and return fresh tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from . import native, reference, triton
from .autograd import BACKWARD
from .checks import STORAGE_DTYPES
from .families import family_of
from .ops import mint, overload_of
from .schema import BY_NAME

AUTO = "auto"
ANY_DEVICE = "any"

# The GPU families on which bench/gpu_check.py has passed with a backend of ours.
PASSED: dict[str, tuple[str, ...]] = {"cuda": (), "triton": ()}


@dataclass(frozen=True)
class Backend:
    """One implementation of some of the ops.

    name       its overload name, and what users pass as ``backend=``
    devices    device types it runs on; ``("any",)`` for all
    dtypes     storage dtypes it takes
    rank       ``auto`` prefers the highest
    kernels    its Python kernels by op name
    compiled   op names whose kernels a loaded extension registers
    guarded    whether its kernels refuse wrong shapes, dtypes and devices by themselves with a RuntimeError;
               otherwise arguments are checked before every call
    missing    why it cannot be used at all, where it cannot
    captures   op names whose kernels make CUDA graphs of their own: torch.compile keeps them out of its graphs
    passed     the GPU families (``sm_90``) where it is known to be right: ``auto`` takes it there alone. None: wherever
               it runs
    """

    name: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    rank: int
    kernels: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    compiled: tuple[str, ...] = ()
    guarded: bool = False
    missing: str | None = None
    captures: tuple[str, ...] = ()
    passed: tuple[str, ...] | None = None

    @property
    def ops(self) -> tuple[str, ...]:
        return (*self.kernels, *self.compiled)

    def why_not(self, op: str, device: str | torch.device, dtype: torch.dtype, differentiable: bool) -> str | None:
        """The reason it cannot run such a call; None where it can."""
        device = torch.device(device).type
        if self.missing is not None:
            return self.missing
        if device not in self.devices and ANY_DEVICE not in self.devices:
            return f"it runs on {' and '.join(self.devices)}, not on {device}"
        if op not in self.ops:
            return f"it has no {op}"
        if dtype not in self.dtypes:
            return f"it has no {str(dtype).removeprefix('torch.')}"
        backward = BACKWARD.get(op)
        if differentiable and backward is not None and backward not in self.ops:
            return f"it has no {backward}, and a gradient is wanted"
        return None

    def why_not_auto(self, device: str | torch.device) -> str | None:
        """The reason ``auto`` does not take it on such a device, though it may run; None where it does."""
        if self.passed is None:
            return None
        if not self.passed:
            return "auto takes it on no GPU yet, for it has passed on none"
        family = family_of(torch.device(device))
        return None if family in self.passed else f"auto does not take it on {family}, where it has not passed"


_backends: dict[str, Backend] = {}
_chosen: dict[tuple[str, str, torch.device, torch.dtype, bool], tuple[Any, bool]] = {}


def register_backend(backend: Backend) -> None:
    """Make ``backend`` available to every public function, by name and, by its rank, to ``auto``."""
    if backend.name in _backends or backend.name == AUTO or not backend.name.isidentifier():
        raise ValueError(f"a backend's name must be a new identifier other than 'auto'; got {backend.name!r}")
    unknown = [name for name in backend.ops if name not in BY_NAME]
    if unknown:
        raise ValueError(f"backend {backend.name!r} brings {unknown}, which are not among the ops: {list(BY_NAME)}")
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(backend.devices[0], "CompositeExplicitAutograd")
    if len(backend.devices) > 1:
        key = "CompositeExplicitAutograd"
    mint(backend.name, backend.ops, dict(backend.kernels), key, backend.captures)
    _backends[backend.name] = backend
    _chosen.clear()


def list_backends() -> tuple[Backend, ...]:
    """Every backend, the one that ``auto`` prefers first."""
    return tuple(sorted(_backends.values(), key=lambda backend: -backend.rank))


def pick(
    op: str, device: str | torch.device, dtype: torch.dtype, differentiable: bool, requested: str = AUTO
) -> tuple[Backend | None, dict[str, str]]:
    """The backend that runs such a call, and why each other candidate does not."""
    candidates = list_backends() if requested == AUTO else [_named(requested)]
    reasons: dict[str, str] = {}
    for backend in candidates:
        reason = backend.why_not(op, device, dtype, differentiable)
        if reason is None and requested == AUTO:
            reason = backend.why_not_auto(device)
        if reason is None:
            return backend, reasons
        reasons[backend.name] = reason
    return None, reasons


def choose(op: str, requested: str, device: torch.device, dtype: torch.dtype, differentiable: bool) -> tuple[Any, bool]:
    """The overload to call, and whether it guards itself against wrong arguments."""
    if torch.compiler.is_compiling():
        # A compiler would guard on what the table holds, and compile again when an eager call has added to it.
        return _choose(op, requested, device, dtype, differentiable)
    key = (op, requested, device, dtype, differentiable)
    chosen = _chosen.get(key)
    if chosen is None:
        chosen = _chosen[key] = _choose(op, requested, device, dtype, differentiable)
    return chosen


def _choose(
    op: str, requested: str, device: torch.device, dtype: torch.dtype, differentiable: bool
) -> tuple[Any, bool]:
    backend, reasons = pick(op, device, dtype, differentiable, requested)
    if backend is None:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise RuntimeError(f"no backend can run {op} ({why})")
    return overload_of(op, backend.name), backend.guarded


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Every op of every backend in plain PyTorch, for exporters that know ATen alone.

        exported = torch.export.export(decoder, inputs)
        exported = exported.run_decompositions(rnnsearch_kernels.decompositions())

    What comes out holds no op of this package, and can go on to ONNX. A scan is unrolled: its T is then fixed; B
    and S may stay dynamic.
    """
    return {overload_of(op, backend.name): getattr(reference, op) for backend in list_backends() for op in backend.ops}


def check_backend(name: str) -> None:
    """``ValueError`` for what is neither ``auto`` nor the name of a backend."""
    if name != AUTO and name not in _backends:
        raise ValueError(f"`backend` must be one of {[AUTO, *_backends]}; got {name!r}")


def _named(name: str) -> Backend:
    check_backend(name)
    return _backends[name]


register_backend(
    Backend(
        "reference",
        devices=(ANY_DEVICE,),
        dtypes=STORAGE_DTYPES,
        rank=0,
        kernels={name: getattr(reference, name) for name in reference.__all__},
    )
)
register_backend(
    Backend(
        "cpu",
        devices=("cpu",),
        dtypes=(torch.float32, torch.float64, torch.bfloat16),
        rank=10,
        compiled=tuple(native.ops()),
        guarded=True,
        missing=native.why_missing(),
    )
)
register_backend(
    Backend(
        "triton",
        devices=triton.devices(),
        dtypes=triton.DTYPES,
        rank=20,
        kernels=triton.KERNELS,
        missing=triton.why_missing(),
        captures=triton.LOOPS,
        passed=PASSED["triton"],
    )
)
register_backend(
    Backend(
        "cuda",
        devices=("cuda",),
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        rank=30,
        compiled=tuple(native.cuda_ops("reference" if triton.why_missing() else "triton")),
        guarded=True,
        missing=native.why_no_cuda(),
        passed=PASSED["cuda"],
    )
)
