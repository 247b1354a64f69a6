"""The galleries of several runs as one, for the script of the report: the same pictures with every run's answers.

Reads what `camkd.report.gallery` wrote, and trusts it no more than any other file.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.colors import to_hex

from camkd.report.verdict import RunSummary

VERSION = 1
"""Of ``gallery.json``: another one is another format, and is not shown."""

BYTES = 2_300_000  # of all pictures, maps and answers in a page
EVIDENCE, DIFFERENCE = "viridis", "coolwarm"
"""Perceptually uniform and told apart by colour-blind people: van der Walt and Smith 2015; Moreland 2009."""

_IMAGE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")

Picture = dict[str, Any]


def merge_galleries(runs: Sequence[RunSummary], main: RunSummary) -> dict[str, Any] | None:
    """What the page's script shows: columns of models, pictures, answers and maps; None where no run has a gallery.

    Runs are known again in each other's galleries by the checksum of their weights, so that a picture shows as many
    of them as have ever been asked about it. A teacher that is in ``main``'s gallery and not among ``runs`` gets a
    column, too. Galleries of other pictures or classes than ``main``'s are left out, and so are pictures at the end
    that do not fit into ``BYTES``.
    """
    first_main = sorted(runs, key=lambda run: run is not main)
    galleries = [gallery for run in first_main if run.classes == main.classes and (gallery := _sound(run))]
    galleries = [gallery for gallery in galleries if gallery["open_model_data"] == galleries[0]["open_model_data"]]
    if not galleries:
        return None
    columns = _columns(runs, galleries[0])
    teachers = [place for place, column in enumerate(columns) if column["role"] == "teacher"]
    others = [place for place in range(len(columns)) if place not in teachers]
    return {
        "classes": main.classes,
        "columns": [{"name": column["name"], "role": column["role"]} for column in columns],
        "teacher": teachers[0] if teachers else None,
        "main": next((i for i in others if columns[i]["sha256"] == main.model.get("sha256")), (others or teachers)[0]),
        "pictures": list(_within(BYTES, _pictures(columns, teachers, galleries))),
        "confusion": _sparse(main.confusion or []),
        "ramps": {"evidence": ramp(EVIDENCE), "difference": ramp(DIFFERENCE)},
    }


def ramp(name: str) -> list[str]:
    """A colour map as 33 colours at equal distances, between which the script interpolates.

    >>> ramp("viridis")[::32]
    ['#440154', '#fde725']
    """
    return [to_hex(matplotlib.colormaps[name](place / 32)) for place in range(33)]


def _sparse(confusion: Sequence[Sequence[float]]) -> list[tuple[int, int, int]]:
    """The cells that are not empty: truth, answer, how many."""
    return [(r, c, int(n)) for r, counts in enumerate(confusion) for c, n in enumerate(counts) if n]


def _columns(runs: Sequence[RunSummary], gallery: Mapping[str, Any]) -> list[dict[str, Any]]:
    shown = [{"name": run.name, "role": run.role, "sha256": run.model.get("sha256")} for run in runs]
    known = {column["sha256"] for column in shown}
    absent = [model for model in gallery["models"] if model["title"] == "teacher" and model["sha256"] not in known]
    return [{"name": "teacher", "role": "teacher", "sha256": model["sha256"]} for model in absent] + shown


def _pictures(
    columns: list[dict[str, Any]], teachers: list[int], galleries: Sequence[Mapping[str, Any]]
) -> Iterator[Picture]:
    """Every picture once, those of the first gallery first, with each column's answer or None."""
    by_row: dict[int, list[tuple[Mapping[str, Any], Picture]]] = {}
    for gallery in galleries:
        for picture in gallery["pictures"]:
            by_row.setdefault(picture["row"], []).append((gallery, picture))
    judge = columns[teachers[0]]["sha256"] if teachers else None
    for found in by_row.values():
        told: dict[str, Any] = {}
        for gallery, picture in found:
            same_judge = gallery["models"][0]["sha256"] == judge
            for model, answer in zip(gallery["models"], picture["answers"], strict=True):
                likeness = answer.get("likeness") if same_judge else None
                told.setdefault(model["sha256"], {**answer, "shown": picture["shown"], "likeness": likeness})
        picture = {key: found[0][1][key] for key in ("name", "truth", "image")}
        yield {**picture, "answers": [told.get(column["sha256"]) for column in columns]}


def _within(room: int, pictures: Iterator[Picture]) -> Iterator[Picture]:
    for picture in pictures:
        room -= len(json.dumps(picture))
        if room < 0:
            return
        yield picture


# --- what a file has to be before a page shows it


def _sound(run: RunSummary) -> dict[str, Any] | None:
    """The gallery of ``run`` where it is one of ours with a picture, else None."""
    try:
        gallery = run.gallery
        models = [{key: _text(model[key]) for key in ("title", "sha256")} for model in gallery["models"]]
        classes = len(run.classes)
        pictures = [_checked(picture, len(models), classes) for picture in gallery["pictures"]]
        if gallery["version"] != VERSION or not models or not pictures:
            return None
        return {"models": models, "pictures": pictures, "open_model_data": gallery["open_model_data"]}
    except (KeyError, TypeError, ValueError, OverflowError):  # a number may be too large for a float
        return None


def _checked(picture: Mapping[str, Any], models: int, classes: int) -> Picture:
    shown = [_class(place, classes) for place in picture["shown"]]
    answers = [_answer(answer, shown, classes) for answer in picture["answers"]]
    name = picture.get("name")
    if len(answers) != models or not _IMAGE.fullmatch(picture["image"]):
        raise ValueError("not as many answers as models, or no picture")
    return {
        "row": int(picture["row"]),
        "name": None if name is None else _text(name),
        "truth": _class(picture["truth"], classes),
        "image": picture["image"],
        "shown": shown,
        "answers": answers,
    }


def _answer(answer: Mapping[str, Any], shown: list[int], classes: int) -> dict[str, Any]:
    height, width = (int(side) for side in answer["grid"])
    numbers = {key: [_number(number) for number in answer[key]] for key in ("shares", "scales")}
    levels = base64.b64decode(answer["maps"], validate=True)
    if {len(shown)} != {len(found) for found in numbers.values()} or len(levels) != len(shown) * height * width:
        raise ValueError("not one map, share and scale a class")
    likeness = answer.get("likeness")
    return {
        "label": _class(answer["label"], classes),
        "confidence": _number(answer["confidence"]),
        "likeness": None if likeness is None else _number(likeness),
        "grid": [height, width],
        "maps": answer["maps"],
        **numbers,
    }


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _class(place: Any, classes: int) -> int:
    if not isinstance(place, int) or not 0 <= place < classes:
        raise ValueError(f"{place} is none of {classes} classes")
    return place


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
