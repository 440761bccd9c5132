"""Text in, text out: a model, or several, with the segmentation it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from rnnsearch import segmentation
from rnnsearch.data import Pair
from rnnsearch.decoding import DecodingOptions
from rnnsearch.ensemble import Ensemble
from rnnsearch.model import RNNSearch
from rnnsearch.pretrained import load_model, load_segmentation
from rnnsearch.processes import pick_device
from rnnsearch.segmentation import Segmentation
from rnnsearch.translation import Translation, TranslationModel

Model = str | Path | RNNSearch


class Translator:
    """``translator(["a text", ...])`` is the best translation of each; of one text, given as such, its translation.

    A batch of columns, ``{"source": array of texts, ...}``, comes back with another, ``"translation"`` (None is an
    empty text): so this class is what Ray Data's ``map_batches`` takes, as it is. ::

        dataset.map_batches(Translator, fn_constructor_args=["run/best"], batch_size=256, concurrency=2)

    Args:
        model: a directory that `rnnsearch train` wrote, ``run/best`` or a checkpoint, or a model with its vocabularies;
            several are an ensemble.
        source, target: how text on either side becomes tokens; read from the directory where there is one.
        backend: that of the ops.
        device: ``"auto"`` is CUDA where there is one, ``None`` leaves a given model where it is.
        dtype: of the weights; None leaves a given model's, and is float32 for one that is read.
        source_column, target_column: names in batches of columns.
        say: told when memory did not suffice for a batch; a RuntimeWarning where not given.
        options: the fields of :class:`rnnsearch.decoding.DecodingOptions`.

    Raises:
        CheckpointError: a model or its segmentation cannot be read.
        ValueError: models do not fit together, or an option is out of range.
    """

    def __init__(
        self,
        model: Model | Sequence[Model],
        source: Segmentation | None = None,
        target: Segmentation | None = None,
        *,
        backend: str = "auto",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        source_column: str = "source",
        target_column: str = "translation",
        say: Callable[[str], Any] | None = None,
        **options: Any,
    ) -> None:
        given = [model] if isinstance(model, (str, Path, RNNSearch)) else list(model)
        models = [
            entry if isinstance(entry, RNNSearch) else load_model(Path(entry), backend=backend) for entry in given
        ]
        directories = [Path(entry) for entry in given if not isinstance(entry, RNNSearch)]
        if source is None or target is None:
            if not directories:
                raise ValueError("a Translator of models in memory needs `source` and `target`, their segmentations")
            source, target = _shared_segmentation(directories)
        self.model: TranslationModel = models[0] if len(models) == 1 else Ensemble(models)
        vocabularies = (self.model.source_vocabulary, self.model.target_vocabulary)
        if vocabularies[0] is None or vocabularies[1] is None:
            raise ValueError("a Translator needs a model with both vocabularies")
        self.source_vocabulary, self.target_vocabulary = vocabularies[0], vocabularies[1]
        if directories and device is None:
            device = "auto"
        if device is not None or dtype is not None:
            self.model = self.model.to(device=None if device is None else pick_device(device), dtype=dtype)
        self.source, self.target = source, target
        self.columns = (source_column, target_column)
        self.options = DecodingOptions(**options)
        self._arguments = self.options.arguments(self.target_vocabulary)
        self._fits = 1 << 30  # texts at a time, as far as is known
        self._say = say or (lambda text: warnings.warn(text, RuntimeWarning, stacklevel=2))

    @classmethod
    def from_pretrained(cls, directory: Model | Sequence[Model], **options: Any) -> Translator:
        """The same as calling the class."""
        return cls(directory, **options)

    @overload
    def __call__(self, texts: str) -> str: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, texts: Mapping[str, Any]) -> dict[str, Any]: ...

    @overload
    def __call__(self, texts: Sequence[str]) -> list[str]: ...

    def __call__(self, texts: str | Mapping[str, Any] | Sequence[str]) -> str | dict[str, Any] | list[str]:
        if isinstance(texts, str):
            return self._best([texts])[0]
        if isinstance(texts, Mapping):
            source, target = self.columns
            if source not in texts:
                raise ValueError(f"the batch must have a column {source!r}; it has {sorted(texts)}")
            given = ["" if text is None else str(text) for text in texts[source]]
            return {**texts, target: np.array(self._best(given), dtype=object)}
        return self._best(texts)

    def _best(self, texts: Sequence[str]) -> list[str]:
        # Not in __call__ by recursion: Ray's own __call__ around it would wait for itself.
        return [self.text(found[0]) if found else "" for found in self.hypotheses(texts)]

    def hypotheses(self, texts: Sequence[str], **options: Any) -> list[list[Translation]]:
        """The n best of each text, as tokens with their scores and alignments; none of a text that is empty."""
        return self.of_tokens([self.source.split(text) for text in texts], **options)

    def of_tokens(
        self, sources: Sequence[Sequence[str]], on_done: Callable[[int], Any] | None = None, **options: Any
    ) -> list[list[Translation]]:
        """:meth:`hypotheses` of texts that are split already; ``options`` go before the translator's own.

        ``on_done`` is told after every batch how many texts it had.
        """
        arguments = self._arguments
        if options:
            arguments = replace(self.options, **options).arguments(self.target_vocabulary)
        places = [place for place, source in enumerate(sources) if source]
        results: list[list[Translation]] = [[] for _ in sources]
        found = self.model.translate(
            [sources[place] for place in places],
            **{**arguments, "batch_size": min(arguments["batch_size"], self._fits)},
            on_smaller_batch=self._smaller_batch,
            on_done=on_done,
        )
        for place, translations in zip(places, found, strict=True):
            results[place] = translations
        return results

    def text(self, translation: Translation) -> str:
        return self.target.join(translation.tokens)

    def encode(self, source: str, target: str) -> Pair:
        """A pair of texts as ids."""
        return Pair(
            self.source_vocabulary.encode(self.source.split(source)),
            self.target_vocabulary.encode(self.target.split(target)),
        )

    def save(self, directory: Path) -> None:
        if not isinstance(self.model, RNNSearch):
            raise ValueError("an ensemble is not saved as one: each of its models has a directory of its own")
        self.model.save_pretrained(directory)
        segmentation.save(directory, self.source, self.target)  # last: a directory that has it is whole

    def _smaller_batch(self, size: int) -> None:
        self._say(f"memory does not suffice for that many texts at a time; going on with {size}")
        self._fits = size  # what did not fit once is not tried at every call


def _shared_segmentation(directories: Sequence[Path]) -> tuple[Segmentation, Segmentation]:
    """That of the first; the others must have the same."""
    first, *others = map(load_segmentation, directories)
    for directory, other in zip(directories[1:], others, strict=True):
        for side, mine, theirs in zip(("source", "target"), first, other, strict=True):
            if not segmentation.same(mine, theirs):
                raise ValueError(
                    f"the models of an ensemble must split text alike; {directory} and {directories[0]} differ on the "
                    f"{side} side"
                )
    return first
