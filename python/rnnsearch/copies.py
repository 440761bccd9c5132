"""Is the attention right where the right answer is known? A number or a name that stands on both sides of a pair must
be attended to where it is copied."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rnnsearch.alignment import Alignment, word_texts
from rnnsearch.segmentation import Segmentation

_PUNCTUATION = string.punctuation + "«»“”„‘’‚…–—¿¡"


class Copy(NamedTuple):
    """A word of the source that is copied to the target, by its places among the words."""

    source: int
    target: int


class Found(NamedTuple):
    copies: int
    attended: int  # the copies that attended most to the word they were copied from

    @property
    def share(self) -> float:
        return self.attended / self.copies


def copies(source: Sequence[str], target: Sequence[str]) -> list[Copy]:
    """Numbers (with a digit) and names (with a capital letter first) that occur once on either side.

    Punctuation around a word is no part of it. A capital letter that begins both sentences may be no name.
    """
    sides = [[_bare(word) for word in words] for words in (source, target)]
    found = []
    for place, word in enumerate(sides[0]):
        if not _is_number(word) and not word[:1].isupper():
            continue
        if sides[0].count(word) == 1 and sides[1].count(word) == 1:
            copy = Copy(place, sides[1].index(word))
            if _is_number(word) or copy != (0, 0):
                found.append(copy)
    return found


def with_copies(pairs: Iterable[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """The first ``count`` of the pairs of texts that have copies."""
    found: list[tuple[str, str]] = []
    for source, target in pairs:
        if len(found) == count:
            break
        if copies(source.split(), target.split()):
            found.append((source, target))
    return found


def construct(pairs: Sequence[tuple[str, str]], count: int, *, seed: int = 1) -> list[tuple[str, str]]:
    """``count`` new pairs: in each of the pairs with one copy, in turn, another number of as many digits or another
    name of the text takes its place, on both sides.

    Raises:
        ValueError: no pair has exactly one copy, or there is no other number or name to take its place.
    """
    generator = random.Random(seed)
    usable = [(pair, found[0]) for pair in pairs if len(found := copies(*map(str.split, pair))) == 1]
    if not usable:
        raise ValueError("no pair has exactly one number or name that stands once on either side")
    copied = [_bare(source.split()[copy.source]) for (source, _), copy in usable]
    names = sorted({word for word in copied if not _is_number(word)})
    made: list[tuple[str, str]] = []
    while len(made) < count:
        (source, target), copy = usable[len(made) % len(usable)]
        word = copied[len(made) % len(usable)]
        there = {_bare(other) for text in (source, target) for other in text.split()}
        kind, others = "name", names
        if _is_number(word):
            # The numbers of one digit are few: all are drawn.
            kind, others = "number", [re.sub(r"\d", lambda _: generator.choice("23456789"), word) for _ in range(64)]
        others = [other for other in others if other not in there]
        if not others:
            raise ValueError(f"the text has no other {kind} to take the place of {word}")
        new = generator.choice(others)
        made.append((_replaced(source, copy.source, word, new), _replaced(target, copy.target, word, new)))
    return made


def measure(alignments: Sequence[Alignment], source: Segmentation, target: Segmentation) -> Found:
    """Of all copies in these alignments of tokens, how many attended most to the word they were copied from.

    A copy attends with the mean weights of its tokens, and the one source token that has most of it must belong to the
    word: summed over a word's tokens, attention without a point would favour words of many, as rare names are. Tokens
    that are punctuation alone, as the full stop behind a name, are no part of either word.
    """
    copied = attended = 0
    for alignment in alignments:
        columns, rows = source.words(alignment.source), target.words(alignment.target)
        texts = word_texts(source, alignment.source), word_texts(target, alignment.target)
        for copy in copies(*texts):
            row = _written(rows[copy.target], target, alignment.target)
            token = int(alignment.attn_weights[row].mean(0).argmax())
            copied += 1
            attended += token in _written(columns[copy.source], source, alignment.source)
    return Found(copied, attended)


def _written(word: range, segmentation: Segmentation, tokens: Sequence[str]) -> list[int]:
    """The places of a word's tokens but for those that are punctuation alone."""
    return [place for place in word if _bare(segmentation.join([tokens[place]]).strip())]


def _bare(word: str) -> str:
    return word.strip(_PUNCTUATION)


def _is_number(word: str) -> bool:
    return any(character.isdigit() for character in word)


def _replaced(text: str, place: int, word: str, new: str) -> str:
    words = text.split()
    words[place] = words[place].replace(word, new)
    return " ".join(words)
