"""Run folders to one self-contained HTML page: the verdict first, then the numbers, curves and heatmaps.

Reads run folders and nothing else. Whatever a folder lacks shows as a dash; a page always comes out. Without script it
shows all but the gallery; the script lies in the page, whose policy allows no other.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from camkd.report import verdict as findings
from camkd.report.merge_galleries import merge_galleries
from camkd.report.plots import confusion_figure, curve
from camkd.report.verdict import DASH, METRICS, RunSummary
from camkd.types import InputError
from camkd.utils import units
from camkd.utils.files import load_json, write_text
from camkd.utils.plot_style import SERIES_COLORS, figure_to_svg

ROLES = ("teacher", "control", "student")
SCRIPTS = ("maps.js", "gallery.js", "detail.js", "confusion.js")  # one after the other, as one
LARGEST_TABLE = 20  # classes up to which a confusion matrix is a table; beyond it is a drawing
LARGEST_PICTURES = 600_000  # bytes of the pictures of heatmaps on the way
LIKENESS = (
    "Cosine of the teacher's map and the other's, both of the class the teacher answers, positive evidence only, on "
    "the larger of both grids: 1 is the same map, 0 nothing in common. Difference: the other's map minus the "
    "teacher's, each as a share of its maximum. How sure a model is: the probability (softmax) it gives its answer. "
    "The page carries maps in 8 bits."
)
ENDS = dict.fromkeys(("cam_cosine", "cam_pearson", "cam_iou"), "1, the teacher's map")
ENDS |= {"cam_inside": "all of it", "cam_pointing_game": "every picture"}  # figures on a line, and what its end is
OUTCOMES = {
    "both_right": "both are right",
    "only_teacher": "only the teacher is right",
    "only_student": "only the student is right",
    "both_wrong": "both are wrong",
}
SPLIT = [row for row in METRICS if row.key in ("cam_cosine", "cam_pearson", "cam_iou")]
MARKS = ("metrics.json", "metrics.jsonl", "model.json", "config.yaml")  # a folder with one of these is a run


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of ``runs`` to the file ``out`` and return it.

    Each path is a run folder or a folder of ``camkd train`` with ``teacher``, ``control`` and ``student``
    inside. The page needs no network. Raises InputError for a path without a run and for a
    file that is not JSON.

    >>> write_report([Path("runs/demo")], Path("runs/demo/report.html"))                 # doctest: +SKIP
    """
    folders = [folder for path in runs for folder in _folders(path)]
    if not folders:
        raise InputError("a report needs at least one run folder, but none was given: name one, as in runs/demo.")
    loader = jinja2.PackageLoader("camkd.report")
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    script = "\n".join(loader.get_source(page, name)[0] for name in SCRIPTS)
    content = {**_content(_read_all(folders)), "script": Markup(script), "script_hash": _hash(script)}
    write_text(out, page.get_template("report.html").render(content))
    return out


