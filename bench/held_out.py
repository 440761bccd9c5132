"""Real input first: the shipped model pronounces held-out words, alike on every backend."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from checking import Mismatch
from rnnsearch.beam_search import beam_search
from rnnsearch.data import pad
from rnnsearch.model import RNNSearch
from rnnsearch.pronunciation import HELD_OUT, MODEL_DIRECTORY, read_words

import rnnsearch_kernels

BATCH = 50
BEAM = 5
# What the decoder's side of a search needs from a backend; the encoder's op may come from another.
DECODE_OPS = ("linear", "decoder_step", "vocabulary_topk")


def pronounce(encoder: RNNSearch, decoder: RNNSearch, words: Sequence[str]) -> list[list[str]]:
    """The phonemes of each word by beam search, in batches of words of like length."""
    assert decoder.source_vocabulary is not None and decoder.target_vocabulary is not None
    config, device = decoder.config, decoder.output.weight.device
    order = sorted(range(len(words)), key=lambda place: len(words[place]))
    phonemes: list[list[str]] = [[] for _ in words]
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        encoded = [decoder.source_vocabulary.encode(list(words[place])) for place in places]
        source, lengths = (x.to(device) for x in pad(encoded, config.pad_id))
        memory, state = encoder.encode(source, lengths)
        found = beam_search(
            decoder.step,
            state,
            memory,
            bos_id=config.bos_id,
            eos_id=config.eos_id,
            beam_size=BEAM,
            ban_ids=(config.pad_id, config.bos_id, config.unk_id),
        )
        for place, tokens in zip(places, found.tokens[:, 0].tolist(), strict=True):
            phonemes[place] = decoder.target_vocabulary.decode(tokens)
    return phonemes


def decode_held_out(backends: Sequence[str], device: torch.device, limit: int | None) -> Iterator[str]:
    """A line for each backend; :class:`Mismatch` where one pronounces a word differently from the first."""
    if not (MODEL_DIRECTORY / HELD_OUT).exists():
        yield f"held-out words: not decoded, the package has no {MODEL_DIRECTORY.name} model"
        return
    references = dict(list(read_words(MODEL_DIRECTORY / HELD_OUT).items())[:limit])
    words = list(references)
    yield f"{len(words)} held-out words through the shipped model, beam {BEAM}, {BATCH} at a time"
    encoder = RNNSearch.from_pretrained(MODEL_DIRECTORY).to(device)
    first: tuple[str, list[list[str]]] | None = None
    for backend in rnnsearch_kernels.list_backends():
        if backend.name not in backends:
            continue
        reasons = [backend.why_not(op, device.type, torch.float32, False) for op in DECODE_OPS]
        reason = next((reason for reason in reasons if reason), None)
        if reason:
            yield f"  {backend.name:<10} cannot decode: {reason}"
            continue
        decoder = RNNSearch.from_pretrained(MODEL_DIRECTORY, backend=backend.name).to(device)
        own_encoder = backend.why_not("gru_scan", device.type, torch.float32, False) is None
        begin = time.perf_counter()
        phonemes = pronounce(decoder if own_encoder else encoder, decoder, words)
        seconds = time.perf_counter() - begin
        right = sum(found in references[word] for word, found in zip(words, phonemes, strict=True))
        if first is None:
            first = backend.name, phonemes
        elif phonemes != first[1]:
            word, ours, theirs = next(
                (word, *both) for word, *both in zip(words, first[1], phonemes, strict=True) if both[0] != both[1]
            )
            raise Mismatch(f"{word!r} is {' '.join(ours)} by {first[0]} and {' '.join(theirs)} by {backend.name}")
        yield (
            f"  {backend.name:<10} {right / len(words):.1%} right, {len(words) / seconds:.0f} words/s"
            f"{'' if first[0] == backend.name else f', word for word as {first[0]}'}"
            f"{'' if own_encoder else '; encoder by auto, since it has no gru_scan'}"
        )
