"""Lists of models with their cost, methods with their source, recipes, and datasets.

Each list imports only what it needs, and torch only to count the cost of models.
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

COSTS = Path(__file__).parents[1] / "models" / "costs.json"
"""File with the summary and the cost of every built-in model at ``COSTS_AT``. It is read without torch."""

COSTS_AT = (32, 10)
"""Image size and number of classes for which ``COSTS`` holds."""

EXTERNAL_LIBRARIES = ("timm", "torchvision")
"""Optional libraries with further models."""


def list_items(kind: str, size: int, classes: int) -> tuple[dict[str, Any], Table]:
    """Return a list as data and as a table.

    Args:
        kind: ``models``, ``methods``, ``recipes`` or ``data``.
        size: Image size for which the cost of models is listed.
        classes: Number of classes for which the cost of models is listed.

    Raises:
        InputError: If there is no such list, or a number is below 1.
    """
    lists = {
        "models": lambda: list_models(size, classes),
        "methods": list_methods,
        "recipes": list_recipes,
        "data": list_datasets,
    }
    if kind not in lists:
        raise InputError(f"The list must be one of {', '.join(lists)}, got {kind!r}.")
    for name, value in (("size", size), ("classes", classes)):
        if value < 1:
            raise InputError(f"--{name} must be 1 or more, got {value}.")
    return lists[kind]()


def list_models(size: int, classes: int) -> tuple[dict[str, Any], Table]:
    """List every built-in model with its cost, map size and form of maps, and the external libraries.

    The form is ``exact``, ``gradient`` or ``partial``, see `camkd.cams`.

    Args:
        size: Side of the images in pixels.
        classes: Number of classes.
    """
    costs = stored_costs() if (size, classes) == COSTS_AT else count_costs(size, classes)
    rows: list[list[str]] = []
    for name, cost in costs.items():
        grid = "x".join(map(str, cost["map"]))
        macs = f"{cost['macs'] / 1e6:,.1f} M"
        rows.append([name, f"{cost['params']:,}", macs, grid, cost["form"], cost["summary"]])
    for library in EXTERNAL_LIBRARIES:
        summary = f"any classifier of {library}, random weights; NAME.TAG: pretrained weights TAG"
        rows.append([f"{library}:NAME", "", "", "", "", summary])
    return costs, (["model", "parameters", "MACs", "map", "form", ""], rows)


def stored_costs() -> dict[str, dict[str, Any]]:
    """Read the file ``COSTS``."""
    costs: dict[str, dict[str, Any]] = json.loads(COSTS.read_text(encoding="utf-8"))
    return costs


def count_costs(size: int, classes: int) -> dict[str, dict[str, Any]]:
    """Compute the cost of every built-in model, in the format of ``COSTS``.

    Args:
        size: Side of the images in pixels.
        classes: Number of classes.
    """
    import torch

    from camkd.models import MODELS
    from camkd.models.profile import profile_model

    stored = stored_costs()
    costs = {}
    for name, factory in MODELS.items():
        with torch.device("meta"):  # shapes only: no memory, no computation
            cost = profile_model(name, factory(classes, size), size)
        costs[name] = {**stored[name], "params": cost.params, "macs": cost.macs, "map": list(cost.map_size)}
    return costs


def list_methods() -> tuple[dict[str, Any], Table]:
    """List every method with its loss terms and source."""
    methods = {name: asdict(method) for name, method in METHODS.items()}
    rows = [[name, method.terms, method.summary, method.source] for name, method in METHODS.items()]
    return methods, (["method", "terms", "", "source"], rows)


def list_recipes() -> tuple[dict[str, Any], Table]:
    """List every recipe with its command, cost and result."""
    recipes = {
        name: {"command": f"camkd train {' '.join(recipe.flags)}", **asdict(recipe)} for name, recipe in RECIPES.items()
    }
    rows = [[name, recipe["command"], recipe["cost"], recipe["result"]] for name, recipe in recipes.items()]
    return recipes, (["recipe", "command", "cost", "result"], rows)


def list_datasets() -> tuple[dict[str, Any], Table]:
    """List the built-in datasets, and the layout of a folder of images."""
    from camkd.data.sources import SOURCES

    datasets = {}
    rows = []
    for name, source in SOURCES.items():
        datasets[name] = {"classes": source.classes, "images": list(source.images), "summary": source.summary}
        counts = " / ".join(f"{count:,}" for count in source.images)
        rows.append([name, str(source.classes), counts, source.summary])
    rows.append(["FOLDER", "", "", "one folder of images per class, or train/, val/ and test/ with such folders"])
    return datasets, (["data", "classes", "train / val / test", ""], rows)
