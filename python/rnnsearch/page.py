"""Alignments as one HTML page that needs nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from rnnsearch.alignment import Alignment
from rnnsearch.checkpoint import write_atomically

TEMPLATE = Path(__file__).parent / "alignment_page.html"


def write_page(path: Path, alignments: Sequence[Alignment], *, title: str) -> None:
    """A page where pointing at a word shows what it attended to, or what attended to it."""
    # Within a script element "<" could end it; in a JSON string \u003c is the same character.
    pairs = json.dumps([alignment.to_dict() for alignment in alignments], ensure_ascii=False).replace("<", "\\u003c")
    before, after = TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", html.escape(title)).split("{{pairs}}")
    write_atomically({path: f"{before}{pairs}{after}".encode()})
