"""What a translation attended to, word by word: of pairs that are given, and of translations that a model made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnnsearch.data import Pair, collate
from rnnsearch.model import RNNSearch, Translation, evaluating
from rnnsearch.segmentation import Segmentation
from rnnsearch.translator import Translator

DIGITS = 4  # of a weight in JSON


@dataclass(frozen=True)
class Alignment:
    """A pair and its attention weights.

    source, target  tokens or words, without their ends of sentence
    attn_weights    α of the paper's equation 6. A column for each of the source and one for its end; a row for
                    each of the target and one for its end (a hypothesis that was cut has none)
    score           log-probability of the target, its end included
    """

    source: list[str]
    target: list[str]
    attn_weights: Tensor
    score: float

    def links(self) -> list[tuple[int, int]]:
        """(source, target), from 0: what each of the target attended to most; none where that was the end."""
        attended = self.attn_weights[: len(self.target)].argmax(dim=1).tolist()
        return [(source, target) for target, source in enumerate(attended) if source < len(self.source)]

    def pharaoh(self) -> str:
        """The links as ``source-target``, the format of word aligners."""
        return " ".join(f"{source}-{target}" for source, target in self.links())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            "target": self.target,
            "score": round(self.score, DIGITS),
            "links": [list(link) for link in self.links()],
            "attn_weights": [[round(weight, DIGITS) for weight in row] for row in self.attn_weights.tolist()],
        }


def align_pairs(
    translator: Translator, pairs: Sequence[tuple[str, str]], *, batch_size: int = 32, words: bool = True
) -> list[Alignment]:
    """Alignments of given pairs of texts: the target is forced on the decoder, which attends as it reads it.

    Args:
        batch_size: pairs of like length are read so many at a time.
        words: of words (see :func:`in_words`), or of tokens.
    """
    if not isinstance(translator.model, RNNSearch):
        raise ValueError("an ensemble does not align given pairs: take one of its models")
    encoded = [translator.encode(*pair) for pair in pairs]
    found: dict[int, tuple[Tensor, float]] = {}
    order = sorted(range(len(pairs)), key=lambda place: (len(encoded[place].source), len(encoded[place].target)))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        found.update(zip(places, _force(translator.model, [encoded[place] for place in places]), strict=True))
    alignments = []
    for place, (source, target) in enumerate(pairs):
        tokens = translator.source.split(source), translator.target.split(target)
        alignment = Alignment(*tokens, *found[place])
        alignments.append(in_words(alignment, translator.source, translator.target) if words else alignment)
    return alignments


def of_translation(translator: Translator, source: str, translation: Translation, *, words: bool = True) -> Alignment:
    """That of one of ``translator``'s translations of ``source``."""
    weights = translation.attn_weights.cpu()
    score = sum(translation.token_scores)
    alignment = Alignment(translator.source.split(source), list(translation.tokens), weights, score)
    return in_words(alignment, translator.source, translator.target) if words else alignment


def in_words(alignment: Alignment, source: Segmentation, target: Segmentation) -> Alignment:
    """Of tokens to of words, of what stands between white space: a source word has the sum of its tokens' weights, a
    target word the mean of its tokens'."""
    weights, columns, rows = alignment.attn_weights, source.words(alignment.source), target.words(alignment.target)
    end = weights[:, len(alignment.source) :]
    weights = torch.cat([torch.stack([weights[:, part.start : part.stop].sum(1) for part in columns], 1), end], 1)
    means = [weights[part.start : part.stop].mean(0) for part in rows]
    weights = torch.stack([*means, *weights[len(alignment.target) :]])
    texts = word_texts(source, alignment.source), word_texts(target, alignment.target)
    return Alignment(*texts, weights, alignment.score)


def word_texts(segmentation: Segmentation, tokens: Sequence[str]) -> list[str]:
    """Each of ``segmentation.words(tokens)`` as it is written."""
    chosen = [tokens[part.start : part.stop] for part in segmentation.words(tokens)]
    return [segmentation.join(some).strip() or "".join(some) for some in chosen]


@torch.no_grad()
def _force(model: RNNSearch, pairs: Sequence[Pair]) -> list[tuple[Tensor, float]]:
    """Attention weights (target, source), ends included, and the target's log-probability, of each pair."""
    config = model.config
    batch = collate(pairs, pad_id=config.pad_id, bos_id=config.bos_id).to(model.output.weight.device)
    with evaluating(model):
        readouts, weights = model.aligned(batch.source, batch.source_lengths, batch.target_input)
        logits = model.output(readouts).to(weights.dtype)  # float32, or float64 in a float64 model
        scores = logits.log_softmax(dim=-1).gather(2, batch.target[..., None])[..., 0]
    found = []
    for row, pair in enumerate(pairs):
        rows, columns = len(pair.target), len(pair.source)
        found.append((weights[row, :rows, :columns].cpu(), float(scores[row, :rows].sum())))
    return found
