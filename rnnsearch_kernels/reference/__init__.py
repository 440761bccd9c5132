"""Every op in plain PyTorch: what the op means, on any device and in any dtype.

These functions import torch alone, take the arguments of :mod:`rnnsearch_kernels.schema` in its order, and are
the definition that every other backend is held against. They compute in the accumulate dtype (float32; float64
for float64 storage) and round once, where a result is storage; ``vocabulary_loss`` says where it does not.
"""

from .attention import additive_attention, additive_attention_backward
from .decoder import decoder_scan, decoder_scan_backward, decoder_step
from .gru import gru_scan, gru_scan_backward
from .linear import linear
from .vocabulary import vocabulary_loss, vocabulary_topk

__all__ = [
    "additive_attention",
    "additive_attention_backward",
    "decoder_scan",
    "decoder_scan_backward",
    "decoder_step",
    "gru_scan",
    "gru_scan_backward",
    "linear",
    "vocabulary_loss",
    "vocabulary_topk",
]
