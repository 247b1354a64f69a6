"""What there is to choose from: models with their cost, methods with their source, data sets."""

from __future__ import annotations

from typing import Any

import torch

from camkd.data.sources import SOURCES
from camkd.models import MODELS
from camkd.models.profile import profile
from camkd.objectives import METHODS
from camkd.types import InputError

Table = tuple[list[str], list[list[str]]]


def show(what: str, size: int, classes: int) -> tuple[dict[str, Any], Table]:
    """The list called ``what``, as data and as a table. Raises ``InputError`` for another name."""
    lists = {"models": lambda: models(size, classes), "methods": methods, "data": sources}
    if what not in lists:
        raise InputError(f"there is no list of {what!r}: choose one of {', '.join(lists)}.")
    for name, value in (("size", size), ("classes", classes)):
        if value < 1:
            raise InputError(f"{name} is {value}, but has to be 1 or more: give such a number.")
    return lists[what]()


def models(size: int, classes: int) -> tuple[dict[str, Any], Table]:
    """Parameters, multiply-accumulates and map of every built-in network for pictures of ``size`` pixels."""
    found, rows = {}, []
    for name, entry in MODELS.items():
        with torch.device("meta"):  # shapes alone: nothing is drawn and nothing computed
            cost = profile(entry.make(classes, size), size)
        found[name] = {"params": cost.params, "macs": cost.macs, "map": list(cost.grid), "form": entry.form}
        grid = "x".join(map(str, cost.grid))
        rows.append([name, f"{cost.params:,}", f"{cost.macs / 1e6:,.1f} M", grid, entry.form, entry.summary])
    return found, (["model", "parameters", "MACs", "map", "form", ""], rows)


def methods() -> tuple[dict[str, Any], Table]:
    """The terms and weights of every method, and where it comes from."""
    found, rows = {}, []
    for name, method in METHODS.items():
        terms = {term: weighted.weight for term, weighted in method.terms.items()}
        found[name] = {"terms": terms, "summary": method.summary, "source": method.source}
        rows.append(
            [
                name,
                ", ".join(f"{term} {weight:g}" for term, weight in terms.items()),
                method.summary,
                method.source,
            ]
        )
    return found, (["method", "terms and weights", "", "source"], rows)


def sources() -> tuple[dict[str, Any], Table]:
    """The built-in data sets; any folder of pictures is one too."""
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
