"""Write a comparison as files: CSV with one row per run, JSON with all statistics, and an HTML page with a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from camkd.report.comparison_stats import (
    TESTED_METRICS,
    Arm,
    Comparison,
    Estimate,
    format_estimate,
    format_p_value,
)
from camkd.report.metric_table import DASH, METRICS, RECALL, class_recalls
from camkd.report.page import render_page
from camkd.types import CHANCE_LEVELS
from camkd.utils.files import write_json, write_text
from camkd.utils.plot_style import SERIES_COLORS, figure_to_svg, style_context
from camkd.utils.text import shorten
from camkd.utils.units import format_points

PAGE_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "val_accuracy",
    "ece",
    "teacher_agreement",
    "cam_cosine",
    "cam_iou",
    "cam_inside",
)
PAGE_COSTS = ("params", "macs", "seconds", "images_per_second")
"""Keys of the metrics and the costs in ``comparison.html``."""

TERMINAL_METRICS = {
    "accuracy": "test",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro-F1",
    "val_accuracy": "val",
    "teacher_agreement": "agreement",
}
TERMINAL_MAP_METRICS = {"cam_cosine": "CAM cosine", "cam_iou": "CAM overlap", "road": "ROAD"}
TERMINAL_COSTS = {"params": "parameters", "macs": "MACs", "seconds": "seconds", "images_per_second": "images/s"}
"""Metrics and costs in the tables of the terminal: the key and the title of the column."""

SPECS = {spec.key: spec for spec in METRICS}

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns and rows."""


def write_comparison(comparison: Comparison, folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write ``comparison.csv``, ``comparison.json`` and ``comparison.html`` into ``folder``.

    Args:
        comparison: The methods with their finished runs.
        folder: The folder of the three files, created if it is missing.
        settings: Settings that all runs share: ``student``, ``teacher``, ``data``, ``epochs``, ``processes``,
            ``threads`` and any other settings.

    Returns:
        Path of the HTML page.
    """
    write_text(folder / "comparison.csv", _csv(comparison))
    write_json(folder / "comparison.json", {"settings": dict(settings), **comparison.summary()})
    page = folder / "comparison.html"
    write_text(page, _page(comparison, settings))
    return page


def tables(comparison: Comparison) -> list[Table]:
    """Return tables for a terminal: the metrics of all methods, those of their maps, and their costs."""

    def metric_rows(columns: Mapping[str, str]) -> list[list[str]]:
        return [[arm.method, *(_with_chance_level(arm, key) for key in columns)] for arm in comparison.arms]

    cost_rows = [
        [arm.method, str(len(arm.runs)), *(_format_mean(arm.estimate(key)) for key in TERMINAL_COSTS)]
        for arm in comparison.arms
    ]
    metric_title = "percent, mean ± half the 95 % interval"
    map_title = "maps, times 100; the highest chance level in parentheses"
    cost_title = "cost of a run, without caching teacher outputs in advance"
    return [
        (metric_title, ["method", *TERMINAL_METRICS.values()], metric_rows(TERMINAL_METRICS)),
        (map_title, ["method", *TERMINAL_MAP_METRICS.values()], metric_rows(TERMINAL_MAP_METRICS)),
        (cost_title, ["method", "seeds", *TERMINAL_COSTS.values()], cost_rows),
    ]


def _with_chance_level(arm: Arm, key: str) -> str:
    """Format a metric with the highest of its chance levels: ``88.04 ± 0.52 (81.90)``."""
    chance = max((level.mean for level in arm.chance_levels(key).values()), default=None)
    return format_estimate(arm.estimate(key)) + ("" if chance is None else f" ({100 * chance:.2f})")


def _format_mean(value: Estimate | None) -> str:
    return DASH if value is None else f"{value.mean:,.0f}"


def _csv(comparison: Comparison) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = comparison.columns
    writer.writerow(["method", "seed", *columns])
    for arm in comparison.arms:
        for seed, run in arm.runs.items():
            values = {**run, **class_recalls(run)}
            writer.writerow([arm.method, seed, *("" if values.get(key) is None else values[key] for key in columns)])
    return stream.getvalue()


def _page(comparison: Comparison, settings: Mapping[str, Any]) -> str:
    arms = [arm for arm in comparison.arms if arm.runs]
    by_metric = {key: comparison.differences(key) for key in TESTED_METRICS}
    return render_page(
        "comparison.html",
        colors=SERIES_COLORS,
        dash=DASH,
        arms=arms,
        choice=comparison.choice,
        best=next((arm.method for arm in comparison.ranked), None),
        differences={SPECS[key].label: differences for key, differences in by_metric.items() if differences},
        settings=settings,
        specs=[SPECS[key] for key in PAGE_METRICS if any(arm.values(key) for arm in arms)],
        recalls={key.removeprefix(RECALL): [arm.estimate(key) for arm in arms] for key in comparison.recall_keys},
        cost_specs=[SPECS[key] for key in PAGE_COSTS],
        chance_levels=CHANCE_LEVELS,
        format_estimate=format_estimate,
        format_points=partial(format_points, digits=2),
        format_p_value=format_p_value,
        plot=Markup(figure_to_svg(accuracy_figure(arms))) if arms else None,  # safe: matplotlib escapes its text
    )


def accuracy_figure(arms: Sequence[Arm]) -> Figure:
    """Plot the test accuracy of every run as a dot, one row per method, with the mean and its 95 % interval.

    Args:
        arms: Methods with at least one test accuracy each.

    Returns:
        The figure.
    """
    with style_context():
        figure = Figure((8.2, 1.0 + 0.46 * len(arms)), layout="constrained")
        axes = figure.add_subplot()
        for index, arm in enumerate(arms):
            color = SERIES_COLORS[index % len(SERIES_COLORS)]
            values = [100 * value for value in arm.values("accuracy")]
            mean = arm.estimate("accuracy")
            assert mean is not None
            half_width = None if mean.half_width is None else 100 * mean.half_width
            axes.plot(values, [index + 0.17] * len(values), "o", color=color, alpha=0.55, markersize=5, mew=0)
            axes.errorbar(100 * mean.mean, index - 0.12, xerr=half_width, fmt="D", color=color, capsize=4, markersize=5)
        axes.set_yticks(range(len(arms)), [shorten(arm.method, 44) for arm in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, 0), min(high, 100))
        axes.set_xlabel("test accuracy in %: runs (dots), mean and 95 % interval (diamonds)", loc="right")
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    return figure
