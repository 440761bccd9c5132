"""Text to tokens and back: words, characters, or sentencepiece; learnt from a corpus and kept beside the model.

segmentation.json     {"source": {"kind": ...}, "target": {"kind": ...}}
source.spm.model, target.spm.model     where the kind is sentencepiece

Where one sentencepiece model is both sides', it is stored once, and "target" has {"as": "source"} besides.
"""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from rnnsearch.checkpoint import CheckpointError, write_atomically
from rnnsearch.vocabulary import SPECIALS, Vocabulary

FILE = "segmentation.json"
SPACE = "▁"  # sentencepiece's mark of a space, which it puts before a word


class Segmentation(Protocol):
    kind: str

    def split(self, text: str) -> list[str]: ...

    def join(self, tokens: Sequence[str]) -> str: ...

    def words(self, tokens: Sequence[str]) -> list[range]:
        """The tokens of each word, of what stands between white space; together they are all tokens."""
        ...


class Words:
    """What stands between white space, of any kind and amount."""

    kind = "words"

    def split(self, text: str) -> list[str]:
        return text.split()

    def join(self, tokens: Sequence[str]) -> str:
        return " ".join(tokens)

    def words(self, tokens: Sequence[str]) -> list[range]:
        return [range(place, place + 1) for place in range(len(tokens))]


class Characters:
    """Every character, spaces too, without those around the text."""

    kind = "characters"

    def split(self, text: str) -> list[str]:
        return list(text.strip())

    def join(self, tokens: Sequence[str]) -> str:
        return "".join(tokens)

    def words(self, tokens: Sequence[str]) -> list[range]:
        """A space belongs to the word that it ends; one before all words, to the first."""
        letters = [place for place, token in enumerate(tokens) if not token.isspace()]
        starts = (place for before, place in itertools.pairwise(letters) if place > before + 1)
        return _between([0, *starts], len(tokens))


class SentencePiece:
    """A sentencepiece model: Kudo and Richardson 2018, arXiv:1808.06226."""

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        self.model = model
        try:
            self._processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise CheckpointError(f"this is not a sentencepiece model: {error}") from error

    @classmethod
    def learn(cls, lines: Iterable[str], size: int) -> SentencePiece:
        """BPE of at most ``size`` pieces. The text is not normalised: what it says is what is learnt."""
        model = io.BytesIO()
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            num_threads=1,
            minloglevel=2,
        )
        return cls(model.getvalue())

    def split(self, text: str) -> list[str]:
        return self._processor.encode(text, out_type=str)

    def join(self, tokens: Sequence[str]) -> str:
        return self._processor.decode_pieces(list(tokens))

    def words(self, tokens: Sequence[str]) -> list[range]:
        starts = (place for place, token in enumerate(tokens) if place and token.startswith(SPACE))
        return _between([0, *starts], len(tokens))

    def vocabulary(self) -> Vocabulary:
        processor = self._processor
        pieces = [processor.id_to_piece(id) for id in range(processor.get_piece_size()) if not processor.is_control(id)]
        return Vocabulary([*SPECIALS, *(piece for piece in pieces if piece not in SPECIALS)])


PLAIN: dict[str, type[Words] | type[Characters]] = {"words": Words, "characters": Characters}


def _between(starts: Sequence[int], end: int) -> list[range]:
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], end], strict=True) if start < stop]


def learn_vocabulary(
    segmentation: Words | Characters, lines: Iterable[str], *, size: int, min_count: int
) -> Vocabulary:
    """The ``size - 4`` most frequent tokens that occur ``min_count`` times; equals in alphabetical order."""
    counts = Counter(token for line in lines for token in segmentation.split(line))
    for special in SPECIALS:
        del counts[special]
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return Vocabulary([*SPECIALS, *(token for token, count in ranked[: size - 4] if count >= min_count)])


def same(left: Segmentation, right: Segmentation) -> bool:
    """Whether both make the same tokens of every text."""
    if isinstance(left, SentencePiece) and isinstance(right, SentencePiece):
        return left.model == right.model
    return left.kind == right.kind


def save(directory: Path, source: Segmentation, target: Segmentation) -> None:
    contents, described = {}, {}
    for side, segmentation in (("source", source), ("target", target)):
        described[side] = {"kind": segmentation.kind}
        if side == "target" and isinstance(segmentation, SentencePiece) and same(source, target):
            described[side]["as"] = "source"
        elif isinstance(segmentation, SentencePiece):
            contents[directory / f"{side}.spm.model"] = segmentation.model
    contents[directory / FILE] = (json.dumps(described, indent=1) + "\n").encode()
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(contents)


def load(directory: Path) -> tuple[Segmentation, Segmentation]:
    """Those that :func:`save` wrote.

    Raises:
        CheckpointError: a file is missing or not what it should be.
    """
    path = directory / FILE
    try:
        described = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error})") from error
    source = _load_side(directory, described, "source")
    if isinstance(described.get("target"), dict) and described["target"].get("as") == "source":
        return source, source
    return source, _load_side(directory, described, "target")


def _load_side(directory: Path, described: Any, side: str) -> Segmentation:
    entry = described.get(side) if isinstance(described, dict) else None
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if kind in PLAIN:
        return PLAIN[kind]()
    if kind != SentencePiece.kind:
        raise CheckpointError(f"{directory / FILE} must name a kind of segmentation for the {side}; it has {kind!r}")
    path = directory / f"{side}.spm.model"
    try:
        return SentencePiece(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
