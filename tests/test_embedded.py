"""What stands often in a minibatch is embedded and multiplied once, and nothing else changes."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from rnnsearch import embedded
from small_model import make_model
from torch._subclasses import FakeTensorMode

from rnnsearch_kernels import native

REPEATING = (
    torch.tensor([[4, 5, 4, 4, 2], [4, 4, 2, 0, 0]]),
    torch.tensor([5, 3]),
    torch.tensor([[1, 9, 9], [1, 9, 4]]),
)


@pytest.mark.parametrize("attend_after", [False, True])
@pytest.mark.parametrize("encoder_layers", [1, 2])
def test_tokens_that_repeat_have_the_gradients_of_each_of_their_places(encoder_layers: int, attend_after: bool) -> None:
    model = make_model(encoder_layers=encoder_layers, attend_after=attend_after)
    found = []
    for different in (1.0, 0.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embedded, "_DIFFERENT", different)
            logits = model(*REPEATING)
        # What stands behind a row's end counts nothing.
        loss = (logits[:, :2] * torch.arange(1.0, 2 * 2 * 10 + 1).view(2, 2, 10)).sum()
        found.append([logits, *torch.autograd.grad(loss, list(model.parameters()))])
    for once, each in zip(*found, strict=True):
        torch.testing.assert_close(once, each)


def test_a_token_that_repeats_is_multiplied_once() -> None:
    model = make_model().train()
    sources, targets = model.source_embedding, model.target_embedding
    read: list[int] = []
    for embedding in (sources, targets):
        embedding.register_forward_hook(lambda _, tokens, __: read.append(tokens[0].numel()))
    model(*REPEATING)
    assert read == [4, 3]  # different ones of 10 and of 6
    logits = model(REPEATING[0][:1, :2], None, REPEATING[2][:1, :2])  # each but once: as they stand
    assert read[2:] == [2, 2] and logits.shape == (1, 2, 10)


class AnotherEmbedding(torch.nn.Embedding):
    """One that may read its tokens together."""


CASES = ["dropout", "bfloat16", "autocast", "compile", "counted", "another module", "meta", "fake", "no token"]


@pytest.mark.parametrize("where", CASES)
def test_each_position_is_embedded_where_positions_differ_or_sums_would_be_rounded_or_a_size_be_counted(where) -> None:
    embedding, dropout, tokens = torch.nn.Embedding(10, 5), torch.nn.Dropout(0.5), torch.full((3, 4), 7)
    assert embedded.embed(embedding, tokens, dropout.eval()).rows.shape == (1, 5)
    if where == "dropout":
        dropout.train()
    if where == "bfloat16":
        embedding.bfloat16()
    if where == "counted":
        embedding.scale_grad_by_freq = True
    if where == "another module":
        embedding = AnotherEmbedding(10, 5)
    if where == "meta":
        embedding, tokens = embedding.to("meta"), tokens.to("meta")
    if where == "no token":
        tokens = tokens[:, :0]
    with (
        torch.autocast("cpu", enabled=where == "autocast"),
        pytest.MonkeyPatch.context() as patch,
        FakeTensorMode(allow_non_fake_inputs=True) if where == "fake" else nullcontext() as mode,
    ):
        patch.setattr(torch.compiler, "is_compiling", lambda: where == "compile")
        if where == "fake":
            tokens = mode.from_tensor(tokens)
        assert embedded.embed(embedding, tokens, dropout).rows.shape == (*tokens.shape, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_a_source_is_encoded_to_the_same_bits_whether_its_tokens_repeat_in_the_batch_or_not(dtype) -> None:
    if native.extension() is None:
        pytest.skip("a row's product depends on its batch in plain PyTorch")
    model = make_model(dtype=dtype)
    alone, together = torch.tensor([[4, 5, 6]]), torch.tensor([[4, 5, 6], [6, 6, 4], [5, 5, 5]])
    lengths = torch.tensor([3])
    (one, state), (many, states) = model.encode(alone, lengths), model.encode(together, lengths.expand(3))
    assert one.memory[0].equal(many.memory[0]) and state[0].equal(states[0])
