"""`rnnsearch evaluate`: BLEU and chrF of translations, or the word error of pronunciations."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rnnsearch import moses, pronunciation, scores
from rnnsearch.checkpoint import write_atomically
from rnnsearch.corpus import CorpusError, read_lines, read_pairs
from rnnsearch.evaluate_options import AS_IT_IS, Command, EvaluateSettings, read_command
from rnnsearch.progress import progress_bar, say
from rnnsearch.report import System, print_system
from rnnsearch.translator import Translator
from rnnsearch.vocabulary import Vocabulary


class Text(NamedTuple):
    """What is measured against, line by line."""

    sources: list[str] | None
    references: list[str]


def main(arguments: Sequence[str]) -> int:
    command = read_command(arguments)
    return _translations(command) if command.settings.words is None else _words(command)


def _words(command: Command) -> int:
    which = str(command.settings.words)
    directory = command.translator.models[0] if command.translator.models else pronunciation.MODEL_DIRECTORY
    if which == "shipped":
        words = pronunciation.read_words(directory / pronunciation.HELD_OUT)
    elif which in ("test", "dev"):
        words = pronunciation.split(pronunciation.read_cmudict())[which]
    else:
        words = pronunciation.read_words(Path(which))
    translator = pronunciation.load(directory, **command.translator.keywords())
    found = pronunciation.evaluate(translator, words)
    print(f"word error    {found.word_error:.2%} ({found.wrong_words} of {found.words} words)")
    print(f"phoneme error {found.phoneme_error:.2%} ({found.wrong_phonemes} of {found.phonemes} phonemes)")
    return 0


def _translations(command: Command) -> int:
    settings, asked = command.settings, command.translator
    scores.bleu()  # that it cannot be had is said before the model translates
    settings.check_outputs()
    text = _read(settings)
    translator = asked.translator() if asked.models else None
    vocabulary = translator if settings.vocabulary is None else Translator(settings.vocabulary)
    hypotheses = {path: _read_hypotheses(Path(path), len(text.references)) for path in settings.hypotheses}
    if translator is not None:
        name = " + ".join(map(str, asked.models))
        hypotheses[name] = _translate(translator, text, settings.write)
    known = None if vocabulary is None else _without_unknown(vocabulary, text)
    if settings.detokenise is not None:
        hypotheses = {name: moses.detokenise(lines, settings.detokenise) for name, lines in hypotheses.items()}
    for name, lines in hypotheses.items():
        if settings.tokenised != AS_IT_IS and scores.looks_tokenised(lines):
            say(f"{name} looks tokenised: --detokenise LANGUAGE puts it together, --tokenised measures it as it is")
    systems = [_measure(name, lines, text, known, settings) for name, lines in hypotheses.items()]
    lengths_of = "reference" if text.sources is None else "source"
    for number, system in enumerate(systems):
        if number:
            print()
        print_system(system, lengths_of=lengths_of)
    if settings.plot is not None:
        from rnnsearch.plot import plot_bleu_by_length

        buckets = {system.name: system.lengths for system in systems}
        kind = "BLEU" if settings.tokenised is None else "BLEU, tokenised, lower-cased"
        axis = f"sentence length (words of the {lengths_of})"
        plot_bleu_by_length(Path(settings.plot), buckets, length=axis, bleu=kind)
        print(f"BLEU by sentence length drawn in {settings.plot}", file=sys.stderr)
    if settings.json is not None:
        decoding = {name: value for name, value in vars(asked.decoding).items() if name != "n_best"}
        report = {
            "source": settings.source,
            "reference": settings.reference,
            "sentences": len(text.references),
            "lengths_of": lengths_of,
            "decoding": decoding if asked.models else None,
            "systems": [system.to_dict() for system in systems],
        }
        write_atomically({Path(settings.json): (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode()})
    return 0


def _translate(translator: Translator, text: Text, path: str | None) -> list[str]:
    """The model's translations, written to ``path`` too."""
    assert text.sources is not None
    with progress_bar(len(text.sources), "auto") as bar:
        found = translator.of_tokens([translator.source.split(source) for source in text.sources], bar.update)
    lines = [translator.text(entry[0]) if entry else "" for entry in found]
    if path is not None:
        write_atomically({Path(path): "".join(f"{line}\n" for line in lines).encode()})
    return lines


def _read(settings: EvaluateSettings) -> Text:
    reference = None if settings.reference is None else Path(settings.reference)
    if settings.source is None:
        assert reference is not None
        return Text(None, read_lines(reference))
    pairs = read_pairs(Path(settings.source), reference, keys=(settings.source_key, settings.target_key))
    return Text([source for source, _ in pairs], [reference for _, reference in pairs])


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
    name: str, hypotheses: list[str], text: Text, known: list[int] | None, settings: EvaluateSettings
) -> System:
    references, resamples = text.references, settings.resamples
    main: Callable[[], Any] = scores.bleu
    found = {
        "BLEU": scores.score(scores.bleu, hypotheses, references, resamples=resamples),
        "chrF": scores.score(scores.chrf, hypotheses, references, resamples=resamples),
    }
    if settings.tokenised is not None:
        main = scores.tokenised_bleu
        if settings.tokenised != AS_IT_IS:
            hypotheses, references = (moses.tokenise(lines, settings.tokenised) for lines in (hypotheses, references))
        found["tokenised BLEU"] = scores.score(main, hypotheses, references, resamples=resamples)
    lengths = [len(line.split()) for line in (text.sources or text.references)]
    buckets = scores.by_length(main, hypotheses, references, lengths, settings.lengths, resamples=resamples)
    no_unk = None
    if known:
        picked = (scores.pick(lines, known) for lines in (hypotheses, references))
        no_unk = scores.score(main, *picked, resamples=resamples)
    return System(name, len(references), found, buckets, None if known is None else len(known), no_unk)
