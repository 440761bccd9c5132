"""How translations are decoded: what `rnnsearch translate` takes as options and ``Translator`` by keyword."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rnnsearch.corpus import CorpusError
from rnnsearch.vocabulary import Vocabulary

# What only one way of decoding reads: to set it for the other is a mistake.
_OF = {"beam": ("beam_size", "coverage_penalty"), "sample": ("temperature", "top_k", "seed")}


@dataclass(frozen=True)
class DecodingOptions:
    """How translations are decoded. Lengths are in tokens and count the end of sentence.

    Args:
        search: beam, the best by beam search; or sample, drawn at random from the model's distribution.
        beam_size: hypotheses kept for each text.
        n_best: translations of each text, the best of the beam or so many samples.
        max_length: tokens at most; left out, it follows the source.
        max_length_factor: where max_length is left out, so many times the source's tokens (and at least 16).
        min_length: tokens at least.
        length_penalty: the score is the log-probability divided by 1 (none), by the length (average), or by
            ((5 + length) / 6)^alpha (wu, Wu et al. 2016).
        alpha: of wu; 0.6 to 1 is usual.
        coverage_penalty: above 0, source words that got little attention cost this much (Wu et al. 2016; 0.2 is
            usual).
        no_repeat_ngram_size: above 0, no sequence of so many tokens comes twice.
        ban: tokens that never come.
        unknown: a token outside the vocabulary never comes (ban), comes as <unk> (keep), or is replaced by the source
            word that it attended to (replace).
        dictionary: for replace, a file of source word, tab, target word: what it has for the source word is put.
        temperature: of samples; below 1 favours the probable tokens.
        top_k: above 0, samples are drawn among the so many most probable tokens.
        seed: of samples; a text has the same ones wherever it stands.
        batch_size: texts decoded at a time; where memory does not suffice, half as many from there on.
    """

    search: Literal["beam", "sample"] = "beam"
    beam_size: int = 5
    n_best: int = 1
    max_length: int | None = None
    max_length_factor: float = 3.0
    min_length: int = 0
    length_penalty: Literal["none", "average", "wu"] = "none"
    alpha: float = 0.6
    coverage_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    ban: tuple[str, ...] = ()
    unknown: Literal["ban", "keep", "replace"] = "ban"
    dictionary: str | Path | Mapping[str, str] | None = None
    temperature: float = 1.0
    top_k: int = 0
    seed: int = 1
    batch_size: int = 64

    def __post_init__(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for search, names in _OF.items():
            for name in names:
                if self.search != search and getattr(self, name) != defaults[name]:
                    raise ValueError(f"`{name}` is for `search` {search!r} only; `search` is {self.search!r}")
        if self.dictionary is not None and self.unknown != "replace":
            raise ValueError(f"`dictionary` needs `unknown` to be 'replace'; it is {self.unknown!r}")
        if self.beam_size < 1:
            raise ValueError(f"`beam_size` must be at least 1; got {self.beam_size}")
        if self.search == "beam" and self.n_best > self.beam_size:
            raise ValueError(f"`n_best` must be at most `beam_size` = {self.beam_size}; got {self.n_best}")

    def arguments(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Those of :meth:`rnnsearch.translation.TranslationModel.translate`, for a target ``vocabulary``."""
        ban_ids = [vocabulary.unk_id] if self.unknown == "ban" else []
        for token in self.ban:
            if token not in vocabulary.tokens:
                raise ValueError(f"`ban` must be tokens of the model's target vocabulary, which has no {token!r}")
            ban_ids.append(vocabulary.tokens.index(token))
        shared = ("n_best", "max_length", "max_length_factor", "min_length", "length_penalty", "alpha")
        names = (*shared, "no_repeat_ngram_size", "batch_size", "search", *_OF[self.search])
        dictionary = {} if self.dictionary is None else self.dictionary
        if not isinstance(dictionary, Mapping):
            dictionary = read_dictionary(Path(dictionary))
        return {
            **{name: getattr(self, name) for name in names},
            "ban_ids": tuple(ban_ids),
            "replace_unknown": dictionary if self.unknown == "replace" else False,
        }


def read_dictionary(path: Path) -> dict[str, str]:
    """A source token, a tab and a target token a line; of several for one source token the first counts.

    Raises:
        CorpusError: the file cannot be read, or a line is not UTF-8 or has no two fields.
    """
    words: dict[str, str] = {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror})") from error
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            entry = line.decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            raise CorpusError(f"{where}: not UTF-8 ({error.reason})") from error
        if len(entry) != 2 or not all(entry):
            raise CorpusError(f"{where}: a source token, a tab and a target token are wanted; got {line.decode()!r}")
        words.setdefault(*entry)
    return words
