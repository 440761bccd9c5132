"""What `rnnsearch align` is asked for, on the command line or in a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rnnsearch.command_line import add_settings, new_parser, parse, read_settings
from rnnsearch.outputs import check_results
from rnnsearch.translate_options import (
    TranslatorOptions,
    add_translator_options,
    check_texts,
    read_translator_options,
)

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


@dataclass(frozen=True)
class AlignSettings:
    """What is aligned, and what is written besides the links.

    Args:
        source: texts, instead of TEXT; or a .tsv or .jsonl file with both sides.
        target: their translations, line by line.
        source_key: the source's key in a .jsonl file.
        target_key: the target's key in a .jsonl file.
        lines: a line or first-last of the files, from 1; all where not given.
        tokens: align the model's tokens, not the words between white space.
        plot: a heat map as the paper's figure 3 (.png, .svg, .pdf); of several pairs, FILE-1.png and so on.
        html: one page where pointing at a word shows its attention.
        json: words, weights, links and score, an object a line.
        copies: above 0, a test of the attention. The first so many pairs in which a number or a name stands on both
            sides are taken; how many of these words attended most to where they were copied from?
        construct: instead of the first ones, copies takes new pairs. In pairs with one such word, another number or
            name of the text takes its place on both sides.
        construct_seed: decides which number or name.
    """

    source: str | None = None
    target: str | None = None
    source_key: str = "source"
    target_key: str = "target"
    lines: str | None = None
    tokens: bool = False
    plot: str | None = None
    html: str | None = None
    json: str | None = None
    copies: int = 0
    construct: bool = False
    construct_seed: int = 1

    def __post_init__(self) -> None:
        if self.copies < 0:
            raise ValueError(f"--copies must be at least 0; got {self.copies}")
        if self.construct and not self.copies:
            raise ValueError("--construct says how --copies gets its pairs")
        self.places()

    def places(self) -> range | None:
        """Those of ``lines``, from 0."""
        if self.lines is None:
            return None
        first, dash, last = self.lines.partition("-")
        try:
            places = range(int(first) - 1, int(last if dash else first))
        except ValueError:
            places = range(0)
        if places.start < 0 or not places:
            raise ValueError(f"--lines must be a line or first-last, from 1; got {self.lines}")
        return places

    def check_outputs(self) -> None:
        """What would fail at the end is said at the beginning."""
        inputs = {"--source": self.source, "--target": self.target}
        check_results({"--html": self.html, "--json": self.json}, self.plot, inputs)


@dataclass(frozen=True)
class Command:
    settings: AlignSettings
    translator: TranslatorOptions
    texts: list[str]

    @property
    def has_targets(self) -> bool:
        if self.settings.source is None:
            return len(self.texts) == 2
        return self.settings.target is not None or Path(self.settings.source).suffix in (".tsv", ".jsonl")


def read_command(arguments: Sequence[str]) -> Command:
    parser = new_parser("align", "[options] [TEXT [TRANSLATION]]", DESCRIPTION, EPILOG)
    help = "one text, and its translation where that is to be given"
    parser.add_argument("texts", nargs="*", default=[], metavar="TEXT", help=help)
    add_settings(parser, AlignSettings)
    add_translator_options(parser, leave_out=("n_best",))
    parsed = parse(parser, arguments)
    command = Command(read_settings(AlignSettings, parsed), read_translator_options(parsed), list(parsed.texts))
    settings, texts, asked = command.settings, command.texts, command.translator
    if bool(texts) == (settings.source is not None):
        raise ValueError("give TEXT or --source, one of them")
    if len(texts) > 2:
        raise ValueError(f"TEXT is one text and its translation; got {len(texts)}")
    check_texts(texts)
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise ValueError(f"text {number} is empty: there is nothing to align")
    if texts and (settings.target is not None or settings.lines is not None):
        raise ValueError("--target and --lines belong to --source")
    if settings.copies and not command.has_targets:
        raise ValueError("--copies needs both sides")
    if command.has_targets:
        if len(asked.models) > 1:
            raise ValueError("several models do not read a translation that is given: give one --model")
        if changed := asked.changed("batch_size"):
            raise ValueError(f"--{changed[0]} says how the model translates; here the translation is given")
    return command
