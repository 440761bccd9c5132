"""Tokens and their ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
SPECIALS = (PAD, BOS, EOS, UNK)


class Vocabulary:
    """An immutable list of tokens; the four special ones have ids 0 to 3."""

    pad_id, bos_id, eos_id, unk_id = range(4)

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tuple(tokens)
        self._ids = {token: id for id, token in enumerate(self.tokens)}
        if self.tokens[:4] != SPECIALS:
            raise ValueError(f"a vocabulary must begin with {list(SPECIALS)}; got {list(self.tokens[:4])}")
        if len(self._ids) != len(self.tokens):
            raise ValueError(f"a vocabulary must hold each token once; got {len(self.tokens) - len(self._ids)} repeats")

    @classmethod
    def from_sequences(cls, sequences: Iterable[Sequence[str]]) -> Vocabulary:
        """Every token that occurs, in alphabetical order, after the special ones."""
        return cls([*SPECIALS, *sorted({token for sequence in sequences for token in sequence} - set(SPECIALS))])

    @property
    def special_ids(self) -> dict[str, int]:
        return {"pad_id": self.pad_id, "bos_id": self.bos_id, "eos_id": self.eos_id, "unk_id": self.unk_id}

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: Sequence[str]) -> list[int]:
        """Ids with the end of sentence; a token that is not in the vocabulary becomes ``unk_id``.

        So does one that is written like a special one: text ends no sentence and is no padding.
        """
        ids = (self._ids.get(token, self.unk_id) for token in tokens)
        return [*(self.unk_id if id < len(SPECIALS) else id for id in ids), self.eos_id]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Tokens up to the end of sentence."""
        tokens = []
        for id in ids:
            if id == self.eos_id:
                break
            tokens.append(self.tokens[id])
        return tokens
