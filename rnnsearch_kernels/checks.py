"""Arguments held against the op list: shapes, dtypes and devices, with errors that finish the sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .reference.dtypes import accumulate_dtype
from .schema import ACCUMULATE, CONTEXT_GATES, FLOAT, INDEX, MASK, STORAGE, Arg, Flag, Op

STORAGE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Sizes = dict[str, Any]  # letter -> int, or SymInt while tracing


def split_size(size: str) -> tuple[int, str]:
    """``"3H"`` -> (3, "H")."""
    return (1, size) if len(size) == 1 else (int(size[:-1]), size[-1])


class Plan:
    """One op's checks, laid out once so that a call pays for comparisons only."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.tensors = [
            (position, arg, [split_size(size) for size in arg.shape])
            for position, arg in enumerate(op.args)
            if isinstance(arg, Arg)
        ]
        self.flags = [(position, arg) for position, arg in enumerate(op.args) if isinstance(arg, Flag)]
        self.storage = next(position for position, arg, _ in self.tensors if arg.role == STORAGE)
        sources = [position for position, arg, _ in self.tensors if arg.name in CONTEXT_GATES and arg.optional]
        self.context_gates = sources if len(sources) == len(CONTEXT_GATES) else []
        index = [position for position, arg, _ in self.tensors if arg.name == "memory_index"]
        self.memory_index = index[0] if index else None

    def check(self, args: Sequence[Any]) -> Sizes:
        """The sizes by letter; ValueError, TypeError or RuntimeError (devices) where an argument is wrong."""
        storage = args[self.storage]
        check_tensor(self.op.args[self.storage].name, storage)
        device, dtype = storage.device, storage.dtype
        if dtype not in STORAGE_DTYPES:
            raise TypeError(f"`{self.op.args[self.storage].name}` must be one of {_names(STORAGE_DTYPES)}; got {dtype}")
        accumulate = accumulate_dtype(dtype)
        allowed = {
            STORAGE: (dtype,),
            ACCUMULATE: (accumulate,),
            FLOAT: (dtype, accumulate),
            MASK: (torch.bool,),
            INDEX: (torch.int64,),
        }
        sizes: Sizes = {}
        for position, arg, shape in self.tensors:
            tensor = args[position]
            if tensor is None and arg.optional:
                continue
            check_tensor(arg.name, tensor)
            if tensor.dtype not in allowed[arg.role]:
                raise TypeError(
                    f"`{arg.name}` must be {_names(allowed[arg.role])}"
                    f" (`{self.op.args[self.storage].name}` is {dtype}); got {tensor.dtype}"
                )
            if tensor.device != device:
                raise RuntimeError(
                    f"`{arg.name}` must be on {device}, where `{self.op.args[self.storage].name}` is; "
                    f"got {tensor.device}"
                )
            got = tensor.shape
            if len(got) != len(shape):
                raise ValueError(_wrong_shape(arg, shape, sizes, got))
            for size, (multiple, letter) in zip(got, shape, strict=True):
                known = sizes.get(letter)
                if known is None:
                    if size < multiple or size % multiple:
                        raise ValueError(_wrong_shape(arg, shape, sizes, got))
                    sizes[letter] = size // multiple
                elif size != known * multiple:
                    raise ValueError(_wrong_shape(arg, shape, sizes, got))
        if self.context_gates and all(args[position] is None for position in self.context_gates):
            raise ValueError("`context_weight` (3H, M) must be given where there are no `memory_gates` (B, S, 3H)")
        if self.memory_index is not None and args[self.memory_index] is None and sizes["N"] != sizes["B"]:
            first = self.tensors[0][1].name
            raise ValueError(
                f"`{first}` has N = {sizes['N']} rows and `memory` B = {sizes['B']} sentences; "
                "rows that share a sentence need `memory_index` (N,)"
            )
        for position, flag in self.flags:
            if flag.size is not None:
                largest = sizes["V"]
                if not 1 <= args[position] <= largest:
                    raise ValueError(f"`{flag.name}` must lie in 1..V = 1..{largest}; got {args[position]}")
                sizes[flag.size] = args[position]
            elif flag.kind == "float" and not 0 <= args[position] <= 1:
                raise ValueError(f"`{flag.name}` must lie in 0..1; got {args[position]}")
        return sizes

    def check_values(self, args: Sequence[Any]) -> None:
        """The indices of arguments that passed :meth:`check`, where the CPU holds them; ValueError if out of range."""
        for position, arg, _ in self.tensors:
            if arg.name in _RANGES and args[position] is not None:
                lowest, letter, below = _RANGES[arg.name]
                largest = f"{letter}-{below}" if below else letter
                check_range(arg.name, args[position], lowest, self._size(args, letter) - below, largest)

    def _size(self, args: Sequence[Any], wanted: str) -> int:
        return next(
            args[position].shape[shape.index((1, wanted))]
            for position, arg, shape in self.tensors
            if (1, wanted) in shape and args[position] is not None
        )


