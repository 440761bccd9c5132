"""RNNSearch (Bahdanau, Cho, Bengio 2014, arXiv:1409.0473): model, beam search, training, a trained model."""

from rnnsearch.beam_search import BeamSearchOutput, beam_search
from rnnsearch.checkpoint import CheckpointError
from rnnsearch.config import PRESETS, RNNSearchConfig
from rnnsearch.model import RNNSearch, Translation
from rnnsearch.translator import Translator
from rnnsearch.vocabulary import Vocabulary

__all__ = [
    "PRESETS",
    "BeamSearchOutput",
    "CheckpointError",
    "RNNSearch",
    "RNNSearchConfig",
    "Translation",
    "Translator",
    "Vocabulary",
    "beam_search",
]
