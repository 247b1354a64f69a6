"""Recipes: complete settings of ``camkd train`` by name, with measured cost and result. Imports no torch.

``camkd train --recipe NAME`` uses the options of the recipe. Options on the command line override them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from camkd.types import InputError


@dataclass(frozen=True)
class Recipe:
    """A named set of options of ``camkd train``.

    Args:
        options: Values of options by name, without leading dashes.
        cost: Measured training time and machine.
        result: Measured accuracy and dataset.
    """

    options: dict[str, str | int | float]
    cost: str
    result: str

    @property
    def flags(self) -> list[str]:
        """The options as command-line arguments."""
        return [argument for name, value in self.options.items() for argument in (f"--{name}", str(value))]


RECIPES: dict[str, Recipe] = {
    "quick": Recipe(
        {"teacher": "resnet20", "teacher-epochs": 8, "epochs": 5},
        "3 to 9 minutes for 10,000 images on 2 cores, depending on the machine",
        "shapes: 90.0 and 87.1 % test accuracy, 84.0 and 86.4 % without a teacher (one run on each of two machines)",
    ),
    "standard": Recipe(
        {"teacher": "resnet11", "teacher-epochs": 20, "epochs": 6},
        "2 hours for 45,000 images on one busy core, of which 94 minutes train the teacher",
        "CIFAR-10 (JPEG q75): 83.8 ± 0.3 %, its teacher 89.2 % (5 runs)",
    ),
    "record": Recipe(
        {"teacher": "resnet11", "teacher-epochs": 20, "epochs": 30},
        "3 hours for 45,000 images on one busy core",
        "CIFAR-10 (JPEG q75): 87.8 ± 0.3 %, its teacher 89.2 % (3 runs)",
    ),
    "photo-quick": Recipe(
        {
            "teacher": "timm:tf_efficientnet_lite0.in1k",
            "size": 64,
            "epochs": 40,
            "augment-epochs": 2,
            "method": "ce=0.1,lskd=9:T=2,cam=1:pool=4",
        },
        "about 40 minutes on one core for 3,781 photographs, of which 17 minutes compute teacher outputs",
        "clothing photographs: 72.8 % test accuracy, 70.6 % without a teacher (2 runs)",
    ),
    "photo": Recipe(
        {
            "teacher": "timm:tf_efficientnet_lite0.in1k",
            "size": 64,
            "epochs": 40,
            "augment-epochs": 8,
            "method": "cam-kd",
        },
        "about half an hour on 2 cores for 3,781 photographs, the sum of its measured parts",
        "clothing photographs: 79.9 % test accuracy, 76.7 % without a teacher (3 runs)",
    ),
}
"""Recipes by name. The measurements are in docs/evidence.md."""


def expand_recipe(arguments: Sequence[str]) -> list[str]:
    """Insert the options of ``--recipe NAME`` before all other options, which override them.

    Args:
        arguments: The command line without the program.

    Returns:
        The command line with the inserted options. ``--recipe NAME`` is kept.

    Raises:
        InputError: If there is no such recipe, or more than one recipe is given.

    Example:
        >>> expand_recipe(["train", "--data", "shapes"])
        ['train', '--data', 'shapes']
    """
    tokens: list[str] = []
    for argument in arguments:
        tokens += argument.split("=", 1) if argument.startswith("--recipe=") else [argument]
    if tokens[:1] != ["train"] or "--recipe" not in tokens[:-1]:
        return list(arguments)
    if tokens.count("--recipe") > 1:
        raise InputError(
            "--recipe must be given once, got it twice. Give one recipe, and individual options to override it."
        )
    name = tokens[tokens.index("--recipe") + 1]
    if name not in RECIPES:
        raise InputError(f"--recipe must be one of {', '.join(RECIPES)}, got {name!r}. Choose one of them.")
    return [tokens[0], *RECIPES[name].flags, *arguments[1:]]
