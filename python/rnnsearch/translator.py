"""Text in, text out: a model with the segmentation it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnnsearch import segmentation
from rnnsearch.data import Pair
from rnnsearch.model import RNNSearch, Translation
from rnnsearch.segmentation import Segmentation


class Translator:
    """``translator(["a text", ...])`` is the best translation of each; a plain callable without hidden state.

    Args:
        model: with its vocabularies.
        source, target: how text on either side becomes tokens.
        options: those of :meth:`RNNSearch.translate`, for every call.
    """

    def __init__(self, model: RNNSearch, source: Segmentation, target: Segmentation, **options: Any) -> None:
        if model.source_vocabulary is None or model.target_vocabulary is None:
            raise ValueError("a Translator needs a model with both vocabularies")
        self.model, self.source, self.target, self.options = model, source, target, options
        self._vocabularies = (model.source_vocabulary, model.target_vocabulary)

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, backend: str = "auto", **options: Any) -> Translator:
        """Raises CheckpointError where the model or its segmentation cannot be read."""
        model = RNNSearch.from_pretrained(directory, backend=backend)
        return cls(model, *segmentation.load(Path(directory)), **options)

    def __call__(self, texts: Sequence[str]) -> list[str]:
        return [self.text(found[0]) if found else "" for found in self.hypotheses(texts)]

    def hypotheses(self, texts: Sequence[str], **options: Any) -> list[list[Translation]]:
        """The n best of each text, as tokens with their scores and alignments; none of a text that is empty."""
        sources = [self.source.split(text) for text in texts]
        places = [place for place, source in enumerate(sources) if source]
        results: list[list[Translation]] = [[] for _ in sources]
        found = self.model.translate([sources[place] for place in places], **{**self.options, **options})
        for place, translations in zip(places, found, strict=True):
            results[place] = translations
        return results

    def text(self, translation: Translation) -> str:
        return self.target.join(translation.tokens)

    def encode(self, source: str, target: str) -> Pair:
        """A pair of texts as ids."""
        source_vocabulary, target_vocabulary = self._vocabularies
        return Pair(
            source_vocabulary.encode(self.source.split(source)), target_vocabulary.encode(self.target.split(target))
        )

    def save(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        segmentation.save(directory, self.source, self.target)  # last: a directory that has it is whole
