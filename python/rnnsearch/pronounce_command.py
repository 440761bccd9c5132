"""`rnnsearch pronounce`: English words through the model that ships, or one like it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from rnnsearch import pronunciation
from rnnsearch.command_line import new_parser, parse, positive
from rnnsearch.outputs import check_picture


def main(arguments: Sequence[str]) -> int:
    options = parse(_parser(), arguments)
    words = [word.lower().replace("’", "'") for word in options.words]
    for word in words:
        if not pronunciation.is_word(word):
            raise ValueError(f"{pronunciation.NO_WORD}; got {word!r}")
    if options.plot is not None:
        if len(words) > 1:
            raise ValueError(f"--plot draws one word; got {len(words)}")
        check_picture("--plot", options.plot)
    beam_size = max(options.beam_size, options.n_best)
    directory = options.model or pronunciation.MODEL_DIRECTORY
    translator = pronunciation.load(directory, backend=options.backend, beam_size=beam_size, n_best=options.n_best)
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


def _parser() -> ArgumentParser:
    description = "Print the phonemes (ARPAbet, without stress) of English words, one line a pronunciation."
    example = "example: rnnsearch pronounce thought --plot thought.png"
    parser = new_parser("pronounce", "[options] WORD ...", description, example, config=False)
    parser.add_argument("words", nargs="+", metavar="WORD", help="letters a to z and apostrophes")
    parser.add_argument("--n_best", type=positive, default=1, metavar="N", help="pronunciations a word")
    parser.add_argument("--scores", type=bool, default=False, help="also print each one's log-probability")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the alignment of one word (.png, .svg, .pdf)")
    parser.add_argument("--beam_size", type=positive, default=5, metavar="K", help="hypotheses kept for each word")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIRECTORY",
        help="a model that train-pronunciation wrote (the one that ships)",
    )
    parser.add_argument("--backend", default="auto", help="which implementation of the ops")
    return parser
