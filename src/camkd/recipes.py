"""Named, complete configurations of ``camkd train``, each with its cost and its measured result. Imports no torch.

``camkd train --recipe NAME`` is ``camkd train`` with the recipe's options; options that follow or precede it win.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from camkd.types import InputError


@dataclass(frozen=True)
class Recipe:
    """The options of a command, what they take, and what came of them; ``docs/evidence.md`` has the tables."""

    options: dict[str, str | int | float]
    cost: str
    result: str

    @property
    def flags(self) -> list[str]:
        """The options as a command line has them."""
        return [part for name, value in self.options.items() for part in (f"--{name}", str(value))]


RECIPES: dict[str, Recipe] = {}

FLAG = "--recipe"


def expanded(arguments: Sequence[str]) -> list[str]:
    """The command line with the options of its recipe in front, so that whatever else is given wins.

    Raises ``InputError`` that lists the names for a recipe that there is not.

    >>> expanded(["train", "--data", "shapes"])
    ['train', '--data', 'shapes']
    """
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith(f"{FLAG}=") else [word])]
    if FLAG not in words:
        return list(arguments)
    place = words.index(FLAG)
    name = words[place + 1] if place + 1 < len(words) else ""
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}.")
    command, *rest = [*words[:place], *words[place + 2 :]]
    return [command, *RECIPES[name].flags, *rest]
