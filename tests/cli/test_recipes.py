"""Recipes: their options come before all others."""

from __future__ import annotations

from typing import Any

import pytest

from camkd.cli.main import _build_parser, main
from camkd.cli.recipes import RECIPES, expand_recipe


def parse(*arguments: str) -> dict[str, Any]:
    """Return the parsed options of ``camkd train``."""
    options: dict[str, Any] = _build_parser().parse_args(expand_recipe(["train", *arguments]))["train"].as_dict()
    return options


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_sets_its_options(name: str) -> None:
    recipe_options = {key.replace("-", "_"): value for key, value in RECIPES[name].options.items()}
    expected = {**parse("--data", "easy"), **recipe_options, "recipe": name}
    assert parse("--data", "easy", "--recipe", name) == expected


@pytest.mark.parametrize("recipe", [["--recipe", "quick"], ["--recipe=quick"]])
def test_options_override_the_recipe_at_any_position(recipe: list[str]) -> None:
    assert parse("--epochs", "99", *recipe)["epochs"] == parse(*recipe, "--epochs", "99")["epochs"] == 99


@pytest.mark.parametrize("arguments", [[], ["train"], ["teacher", "--recipe", "quick"], ["train", "--recipe"]])
def test_other_command_lines_are_unchanged(arguments: list[str]) -> None:
    assert expand_recipe(arguments) == arguments


def test_unknown_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "slow"]) == 2
    expected = f"camkd: --recipe must be one of {', '.join(RECIPES)}, got 'slow'. Choose one of them.\n"
    assert capsys.readouterr().err == expected
