"""Command-line flags of configuration dataclasses, help format, and readable parser errors."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Collection
from dataclasses import fields
from typing import TypeVar, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

Config = TypeVar("Config")

ALIASES = {"data": ("--dataset",), "method": ("--terms",)}
"""Further names of flags."""

TYPE_NAMES = {"int": "an integer", "float": "a number", "str": "a string"}
"""Descriptions of option types in error messages."""


def add_flags(
    parser: ArgumentParser, *configs: type, only: Collection[str] | None = None, exclude: Collection[str] = ()
) -> None:
    """Add one flag per field of configuration dataclasses, with the help texts of their docstrings.

    Args:
        parser: The parser.
        configs: Dataclasses with an ``Args`` section.
        only: Names of fields to add. None: all fields.
        exclude: Names of fields to leave out.
    """
    for config in configs:
        hints = get_type_hints(config)
        docs = docstring_parser.parse(_docstring(config), docstring_parser.DocstringStyle.GOOGLE)
        helps = {param.arg_name: (param.description or "").rstrip(".") for param in docs.params}
        for field in fields(config):
            if field.name in exclude or (only is not None and field.name not in only):
                continue
            flag = "--" + field.name.replace("_", "-")
            names = (flag, *ALIASES.get(field.name, ()))
            kind = {"action": "store_true"} if hints[field.name] is bool else {"type": hints[field.name]}
            parser.add_argument(*names, **kind, default=field.default, help=helps[field.name])


def _docstring(config: type) -> str:
    """Return the docstring of a class, from its source if ``python -OO`` or ``PYTHONOPTIMIZE=2`` removed it."""
    if sys.flags.optimize < 2:
        return config.__doc__ or ""
    definition = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(definition, ast.ClassDef)
    return ast.get_docstring(definition) or ""


class PlainHelp(DefaultHelpFormatter):
    """Help formatter that omits types, and appends the default of an option unless the help text has it."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if not action.option_strings or isinstance(action.default, bool) or action.default in (None, "", SUPPRESS):
            return text
        return text if "(default: " in text else f"{text} (default: %(default)s)"


def from_namespace(config: type[Config], options: Namespace) -> Config:
    """Build a configuration from parsed options. Fields without an option get their defaults."""
    values = {field.name: options[field.name] for field in fields(config) if field.name in options}  # type: ignore[arg-type]
    return config(**values)


def clean_parser_error(message: str) -> str:
    """Rewrite a parser error as one line, with the flag as the user typed it.

    Args:
        message: The error of the parser.

    Returns:
        The rewritten message.

    Example:
        >>> clean_parser_error("--epochs: Expected a <class 'int'>. Got value: many")
        "--epochs must be an integer, got 'many'."
    """
    message = re.sub(r"(?<=are required: )\w+\.", "", " ".join(message.split()))
    missing = re.fullmatch(r'expected "(\w+)\.command" to be one of \{(.*?)\}, but .*', message)
    if missing:
        return f"{missing[1]} must be followed by one of {missing[2].replace(',', ', ')}, got none."
    message = re.sub(r'Parser key "(?:\w+\.)?(\w+)"', lambda match: f"--{match[1].replace('_', '-')}", message)
    wrong = re.fullmatch(r"(--[\w-]+): (.*?)(?:\. Got value| Given value(?: type: .*? Given value)?): ?(.*)", message)
    if not wrong:
        return message
    flag, expected, value = wrong.groups()
    choices = re.search(r"Literal\[(.*?)\]", expected)
    if choices:
        rule = "one of " + choices[1].replace("'", "")
    else:
        rule = " or ".join(name for type_name, name in TYPE_NAMES.items() if f"'{type_name}'" in expected) or expected
    return f"{flag} must be {rule}, got {value!r}."