def _hash(script: str) -> str:
    """What a page's policy calls the one script it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


# --- run folders to runs


def _folders(path: Path) -> list[Path]:
    inside = [path / role for role in ROLES if _is_run(path / role)]
    if not inside and not _is_run(path):
        raise InputError(
            f"{path} is no run folder, as it has none of {', '.join((*MARKS[:3], *ROLES))}: name one that has."
        )
    return inside or [path]


def _is_run(path: Path) -> bool:
    return any((path / mark).is_file() for mark in MARKS)


def _read_all(folders: Sequence[Path]) -> list[RunSummary]:
    names = [folder.resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    paths = zip(folders, names, strict=True)
    return [_read(path, name if unique else f"{path.resolve().parent.name}/{name}") for path, name in paths]


def _read(folder: Path, name: str) -> RunSummary:
    model = _json(folder / "model.json")
    role = model.get("role", folder.resolve().name)
    figures = folder / "figures"
    epochs = [(int(found[1]), path) for path in figures.glob("*.png") if (found := _epoch(path.name))]
    return RunSummary(
        name=name,
        role=role if role in ROLES else None,
        metrics=_json(folder / "metrics.json"),
        history=list(_history(_text(folder / "metrics.jsonl"))),
        model=model,
        config=_text(folder / "config.yaml"),
        environment={name: value for name, value in _json(folder / "environment.json").items() if name != "classes"},
        heatmap=_png(figures / "cams.png"),
        epochs=_some([(epoch, uri) for epoch, path in sorted(epochs) if (uri := _png(path))]),
        gallery=_json(folder / "gallery.json"),
    )


def _epoch(name: str) -> re.Match[str] | None:
    return re.fullmatch(r"cams-epoch-(\d+)\.png", name)


def _some(pictures: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Every second one, then every fourth, ... until what is left has room in a page; the first one stays."""
    while len(pictures) > 1 and sum(len(uri) for _, uri in pictures) > LARGEST_PICTURES:
        pictures = pictures[::2]
    return pictures


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        value = load_json(_text(path) or "{}")
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): write it again or remove it.") from error
    return value if isinstance(value, dict) else {}


