"""Complete settings of ``camkd train`` by name, each with what it cost and what came of it. Imports no torch.

``camkd train --recipe NAME`` is ``camkd train`` with the recipe's options; whatever else is given wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from camkd.types import InputError


@dataclass(frozen=True)
class Recipe:
    """Options of ``camkd train``; the time that they took and the accuracy that they reached, and on what."""

    options: dict[str, str | int | float]
    cost: str
    result: str

    @property
    def flags(self) -> list[str]:
        """The options as a command line has them."""
        return [word for name, value in self.options.items() for word in (f"--{name}", str(value))]


RECIPES: dict[str, Recipe] = {
    "quick": Recipe(
        {"teacher": "resnet20", "teacher-epochs": 8, "epochs": 5},
        "3 minutes for 10,000 pictures on 2 cores",
        "shapes: 90.0 % of the test pictures, 84.0 % without a teacher (one run)",
    ),
    "standard": Recipe(
        {"teacher": "resnet11", "teacher-epochs": 20, "epochs": 6},
        "2 hours for 45,000 pictures on one busy core, 94 minutes of them for the teacher",
        "CIFAR-10 (JPEG q75): 83.8 ± 0.3 %, its teacher 89.2 % (5 runs)",
    ),
    "record": Recipe(
        {"teacher": "resnet11", "teacher-epochs": 20, "epochs": 30},
        "3 hours for 45,000 pictures on one busy core",
        "CIFAR-10 (JPEG q75): 87.8 ± 0.3 %, its teacher 89.2 % (3 runs)",
    ),
}
"""docs/evidence.md has the tables."""


def expand_recipe(arguments: Sequence[str]) -> list[str]:
    """The command line with the options of the recipe that it names in front, so that whatever else is given wins.

    Raises ``InputError`` that lists the names where there is no such recipe.

    >>> expanded(["train", "--data", "shapes"])
    ['train', '--data', 'shapes']
    """
    words = [part for word in arguments for part in word.split("=", 1 if word.startswith("--recipe=") else 0)]
    if words[:1] != ["train"] or "--recipe" not in words[:-1]:
        return list(arguments)
    if words.count("--recipe") > 1:
        raise InputError("--recipe is given twice: give one, and single options for what shall differ.")
    name = words[words.index("--recipe") + 1]
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}.")
    return [words[0], *RECIPES[name].flags, *arguments[1:]]
