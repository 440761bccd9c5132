"""From tokens to translations, for anything that encodes and has a step: one model or an ensemble."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rnnsearch.beam_search import BEAM_SIZE, BeamSearchOutput, beam_search
from rnnsearch.config import RNNSearchConfig
from rnnsearch.data import pad
from rnnsearch.sampling import sample
from rnnsearch.stream import derived_seed
from rnnsearch.vocabulary import UNK, Vocabulary

SEARCHES = ("beam", "sample")
# The most that a table of tokens may take without being asked for.
TABLE_BYTES = 2**28


@dataclass(frozen=True)
class Translation:
    """One hypothesis, its end of sentence left out of ``tokens`` but scored in the last of ``token_scores``."""

    tokens: list[str]
    score: float
    token_scores: list[float]
    attn_weights: Tensor  # (len(token_scores), source length with its end of sentence)
    finished: bool = True  # False where the greatest length cut it before an end of sentence


class TranslationModel(nn.Module):
    """What has vocabularies, ``encode``, ``step`` and ``log_probs``, and so can translate."""

    config: RNNSearchConfig
    source_vocabulary: Vocabulary | None
    target_vocabulary: Vocabulary | None

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> tuple[Any, Any]:
        """The prepared memory and the decoder's first state of sources (B, S), padded or not."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: Any, memory: Any, memory_index: Tensor) -> tuple[Any, Any, Tensor | None]:
        """One step of N hypotheses, for :func:`rnnsearch.beam_search.beam_search`."""
        raise NotImplementedError

    def log_probs(self, tokens: Tensor, state: Any, memory: Any, memory_index: Tensor) -> tuple[Tensor, Any, Tensor]:
        """:meth:`step` with the log-probabilities (N, V) of every token, for what needs more than a few of them."""
        raise NotImplementedError

    def token_table(self) -> Any:
        """What saves :meth:`step` and :meth:`log_probs` their products with the tokens, as their ``token_table``."""
        raise NotImplementedError

    def _together(self, length: int, other: int) -> bool:
        """Whether sources of these lengths are the same bits in one batch as alone; if so, all between them are too."""
        return True

    def _graph_key(self, token_table: Any) -> Hashable | None:
        """That of :func:`rnnsearch.beam_search.beam_search`; None keeps no graph."""
        return None

    def _table_pays(self, rows: int) -> bool:
        """Whether so many rows of steps are worth a :meth:`token_table`."""
        return rows >= self.config.target_vocabulary_size and self._table_bytes() <= TABLE_BYTES

    def _table_bytes(self) -> int:
        config = self.config
        width = 3 * config.hidden_size + 2 * config.readout_size
        item = 8 if next(self.parameters()).dtype == torch.float64 else 4
        return item * config.target_vocabulary_size * width

    @torch.inference_mode()
    def generate(
        self,
        source: Tensor,
        source_lengths: Tensor | None = None,
        *,
        search: Callable[..., BeamSearchOutput] = beam_search,
        token_table: Any = None,
        **options: Any,
    ) -> BeamSearchOutput:
        """Translations of padded sources (B, S) by beam search or :func:`rnnsearch.sampling.sample`, with its options.

        ``token_table`` from :meth:`token_table` saves each step its products with the embedded tokens.
        Padding and beginning of sentence are banned besides ``ban_ids``. There is no dropout, in training mode neither.
        """
        config = self.config
        ban_ids = (config.pad_id, config.bos_id, *options.pop("ban_ids", ()))
        with evaluating(self):
            memory, state = self.encode(source, source_lengths)
            step: Callable[..., Any] = self.log_probs
            if search is beam_search:
                step = self.step
                options.setdefault("graph_key", self._graph_key(token_table))
            if token_table is not None:
                step = partial(step, token_table=token_table)
            return search(step, state, memory, bos_id=config.bos_id, eos_id=config.eos_id, ban_ids=ban_ids, **options)

    def translate(
        self,
        sources: Sequence[Sequence[str]],
        *,
        batch_size: int = 64,
        replace_unknown: bool | Mapping[str, str] = False,
        search: str = "beam",
        seed: int = 1,
        on_smaller_batch: Callable[[int], Any] | None = None,
        on_done: Callable[[int], Any] | None = None,
        token_table: bool | None = None,
        **options: Any,
    ) -> list[list[Translation]]:
        """The n best translations of each source, a sequence of tokens, in the order of the sources.

        Args:
            batch_size: sources of like length are decoded so many at a time. Where memory does not suffice, half as
                many, from there on.
            replace_unknown: False bans the unknown token, unless ``ban_ids`` is given. True lets it come and puts
                the source token that it attended to most in its place, or what a mapping from source tokens to
                target tokens has for that one.
            search: ``"beam"`` (:func:`rnnsearch.beam_search.beam_search`) or ``"sample"``
                (:func:`rnnsearch.sampling.sample`).
            seed: of the samples. They follow from it and the source alone, wherever that stands.
            on_smaller_batch: told every new batch size.
            on_done: told after every batch how many sources it had.
            token_table: whether to compute a :meth:`token_table` first. By default where it pays, as the hypotheses of
                sources so long outnumber the vocabulary, and takes at most TABLE_BYTES.
            options: those of the search.

        Raises:
            MemoryError: memory does not suffice for one source alone.
        """
        if self.source_vocabulary is None or self.target_vocabulary is None:
            raise ValueError("translate needs both vocabularies: give them to the model or use from_pretrained")
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1; got {batch_size}")
        if search not in SEARCHES:
            raise ValueError(f"`search` must be one of {SEARCHES}; got {search!r}")
        options.setdefault("ban_ids", (self.config.unk_id,) if replace_unknown is False else ())
        encoded = [self.source_vocabulary.encode(source) for source in sources]
        results: list[list[Translation]] = [[] for _ in sources]
        table = self.token_table() if token_table else None

        def make_table(places: Sequence[int]) -> None:
            nonlocal table
            table = self.token_table()

        def decode(places: Sequence[int]) -> None:
            sampling: dict[str, Any] = {}
            if search == "sample":
                sampling = {"search": sample, "seeds": [derived_seed(seed, *encoded[place]) for place in places]}
            source, lengths = pad([encoded[place] for place in places], self.config.pad_id)
            device = next(self.parameters()).device
            given = {**options, **sampling, "token_table": table, "return_attn": True}
            found = self.generate(source.to(device), lengths.to(device), **given)
            for row, place in enumerate(places):
                results[place] = _translations(found, row, len(encoded[place]), self.target_vocabulary)

        hypotheses = options.get("beam_size", BEAM_SIZE) if search == "beam" else options.get("n_best", 1)
        if token_table is None and self._table_pays(sum(map(len, encoded)) * hypotheses):
            _fits(make_table, ())  # where it does not, the same bits come without it
        # The longest first: what does not fit is known at once.
        order = sorted(range(len(sources)), key=lambda place: -len(encoded[place]))
        start = 0
        while start < len(order):
            longest = len(encoded[order[start]])
            places = [
                place for place in order[start : start + batch_size] if self._together(len(encoded[place]), longest)
            ]
            if _fits(decode, places):
                start += len(places)
                if on_done is not None:
                    on_done(len(places))
            elif len(places) > 1:
                batch_size = (len(places) + 1) // 2
                if on_smaller_batch is not None:
                    on_smaller_batch(batch_size)
            else:
                raise MemoryError(f"memory does not suffice for a text of {len(encoded[places[0]]) - 1} tokens alone")
        if replace_unknown is False:
            return results
        dictionary = {} if replace_unknown is True else replace_unknown
        return [
            [_without_unknown(entry, source, dictionary) for entry in found]
            for found, source in zip(results, sources, strict=True)
        ]