def _history(text: str) -> Iterator[dict[str, Any]]:
    """The lines that are objects: a run that was killed may leave half a line."""
    for line in text.splitlines():
        try:
            value = load_json(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _png(path: Path) -> str | None:
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


# --- runs to what the page shows


def _content(runs: list[RunSummary]) -> dict[str, Any]:
    first = {role: next((run for run in runs if run.role == role), None) for role in ROLES}
    student = first["student"] or runs[-1]
    teacher, control = (first[role] if first[role] is not student else None for role in ROLES[:2])
    histories = {run.name: run.history for run in runs}
    return {
        "dash": DASH,
        "colours": SERIES_COLORS,
        "runs": runs,
        "student": student,
        "verdict": findings.verdict(student, control),
        "accuracies": [(run, run.number("accuracy")) for run in runs],
        "percent": units.percent,
        "gap": findings.gap(student, teacher),
        "smaller": [findings.times(student, teacher, *what) for what in (("params", "parameters"), ("macs", "MACs"))],
        "looks": findings.attention_verdict(student, control),
        "facts": _facts(student),
        "rows": [row for row in METRICS if not row.optional or any(run.number(row.key) is not None for run in runs)],
        "cells": {row.key: [_cell(run, row) for run in runs] for row in METRICS},
        "tracks": [track for row in METRICS if row.key in ENDS and (track := _track(row, student, control, teacher))],
        "split": SPLIT,
        "outcomes": _outcomes(student),
        "heatmap": student.heatmap or next((run.heatmap for run in runs if run.heatmap), None),
        "curves": [Markup(drawn) for drawn in _curves(histories)],  # our own SVG, which escapes its text
        **_confusion(student),
        "album": merge_galleries(runs, student),
        "likeness": LIKENESS,
        "mistakes": _mistakes(student),
        "classes": _classes(runs, student, control),
        "environments": [(run.name, list(_flat(run.environment))) for run in runs if run.environment],
    }


def _facts(run: RunSummary) -> list[str]:
    model = run.model
    size = model.get("size")
    facts = [model.get("data"), f"{len(run.classes)} classes" if run.classes else None]
    facts += [f"{size} × {size} pixels" if isinstance(size, int) else None]
    facts += [f"{run.tested:,} test pictures" if run.tested else None]
    facts += [f"{key} {model[key]}" for key in ("method", "seed") if model.get(key) is not None]
    return [str(fact) for fact in facts if fact]


def _cell(run: RunSummary, row: findings.MetricSpec) -> tuple[str, list[str]]:
    """The number and, for a map figure, its chance levels."""
    value = run.number(row.key)
    chance = [(word, run.number(f"{row.key}_{ending}")) for word, ending in findings.LEVELS]
    factor, form = (100, ".0f") if row.show is units.percent else (1, ".2f")
    unit = "\N{NO-BREAK SPACE}%" if factor == 100 else ""
    small = [f"{word} {factor * level:{form}}{unit}".replace("-", "−") for word, level in chance if level is not None]
    return DASH if value is None else row.show(value), small


def _track(
    row: findings.MetricSpec, student: RunSummary, control: RunSummary | None, teacher: RunSummary | None
) -> dict[str, Any] | None:
    """A figure of maps on the line from 0 to 1, beside its chance levels, the control's and the teacher's."""
    found = [
        ("student", "this student", student.number(row.key)),
        ("control", "the same network without a teacher", control.number(row.key) if control else None),
        ("teacher", "the teacher", teacher.number(row.key) if teacher else None),
        ("other", "chance: the teacher's map of another picture", student.number(f"{row.key}_shuffled")),
        ("other", "chance: anywhere", student.number(f"{row.key}_chance")),
        ("centre", "chance: a blob in the middle", student.number(f"{row.key}_centre")),
    ]
    points = [(kind, words, row.show(v), 100 * min(max(v, 0), 1)) for kind, words, v in found if v is not None]
    return {"row": row, "end": ENDS[row.key], "points": points} if found[0][2] is not None else None


def _outcomes(run: RunSummary) -> list[tuple[str, int, list[tuple[str, list[str]]]]]:
    """Who is right, on how many pictures, and the maps' likeness there, a cell a figure of `SPLIT`."""
    groups = run.metrics.get("by_outcome")
    if not isinstance(groups, dict):
        return []
    told = [
        RunSummary(words, metrics=groups[key]) for key, words in OUTCOMES.items() if isinstance(groups.get(key), dict)
    ]
    return [(one.name, int(one.number("pictures") or 0), [_cell(one, row) for row in SPLIT]) for one in told]


def _curves(histories: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    wanted = [("val_accuracy", "Validation accuracy", True), ("train_loss", "Training loss", False)]
    wanted += [("val_cam_cosine", "CAM cosine with the teacher, validation", False)]
    for key, title, percent in wanted:
        if any(key in line for history in histories.values() for line in history):
            yield figure_to_svg(curve(histories, key, title, percent))


def _confusion(run: RunSummary) -> dict[str, Any]:
    """Counts with the strength of their colour for a table, or for many classes a drawing."""
    table = run.confusion
    if table is None:
        return {}
    if len(table) > LARGEST_TABLE:
        return {"drawn_confusion": Markup(figure_to_svg(confusion_figure(table, run.classes)))}
    totals = [sum(row) or 1 for row in table]
    return {
        "confusion": [
            [
                (int(count), round(0.6 * (count / total) ** 0.6, 3)) for count in row
            ]  # a root, so that rare ones are seen
            for row, total in zip(table, totals, strict=True)
        ]
    }


def _mistakes(run: RunSummary) -> list[tuple[int, int, int]]:
    """The ten commonest mistakes: true class, answer, how often."""
    pairs = [
        (-int(number), row, column)
        for row, counts in enumerate(run.confusion or [])
        for column, number in enumerate(counts)
        if row != column and number
    ]
    return [(row, column, -number) for number, row, column in sorted(pairs)[:10]]


def _classes(runs: list[RunSummary], student: RunSummary, control: RunSummary | None) -> list[dict[str, Any]]:
    """Accuracy by class of every run, and the student's gain over the control."""
    rows: list[dict[str, Any]] = []
    for place, name in enumerate(student.classes if student.confusion else []):
        mine, base = student.class_accuracy(place), control.class_accuracy(place) if control else None
        change = None if mine is None or base is None else 100 * (mine - base)
        shares = [run.class_accuracy(place) for run in runs]
        tested = int(sum((student.confusion or [])[place]))
        rows.append({"name": name, "tested": tested, "shares": shares, "change": change})
    longest = max([5.0, *(abs(row["change"]) for row in rows if row["change"] is not None)])
    return [row | {"bar": 50 * (row["change"] or 0) / longest} for row in rows]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)
