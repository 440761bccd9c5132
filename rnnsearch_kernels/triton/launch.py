"""What every launcher needs: how a tensor is handed to a kernel, and in which arithmetic its products are made."""

from __future__ import annotations

from functools import cache
from math import gcd
from typing import Any, overload

import torch
import triton.language as tl
from torch import Tensor

from ..families import family_of
from . import interpreting
from .configs import Config, Table, chosen

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def let_the_interpreter_count() -> None:
    """Triton 3.6's interpreter makes a loop's bound of an array of one number, which numpy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if interpreting():
    let_the_interpreter_count()


def blocks(size: int, block: int) -> int:
    """How many blocks of ``block`` cover ``size``."""
    return -(-size // block)


def operand_dtype(storage: torch.dtype) -> torch.dtype:
    """What the factors of a product are held in. The interpreter's dot of bfloat16 is silently wrong."""
    return torch.float32 if interpreting() else storage


def compute_type(storage: torch.dtype) -> tl.dtype:
    """:func:`operand_dtype` in Triton's words."""
    return _TYPES[operand_dtype(storage)]


def config_of(table: Table, storage: Tensor, size: int) -> Config:
    """How to launch a kernel on tensors of this device and storage dtype; ``size`` is what ``table`` goes by."""
    return chosen(table, family_of(storage.device), storage.element_size(), size)


def precision() -> str:
    """How float32 factors are multiplied: in three TF32 products, unless torch may take one; on AMD, where Triton does
    not have those, as they are."""
    if torch.version.hip is not None:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


@overload
def ends_contiguous(tensor: Tensor) -> Tensor: ...
@overload
def ends_contiguous(tensor: None) -> None: ...
def ends_contiguous(tensor: Tensor | None) -> Tensor | None:
    """``tensor`` with its last dimension contiguous, copied only where it is not; leading strides are the kernel's."""
    if tensor is None or tensor.stride(-1) == 1:
        return tensor
    return tensor.contiguous()


@overload
def contiguous(tensor: Tensor) -> Tensor: ...
@overload
def contiguous(tensor: None) -> None: ...
def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


@cache
def multiprocessors(device: torch.device) -> int:
    """How many programs ``device`` runs side by side at least; a few in the interpreter, where the tests see both."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def sharing(device: torch.device, programs: int, parts: int) -> int:
    """Over how many programs each is to share its ``parts``, so that they fill the device. No sum depends on it."""
    return max(1, min(parts, multiprocessors(device) // programs))


def alignment(values: Tensor) -> int:
    """The numbers, 16 bytes at most, that divide every place where a position of ``values`` (B, S, W) begins."""
    return gcd(16 // values.element_size(), *values.stride()[:2])


def rows_for(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised float32 tensor beside ``like``."""
    return like.new_empty(shape, dtype=torch.float32)


def batched_product(left: Tensor, right: Tensor) -> Tensor:
    """The products of two batches of matrices, summed and given in float32. ``right`` has the storage dtype."""
    left = left.to(right.dtype)
    if right.dtype == torch.float32 or not right.is_cuda:
        return torch.bmm(left.float(), right.float())
    return torch.bmm(left, right, out_dtype=torch.float32)