# The values of an index: the smallest; the largest as a size, less what is taken from it.
_RANGES = {"memory_index": (0, "B", 1), "input_lengths": (0, "T", 0), "lengths": (0, "T", 0), "target": (-1, "V", 1)}


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(dict.fromkeys(str(dtype) for dtype in dtypes))


def _wrong_shape(arg: Arg, shape: list[tuple[int, str]], sizes: Sizes, got: Sequence[int]) -> str:
    letters = ", ".join(arg.shape)
    known = [
        str(sizes[letter] * multiple) if letter in sizes else name
        for (multiple, letter), name in zip(shape, arg.shape, strict=True)
    ]
    comma = "," if len(shape) == 1 else ""
    wanted = f"({letters}{comma}) = ({', '.join(known)}{comma})"
    return f"`{arg.name}` must be {wanted}, every size at least 1; got {tuple(got)}"


def padding_mask(key_padding_mask: Tensor | None, memory_lengths: Tensor | None, memory: Tensor) -> Tensor | None:
    """One mask (B, S), True = ignore, from whichever of the two was given."""
    if memory_lengths is None:
        return key_padding_mask
    if key_padding_mask is not None:
        raise ValueError("give `key_padding_mask` or `memory_lengths`, not both")
    check_tensor("memory", memory)
    if memory.dim() != 3:
        raise ValueError(f"`memory` must be (B, S, M); got {tuple(memory.shape)}")
    sentences, source = memory.shape[:2]
    check_lengths("memory_lengths", memory_lengths, sentences, source, "S")
    return torch.arange(source, device=memory_lengths.device) >= memory_lengths[:, None]


def check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a tensor; got {type(value).__name__}")


def check_mask(key_padding_mask: Tensor | None, memory: Tensor) -> None:
    """(B, S) bool, beside a ``memory`` (B, S, M)."""
    if key_padding_mask is None:
        return
    if not isinstance(key_padding_mask, Tensor) or key_padding_mask.dtype != torch.bool:
        raise TypeError(f"`key_padding_mask` must be torch.bool; got {_type(key_padding_mask)}")
    if key_padding_mask.shape != memory.shape[:2]:
        raise ValueError(
            f"`key_padding_mask` must be (B, S) = {tuple(memory.shape[:2])}; got {tuple(key_padding_mask.shape)}"
        )


def check_lengths(name: str, lengths: Tensor | None, rows: int, longest: int, letter: str) -> None:
    """(B,) int64 in 0..longest."""
    if lengths is None:
        return
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64:
        raise TypeError(f"`{name}` must be an int64 tensor; got {_type(lengths)}")
    if lengths.dim() != 1 or lengths.shape[0] != rows:
        raise ValueError(f"`{name}` must be (B,) = ({rows},); got {tuple(lengths.shape)}")
    check_range(name, lengths, 0, longest, letter)


def check_range(name: str, values: Tensor, lowest: int, highest: int, letters: str) -> None:
    """Whether ``values`` lie in lowest..highest, which in ``letters`` is called so; on the CPU only: elsewhere a look
    at them would synchronise."""
    if values.device.type != "cpu" or values.numel() == 0 or torch.compiler.is_compiling():
        return
    smallest, largest = (int(value) for value in values.aminmax())
    if smallest < lowest or largest > highest:
        wanted = f"{lowest}..{letters} = {lowest}..{highest}"
        raise ValueError(f"`{name}` must lie in {wanted}; got {smallest}..{largest}")


def _type(value: Any) -> Any:
    return value.dtype if isinstance(value, Tensor) else type(value).__name__
