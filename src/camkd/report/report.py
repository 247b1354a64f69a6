"""Write one self-contained HTML report from run folders: verdict, metrics, training curves and heatmaps.

The report depends only on the run folders. Missing files and values appear as dashes or are left out. Without
JavaScript the page shows everything except the gallery. The script is part of the page, and the page's content security
policy allows no other script.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from camkd.report.merge_galleries import merge_galleries
from camkd.report.metric_table import DASH, METRICS, MetricSpec
from camkd.report.page import read_template, render_page
from camkd.report.plots import confusion_figure, curve_figure, risk_figure
from camkd.report.risk_coverage import risk_coverage
from camkd.report.run_summary import ROLES, RunSummary, read_runs
from camkd.report.verdict import accuracy_gap, attention_verdict, cost_ratio, verdict
from camkd.types import CHANCE_LEVELS, InputError
from camkd.utils.files import write_text
from camkd.utils.intervals import wilson_interval
from camkd.utils.plot_style import SERIES_COLORS, figure_to_svg
from camkd.utils.units import finite_number, format_percent

SCRIPTS = ("maps.js", "gallery.js", "detail.js", "confusion.js")
"""Scripts of the page, concatenated in this order."""

MAX_TABLE_CLASSES = 20
"""Largest number of classes with the confusion matrix as a table. With more classes it is a plot."""

MAP_NOTE = (
    "CAM cosine: similarity of the compared model's map and the teacher's. Both maps are of the class that the teacher "
    "predicts, positive evidence only, on the larger of both grids. 1 means the same map up to scale, 0 no common "
    "location. Difference: the compared model's map minus the teacher's, each divided by its maximum. Confidence: the "
    "softmax probability of the predicted class. The page stores maps in 8 bits."
)
SCALE_ENDS = {
    "cam_cosine": "1, same as the teacher",
    "cam_pearson": "1, same as the teacher",
    "cam_iou": "1, same as the teacher",
    "cam_inside": "all evidence",
    "cam_pointing_game": "all images",
}
"""Metrics that are drawn on a scale from 0 to 1, and the label of the scale's upper end."""

OUTCOMES = {
    "both_right": "both",
    "only_teacher": "only the teacher",
    "only_student": "only the student",
    "both_wrong": "neither",
}
"""Groups of images in ``by_outcome`` of ``metrics.json``, and the models that are correct on each group."""

OUTCOME_METRICS = [spec for spec in METRICS if spec.key in ("cam_cosine", "cam_pearson", "cam_iou")]
"""Metrics that are shown for each group of `OUTCOMES`."""


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of one or several runs.

    Args:
        runs: Run folders, or folders of ``camkd train`` with the run folders ``teacher``, ``control`` or ``student``.
        out: The HTML file to write.

    Returns:
        ``out``.

    Raises:
        InputError: If ``runs`` is empty, a folder is not a run folder, or a JSON file or
            ``per_image.npz`` is invalid.

    Example:
        >>> write_report([Path("runs/demo")], Path("runs/demo/report.html"))                 # doctest: +SKIP
    """
    if not runs:
        raise InputError("A report must have at least one run folder, got none. Name one, for example runs/demo.")
    script = "\n".join(read_template(name) for name in SCRIPTS)
    context = _page_context(read_runs(runs))
    write_text(out, render_page("report.html", **context, script=Markup(script), script_hash=_csp_hash(script)))
    return out


def _csp_hash(script: str) -> str:
    """Return the hash source that allows ``script`` in a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _page_context(runs: list[RunSummary]) -> dict[str, Any]:
    """Return the variables of ``report.html``, except the script and its hash."""
    first_by_role = {role: next((run for run in runs if run.role == role), None) for role in ROLES}
    student = first_by_role["student"] or runs[-1]
    control = run if (run := first_by_role["control"]) is not student else None
    others = [run for run in runs if run.role == "teacher" and run is not student]
    teacher = next((run for run in others if _is_teacher_of(run, student)), None)
    histories = {run.name: run.history for run in runs}
    return {
        "dash": DASH,
        "colors": SERIES_COLORS,
        "runs": runs,
        "student": student,
        "verdict": verdict(student, control),
        "other_teachers": [run.name for run in others if not _is_teacher_of(run, student)],
        "accuracies": [(run, run.number("accuracy")) for run in runs],
        "format_percent": format_percent,
        "accuracy_gap": accuracy_gap(student, teacher),
        "params_ratio": cost_ratio(student, teacher, "params", "parameters"),
        "macs_ratio": cost_ratio(student, teacher, "macs", "MACs"),
        "attention": attention_verdict(student, control),
        "cosine_chance": student.cosine_chance,
        "facts": _header_facts(student),
        "specs": [spec for spec in METRICS if not spec.optional or _any_has(runs, spec.key)],
        "cells": {spec.key: [_metric_cell(run, spec) for run in runs] for spec in METRICS},
        "scales": [scale for spec in METRICS if (scale := _metric_scale(spec, student, control, teacher))],
        "outcome_specs": OUTCOME_METRICS,
        "outcomes": _outcome_rows(student),
        "heatmap": student.heatmap or next((run.heatmap for run in runs if run.heatmap), None),
        "curves": [Markup(curve_svg) for curve_svg in _training_curves(histories)],  # safe: matplotlib escapes its text
        **_confusion_context(student),
        "unlabeled": _unlabeled_images(student),
        "gallery": merge_galleries(runs, student),
        "map_note": MAP_NOTE,
        "risk_curve": Markup(risk_svg)
        if (risk_svg := _risk_curve(runs))
        else None,  # safe: matplotlib escapes its text
        "calibrations": [(run.name, _calibration_cells(run)) for run in runs if run.calibration],
        "frequent_errors": _frequent_errors(student),
        "class_rows": _class_rows(runs, student, control),
        "environments": [(run.name, list(_flatten(run.environment))) for run in runs if run.environment],
    }


