"""A loop's launches as one CUDA graph, for all sizes of a bucket.

B, T and S are padded to their bucket (:func:`rnnsearch_kernels.graphs.bucket`), which changes no number: a padded step
lies past every length and a padded row has length 0, and their programs return at once; padded positions are masked.
Lengths and mask are made where none were given; a call that is as large as its bucket goes without them, by a graph of
its own. All other sizes are the model's, and stay as they are.

A loop whose bucket is seen for the second time is captured, and from then on its arguments are copied into the graph's
own and the graph is replayed; the first time runs plainly, on arguments padded alike (a library's product of other
sizes may round otherwise), which also compiles the kernels. A bucket that never comes back is never captured. Capturing
synchronises the device once; replaying never does. A single step is launched plainly: it would save nothing. Inside
somebody else's capture it runs as it did the first time: there every kernel must have been loaded before.

torch.compile leaves the loops out of graphs of its own (``Backend.captures``): its warm-up takes all memory from a pool
that it uses again, ours with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..graphs import KEPT, GraphCache, bucket, capture_stream, surroundings
from ..schema import BY_NAME, MASK, Arg, Flag, Op

Results = tuple[Tensor, ...]
Loop = Callable[..., Results]
# The loop on its own arguments as something to replay; the results it leaves each time; the bytes it holds.
Captured = tuple[Callable[[], None], Results, int]

REMEMBERED = 256  # buckets seen once
PADDED = ("B", "T", "S")


def capture(function: Loop, own: Sequence[Any]) -> Captured:
    """``function`` on ``own``, captured."""
    # A capture can load neither kernels (others, where the copies have other strides) nor this thread's cuBLAS.
    function(*own)
    current = torch.cuda.current_stream()
    stream = capture_stream(current.device, current.cuda_stream)
    graph = torch.cuda.CUDAGraph()
    failure: torch.OutOfMemoryError | None = None
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            # Entering has emptied the allocator's cache, and what a capture takes comes from a pool of its own.
            before = torch.cuda.memory_reserved(current.device)
            try:
                results = function(*own)
            except torch.OutOfMemoryError as error:
                failure = error
                raise
            nbytes = torch.cuda.memory_reserved(current.device) - before
    except Exception:
        if failure is not None:  # a capture that was broken may not be ended either, and says so in its own words
            raise failure from None
        raise
    return graph.replay, results, nbytes


def copy_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """``mine.copy_(theirs)`` of every pair. Those of one dtype are one call of the host, and where all of them are laid
    out alike one launch."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for mine, theirs in pairs:
        group = groups.setdefault(mine.dtype, ([], []))
        group[0].append(mine)
        group[1].append(theirs)
    for own, given in groups.values():
        torch._foreach_copy_(own, given)


class Call:
    """One call of a loop: its arguments, with lengths and mask where padding needs them, and the sizes to pad to."""

    def __init__(self, op: Op, args: Sequence[Any]) -> None:
        self.op = op
        self.sizes = {
            letter: size
            for arg, value in zip(op.args, args, strict=True)
            if isinstance(arg, Arg) and value is not None
            for letter, size in zip(arg.shape, value.shape, strict=True)
            if letter in PADDED
        }
        self.bucket = {letter: bucket(size) for letter, size in self.sizes.items()}
        self.padded = {letter for letter, size in self.sizes.items() if size != self.bucket[letter]}
        like = next(value for value in args if isinstance(value, Tensor))
        self.args = [self._given(arg, value, like) for arg, value in zip(op.args, args, strict=True)]

    def _given(self, arg: Any, value: Any, like: Tensor) -> Any:
        if value is None and arg.name.endswith("lengths") and self.padded & {"B", "T"}:
            return torch.full((self.sizes["B"],), self.sizes["T"], dtype=torch.int64, device=like.device)
        if value is None and arg.name == "key_padding_mask" and "S" in self.padded:
            return torch.zeros((self.sizes["B"], self.sizes["S"]), dtype=torch.bool, device=like.device)
        return value

    def shape(self, arg: Arg, value: Tensor) -> tuple[int, ...]:
        """That of ``value`` once it is padded."""
        return tuple(self.bucket.get(letter, size) for letter, size in zip(arg.shape, value.shape, strict=True))

    def key(self) -> Hashable:
        return tuple(
            (self.shape(arg, value), value.dtype) if isinstance(arg, Arg) and value is not None else value
            for arg, value in zip(self.op.args, self.args, strict=True)
        )

    def own(self) -> list[Any]:
        """The arguments copied and padded."""
        made = [
            value.new_empty(self.shape(arg, value)) if isinstance(arg, Arg) and value is not None else value
            for arg, value in zip(self.op.args, self.args, strict=True)
        ]
        self.fill(made, clean=False)
        return made

    def fill(self, own: Sequence[Any], *, clean: bool) -> None:
        """Write the arguments into ``own``; ``clean`` says that its padding is what it should be."""
        pairs = []
        for arg, mine, theirs in zip(self.op.args, own, self.args, strict=True):
            if isinstance(arg, Flag) or theirs is None:
                continue
            if not clean and mine.shape != theirs.shape:
                mine.fill_(arg.role == MASK)
            pairs.append((self._real(arg.shape, mine), theirs))
        copy_all(pairs)

    def _real(self, letters: tuple[str, ...], value: Tensor) -> Tensor:
        """The part of ``value`` that is no padding."""
        for dim, letter in enumerate(letters):
            if letter in self.padded:
                value = value.narrow(dim, 0, self.sizes[letter])
        return value

    def results(self, found: Results) -> Results:
        """Copies of what is no padding."""
        real = [self._real(result.shape, value) for result, value in zip(self.op.results, found, strict=True)]
        copies = [value.new_empty(value.shape) for value in real]
        copy_all(zip(copies, real, strict=True))
        return tuple(copies)

    def plainly(self, function: Loop) -> Results:
        """The loop on arguments that are laid out as a graph's own: a library's product may depend on that."""
        if self.padded:
            return self.results(function(*self.own()))
        return function(*(value.contiguous() if isinstance(value, Tensor) else value for value in self.args))


