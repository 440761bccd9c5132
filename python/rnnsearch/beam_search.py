"""Batched beam search over any decoder that has a step.

Every step, each live hypothesis is continued by its best tokens. Of a sentence's continuations the best
``beam_size`` by summed log-probability live on; an end of sentence that ranks among them (at or above the last
of them) finishes its hypothesis. Finished hypotheses are ordered by their penalised score.

The hypotheses of a sentence share its memory through ``memory_index``; the memory is neither tiled nor
reordered. What a sentence decodes to depends on its own rows alone.

Two engines run it, and share what a step does: :mod:`rnnsearch.shrinking_search`, where settled sentences leave the
batch, and :mod:`rnnsearch.fixed_search`, where no step waits for the host.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnsearch.continuations import Search, Step, first_tensor
from rnnsearch.fixed_search import fixed_search
from rnnsearch.hypotheses import BeamSearchOutput
from rnnsearch.kept_search import kept_search
from rnnsearch.penalties import Scoring
from rnnsearch.shrinking_search import shrinking_search
from rnnsearch_kernels import PreparedMemory, graphs

__all__ = ["BeamSearchOutput", "beam_search"]

# A maximum length that follows the source never falls under this: a very short source may have a long target.
SHORTEST_MAX_LENGTH = 16

BEAM_SIZE = 12
ENGINES = ("auto", "shrinking", "fixed", "graph")


@torch.no_grad()
def beam_search(
    step: Step,
    state: Any,
    memory: Any,
    *,
    bos_id: int,
    eos_id: int,
    beam_size: int = BEAM_SIZE,
    n_best: int = 1,
    max_length: int | None = None,
    max_length_factor: float = 3.0,
    min_length: int = 0,
    length_penalty: str = "none",
    alpha: float = 0.6,
    coverage_penalty: float = 0.0,
    ban_ids: Sequence[int] = (),
    no_repeat_ngram_size: int = 0,
    return_attn: bool = True,
    engine: str = "auto",
    graph_key: Hashable | None = None,
) -> BeamSearchOutput:
    """The ``n_best`` best-scoring hypotheses of each of B sentences.

    All lengths, of results and in options, count the end of sentence.

    Args:
        step: ``step(tokens (N,), state, memory, memory_index (N,)) -> (log_probs, state, attn_weights (N, S))``.
            Row n belongs to sentence ``memory_index[n]``. ``log_probs`` is (N, V), or a function
            ``topk(k, banned_ids) -> (log_probs (N, k), token_ids (N, k))``, best first, that leaves out
            ``banned_ids`` (N, R) int64 (-1 for none), which may be None; where V is smaller it gives fewer
            columns. Log-probabilities are at most 0; -inf is never chosen. ``attn_weights`` may be None where
            neither ``return_attn`` nor ``coverage_penalty`` asks for it.
        state: a tensor whose dimension 0 is B, or a (nested) tuple of such.
        memory: handed to ``step`` as it is. ``max_length_factor`` and ``coverage_penalty`` read its ``memory``
            (B, S, M) and ``key_padding_mask``, which ``PreparedMemory`` has; nothing else does.
        beam_size: hypotheses kept for a sentence.
        n_best: hypotheses returned, at most ``beam_size``.
        max_length: tokens at most; None is ``max_length_factor`` times the sentence's source length and at
            least 16. A hypothesis that is cut there without an end has ``finished`` False and stands behind all
            that have one.
        min_length: tokens at least.
        length_penalty: a score is the summed log-probability divided by 1 (``"none"``), by the length
            (``"average"``) or by ((5 + length) / 6)^alpha (``"wu"``: Wu et al. 2016, arXiv:1609.08144, eq. 14).
        alpha: for ``"wu"``, at least 0.
        coverage_penalty: beta >= 0; the score gains beta * sum_j log(min(sum_t attn_weights_tj, 1)) over the
            real source positions j (the same equation).
        ban_ids: tokens never emitted. They keep their share of the probability.
        no_repeat_ngram_size: n > 0 lets no n-gram of tokens occur twice in a hypothesis.
        return_attn: also return every hypothesis' attention.
        engine: how the search runs; its results are the same. ``"shrinking"`` lets settled sentences leave the
            batch, for which the host looks at every step. ``"fixed"`` keeps every shape, so that no step waits for
            the host, which looks every few steps. ``"graph"`` is that, replayed as a CUDA graph: ``step`` is called
            for the first steps and once to be captured, so it must be nothing but work on the device, the same for
            every step. ``"auto"`` is ``"graph"`` on a CUDA device and ``"shrinking"`` elsewhere. Where
            ``RNNSEARCH_CUDA_GRAPHS=0`` turns graphs off, ``"graph"`` is ``"fixed"``.
        graph_key: with it the graph of a step is kept after the search (:mod:`rnnsearch_kernels.graphs` bounds what
            is kept) and replayed by later searches of the same options, of an equal key, and of sizes that fall into
            the same bucket: they call ``step`` not once. It must say all that the step's work depends on beside
            what it is given, down to the addresses of weights; ``memory`` must be a ``PreparedMemory``.

    Raises:
        ValueError: an option is out of range, or ``step`` returned a NaN or a wrong shape.
        TypeError: ``graph_key`` with another memory.
        RuntimeError: ``step`` cannot be captured as a CUDA graph.
    """
    scoring = Scoring(length_penalty, alpha, coverage_penalty)
    for name, value in (("beam_size", beam_size), ("n_best", n_best)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}")
    if n_best > beam_size:
        raise ValueError(f"`n_best` must be at most `beam_size` = {beam_size}; got {n_best}")
    check_lengths(min_length, max_length, max_length_factor, no_repeat_ngram_size)
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {ENGINES}; got {engine!r}")
    if eos_id in ban_ids:
        raise ValueError(f"`ban_ids` holds `eos_id` ({eos_id}): no hypothesis could end")
    first = first_tensor(state)
    count, device = first.shape[0], first.device
    if not count:
        raise ValueError("`state` has no rows: there is no sentence to search for")
    if engine == "graph" and device.type != "cuda":
        raise ValueError(f"`engine` 'graph' needs a CUDA device; `state` is on {device}")
    if graph_key is not None and not isinstance(memory, PreparedMemory):
        raise TypeError(f"`graph_key` needs a PreparedMemory; `memory` is {type(memory).__name__}")
    padding = None
    if coverage_penalty or max_length is None:
        padding = source_padding(memory, count)
    limits = length_limits(max_length, max_length_factor, min_length, padding, count)
    search = Search(
        step=step,
        memory=memory,
        bos_id=bos_id,
        eos_id=eos_id,
        beam_size=beam_size,
        n_best=n_best,
        min_length=min_length,
        scoring=scoring,
        ban_ids=tuple(ban_ids),
        ngram_size=no_repeat_ngram_size,
        return_attn=return_attn,
        limits=limits,
        padding=padding,
    )
    with torch.cuda.device_of(first):  # of which a capture is
        engine = _engine(engine, device)
        if engine == "shrinking":
            return shrinking_search(search, state)
        if engine == "graph" and graph_key is not None:
            return kept_search(search, state, graph_key)
        return fixed_search(search, state, graph=engine == "graph")


def _engine(engine: str, device: torch.device) -> str:
    """The engine that runs where ``engine`` is asked for."""
    if engine == "auto":
        engine = "graph" if device.type == "cuda" else "shrinking"
    return "fixed" if engine == "graph" and not graphs.KEPT.usable(device) else engine


def check_lengths(min_length: int, max_length: int | None, factor: float, ngram_size: int) -> None:
    if min_length < 0:
        raise ValueError(f"`min_length` must be at least 0; got {min_length}")
    if max_length is not None and max_length < max(1, min_length):
        raise ValueError(f"`max_length` must be at least 1 and `min_length` = {min_length}; got {max_length}")
    if not (factor > 0 and math.isfinite(factor)):
        raise ValueError(f"`max_length_factor` must be finite and above 0; got {factor}")
    if ngram_size < 0:
        raise ValueError(f"`no_repeat_ngram_size` must be at least 0; got {ngram_size}")


def source_padding(memory: Any, count: int) -> Tensor:
    """(B, S) bool, True where there is no source."""
    values = getattr(memory, "memory", None)
    if not isinstance(values, Tensor) or not hasattr(memory, "key_padding_mask"):
        raise ValueError(
            "the source lengths, which `max_length` = None and `coverage_penalty` need, are read from `memory.memory` "
            f"(B, S, M) and `memory.key_padding_mask`; {type(memory).__name__} has none"
        )
    if len(values) != count:
        raise ValueError(f"the memory is of {len(values)} sentences and `state` of {count}")
    mask: Tensor | None = memory.key_padding_mask
    return values.new_zeros(values.shape[:2], dtype=torch.bool) if mask is None else mask


def length_limits(
    max_length: int | None, factor: float, min_length: int, padding: Tensor | None, count: int
) -> list[int]:
    if max_length is not None:
        return [max_length] * count
    assert padding is not None
    lengths = (~padding).sum(dim=1).tolist()
    return [max(math.ceil(factor * length), SHORTEST_MAX_LENGTH, min_length) for length in lengths]
