"""The sizes and options of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

# The sizes that have a name. "rnnsearch-50" is RNNsearch-50 of Bahdanau et al. 2014, section 4.2 and appendix A,
# with the paper's reset-before GRU; "small" and "tiny" have torch's reset-after GRU, and so has the pronunciation model
# that ships.
PRESETS: dict[str, dict[str, Any]] = {
    "rnnsearch-50": {
        "embedding_size": 620,
        "encoder_size": 1000,
        "hidden_size": 1000,
        "attention_size": 1000,
        "readout_size": 500,
        "attend_after": False,
        "reset_after": False,
    },
    "small": {
        "embedding_size": 512,
        "encoder_size": 512,
        "hidden_size": 512,
        "attention_size": 512,
        "readout_size": 512,
        "attend_after": True,
        "reset_after": True,
    },
    "tiny": {
        "embedding_size": 256,
        "encoder_size": 256,
        "hidden_size": 256,
        "attention_size": 256,
        "readout_size": 256,
        "attend_after": True,
        "reset_after": True,
    },
    "pronunciation": {
        "embedding_size": 128,
        "encoder_size": 256,
        "hidden_size": 256,
        "attention_size": 128,
        "readout_size": 128,
        "attend_after": True,
        "reset_after": True,
    },
}


@dataclass(frozen=True)
class RNNSearchConfig:
    """What an :class:`RNNSearch` is made of.

    Args:
        source_vocabulary_size, target_vocabulary_size: number of tokens, the special ones among them.
        embedding_size: E, of both sides.
        encoder_size: of each direction; the memory has M = 2 * encoder_size features.
        encoder_layers: bidirectional layers of the encoder, one upon the other; the paper has 1.
        hidden_size: H, of the decoder.
        attention_size: A.
        readout_size: L, after the maxout.
        attend_after: whether attention and readout follow from the state that has read the last token; False as the
            paper, from the state before it.
        reset_after: the GRU's convention: True as ``nn.GRUCell``, False as the paper.
        embedding_dropout, memory_dropout, readout_dropout: in training, on both embeddings, the memory, the maxout.
        state_dropout: on the recurrent states of encoder and decoder, one mask for all steps of a sentence
            (variational: Gal and Ghahramani 2016, arXiv:1512.05287).
        pad_id, bos_id, eos_id, unk_id: the special tokens, the same in both vocabularies.
    """

    source_vocabulary_size: int
    target_vocabulary_size: int
    embedding_size: int = 620
    encoder_size: int = 1000
    hidden_size: int = 1000
    attention_size: int = 1000
    readout_size: int = 500
    encoder_layers: int = 1
    attend_after: bool = False
    reset_after: bool = False
    embedding_dropout: float = 0.0
    memory_dropout: float = 0.0
    state_dropout: float = 0.0
    readout_dropout: float = 0.0
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_id: int = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            wanted = {"float": (int, float), "bool": (bool,)}.get(str(field.type), (int,))
            if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
                raise TypeError(f"`{field.name}` must be {field.type}; got {value!r}")
            if field.name.endswith(("_size", "_layers")) and value < 1:
                raise ValueError(f"`{field.name}` must be at least 1; got {value}")
            if field.name.endswith("_dropout") and not 0 <= value < 1:
                raise ValueError(f"`{field.name}` must be at least 0 and below 1; got {value}")
        smallest = min(self.source_vocabulary_size, self.target_vocabulary_size)
        specials = self.special_ids
        if len(set(specials.values())) < 4 or not all(0 <= value < smallest for value in specials.values()):
            raise ValueError(f"the special tokens must be four different ids in 0..{smallest - 1}; got {specials}")

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> RNNSearchConfig:
        """The named sizes, with vocabulary sizes and whatever else differs given by keyword."""
        if preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {list(PRESETS)}; got {preset!r}")
        return cls(**{**PRESETS[preset], **changes})

    @property
    def special_ids(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("pad_id", "bos_id", "eos_id", "unk_id")}

    @property
    def memory_size(self) -> int:
        return 2 * self.encoder_size

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