class Graph:
    """A loop that was captured, with its arguments."""

    def __init__(self, function: Loop, call: Call, capture: Callable[[Loop, Sequence[Any]], Captured]) -> None:
        self.own, self.sizes = call.own(), call.sizes
        self.replay, self.found, nbytes = capture(function, self.own)
        self.nbytes = nbytes + sum(value.nbytes for value in self.own if isinstance(value, Tensor))

    def __call__(self, call: Call) -> Results:
        # Of equal sizes the padding is still there, which the loop does not write.
        call.fill(self.own, clean=call.sizes == self.sizes)
        self.sizes = call.sizes
        self.replay()
        return call.results(self.found)


class Loops:
    """Runs loops, as graphs where it may. What needs a GPU comes in as arguments."""

    def __init__(
        self,
        kept: GraphCache = KEPT,
        capture: Callable[[Loop, Sequence[Any]], Captured] = capture,
        surroundings: Callable[[torch.device], Hashable] = surroundings,
    ) -> None:
        self.kept, self.capture, self.surroundings = kept, capture, surroundings
        self.seen: OrderedDict[Hashable, None] = OrderedDict()
        self.too_large: OrderedDict[Hashable, None] = OrderedDict()

    def run(self, name: str, function: Loop, args: Sequence[Any]) -> Results:
        """``function(*args)``; ``name`` is the op's."""
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        steps = args[BY_NAME[name].position("input_gates")].shape[1]
        if steps == 1 or not self.kept.turned_on(device):
            return function(*args)
        # A graph's buffers outlive the call: made in inference mode they could not be written outside of it.
        with self.kept.lock, torch.inference_mode(False), torch.no_grad():
            if self.kept.capturing():
                return Call(BY_NAME[name], args).plainly(function)
            try:
                return self._run(name, function, Call(BY_NAME[name], args), device)
            except torch.OutOfMemoryError:
                if not self.kept.clear():
                    raise
                return Call(BY_NAME[name], args).plainly(function)

    def _run(self, name: str, function: Loop, call: Call, device: torch.device) -> Results:
        key = (name, self.surroundings(device), call.key())
        graph = self.kept.get(key)
        if graph is None:
            if not _remember(self.seen, key) or key in self.too_large:
                return call.plainly(function)
            try:
                graph = Graph(function, call, self.capture)
            except torch.OutOfMemoryError:
                self.kept.give_up()
                return call.plainly(function)
            if not self.kept.put(key, graph, graph.nbytes, device):
                _remember(self.too_large, key)
                return call.plainly(function)
        return graph(call)


def _remember(keys: OrderedDict[Hashable, None], key: Hashable) -> bool:
    """Whether ``key`` was there; it is then."""
    there = key in keys
    keys[key] = None
    keys.move_to_end(key)
    if len(keys) > REMEMBERED:
        keys.popitem(last=False)
    return there


run_loop = Loops().run
