"""`rnnsearch align`: what each word of a translation attended to, as links, pictures, JSON and a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rnnsearch import copies
from rnnsearch.align_options import AlignSettings, Command, read_command
from rnnsearch.alignment import Alignment, align_pairs, in_words, of_translation
from rnnsearch.checkpoint import write_atomically
from rnnsearch.corpus import read_lines, read_pairs
from rnnsearch.page import write_page
from rnnsearch.translator import Translator


def main(arguments: Sequence[str]) -> int:
    command = read_command(arguments)
    settings = command.settings
    settings.check_outputs()
    texts = _read(command)
    if settings.copies:
        # The first so many with a copy; or as many new ones, made from all.
        pairs = copies.with_copies(texts, len(texts) if settings.construct else settings.copies)
        if not pairs:
            given = settings.source or "the text"
            raise ValueError(f"{given} has no pair with a number or a name that stands once on either side")
        texts = pairs
        if settings.construct:
            texts = copies.construct(pairs, settings.copies, seed=settings.construct_seed)
    translator = command.translator.translator()
    of_tokens, sides = _align(translator, texts, command), (translator.source, translator.target)
    alignments = of_tokens if settings.tokens else [in_words(alignment, *sides) for alignment in of_tokens]
    models = command.translator.directories()
    _write(alignments, settings, title=f"What {'/'.join(models[0].parts[-2:])} attended to")
    if settings.copies:
        found = copies.measure(of_tokens, *sides)
        print(
            f"copied words that attended most to their source: {found.attended} of {found.copies} ({found.share:.1%})"
        )
    else:
        for alignment in alignments:
            print(alignment.pharaoh())
    return 0


def _read(command: Command) -> list[tuple[str, str]]:
    """Pairs; the second of each is empty where there is none."""
    settings, texts = command.settings, command.texts
    if settings.source is None:
        return [(texts[0], texts[1] if len(texts) == 2 else "")]
    source, places = Path(settings.source), settings.places()
    if not command.has_targets:
        return [(text, "") for text in read_lines(source, lines=places, empty=False)]
    target = None if settings.target is None else Path(settings.target)
    return read_pairs(source, target, keys=(settings.source_key, settings.target_key), lines=places)


def _align(translator: Translator, pairs: Sequence[tuple[str, str]], command: Command) -> list[Alignment]:
    if command.has_targets:
        return align_pairs(translator, pairs, batch_size=command.translator.decoding.batch_size, words=False)
    sources = [source for source, _ in pairs]
    found = translator.hypotheses(sources)
    if command.texts:
        print(translator.text(found[0][0]), file=sys.stderr)
    pairs_found = zip(sources, found, strict=True)
    return [of_translation(translator, source, entry[0], words=False) for source, entry in pairs_found]


def _write(alignments: Sequence[Alignment], settings: AlignSettings, *, title: str) -> None:
    if settings.json is not None:
        lines = (json.dumps(alignment.to_dict(), ensure_ascii=False) for alignment in alignments)
        write_atomically({Path(settings.json): "".join(f"{line}\n" for line in lines).encode()})
    if settings.html is not None:
        write_page(Path(settings.html), alignments, title=title)
    if settings.plot is not None:
        from rnnsearch.plot import plot_alignment

        for number, alignment in enumerate(alignments, 1):
            path = Path(settings.plot)
            if len(alignments) > 1:
                path = path.with_name(f"{path.stem}-{number}{path.suffix}")
            plot_alignment(path, alignment.source, alignment.target, alignment.attn_weights)
