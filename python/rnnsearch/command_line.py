"""What the commands' parsers share: how options are made of dataclasses, spelled and explained."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

Settings = TypeVar("Settings")
_KINDS = {str: "a string", int: "an integer"}
_BOOLEANS = ("true", "false", "yes", "no", "on", "off", "1", "0")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value


class Several(argparse.Action):
    """An option of several values: with ``repeated`` it is given again for each, otherwise they stand behind it."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, *, element: type = str, repeated: bool = False, **others: Any
    ) -> None:
        super().__init__(option_strings, dest, nargs=None if repeated else "+", **others)
        self.element, self.repeated = element, repeated

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            found = [self.element(value) for value in ([values] if self.repeated else values)]
        except ValueError:
            raise argparse.ArgumentError(self, f"each must be {_KINDS[self.element]}; got {' '.join(values)}") from None
        before = getattr(namespace, self.dest) if self.repeated else None
        setattr(namespace, self.dest, [*several(self.dest, before or [], self.element), *found])


def several(name: str, value: Any, element: type) -> list[Any]:
    """A YAML file's value of an option that takes several: one need be no list."""
    values = value if isinstance(value, list) else [value]
    if not all(type(entry) is element for entry in values):
        raise ValueError(f"`{name}` must be {_KINDS[element]} or a list of them; got {value!r}")
    return values


class Help(argparse.RawDescriptionHelpFormatter):
    """Behind what an option does, its default; where none is shown, the text says what is done."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        if isinstance(default, bool):
            default = str(default).lower()
        elif isinstance(default, (list, tuple)):
            default = " ".join(map(str, default))
        if default in (None, "", argparse.SUPPRESS):
            return action.help or ""
        return f"{(action.help or '').rstrip('.')} (default: {default})"

    def _expand_help(self, action: argparse.Action) -> str:
        return self._get_help_string(action)  # a per cent sign is one

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.dest.rpartition(".")[2].upper()


def new_parser(command: str, usage: str, description: str, epilog: str, *, config: bool = True) -> ArgumentParser:
    """That of `rnnsearch command`; with ``config`` a YAML file says what its options say."""
    parser = ArgumentParser(
        prog=f"rnnsearch {command}",
        usage=f"rnnsearch {command} {usage}",
        description=description + "\nEvery option below is a key of the YAML file of --config, too." * config,
        epilog=epilog,
        formatter_class=Help,
        allow_abbrev=False,
    )
    if config:
        parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of the fields below")
    return parser


def add_settings(
    parser: ArgumentParser,
    settings: type,
    *,
    leave_out: Collection[str] = (),
    special: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """An option for each field of a dataclass, explained by its docstring.

    Args:
        special: what argparse is to be told of fields that take several values, or none.
    """
    special = special or {}
    described = docstring_parser.parse(settings.__doc__ or "")
    group = parser.add_argument_group((described.short_description or settings.__name__).rstrip("."))
    group.add_class_arguments(settings, as_group=False, skip={*leave_out, *special})
    texts = {parameter.arg_name: parameter.description for parameter in described.params}
    for field in fields(settings):
        if field.name in special:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            group.add_argument(f"--{field.name}", default=default, help=texts[field.name], **special[field.name])


def read_settings(settings: type[Settings], parsed: Namespace) -> Settings:
    """The dataclass that :func:`add_settings` made options of."""
    names = [field.name for field in fields(settings) if field.name in parsed]  # type: ignore[arg-type]
    values = {name: parsed[name] for name in names}
    return settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    parsed = parser.parse_args(spelled(arguments, parser))
    for action in parser._actions:
        if (isinstance(action, Several) or action.nargs == "*") and parsed.get(action.dest) != action.default:
            parsed[action.dest] = several(action.dest, parsed[action.dest], getattr(action, "element", str))
    return parsed


def spelled(arguments: Sequence[str], parser: Any) -> list[str]:
    """``--beam-size`` and ``--beam_size`` are the same option, whichever of them the parser knows; ``--scores`` alone
    is ``--scores=true``."""
    known = {option: action for action in parser._actions for option in action.option_strings}
    options = list(arguments)
    end = options.index("--") if "--" in options else len(options)
    for place, argument in enumerate(options[:end]):
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            continue
        for one, other in ("-_", "_-"):
            swapped = "--" + name[2:].replace(one, other)
            if name not in known and swapped in known:
                name = swapped
        options[place] = name + equals + value
        following = options[place + 1] if place + 1 < end else ""
        if _is_switch(known.get(name)) and not equals and following.lower() not in _BOOLEANS:
            options[place] = f"{name}=true"
    return options


def _is_switch(action: Any) -> bool:
    return getattr(action, "_typehint", None) is bool
