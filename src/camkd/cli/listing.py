"""What there is to choose from: models with their cost, methods with their source, data sets.

Each list imports what it needs itself, and torch only where it has to count.
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

COSTS = Path(__file__).parents[1] / "models" / "costs.json"
"""What to say of every built-in network, and what it costs at ``COSTS_AT``: read as a file, so without torch."""

COSTS_AT = (32, 10)
"""Picture size and number of classes of the costs in ``COSTS``."""


EXTERNAL = ("timm", "torchvision")
"""The libraries whose networks have names too, where they are installed."""


def show(what: str, size: int, classes: int) -> tuple[dict[str, Any], Table]:
    """The list called ``what``, as data and as a table. Raises ``InputError`` for another name."""
    lists = {"models": lambda: models(size, classes), "methods": methods, "recipes": recipes, "data": sources}
    if what not in lists:
        raise InputError(f"there is no list of {what!r}: choose one of {', '.join(lists)}.")
    for name, value in (("size", size), ("classes", classes)):
        if value < 1:
            raise InputError(f"{name} is {value}, but has to be 1 or more: give such a number.")
    return lists[what]()


def models(size: int, classes: int) -> tuple[dict[str, Any], Table]:
    """Parameters, multiply-accumulates and map of every built-in network for pictures of ``size`` pixels."""
    found = stored_costs() if (size, classes) == COSTS_AT else costs(size, classes)
    rows: list[list[str]] = []
    for name, said in found.items():
        grid = "x".join(map(str, said["map"]))
        rows.append([name, f"{said['params']:,}", f"{said['macs'] / 1e6:,.1f} M", grid, said["form"], said["summary"]])
    for library in EXTERNAL:
        rows.append([f"{library}:NAME", "", "", "", "", f"any classifier of {library}; NAME.TAG: with these weights"])
    return found, (["model", "parameters", "MACs", "map", "form", ""], rows)


def stored_costs() -> dict[str, dict[str, Any]]:
    """The content of ``COSTS``."""
    found: dict[str, dict[str, Any]] = json.loads(COSTS.read_text(encoding="utf-8"))
    return found


def costs(size: int, classes: int) -> dict[str, dict[str, Any]]:
    """The like of ``COSTS`` for pictures of ``size`` pixels in ``classes`` classes, counted now."""
    import torch

    from camkd.models import MODELS
    from camkd.models.profile import profile_model

    said, found = stored_costs(), {}
    for name, make in MODELS.items():
        with torch.device("meta"):  # shapes alone: nothing is drawn and nothing computed
            cost = profile_model(name, make(classes, size), size)
        found[name] = {**said[name], "params": cost.params, "macs": cost.macs, "map": list(cost.grid)}
    return found


def methods() -> tuple[dict[str, Any], Table]:
    """The sum of terms of every method, and where it comes from."""
    found = {name: asdict(method) for name, method in METHODS.items()}
    rows = [[name, method.terms, method.summary, method.source] for name, method in METHODS.items()]
    return found, (["method", "terms", "", "source"], rows)


def recipes() -> tuple[dict[str, Any], Table]:
    """What every recipe of ``camkd train`` stands for, what it cost and what came of it."""
    found = {name: {"command": f"camkd train {' '.join(said.flags)}", **asdict(said)} for name, said in RECIPES.items()}
    rows = [[name, said["command"], said["cost"], said["result"]] for name, said in found.items()]
    return found, (["recipe", "stands for", "cost", "result"], rows)


def sources() -> tuple[dict[str, Any], Table]:
    """The built-in data sets; any folder of pictures is one too."""
    from camkd.data.sources import SOURCES

    found, rows = {}, []
    for name, source in SOURCES.items():
        found[name] = {
            "classes": source.classes,
            "pictures": list(source.pictures),
            "summary": source.summary,
        }
        rows.append([name, str(source.classes), " / ".join(f"{n:,}" for n in source.pictures), source.summary])
    rows.append(["FOLDER", "", "", "one folder of pictures a class, or train/, val/ and test/ with such folders"])
    return found, (["data", "classes", "train / val / test", ""], rows)
