"""Plots of the report: training curves and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from camkd.report.risk_coverage import RiskCoverage
from camkd.utils.plot_style import SERIES_COLORS, TEXT_COLOR, style_context
from camkd.utils.text import shorten
from camkd.utils.units import finite_number

LINE_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 1)))
"""Line styles of training curves, one for each of `SERIES_COLORS`."""

MAX_COUNT_LABELS = 20
"""Largest number of classes for which the cells of a confusion matrix show their counts."""

MAX_CLASS_TICKS = 50
"""Largest number of classes that are named on an axis of a confusion matrix. Names in between are left out."""


def curve_figure(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str, percent: bool = False
) -> Figure:
    """Plot a training metric by epoch, one line per run. Up to six lines differ in color and in line style.

    Args:
        histories: The rows of ``metrics.jsonl`` of each run, by the run's name. Rows without a finite epoch and a
            finite ``key`` are skipped. Runs without any such row get no line.
        key: Metric to plot.
        title: Title of the plot.
        percent: Whether to plot the values times 100 and add ``(%)`` to the title.

    Returns:
        The figure.

    Example:
        >>> figure = curve_figure({"student": [{"epoch": 1, "val_loss": 0.5}]}, "val_loss", "validation loss")
    """
    with style_context():
        figure = Figure((3.9, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for index, (name, history) in enumerate(histories.items()):
            rows = [(finite_number(row.get("epoch")), finite_number(row.get(key))) for row in history]
            points = [(epoch, value) for epoch, value in rows if epoch is not None and value is not None]
            if points:
                _add_line(axes, points, index, 100 if percent else 1, name)
        axes.set_title(title + (" (%)" if percent else ""), loc="left", fontsize=10.5, weight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=TEXT_COLOR, alpha=0.13, linewidth=0.8)
        if axes.lines:
            axes.legend(frameon=False, handlelength=2.6)
    return figure


def risk_figure(curves: Mapping[str, RiskCoverage], thresholds: Mapping[str, float]) -> Figure:
    """Plot the error rate of the answers by the share of images that are answered, one line per run.

    Args:
        curves: Curves by the name of the run.
        thresholds: Coverage at the confidence threshold, by the name of the run; it is marked with a diamond.

    Returns:
        The figure.
    """
    with style_context():
        figure = Figure((3.9, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for index, (name, curve) in enumerate(curves.items()):
            points = list(zip(curve.coverage.tolist(), curve.risk.tolist(), strict=True))
            _add_line(axes, [(100 * coverage, risk) for coverage, risk in points], index, 100, name)
            if name in thresholds:
                risk = float(np.interp(thresholds[name], curve.coverage, curve.risk))
                color = SERIES_COLORS[index % len(SERIES_COLORS)]
                axes.plot([100 * thresholds[name]], [100 * risk], "D", color=color, markersize=6)
        axes.set_title("Errors among the answers (%)", loc="left", fontsize=10.5, weight="bold")
        axes.set_xlabel("answered images (%), most confident first")
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=TEXT_COLOR, alpha=0.13, linewidth=0.8)
        axes.legend(frameon=False, handlelength=2.6)
    return figure


def confusion_figure(counts: Sequence[Sequence[float]] | NDArray[Any], classes: Sequence[str]) -> Figure:
    """Plot a confusion matrix. The opacity of a cell grows with its share of the row.

    Args:
        counts: Counts ``(K, K)``. Rows are true classes, columns are predicted classes. With at most
            `MAX_COUNT_LABELS` classes, the nonzero counts are drawn as numbers.
        classes: The ``K`` class names.

    Returns:
        The figure.

    Raises:
        ValueError: If ``counts`` is not ``(K, K)``, or there is no class.

    Example:
        >>> figure = confusion_figure([[9, 1], [2, 8]], ["cat", "dog"])
    """
    table = np.asarray(counts, float)
    num_classes = len(classes)
    if table.shape != (num_classes, num_classes) or not num_classes:
        raise ValueError(
            f"counts must have shape {(num_classes, num_classes)} for {num_classes} classes, got shape {table.shape}."
        )
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(7.0, 2.2 + 0.42 * num_classes)
    with style_context():
        figure = Figure((side, side), layout="constrained")
        axes = figure.add_subplot()
        rgba = np.broadcast_to(matplotlib.colors.to_rgba(SERIES_COLORS[0]), (num_classes, num_classes, 4)).copy()
        rgba[..., 3] = shares**0.6  # the power keeps rare errors visible
        axes.imshow(rgba, interpolation="nearest", aspect="equal")
        if num_classes <= MAX_COUNT_LABELS:
            _add_counts(axes, table, shares)
        _label_classes(axes, classes)
    return figure


def _add_line(axes: Axes, points: Sequence[tuple[float, float]], index: int, scale: float, name: str) -> None:
    epochs, values = zip(*points, strict=True)
    (line,) = axes.plot(epochs, [scale * value for value in values], linewidth=1.8)
    line.set(color=SERIES_COLORS[index % len(SERIES_COLORS)], linestyle=LINE_STYLES[index % len(LINE_STYLES)])
    line.set_marker("o" if len(points) == 1 else "")
    line.set_label("\N{WORD JOINER}" + shorten(name, 28))  # matplotlib hides labels that begin with _


def _add_counts(axes: Axes, table: NDArray[Any], shares: NDArray[Any]) -> None:
    for (row, column), count in np.ndenumerate(table):
        if count:
            color = "white" if shares[row, column] > 0.4 else TEXT_COLOR
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=8, color=color)


def _label_classes(axes: Axes, classes: Sequence[str]) -> None:
    ticks = range(0, len(classes), -(-len(classes) // MAX_CLASS_TICKS))
    names = [shorten(classes[index], 16) for index in ticks]
    fontsize = 9 if len(classes) <= MAX_COUNT_LABELS else 5.5
    axes.set_xticks(ticks, names, rotation=90, fontsize=fontsize)
    axes.set_yticks(ticks, names, fontsize=fontsize)
    axes.tick_params(length=0)
    axes.spines[:].set_alpha(0.2)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
