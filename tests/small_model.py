"""A model of a few weights, all different from zero: what tests of the application decode with and write to disk."""

from __future__ import annotations

import torch
from rnnsearch import RNNSearch, RNNSearchConfig, Vocabulary

SOURCE = Vocabulary(["<pad>", "<s>", "</s>", "<unk>", *"abcdef"])
TARGET = Vocabulary(["<pad>", "<s>", "</s>", "<unk>", *"uvwxyz"])
SIZES = {"embedding_size": 5, "encoder_size": 6, "hidden_size": 7, "attention_size": 4, "readout_size": 3}


def make_model(
    *,
    reset_after: bool = False,
    attend_after: bool = False,
    encoder_layers: int = 1,
    scale: float = 0.5,
    dtype=torch.float64,
    **options,
) -> RNNSearch:
    torch.manual_seed(0)
    sizes = {**SIZES, "encoder_layers": encoder_layers}
    config = RNNSearchConfig(len(SOURCE), len(TARGET), attend_after=attend_after, reset_after=reset_after, **sizes)
    model = RNNSearch(config, SOURCE, TARGET, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, scale)
    return model.to(dtype).eval()
