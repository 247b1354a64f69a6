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

from camkd.utils.plot_style import SERIES_COLORS, TEXT_COLOR, shorten, style_context

DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 1)))


def curve(histories: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str, percent: bool = False) -> Figure:
    """One measured quantity by epoch, a line a run: ``histories`` maps a run's name to its ``metrics.jsonl``.

    Epochs without a finite ``key`` are left out; runs without any are not drawn. ``percent`` shows shares
    as percentages. Lines differ in colour and in dashes.

    >>> figure = curve({"student": [{"epoch": 1, "val_loss": 0.5}]}, "val_loss", "validation loss")
    """
    with style_context():
        figure = Figure((3.9, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for place, (name, history) in enumerate(histories.items()):
            points = [(r["epoch"], r[key]) for r in history if _finite(r.get("epoch")) and _finite(r.get(key))]
            if points:
                _line(axes, points, place, 100 if percent else 1, name)
        axes.set_title(title + (" (%)" if percent else ""), loc="left", fontsize=10.5, weight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=TEXT_COLOR, alpha=0.13, linewidth=0.8)
        if axes.lines:
            axes.legend(frameon=False, handlelength=2.6)
    return figure


def confusion_figure(counts: Sequence[Sequence[float]] | NDArray[Any], classes: Sequence[str]) -> Figure:
    """The confusion matrix ``(K,K)``, rows true: colour is the row's share, numbers are counts (K <= 20).

    Raises ValueError unless the matrix is square with one name a row.

    >>> figure = confusion_figure([[9, 1], [2, 8]], ["cat", "dog"])
    """
    table = np.asarray(counts, float)
    k = len(classes)
    if table.shape != (k, k) or not k:
        raise ValueError(f"a confusion matrix of {k} classes is {k} x {k}, not {table.shape}")
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(7.0, 2.2 + 0.42 * k)
    with style_context():
        figure = Figure((side, side), layout="constrained")
        axes = figure.add_subplot()
        rgba = np.broadcast_to(matplotlib.colors.to_rgba(SERIES_COLORS[0]), (k, k, 4)).copy()
        rgba[..., 3] = shares**0.6  # a root, so that rare mistakes are seen
        axes.imshow(rgba, interpolation="nearest", aspect="equal")
        if k <= 20:
            _numbers(axes, table, shares)
        _class_ticks(axes, classes)
    return figure


def _line(axes: Axes, points: Sequence[tuple[float, float]], place: int, scale: float, name: str) -> None:
    epochs, values = zip(*points, strict=True)
    (line,) = axes.plot(epochs, [scale * value for value in values], linewidth=1.8)
    line.set(color=SERIES_COLORS[place % len(SERIES_COLORS)], linestyle=DASHES[place % len(DASHES)])
    line.set_marker("o" if len(points) == 1 else "")
    line.set_label("\N{WORD JOINER}" + shorten(name, 28))  # matplotlib hides labels that begin with _


def _numbers(axes: Axes, table: NDArray[Any], shares: NDArray[Any]) -> None:
    for (row, column), count in np.ndenumerate(table):
        if count:
            colour = "white" if shares[row, column] > 0.4 else TEXT_COLOR
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=8, color=colour)


def _class_ticks(axes: Axes, classes: Sequence[str]) -> None:
    at = range(0, len(classes), -(-len(classes) // 50))
    names = [shorten(classes[i], 16) for i in at]
    size = 9 if len(classes) <= 20 else 5.5
    axes.set_xticks(at, names, rotation=90, fontsize=size)
    axes.set_yticks(at, names, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_alpha(0.2)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))
