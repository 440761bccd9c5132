"""What the commands' options share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value


def add_decoding(parser: Any) -> None:
    """How a model translates, for commands that translate by the way; `rnnsearch translate` has every option."""
    parser.add_argument("--beam-size", type=positive, default=5, metavar="K", help="hypotheses kept for each text (5)")
    parser.add_argument(
        "--length-penalty",
        choices=("none", "average", "wu"),
        default="none",
        help="a hypothesis' log-probability is divided by 1, its length, or ((5 + length) / 6)^alpha (none)",
    )
    parser.add_argument("--alpha", type=float, default=0.6, help="of wu (0.6)")
    parser.add_argument(
        "--unknown",
        choices=("ban", "keep", "replace"),
        default="ban",
        help="a token outside the vocabulary never comes, comes as <unk>, or is replaced by the source word that it "
        "attended to (ban)",
    )
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="texts at a time (64)")


def decoding(options: argparse.Namespace) -> dict[str, Any]:
    """Those of :func:`add_decoding`, for a ``Translator``."""
    names = ("beam_size", "length_penalty", "alpha", "unknown", "batch_size")
    return {name: getattr(options, name) for name in names}


def spelled(arguments: Sequence[str], parser: Any) -> list[str]:
    """``--beam-size`` and ``--beam_size`` are the same option, whichever of them the parser knows."""
    known = {option for action in parser._actions for option in action.option_strings}
    options = list(arguments)
    end = options.index("--") if "--" in options else len(options)
    for place, argument in enumerate(options[:end]):
        name, equals, value = argument.partition("=")
        for one, other in ("-_", "_-"):
            swapped = "--" + name[2:].replace(one, other)
            if name.startswith("--") and name not in known and swapped in known:
                options[place] = swapped + equals + value
    return options
