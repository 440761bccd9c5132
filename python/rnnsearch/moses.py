"""Text in Moses' tokens and back, as the corpora of the field are written; by sacremoses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def tokenise(texts: Sequence[str], language: str) -> list[str]:
    """Lower-cased, then tokenised as Moses' tokenizer.perl does, special characters escaped: Multi30k's own recipe."""
    tokenizer = _sacremoses().MosesTokenizer(language)
    return [tokenizer.tokenize(text.lower(), return_str=True) for text in texts]


def detokenise(texts: Sequence[str], language: str) -> list[str]:
    """As Moses' detokenizer.perl does; case stays as it is."""
    detokenizer = _sacremoses().MosesDetokenizer(language)
    return [detokenizer.detokenize(text.split()) for text in texts]


def _sacremoses() -> Any:
    try:
        import sacremoses
    except ImportError as error:
        raise RuntimeError("Moses' tokens need sacremoses: pip install 'rnnsearch-kernels[evaluate]'") from error
    return sacremoses