def _unlabeled_images(run: RunSummary) -> dict[str, Any] | None:
    """Return the number of unlabeled images of a run, and how many the teacher predicts as each class, most first."""
    count = run.number("unlabeled_images")
    counts = run.metrics.get("unlabeled_predictions")
    if not count or not isinstance(counts, dict):
        return None
    numbers = [(name, int(number)) for name, value in counts.items() if (number := finite_number(value))]
    return {"images": int(count), "predicted": sorted(numbers, key=lambda item: (-item[1], item[0]))}


def _is_teacher_of(run: RunSummary, student: RunSummary) -> bool:
    """Return False if the student was trained with other weights than those of ``run``."""
    checksum = student.environment.get("teacher_weights")
    return checksum is None or checksum == run.model_info.get("sha256")


def _header_facts(run: RunSummary) -> list[str]:
    info = run.model_info
    size = info.get("size")
    facts = [
        info.get("data"),
        f"{len(run.classes)} classes" if run.classes else None,
        f"{size} × {size} pixels" if isinstance(size, int) else None,
        f"{run.num_test_images:,} test images" if run.num_test_images else None,
        *(f"{key} {info[key]}" for key in ("method", "seed") if info.get(key) is not None),
    ]
    return [str(fact) for fact in facts if fact]


def _any_has(runs: list[RunSummary], key: str) -> bool:
    return any(run.number(key) is not None for run in runs)


def _metric_cell(run: RunSummary, spec: MetricSpec) -> tuple[str, list[str]]:
    """Return the formatted value of a metric, and its chance levels for the small print."""
    value = run.number(spec.key)
    percent = spec.format is format_percent
    small_print = []
    for level in CHANCE_LEVELS:
        number = run.number(level.key(spec.key))
        if number is not None:
            text = f"{100 * number:.0f}\N{NO-BREAK SPACE}%" if percent else f"{number:.2f}"
            small_print.append(f"{level.label}\N{NO-BREAK SPACE}{text.replace('-', '−')}")
    return DASH if value is None else spec.format(value), small_print


def _metric_scale(
    spec: MetricSpec, student: RunSummary, control: RunSummary | None, teacher: RunSummary | None
) -> dict[str, Any] | None:
    """Return a map metric's points on a scale from 0 to 1; None if the metric has no scale or the student no value."""
    if spec.key not in SCALE_ENDS or student.number(spec.key) is None:
        return None
    values = [
        ("student", student.role or "student", student.number(spec.key)),
        ("control", "control: same network without a teacher", control.number(spec.key) if control else None),
        ("teacher", "teacher", teacher.number(spec.key) if teacher else None),
    ]
    for level in CHANCE_LEVELS:
        values.append((level.suffix, f"chance: {level.description}", student.number(level.key(spec.key))))
    points = [
        {"kind": kind, "label": label, "text": spec.format(value), "percent": 100 * min(max(value, 0), 1)}
        for kind, label, value in values
        if value is not None
    ]
    return {"spec": spec, "end": SCALE_ENDS[spec.key], "points": points}


def _outcome_rows(run: RunSummary) -> list[tuple[str, int, list[tuple[str, list[str]]]]]:
    """Return label, number of images and the cells of `OUTCOME_METRICS` for each group of `OUTCOMES`."""
    groups = run.metrics.get("by_outcome")
    if not isinstance(groups, dict):
        return []
    summaries = [
        RunSummary(label, metrics=groups[key]) for key, label in OUTCOMES.items() if isinstance(groups.get(key), dict)
    ]
    return [
        (group.name, int(group.number("images") or 0), [_metric_cell(group, spec) for spec in OUTCOME_METRICS])
        for group in summaries
    ]


