"""What a translation looks like in a file: lines of text, or one JSON object a line.

text
    The translation; with scores, its score and a tab before it. A text has as many lines as the n best that were asked
    for, empty ones where it has fewer.
jsonl ::

    {"line": 3, "source": "ein Haus", "source_tokens": ["ein", "Haus"], "translations": [{"text": "a house", "tokens":
     ["a", "house"], "score": -0.51, "token_scores": [-0.2, -0.3, -0.01], "finished": true, "links": [[0, 0], [1, 1]]}]}

    token_scores ends with that of the end of sentence, where `finished`. Links are [source, target], from 0: what each
    token attended to most; none where that was the source's end. "attn_weights" has all weights, on request: a row for
    each of token_scores, a column for each source token and one for the source's end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rnnsearch.alignment import DIGITS, Alignment
from rnnsearch.lines import Line
from rnnsearch.translation import Translation
from rnnsearch.translator import Translator

SCORE_DIGITS = 6


@dataclass(frozen=True)
class Records:
    """
    Args:
        format: as above.
        scores: of text; JSON has them always.
        attention: all weights in JSON.
    """

    format: Literal["text", "jsonl"]
    scores: bool
    attention: bool

    def __call__(
        self, translator: Translator, line: Line, source_tokens: Sequence[str], found: Sequence[Translation]
    ) -> str:
        """With the end of each line."""
        if self.format == "text":
            lines = [self._text(translator, entry) for entry in found]
            return "".join(f"{text}\n" for text in [*lines, *[""] * (translator.options.n_best - len(lines))])
        record: dict[str, Any] = {"line": line.number, "source": line.text, "source_tokens": list(source_tokens)}
        if line.problem is not None:
            record["problem"] = line.problem
        record["translations"] = [self._described(translator, record["source_tokens"], entry) for entry in found]
        return json.dumps(record, ensure_ascii=False) + "\n"

    def _text(self, translator: Translator, translation: Translation) -> str:
        # A copied token may hold what ends a line.
        text = " ".join(translator.text(translation).splitlines())
        return f"{translation.score:.{SCORE_DIGITS}f}\t{text}" if self.scores else text

    def _described(self, translator: Translator, source: list[str], translation: Translation) -> dict[str, Any]:
        alignment = Alignment(source, translation.tokens, translation.attn_weights, translation.score)
        described = {
            "text": translator.text(translation),
            "tokens": translation.tokens,
            "score": round(translation.score, SCORE_DIGITS),
            "token_scores": [round(score, SCORE_DIGITS) for score in translation.token_scores],
            "finished": translation.finished,
            "links": [list(link) for link in alignment.links()],
        }
        if self.attention:
            weights = translation.attn_weights.tolist()
            described["attn_weights"] = [[round(weight, DIGITS) for weight in row] for row in weights]
        return described
