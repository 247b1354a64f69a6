"""Flags from configuration dataclasses, and readable parser errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from jsonargparse import ArgumentParser

from camkd.cli.flags import add_flags, clean_parser_error, from_namespace


@dataclass(frozen=True)
class Settings:
    """Settings.

    Args:
        data: the images.
        weight_decay: weight decay, if any.
        on_nan: stop or skip.
        verbose: print more.
    """

    data: str = "shapes"
    weight_decay: float | None = None
    on_nan: Literal["stop", "skip"] = "stop"
    verbose: bool = False


def make_parser(**options: set[str]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    add_flags(parser, Settings, **options)
    return parser


def test_flags_set_fields() -> None:
    arguments = ["--dataset", "cifar10", "--weight-decay", "0.1", "--on-nan", "skip", "--verbose"]
    options = make_parser().parse_args(arguments)
    assert from_namespace(Settings, options) == Settings("cifar10", 0.1, "skip", True)
    assert from_namespace(Settings, make_parser().parse_args([])) == Settings()


def test_flags_have_the_documentation_of_fields() -> None:
    page = make_parser().format_help()
    assert "weight decay, if any" in page
    assert "--weight-decay" in page


@pytest.mark.parametrize("options", [{"only": {"data"}}, {"exclude": {"weight_decay", "on_nan", "verbose"}}])
def test_selected_flags(options: dict[str, set[str]]) -> None:
    parsed = make_parser(**options).parse_args([])
    assert list(parsed.keys()) == ["data"]
    assert from_namespace(Settings, parsed) == Settings()


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("Parser key \"epochs\":\n  Expected a <class 'int'>. Got value: many", "an integer, got 'many'"),
        ("Parser key \"a.batch_size\":\n  Expected a <class 'int'>. Got value: ", "an integer, got ''"),
        (
            'Parser key "lr":\n  Does not validate against any of the Union subtypes\n'
            "  Subtypes: [<class 'float'>, <class 'NoneType'>]\n  Errors:\n    - Expected a <class 'float'>\n"
            "    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: fast",
            "a number, got 'fast'",
        ),
        (
            "Parser key \"on_nan\":\n  Expected a typing.Literal['stop', 'skip']. Got value: wait",
            "one of stop, skip, got 'wait'",
        ),
    ],
)
def test_wrong_type_or_choice(message: str, line: str) -> None:
    flag = {"epochs": "--epochs", "a.batch_size": "--batch-size", "lr": "--lr", "on_nan": "--on-nan"}
    name = message.split('"')[1]
    assert clean_parser_error(message) == f"{flag[name]} must be {line}."


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("the following arguments are required: evaluate.run", "the following arguments are required: run"),
        (
            'expected "cache.command" to be one of {list,verify}, but it was not provided.',
            "cache must be followed by one of list, verify, got none.",
        ),
        ('Parser key "config":\n  File does not exist', "--config: File does not exist"),
        ("unrecognized arguments: --nope", "unrecognized arguments: --nope"),
    ],
)
def test_other_parser_errors(message: str, line: str) -> None:
    assert clean_parser_error(message) == line
