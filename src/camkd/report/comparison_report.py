"""A comparison as files: one line a run (CSV), everything as data (JSON), and a page with a plot of every run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from camkd.report.comparison_stats import COMPARED, Arm, Comparison, Estimate, p_value, percent, points
from camkd.report.verdict import LEVELS, METRICS
from camkd.utils.files import write_json, write_text
from camkd.utils.plot_style import SERIES_COLORS, figure_to_svg, shorten, style_context

SHOWN = ("accuracy", "val_accuracy", "ece", "teacher_agreement", "cam_cosine", "cam_iou", "cam_inside")
TERMINAL = {
    "accuracy": "test",
    "val_accuracy": "val",
    "teacher_agreement": "as teacher",
    "cam_cosine": "CAM cosine",
    "road": "ROAD",
}
TERMINAL_COSTS = {"params": "parameters", "macs": "MACs", "seconds": "seconds", "images_per_second": "pictures/s"}
LABELS = {row.key: row.label for row in METRICS}


def write_comparison(comparison: Comparison, folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write ``comparison.csv``, ``comparison.json`` and ``comparison.html`` into ``folder``; returns the page."""
    write_text(folder / "comparison.csv", _csv(comparison))
    write_json(folder / "comparison.json", {"settings": dict(settings), **comparison.summary()})
    page = folder / "comparison.html"
    write_text(page, _page(comparison, settings))
    return page


Table = tuple[str, list[str], list[list[str]]]


def tables(comparison: Comparison) -> list[Table]:
    """Title, columns and rows for a terminal: what the methods reach, and what they cost."""
    reached: Table = (
        "per cent, mean ± half the 95 % interval; figures of maps beside what chance scores",
        ["method", *TERMINAL.values()],
        [],
    )
    costs: Table = (
        "cost of a run, without asking the teacher ahead",
        ["method", "seeds", *TERMINAL_COSTS.values()],
        [],
    )
    for arm in comparison.arms:
        reached[2].append([arm.method, *(_beside_chance(arm, key) for key in TERMINAL)])
        costs[2].append([arm.method, str(len(arm.runs)), *(_number(arm.estimate(key)) for key in TERMINAL_COSTS)])
    return [reached, costs]


def _beside_chance(arm: Arm, key: str) -> str:
    """A figure, and in brackets the highest of its chance levels: ``88.04 ± 0.52 (81.90)``."""
    chance = max((level.mean for level in arm.levels(key).values()), default=None)
    return percent(arm.estimate(key)) + ("" if chance is None else f" ({100 * chance:.2f})")


def _number(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.mean:,.0f}"


def _csv(comparison: Comparison) -> str:
    stream = io.StringIO()
    lines = csv.writer(stream, lineterminator="\n")
    columns = comparison.columns
    lines.writerow(["method", "seed", *columns])
    for arm in comparison.arms:
        for seed, run in arm.runs.items():
            lines.writerow([arm.method, seed, *("" if run.get(key) is None else run[key] for key in columns)])
    return stream.getvalue()


def _page(comparison: Comparison, settings: Mapping[str, Any]) -> str:
    loader = jinja2.PackageLoader("camkd.report")
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    arms = [arm for arm in comparison.arms if arm.runs]
    return page.get_template("comparison.html").render(
        colours=SERIES_COLORS,
        arms=arms,
        choice=comparison.choice,
        best=next((arm.method for arm in comparison.ranked), None),
        differences={LABELS[key]: found for key in COMPARED if (found := comparison.differences(key))},
        settings=settings,
        shown=[(key, LABELS[key]) for key in SHOWN if any(arm.values(key) for arm in arms)],
        costs=[(key, LABELS[key]) for key in ("params", "macs", "seconds", "images_per_second")],
        row={row.key: row for row in METRICS},
        levels=LEVELS,
        percent=percent,
        points=points,
        p_value=p_value,
        plot=Markup(figure_to_svg(spread(arms))) if arms else None,  # our own SVG, which escapes its text
    )


def spread(arms: list[Arm]) -> Figure:
    """Test accuracy of every run as a point, a row a method, with the mean and its 95 % interval."""
    with style_context():
        figure = Figure((8.2, 1.0 + 0.46 * len(arms)), layout="constrained")
        axes = figure.add_subplot()
        for place, arm in enumerate(arms):
            values, colour = (
                [100 * value for value in arm.values("accuracy")],
                SERIES_COLORS[place % len(SERIES_COLORS)],
            )
            found = arm.estimate("accuracy")
            assert found is not None
            axes.plot(values, [place + 0.17] * len(values), "o", color=colour, alpha=0.55, markersize=5, mew=0)
            half = None if found.half is None else 100 * found.half
            axes.errorbar(100 * found.mean, place - 0.12, xerr=half, fmt="D", color=colour, capsize=4, markersize=5)
        axes.set_yticks(range(len(arms)), [shorten(arm.method, 44) for arm in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, 0), min(high, 100))
        axes.set_xlabel("test accuracy, %: each run (dots), mean and 95 % interval (diamonds)")
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    return figure
