"""What a CUDA graph is, on CPU tensors: operations recorded once and run again on the same memory.

Recording refuses whatever a capture could not hold: looking at a value, and shapes that follow from values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rnnsearch.replay import Capture, Captured
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from rnnsearch_kernels import reference

REFUSED = {
    "_local_scalar_dense",  # item, bool, tolist
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "bincount",
    "unique_consecutive",
    "_unique2",
    "unique_dim",
    "lift_fresh",  # torch.tensor of a list: a copy from the host
}


class HostWaits(AssertionError):
    """An operation that a GPU could not do without the host."""


class Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        by_value = name in ("index", "index_put", "index_put_") and any(
            tensor.dtype in (torch.bool, torch.uint8) for tensor in tree_flatten(args[1])[0] if tensor is not None
        )
        by_value |= name == "repeat_interleave" and len(tensors) > 0 and "Tensor" in func._overloadname
        if name in REFUSED or by_value:
            raise HostWaits(f"{func} waits for the host")
        if func.namespace == "rnnsearch":  # what the reference does in it
            with self:
                return getattr(reference, name)(*args, **kwargs)
        results = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, results))
        return results

    def replay(self) -> None:
        """Run it again: on the same memory where it was there before, on what is made anew elsewhere."""
        made: dict[int, Tensor] = {}

        def now(value: Any) -> Any:
            return made.get(id(value), value) if isinstance(value, Tensor) else value

        for func, args, kwargs, results in self.calls:
            given = tree_map(now, (args, kwargs))
            again = func(*given[0], **given[1])
            for old, new in zip(tree_flatten(results)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor):
                    made[id(old)] = new


def capture_of(buffers: Callable[[], list[Tensor]], nbytes: int = 0) -> Capture:
    """A capture: it leaves ``buffers`` as they were, as one on a GPU runs nothing."""

    def capture(work: Callable[[], None]) -> Captured:
        before = [buffer.clone() for buffer in buffers()]
        with Recording() as recording:
            work()
        for buffer, value in zip(buffers(), before, strict=True):
            buffer.copy_(value)
        return Captured(recording.replay, nbytes)

    return capture
