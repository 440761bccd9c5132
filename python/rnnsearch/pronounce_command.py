"""`rnnsearch pronounce`: English words through the model that ships, or one like it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rnnsearch import pronunciation
from rnnsearch.command_line import positive


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(list(arguments))
    words = [word.lower().replace("’", "'") for word in options.words]
    for word in words:
        if not pronunciation.is_word(word):
            raise ValueError(f"{pronunciation.NO_WORD}; got {word!r}")
    if options.plot is not None and len(words) > 1:
        raise ValueError(f"--plot draws one word; got {len(words)}")
    beam_size = max(options.beam_size, options.n_best)
    translator = pronunciation.load(options.model, backend=options.backend, beam_size=beam_size, n_best=options.n_best)
    found = translator.hypotheses(words)
    for word, translations in zip(words, found, strict=True):
        for translation in translations:
            fields = [word, translator.text(translation)]
            if options.scores:
                fields.append(f"{translation.score:.3f}")
            print("\t".join(fields))
    if options.plot is not None:
        from rnnsearch.plot import plot_alignment

        best = found[0][0]
        plot_alignment(options.plot, translator.source.split(words[0]), best.tokens, best.attn_weights)
        print(f"alignment drawn in {options.plot}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rnnsearch pronounce",
        description="Print the phonemes (ARPAbet, without stress) of English words, one line a pronunciation.",
        epilog="example: rnnsearch pronounce thought --plot thought.png",
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="+", metavar="WORD", help="letters a to z and apostrophes")
    parser.add_argument("--n-best", type=positive, default=1, metavar="N", help="pronunciations a word (1)")
    parser.add_argument("--scores", action="store_true", help="also print each one's log-probability")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the alignment of one word")
    parser.add_argument("--beam-size", type=positive, default=5, metavar="K", help="beam size (5)")
    parser.add_argument(
        "--model",
        type=Path,
        default=pronunciation.MODEL_DIRECTORY,
        metavar="DIRECTORY",
        help="a model that train-pronunciation wrote (the one that ships)",
    )
    parser.add_argument("--backend", default="auto", help="which implementation of the ops (auto)")
    return parser