def _fits(decode: Callable[[Sequence[int]], None], places: Sequence[int]) -> bool:
    """Whether memory sufficed for ``decode(places)``."""
    try:
        decode(places)
        return True
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch has no exception of its own for it.
        if not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)):
            raise
    # The exception is gone, and with it the frames that held the batch, but for those that refer to each other.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within, and each module's own mode again behind it."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _translations(
    found: BeamSearchOutput, row: int, source_length: int, vocabulary: Vocabulary | None
) -> list[Translation]:
    assert found.attn_weights is not None and vocabulary is not None
    return [
        Translation(
            tokens=vocabulary.decode(found.tokens[row, rank, :length].tolist()),
            score=float(found.scores[row, rank]),
            token_scores=found.token_scores[row, rank, :length].tolist(),
            attn_weights=found.attn_weights[row, rank, :length, :source_length].clone(),
            finished=bool(found.finished[row, rank]),
        )
        for rank, length in enumerate(found.lengths[row].tolist())
        if length
    ]


def _without_unknown(translation: Translation, source: Sequence[str], dictionary: Mapping[str, str]) -> Translation:
    """The end of the source stands for no word: what it attended to most among the others takes the place."""
    if not source:
        return translation
    attended = translation.attn_weights[:, : len(source)].argmax(dim=1).tolist()
    tokens = [
        dictionary.get(source[position], source[position]) if token == UNK else token
        for token, position in zip(translation.tokens, attended, strict=False)
    ]
    return replace(translation, tokens=tokens)
