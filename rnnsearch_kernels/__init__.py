"""Fused additive-attention decoding for PyTorch: attention, softmax, context and GRU step as one op."""

from . import graphs
from .backends import Backend, check_backend, decompositions, list_backends, register_backend
from .functional import (
    additive_attention,
    decoder_scan,
    decoder_step,
    gru_scan,
    linear,
    vocabulary_loss,
    vocabulary_topk,
)
from .modules import FusedBahdanauDecoder
from .values import DecoderOutput, PreparedMemory

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "DecoderOutput",
    "FusedBahdanauDecoder",
    "PreparedMemory",
    "additive_attention",
    "check_backend",
    "decoder_scan",
    "decoder_step",
    "decompositions",
    "graphs",
    "gru_scan",
    "linear",
    "list_backends",
    "register_backend",
    "vocabulary_loss",
    "vocabulary_topk",
]
