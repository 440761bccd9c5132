"""How good translations are: sacreBLEU's scores, by sentence length, and without unknown words."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """A score of a corpus.

    value       of all sentences
    mean        over the bootstrap's resamples; None without a bootstrap
    confidence  half of the width of the bootstrap's 95 % interval; None without a bootstrap
    signature   sacreBLEU's: what it takes to get the same number again
    """

    metric: str
    value: float
    mean: float | None
    confidence: float | None
    signature: str

    def __str__(self) -> str:
        return f"{self.value:.2f}" if self.confidence is None else f"{self.value:.2f} ± {self.confidence:.2f}"


@dataclass(frozen=True)
class Bucket:
    """The sentences of ``shortest`` to ``longest`` words, None where there is no upper bound."""

    shortest: int
    longest: int | None
    sentences: int
    mean_length: float
    score: Score

    def __str__(self) -> str:
        if self.longest is None:
            return f"{self.shortest}+"
        return str(self.shortest) if self.shortest == self.longest else f"{self.shortest}-{self.longest}"


Metric = Callable[[], Any]  # a new sacreBLEU metric: it keeps what its last corpus was


def sacrebleu_metrics() -> Any:
    """The module ``sacrebleu.metrics``. Raises RuntimeError where it is not installed."""
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise RuntimeError("BLEU needs sacrebleu: pip install 'rnnsearch-kernels[evaluate]'") from error
    return sacrebleu.metrics


def bleu() -> Any:
    """sacreBLEU's default: of cased, detokenised text, which it tokenises itself (13a).

    ``force`` changes no number: it keeps sacreBLEU from complaining of tokens at every call, which are no mistake in a
    run's dev text; `rnnsearch evaluate` says it in its own words (:func:`looks_tokenised`).
    """
    return sacrebleu_metrics().BLEU(force=True)


def chrf() -> Any:
    return sacrebleu_metrics().CHRF()


def tokenised_bleu() -> Any:
    """Of text that is tokenised, between white space, without regard to case: what multi-bleu.perl -lc gives."""
    return sacrebleu_metrics().BLEU(lowercase=True, tokenize="none", force=True)


def score(metric: Metric, hypotheses: Sequence[str], references: Sequence[str], *, resamples: int) -> Score:
    """One score of the corpus; ``resamples`` of at least 2 give it its confidence by a bootstrap (Koehn 2004)."""
    taken = metric()
    compute = taken._compute_score_from_stats

    def as_float(stats: Any) -> Any:
        # sacreBLEU's scores of resamples are numpy's float32, but 0.0 where nothing matched: their mean refuses both.
        resampled = compute(stats)
        resampled.score = float(resampled.score)
        return resampled

    taken._compute_score_from_stats = as_float
    found = taken.corpus_score(list(hypotheses), [list(references)], n_bootstrap=resamples)
    sure = resamples > 1
    return Score(
        metric=found.name,
        value=float(found.score),
        mean=float(found._mean) if sure else None,
        confidence=float(found._ci) if sure else None,
        signature=str(taken.get_signature()),
    )


def by_length(
    metric: Metric,
    hypotheses: Sequence[str],
    references: Sequence[str],
    lengths: Sequence[int],
    bounds: Sequence[int],
    *,
    resamples: int,
) -> list[Bucket]:
    """The score of the sentences of at most ``bounds[0]`` words, empty ones among them, of those of more and at most
    ``bounds[1]``, and so on; the last bucket holds those beyond the last bound. Buckets without a sentence are left
    out."""
    buckets = []
    for before, longest in itertools.pairwise([-1, *bounds, None]):
        assert before is not None
        places = [
            place for place, length in enumerate(lengths) if before < length and (longest is None or length <= longest)
        ]
        if places:
            found = score(metric, *(pick(texts, places) for texts in (hypotheses, references)), resamples=resamples)
            mean = sum(lengths[place] for place in places) / len(places)
            buckets.append(Bucket(before + 1, longest, len(places), mean, found))
    return buckets


def looks_tokenised(texts: Sequence[str]) -> bool:
    """As sacreBLEU judges: 100 lines have white space before the full stop that ends them."""
    return sum(text.endswith(" .") for text in texts) >= 100


def pick(texts: Sequence[str], places: Sequence[int]) -> list[str]:
    return [texts[place] for place in places]
