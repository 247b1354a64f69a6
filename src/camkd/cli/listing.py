"""The lists of the command ``list``: models with their cost, methods with their source, recipes and datasets.

The functions import the modules they need when they are called. Only `count_costs` imports torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from camkd.cli.recipes import RECIPES
from camkd.distill.methods import METHODS
from camkd.types import InputError

Table = tuple[list[str], list[list[str]]]
"""Column headers and rows."""

COSTS_FILE = Path(__file__).parents[1] / "models" / "costs.json"
"""File with the summary and the cost of every built-in model for ``COSTS_SIZE_AND_CLASSES``. No torch is needed."""

COSTS_SIZE_AND_CLASSES = (32, 10)
"""Image size and number of classes for which the costs in ``COSTS_FILE`` hold."""

EXTERNAL_LIBRARIES = ("timm", "torchvision")
"""Optional libraries with further models."""


def list_items(kind: str, size: int, classes: int) -> tuple[dict[str, Any], Table]:
    """Return a list as data and as a table.

    The table may have rows that are not in the data: names such as ``timm:NAME`` and ``FOLDER``, which stand for any
    model of a library and for any folder of images.

    Args:
        kind: ``models``, ``methods``, ``recipes`` or ``data``.
        size: Image size for which the cost of models is listed.
        classes: Number of classes for which the cost of models is listed.

    Returns:
        The list as data, for ``--json``, and as a table.

    Raises:
        InputError: If there is no such list, if a number is below 1, or if images of this size are too small for a
            model.
    """
    lists = {
        "models": lambda: list_models(size, classes),
        "methods": list_methods,
        "recipes": list_recipes,
        "data": list_datasets,
    }
    if kind not in lists:
        raise InputError(f"KIND must be one of {', '.join(lists)}, got {kind!r}. Choose one of them.")
    for name, value in (("size", size), ("classes", classes)):
        if value < 1:
            raise InputError(f"--{name} must be 1 or more, got {value}. Choose a larger number.")
    return lists[kind]()


def list_models(size: int, classes: int) -> tuple[dict[str, Any], Table]:
    """List the built-in models with their cost, and in the table also the external libraries.

    The form of a model's maps is ``exact``, ``gradient`` or ``partial``, see `camkd.cams.Form`.

    Args:
        size: Side of the images in pixels.
        classes: Number of classes.

    Returns:
        The models as data, for ``--json``, and as a table.

    Raises:
        InputError: If images of this size are too small for a model.
    """
    costs = stored_costs() if (size, classes) == COSTS_SIZE_AND_CLASSES else count_costs(size, classes)
    rows: list[list[str]] = []
    for name, cost in costs.items():
        map_size = "x".join(map(str, cost["map_size"]))
        macs = f"{cost['macs'] / 1e6:,.1f} M"
        rows.append([name, f"{cost['params']:,}", macs, map_size, cost["map_form"], cost["summary"]])
    for library in EXTERNAL_LIBRARIES:
        summary = f"a classifier of {library} with random weights; NAME.TAG: with the pretrained weights TAG"
        rows.append([f"{library}:NAME", "", "", "", "", summary])
    return costs, (["model", "parameters", "MACs", "map size", "maps", "description"], rows)


def stored_costs() -> dict[str, dict[str, Any]]:
    """Read ``COSTS_FILE``."""
    costs: dict[str, dict[str, Any]] = json.loads(COSTS_FILE.read_text(encoding="utf-8"))
    return costs


def count_costs(size: int, classes: int) -> dict[str, dict[str, Any]]:
    """Compute the cost of every built-in model, in the format of ``COSTS_FILE``.

    Args:
        size: Side of the images in pixels.
        classes: Number of classes.

    Returns:
        Costs by name of the model.

    Raises:
        InputError: If images of this size are too small for a model.
    """
    import torch

    from camkd.models import MODELS
    from camkd.models.profile import profile_model

    stored = stored_costs()
    costs = {}
    for name, factory in MODELS.items():
        with torch.device("meta"):  # shapes only: no memory, no computation
            cost = profile_model(name, factory(classes, size), size)
        costs[name] = {**stored[name], "params": cost.params, "macs": cost.macs, "map_size": list(cost.map_size)}
    return costs


def list_methods() -> tuple[dict[str, Any], Table]:
    """List the distillation methods with their loss terms and sources."""
    methods = {name: asdict(method) for name, method in METHODS.items()}
    rows = [[name, method.terms, method.summary, method.source] for name, method in METHODS.items()]
    return methods, (["method", "terms", "description", "source"], rows)


def list_recipes() -> tuple[dict[str, Any], Table]:
    """List the recipes with their commands, costs and results."""
    recipes = {
        name: {"command": f"camkd train {' '.join(recipe.flags)}", **asdict(recipe)} for name, recipe in RECIPES.items()
    }
    rows = [[name, recipe["command"], recipe["cost"], recipe["result"]] for name, recipe in recipes.items()]
    return recipes, (["recipe", "command", "cost", "result"], rows)


def list_datasets() -> tuple[dict[str, Any], Table]:
    """List the built-in datasets, and in the table also the layout of a folder of images."""
    from camkd.data.sources import SOURCES

    datasets = {}
    rows = []
    for name, source in SOURCES.items():
        datasets[name] = {"classes": source.classes, "images": list(source.images), "summary": source.summary}
        counts = " / ".join(f"{count:,}" for count in source.images)
        rows.append([name, str(source.classes), counts, source.summary])
    rows.append(
        ["FOLDER", "", "", "a folder with one folder of images per class, or with train/, val/ and test/ of this form"]
    )
    return datasets, (["data", "classes", "train / val / test", "description"], rows)
