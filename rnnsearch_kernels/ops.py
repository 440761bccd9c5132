"""From the list to the dispatcher: every op, once for each backend.

A backend is an overload. ``torch.ops.rnnsearch.decoder_step.cpu`` and ``.reference`` have the same schema, the
same fake kernel, derivative and autocast rule, all made here from :mod:`rnnsearch_kernels.schema`; they differ
in their kernel alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, library

from .autograd import BACKWARD, formula, without_backward
from .checks import Plan, Sizes, split_size
from .reference.dtypes import accumulate_dtype
from .schema import ACCUMULATE, INDEX, OPS, STORAGE, Arg, Flag, Op

NAMESPACE = "rnnsearch"
AUTOCAST_DEVICES = ("cpu", "cuda")

PLANS: dict[str, Plan] = {op.name: Plan(op) for op in OPS}

# Holding the library keeps the registrations alive.
_library = library.Library(NAMESPACE, "FRAGMENT")


def mint(
    overload: str,
    names: Sequence[str],
    kernels: dict[str, Callable[..., Any]],
    dispatch_key: str,
    captures: Sequence[str] = (),
) -> None:
    """Define the ops ``names`` for one backend. ``kernels`` are its Python kernels; C++ brings its own. ``captures``
    are those that make CUDA graphs of their own."""
    minted = [op for op in OPS if op.name in names]
    for op in minted:
        _library.define(op.signature(overload), tags=(torch.Tag.cudagraph_unsafe,) if op.name in captures else ())
        qualified = f"{NAMESPACE}::{op.name}.{overload}"
        if op.name in kernels:
            _library.impl(f"{op.name}.{overload}", kernels[op.name], dispatch_key)
        library.register_fake(qualified, _fake(op), lib=_library)
        for device in AUTOCAST_DEVICES:
            _register_autocast(op, overload, device)
    for op in minted:
        backward = BACKWARD.get(op.name)
        if backward is not None and backward not in names:
            # Without its backward op a forward op is for inference in this backend; `choose` knows.
            setup, differentiate = without_backward(op.name, overload)
        else:
            setup, differentiate = formula(op.name, None if backward is None else overload_of(backward, overload))
        library.register_autograd(
            f"{NAMESPACE}::{op.name}.{overload}", differentiate, setup_context=setup, lib=_library
        )


def overload_of(name: str, overload: str) -> Any:
    return getattr(getattr(getattr(torch.ops, NAMESPACE), name), overload)


def _fake(op: Op) -> Callable[..., Any]:
    """Results by the list: their sizes by letter, their dtype by role."""
    plan = PLANS[op.name]
    shapes = [[split_size(size) for size in result.shape] for result in op.results]

    def fake(*args: Any) -> Tensor | tuple[Tensor, ...]:
        sizes = plan.check(args)
        storage = args[plan.storage]
        results = tuple(
            storage.new_empty(_shape(shape, sizes), dtype=_dtype(op, result.role, args, storage.dtype))
            for result, shape in zip(op.results, shapes, strict=True)
        )
        return results if len(results) > 1 else results[0]

    return fake


def _shape(shape: list[tuple[int, str]], sizes: Sizes) -> list[Any]:
    return [sizes[letter] * multiple for multiple, letter in shape]


def _dtype(op: Op, role: str, args: Sequence[Any], storage: torch.dtype) -> torch.dtype:
    if role == STORAGE:
        return storage
    if role == ACCUMULATE:
        return accumulate_dtype(storage)
    return torch.int64 if role == INDEX else args[op.position(role)].dtype


def cast_for_autocast(op: Op, args: Sequence[Any], device: str) -> list[Any]:
    """Under autocast the storage tensors are cast, all but float64; what is accumulated stays as it is."""
    dtype = torch.get_autocast_dtype(device)

    def castable(arg: Arg | Flag, value: Any) -> bool:
        if not isinstance(arg, Arg) or arg.role != STORAGE or not isinstance(value, Tensor):
            return False
        return value.is_floating_point() and value.dtype != torch.float64

    return [value.to(dtype) if castable(arg, value) else value for arg, value in zip(op.args, args, strict=True)]


def _register_autocast(op: Op, overload: str, device: str) -> None:
    name = "Autocast" + torch._C._dispatch_key_for_device(device)
    key = getattr(torch._C.DispatchKey, name)

    def with_autocast(_: Any, *args: Any) -> Any:
        cast = cast_for_autocast(op, args, device)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return overload_of(op.name, overload)(*cast)

    _library.impl(f"{op.name}.{overload}", with_autocast, name, with_keyset=True)
