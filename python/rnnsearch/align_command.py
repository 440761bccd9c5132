"""`rnnsearch align`: what each word of a translation attended to, as links, pictures, JSON and a page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rnnsearch import copies
from rnnsearch.alignment import Alignment, align_pairs, in_words, of_translation
from rnnsearch.checkpoint import write_atomically
from rnnsearch.command_line import add_decoding, decoding, positive, spelled
from rnnsearch.corpus import ParallelText, Skips
from rnnsearch.evaluate_command import read_lines
from rnnsearch.page import write_page
from rnnsearch.translator import Translator

DESCRIPTION = """Show what each word of a translation attended to. Where the translation is given, the model is made to
read it; where it is not, the model translates. Prints the links of each pair, source-target from 0 between spaces
(Pharaoh's format): what each word attended to most."""
EPILOG = """examples:
  rnnsearch align --model run/best "ein Hund läuft" "a dog is running" --plot dog.png
  rnnsearch align --model run/best "ein Hund läuft"                                translated, then aligned
  rnnsearch align --model run/best --source test.de --target test.en > links
  rnnsearch align --model run/best --source test.de --lines 1-20 --html page.html  the model's own translations
  rnnsearch align --model run/best --source dev.tsv --copies 200 --construct       is the attention right?
"""


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(spelled(arguments, parser))
    _check(parser, options)
    translator = Translator(options.model, backend=options.backend, **decoding(options))
    texts = _read(options)
    if options.copies:
        # The first so many with a copy; or as many new ones, made from all.
        pairs = copies.with_copies(texts, len(texts) if options.construct else options.copies)
        if not pairs:
            raise ValueError(f"{options.source} has no pair with a number or a name that stands once on either side")
        texts = copies.construct(pairs, options.copies, seed=options.seed) if options.construct else pairs
    of_tokens, sides = _align(translator, texts, options), (translator.source, translator.target)
    alignments = of_tokens if options.tokens else [in_words(alignment, *sides) for alignment in of_tokens]
    _write(alignments, options)
    if options.copies:
        found = copies.measure(of_tokens, *sides)
        print(
            f"copied words that attended most to their source: {found.attended} of {found.copies} ({found.share:.1%})"
        )
    else:
        for alignment in alignments:
            print(alignment.pharaoh())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rnnsearch align",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("text", nargs="*", metavar="TEXT", help="one text, and its translation if it is to be given")
    parser.add_argument("--model", type=Path, required=True, metavar="DIRECTORY", help="that train wrote (RUN/best)")
    parser.add_argument("--backend", default="auto", help="which implementation of the ops (auto)")
    files = parser.add_argument_group("files, instead of TEXT")
    files.add_argument("--source", type=Path, metavar="FILE", help="texts; or a .tsv or .jsonl file with both sides")
    files.add_argument("--target", type=Path, metavar="FILE", help="their translations, line by line")
    files.add_argument("--lines", type=_lines, metavar="N-N", help="these lines only, from 1 (all)")
    files.add_argument(
        "--keys",
        nargs=2,
        default=("source", "target"),
        metavar=("SOURCE", "TARGET"),
        help="of the two sides in a .jsonl file (source target)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--tokens", action="store_true", help="align the model's tokens, not the words between white space"
    )
    add_decoding(how)
    out = parser.add_argument_group("output, besides the links")
    out.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="a heat map as the paper's figure 3 (also .svg, .pdf); of several pairs, FILE-1.png and so on",
    )
    out.add_argument("--html", type=Path, metavar="FILE", help="one page where pointing at a word shows its attention")
    out.add_argument("--json", type=Path, metavar="FILE", help="words, weights, links and score, an object a line")
    test = parser.add_argument_group("a test of the attention")
    test.add_argument(
        "--copies",
        type=positive,
        metavar="N",
        help="take the first N pairs in which a number or a name stands on both sides, and print how many of these "
        "words attended most to where they were copied from",
    )
    test.add_argument(
        "--construct",
        action="store_true",
        help="instead of the first N, N new pairs: in pairs with one such word, another number or name of the text "
        "takes its place on both sides",
    )
    test.add_argument("--seed", type=int, default=1, help="decides which number or name (1)")
    return parser


def _lines(text: str) -> range:
    first, _, last = text.partition("-")
    lines = range(int(first) - 1, int(last or first))
    if lines.start < 0 or not lines:
        raise argparse.ArgumentTypeError(f"must be a line or first-last, from 1; got {text}")
    return lines


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if bool(options.text) == (options.source is not None):
        parser.error("give TEXT or --source, one of them")
    if len(options.text) > 2:
        parser.error(f"TEXT is one text and its translation; got {len(options.text)}")
    if options.text and (options.target is not None or options.lines is not None):
        parser.error("--target and --lines belong to --source")
    if options.copies and not _has_targets(options):
        parser.error("--copies needs both sides")
    if options.construct and not options.copies:
        parser.error("--construct says how --copies gets its pairs")


def _has_targets(options: argparse.Namespace) -> bool:
    if options.source is None:
        return len(options.text) == 2
    return options.target is not None or options.source.suffix in (".tsv", ".jsonl")


def _read(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Pairs; the second of each is empty where there is none."""
    if options.text:
        pairs = [(options.text[0], options.text[1] if len(options.text) == 2 else "")]
    elif _has_targets(options):
        skips = Skips("error", lambda said: None)
        pairs = list(ParallelText(options.source, options.target, skips, keys=tuple(options.keys)))
    else:
        pairs = [(source, "") for source in read_lines(options.source)]
    if options.lines is not None:
        if options.lines.stop > len(pairs):
            raise ValueError(f"{options.source} has {len(pairs)} lines; --lines asks for {options.lines.stop}")
        pairs = [pairs[place] for place in options.lines]
    for place, (source, target) in enumerate(pairs, 1):
        if not source.strip() or (_has_targets(options) and not target.strip()):
            raise ValueError(f"text {place} is empty: there is nothing to align")
    return pairs


def _align(translator: Translator, pairs: Sequence[tuple[str, str]], options: argparse.Namespace) -> list[Alignment]:
    if _has_targets(options):
        return align_pairs(translator, pairs, batch_size=options.batch_size, words=False)
    sources = [source for source, _ in pairs]
    found = translator.hypotheses(sources)
    if options.text:
        print(translator.text(found[0][0]), file=sys.stderr)
    pairs_found = zip(sources, found, strict=True)
    return [of_translation(translator, source, entry[0], words=False) for source, entry in pairs_found]


def _write(alignments: Sequence[Alignment], options: argparse.Namespace) -> None:
    if options.json is not None:
        lines = (json.dumps(alignment.to_dict(), ensure_ascii=False) for alignment in alignments)
        write_atomically({options.json: "".join(f"{line}\n" for line in lines).encode()})
    if options.html is not None:
        write_page(options.html, alignments, title=f"What {'/'.join(options.model.parts[-2:])} attended to")
    if options.plot is not None:
        from rnnsearch.plot import plot_alignment

        for number, alignment in enumerate(alignments, 1):
            path = options.plot
            if len(alignments) > 1:
                path = path.with_name(f"{path.stem}-{number}{path.suffix}")
            plot_alignment(path, alignment.source, alignment.target, alignment.attn_weights)
