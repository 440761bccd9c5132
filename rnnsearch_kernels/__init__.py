"""Fused additive-attention decoding for PyTorch: attention, softmax, context and GRU step as one op."""

from .backends import Backend, backends, decompositions, register_backend
from .functional import additive_attention, decoder_scan, decoder_step, gru_scan, linear, vocabulary_topk
from .modules import DecoderOutput, FusedBahdanauDecoder, PreparedMemory

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "DecoderOutput",
    "FusedBahdanauDecoder",
    "PreparedMemory",
    "additive_attention",
    "backends",
    "decoder_scan",
    "decoder_step",
    "decompositions",
    "gru_scan",
    "linear",
    "register_backend",
    "vocabulary_topk",
]