def _training_curves(histories: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield the training curves that have data, as SVG."""
    plots = [
        ("val_accuracy", "Validation accuracy", True),
        ("train_loss", "Training loss", False),
        ("val_cam_cosine", "CAM cosine with the teacher, validation", False),
    ]
    for key, title, percent in plots:
        if any(key in row for history in histories.values() for row in history):
            yield figure_to_svg(curve_figure(histories, key, title, percent))


def _risk_curve(runs: list[RunSummary]) -> str | None:
    """Return the risk-coverage curves of the runs with results per image, as SVG."""
    curves = {}
    thresholds = {}
    for run in runs:
        confidence, predicted, label = (run.column(name) for name in ("confidence", "predicted", "label"))
        if confidence is None or predicted is None or label is None:
            continue
        curves[run.name] = risk_coverage(confidence, predicted == label)
        threshold = run.calibration_number("threshold")
        if threshold:
            thresholds[run.name] = float((confidence >= threshold).mean())
    return figure_to_svg(risk_figure(curves, thresholds)) if curves else None


def _calibration_cells(run: RunSummary) -> list[str]:
    """Return the formatted cells of a calibrated run."""

    def cell(format_value: Callable[[float], str], *keys: str) -> str:
        value = run.calibration_number(*keys)
        return DASH if value is None else format_value(value)

    cells = [cell("{:.3f}".format, "total_temperature")]
    for key in ("ece", "nll"):
        before, after = (cell("{:.3f}".format, "test", state, key) for state in ("uncalibrated", "calibrated"))
        cells.append(f"{before} → {after}")
    cells.append(cell(format_percent, "precision"))
    cells.append(cell("{:.3f}".format, "threshold"))
    for key in ("coverage", "answered_accuracy"):
        validation, test = (cell(format_percent, split, "calibrated", key) for split in ("validation", "test"))
        cells.append(f"{validation} / {test}")
    return cells


def _confusion_context(run: RunSummary) -> dict[str, Any]:
    """Return the confusion matrix as counts with an opacity, as a plot if there are many classes, or nothing."""
    table = run.confusion
    if table is None:
        return {}
    if len(table) > MAX_TABLE_CLASSES:
        return {"confusion_plot": Markup(figure_to_svg(confusion_figure(table, run.classes)))}
    totals = [sum(row) or 1 for row in table]
    cells = [
        [(int(count), round(0.6 * (count / total) ** 0.6, 3)) for count in row]  # the power keeps rare errors visible
        for row, total in zip(table, totals, strict=True)
    ]
    return {"confusion": cells}


def _frequent_errors(run: RunSummary) -> list[tuple[int, int, int]]:
    """Return the ten most frequent errors: true class, predicted class, count."""
    errors = [(-count, label, predicted) for label, predicted, count in run.confusion_cells() if label != predicted]
    return [(label, predicted, -count) for count, label, predicted in sorted(errors)[:10]]


def _class_rows(runs: list[RunSummary], student: RunSummary, control: RunSummary | None) -> list[dict[str, Any]]:
    """Return a row per class: the accuracy of each run, the gain of the student over the control, and its bar."""
    if student.confusion is None:
        return []
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(student.classes):
        student_accuracy = student.class_accuracy(index)
        control_accuracy = control.class_accuracy(index) if control else None
        if student_accuracy is None or control_accuracy is None:
            gain = None
        else:
            gain = 100 * (student_accuracy - control_accuracy)
        rows.append(
            {
                "name": name,
                "num_images": int(sum(student.confusion[index])),
                "accuracies": [_class_cell(run, index) for run in runs],
                "gain": gain,
            }
        )
    longest = max([5.0, *(abs(row["gain"]) for row in rows if row["gain"] is not None)])
    return [row | {"bar": 50 * (row["gain"] or 0) / longest} for row in rows]


def _class_cell(run: RunSummary, index: int) -> tuple[str, list[str]]:
    """Return the formatted recall of a class, and its 95 % interval for the small print."""
    recall = run.class_accuracy(index)
    if recall is None:
        return DASH, []
    assert run.confusion is not None
    counts = [int(count) for count in run.confusion[index]]
    if not sum(counts):  # fractions in place of counts
        return format_percent(recall), []
    low, high = wilson_interval(counts[index], sum(counts))
    return format_percent(recall), [f"{100 * low:.0f}–{100 * high:.0f}\N{NO-BREAK SPACE}%"]


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of a nested dict with dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)
