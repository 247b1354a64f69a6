"""Command-line flags out of configuration dataclasses, and the parser's complaints in plain words."""

from __future__ import annotations

import re
from argparse import SUPPRESS, Action
from collections.abc import Collection
from dataclasses import fields
from typing import TypeVar, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

Config = TypeVar("Config")

ALIASES = {"data": ("--dataset",), "method": ("--terms",)}


def add_flags(parser: ArgumentParser, *configs: type, only: Collection[str] | None = None) -> None:
    """One flag a field of the configuration dataclasses (of those named in ``only``), its help from their docstring."""
    for config in configs:
        hints, helps = get_type_hints(config), _helps(config)
        for field in fields(config):
            if only is None or field.name in only:
                flag = "--" + field.name.replace("_", "-")
                names = (flag, *ALIASES.get(field.name, ()))
                kind = {"action": "store_true"} if hints[field.name] is bool else {"type": hints[field.name]}
                parser.add_argument(*names, **kind, default=field.default, help=helps[field.name])


def _helps(config: type) -> dict[str, str]:
    return dict(re.findall(r"^ +(\w+): (.+?)\.?$", config.__doc__ or "", re.MULTILINE))


class PlainHelp(DefaultHelpFormatter):
    """What an option is for and its default, where there is one that the text does not say; no types."""

    def _get_help_string(self, action: Action) -> str:
        if not action.option_strings or isinstance(action.default, bool) or action.default in (None, "", SUPPRESS):
            return action.help or ""
        told = "" if "(default: " in (action.help or "") else " (default: %(default)s)"
        return f"{action.help or ''}{told}"


def from_namespace(config: type[Config], options: Namespace) -> Config:
    """The configuration ``config`` with the values that were given, and its own for those that were not offered."""
    return config(**{field.name: options[field.name] for field in fields(config) if field.name in options})  # type: ignore[arg-type]


def clean_parser_error(message: str) -> str:
    """The parser's complaint in one line, with the flag as the user typed it."""
    text = re.sub(r'Parser key "(?:\w+\.)?(\w+)":', lambda key: f"--{key[1].replace('_', '-')}:", message)
    text = re.sub(r"(?<=are required: )\w+\.", "", re.sub(r"<class '(\w+)'>", r"\1", text))
    text = re.sub(r"(?s)Does not validate .*?\[(\w+), NoneType\].*Given value: ", r"Expected a \1. Got value: ", text)
    text = re.sub(
        r'expected "(\w+)\.command" to be one of \{(.*?)\}, but .*',
        lambda found: f"say after {found[1]} what to do: {found[2].replace(',', ', ')}.",
        text,
    )
    text = text.replace("a typing.Literal", "one of ").replace(" a int", " an int")
    return " ".join(text.split())
