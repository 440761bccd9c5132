"""The search whose captured step outlives it: the next one of its bucket replays it from its first step on.

Sentences, source positions and the greatest length are padded, which changes no hypothesis: a padded sentence is
settled from the start, a padded position is masked, a padded length is reached by none. A search copies its memory and
first state into the buffers that the graph reads. While it runs, its graph is its own: another search, in another
thread, makes one for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rnnsearch.continuations import Search, first_tensor
from rnnsearch.fixed_search import CHECK_EVERY, FixedSteps, run
from rnnsearch.hypotheses import BeamSearchOutput
from rnnsearch.replay import Capture, Flag, Replayed, cuda_capture, device_flag
from rnnsearch_kernels import PreparedMemory, graphs


class Kept(NamedTuple):
    """What is left of a search for the next."""

    memory: PreparedMemory
    steps: FixedSteps
    step: Replayed


def kept_search(
    search: Search,
    state: Any,
    key: Hashable,
    *,
    check_every: int = CHECK_EVERY,
    cache: graphs.GraphCache = graphs.KEPT,
    surroundings: Callable[[torch.device], Hashable] = graphs.surroundings,
    capture: Capture = cuda_capture,
    flag: Callable[[torch.device], Flag] = device_flag,
) -> BeamSearchOutput:
    """Run ``search``, whose memory is a ``PreparedMemory``, from ``state``; its step is replayed from the one that an
    earlier search of an equal ``key`` has left, or captured and left to later ones."""
    device, given = first_tensor(state).device, search.memory
    count, positions = given.memory.shape[:2]
    sizes = graphs.bucket(count), graphs.bucket(positions), _longest(search)
    modes = surroundings(device), torch.is_inference_mode_enabled(), check_every
    whole = key, modes, sizes, _options(search), _described(state, 1), _described(_by_position(given), 2)

    kept: Kept | None = cache.take(whole)
    memory = _room(given, *sizes[:2]) if kept is None else kept.memory
    _fill(memory, given)
    padding = search.padding
    if padding is not None and memory.key_padding_mask is not None:
        padding = memory.key_padding_mask[:count]
    search = replace(search, memory=memory._replace(weights=given.weights), padding=padding, positions=positions)
    if kept is None:
        steps = FixedSteps(search, state, check_every, sizes[0], sizes[2])
        kept = Kept(memory, steps, Replayed(steps, capture, cache.give_up))
    else:
        kept.steps.begin(search, state)
    found = run(search, kept.steps, kept.step, flag(device))

    # A state that the step gives in another dtype than it is given would begin the next search in that one.
    if kept.step.captured and _described(kept.steps.state, 1) == _described(state, 1):
        tensors = [value for value in tree_leaves((memory, vars(kept.steps))) if isinstance(value, Tensor)]
        nbytes = kept.step.nbytes + sum(value.nbytes for value in tensors)
        # The model is not to live on because its graph is kept.
        kept.steps.search = replace(search, step=_over, memory=None, padding=None)
        cache.put(whole, kept, nbytes, device)
    return found


def _longest(search: Search) -> int:
    """The next power of two: more lengths cost nothing, except where a step looks for n-grams among them all."""
    longest = max(search.limits)
    return graphs.bucket(longest) if search.ngram_size else 1 << (longest - 1).bit_length()


def _options(search: Search) -> Hashable:
    """All that the work of a step depends on."""
    return (
        search.bos_id,
        search.eos_id,
        search.beam_size,
        search.n_best,
        search.min_length,
        search.scoring,
        search.ban_ids,
        search.ngram_size,
        search.return_attn,
        search.padding is not None,
    )


def _described(value: Any, first: int) -> Hashable:
    """Shapes from dimension ``first`` on, and dtypes, of (nested) tuples of tensors."""
    if isinstance(value, tuple):
        return tuple(_described(part, first) for part in value)
    return None if value is None else (tuple(value.shape[first:]), value.dtype)


def _room(given: PreparedMemory, count: int, positions: int) -> PreparedMemory:
    """Buffers like ``given``, for so many sentences and positions, with a mask."""

    def like(value: Tensor) -> Tensor:
        return value.new_empty(count, positions, *value.shape[2:])

    memory, keys, gates, values = (None if part is None else like(part) for part in _by_position(given))
    assert memory is not None and keys is not None
    mask = torch.empty((count, positions), dtype=torch.bool, device=given.memory.device)
    return PreparedMemory(memory, keys, gates, mask, values=values)


def _by_position(memory: PreparedMemory) -> tuple[Tensor | None, ...]:
    """The (B, S, …) tensors."""
    return memory.memory, memory.keys, memory.memory_gates, memory.values


def _fill(memory: PreparedMemory, given: PreparedMemory) -> None:
    count, positions = given.memory.shape[:2]
    for buffer, values in zip(_by_position(memory), _by_position(given), strict=True):
        if buffer is not None and values is not None:
            buffer.zero_()
            buffer[:count, :positions] = values
    assert memory.key_padding_mask is not None
    memory.key_padding_mask.fill_(True)
    real = memory.key_padding_mask[:count, :positions]
    if given.key_padding_mask is None:
        real.fill_(False)
    else:
        real.copy_(given.key_padding_mask)


def _over(*_: Any) -> NoReturn:
    raise RuntimeError("this search is over: its step was captured, and is replayed only")
