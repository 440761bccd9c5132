"""The examples: hand-written decoders load, learn their task, and attend to where the answer lies."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch
from rnnsearch.examples import captioning, text_recognition
from rnnsearch.examples.scheduled_sampling import decode, train
from tolerances import EXACT

E, H, M, A = 5, 7, 20, 6
CAPTIONS = captioning.HandWrittenDecoder(E, H, M, A)  # [word ; context]
LINES = text_recognition.HandWrittenDecoder(E, H, M)  # [context ; character]


@pytest.mark.parametrize(
    ("theirs", "model"),
    [(CAPTIONS, captioning.Captioner(CAPTIONS, E)), (LINES, text_recognition.Recogniser(LINES))],
    ids=["captioning", "text recognition"],
)
def test_the_fused_decoder_is_the_hand_written_one(theirs, model):
    theirs, decoder = theirs.double(), model.decoder.double()
    memory, state = torch.randn(3, 64, M, dtype=torch.float64), torch.randn(3, H, dtype=torch.float64)
    prepared = decoder.prepare_memory(memory)
    for word in torch.randn(4, 3, E, dtype=torch.float64):
        step = decoder.step(word, state, prepared)
        state, weights = theirs.step(word, state, memory)
        torch.testing.assert_close(step.state, state, **EXACT)
        torch.testing.assert_close(step.attn_weights, weights, **EXACT)


def test_without_own_words_decoding_is_teacher_forced_and_with_them_alone_it_is_greedy():
    model = captioning.new_model().double()
    regions = torch.randn(3, 196, captioning.FEATURES, dtype=torch.float64)
    target = torch.randint(0, len(captioning.WORDS), (3, 6))
    parts = (model.decoder, model.embedding, model.readout, regions)
    given = torch.cat([torch.full((3, 1), captioning.BEGIN), target[:, :-1]], dim=1)
    for own_share in (0.0, 1.0):
        found = decode(*parts, target, begin_id=captioning.BEGIN, own_share=own_share)
        if own_share:
            given[:, 1:] = found.logits.argmax(dim=2)[:, :-1]  # the words that were read if this was greedy
        scan = model.decoder(model.embedding(given), regions, need_weights=True)
        logits = model.readout(torch.cat([scan.output, scan.context], dim=2))
        torch.testing.assert_close(found.logits, logits, **EXACT)
        torch.testing.assert_close(found.attn_weights, scan.attn_weights, **EXACT)


def test_captions_are_learnt_and_words_attend_to_their_object():
    generator = torch.Generator().manual_seed(1)
    looks, model = captioning.appearance(generator), captioning.new_model()
    held_out = captioning.draw(100, looks, torch.Generator().manual_seed(2))
    assert held_out.regions.shape[1] == 196
    before = captioning.measure(model, held_out)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        images = captioning.draw(32, looks, generator)
        return images.regions, images.captions

    losses = train(model, batch, updates=90, learning_rate=3e-3)
    after = captioning.measure(model, held_out)
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
    assert before.right == 0 and after.right >= 0.8
    assert before.on_object < 0.3 and after.on_object >= 0.9


def test_lines_are_learnt_and_digits_attend_to_their_columns():
    generator, model = random.Random(1), text_recognition.new_model()
    held_out = text_recognition.draw(100, random.Random(2))
    assert held_out.images.shape[2] == 64
    before = text_recognition.measure(model, held_out)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        lines = text_recognition.draw(64, generator)
        return lines.images, lines.digits

    losses = train(model, batch, updates=220, learning_rate=0.02)
    after = text_recognition.measure(model, held_out)
    assert sum(losses[-10:]) < 0.25 * sum(losses[:10])
    assert before.right < 0.2 and after.right >= 0.7
    assert before.on_digit < 0.3 and after.on_digit >= 0.9


@pytest.mark.parametrize("example", [captioning, text_recognition], ids=lambda example: example.__name__)
def test_the_examples_run_and_draw(example, tmp_path: Path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["example", "--updates", "1", "--plot", str(tmp_path / "drawn.png")])
    example.main()
    assert "200 new" in capsys.readouterr().out
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
