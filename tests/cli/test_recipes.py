"""Settings by name: they stand before what else is given."""

from __future__ import annotations

from typing import Any

import pytest

from camkd.cli.main import _parser, main
from camkd.cli.recipes import RECIPES, expand_recipe


def options(*words: str) -> dict[str, Any]:
    """What ``camkd train`` makes of a command line."""
    found: dict[str, Any] = _parser().parse_args(expand_recipe(["train", *words]))["train"].as_dict()
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_options(name: str) -> None:
    found = options("--data", "easy", "--recipe", name)
    assert found == {**options("--data", "easy"), **{k.replace("-", "_"): v for k, v in RECIPES[name].options.items()},
                     "recipe": name}  # fmt: skip


@pytest.mark.parametrize("recipe", [["--recipe", "quick"], ["--recipe=quick"]])
def test_whatever_else_is_given_wins_wherever_it_stands(recipe: list[str]) -> None:
    assert options("--epochs", "99", *recipe)["epochs"] == options(*recipe, "--epochs", "99")["epochs"] == 99


@pytest.mark.parametrize("words", [[], ["train"], ["teacher", "--recipe", "quick"], ["train", "--recipe"]])
def test_other_command_lines_stay_as_they_are(words: list[str]) -> None:
    assert expand_recipe(words) == words


def test_one_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "slow"]) == 2
    assert capsys.readouterr().err == f"camkd: there is no recipe 'slow': choose one of {', '.join(RECIPES)}.\n"
