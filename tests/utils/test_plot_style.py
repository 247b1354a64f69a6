"""Figures as SVG, names of limited width, and colormaps."""

from __future__ import annotations

import re
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from camkd.utils.plot_style import (
    DIFFERENCE_COLORMAP,
    EVIDENCE_COLORMAP,
    TEXT_COLOR,
    color_table,
    colorize,
    figure_to_svg,
    style_context,
    wrap,
)


def draw_svg() -> str:
    with style_context():
        figure = Figure()
        axes = figure.add_subplot()
        axes.plot([1, 2], label="a & b")
        axes.set_title("<script>alert(1)</script>")
        axes.legend()
        return figure_to_svg(figure)


def test_svg_is_deterministic() -> None:
    assert draw_svg() == draw_svg()


def test_svg_escapes_text_and_loads_nothing() -> None:
    text = draw_svg()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "a &amp; b" in text
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)


@pytest.mark.parametrize("text", ["one two three four", "日本 の 猫", "word" * 9, "a " * 50, "x" * 7 + " y"])
def test_wrapped_lines_hold_every_word_and_fit(text: str) -> None:
    lines = wrap(text, 60, 10)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    with style_context():
        widths = [Figure(dpi=100).text(0, 0, line, fontsize=10).get_window_extent().width for line in lines]
    assert 0 < min(widths) <= max(widths) <= 60


def test_svg_uses_the_text_color_of_the_page() -> None:
    text = draw_svg()
    assert "currentColor" in text
    assert TEXT_COLOR not in text


# --- colormaps


def to_lab(colors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Convert sRGB colors ``(n, 3)`` in 0..1 to CIELAB (D65)."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    share = linear @ to_xyz.T / (to_xyz @ np.ones(3))
    f = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
}
"""Machado, Oliveira and Fernandes 2009, severity 1. The matrices are for linear RGB; sRGB is close enough here."""


@pytest.mark.parametrize("vision", VISION)
def test_colormaps_are_perceptually_ordered(vision: str) -> None:
    """Lightness grows with the evidence; a difference is lightest at zero, and its two ends are far apart."""
    colors = {
        name: to_lab(np.clip(color_table(name)[::8] / 255 @ VISION[vision].T, 0, 1))
        for name in (EVIDENCE_COLORMAP, DIFFERENCE_COLORMAP, "jet")
    }
    difference = colors[DIFFERENCE_COLORMAP]
    assert (np.diff(colors[EVIDENCE_COLORMAP][:, 0]) > 0).all()
    assert abs(int(difference[:, 0].argmax()) - 16) <= 1
    assert np.linalg.norm(difference[0] - difference[-1]) > 60
    assert not (np.diff(colors["jet"][:, 0]) > 0).all(), "the check can fail"


@pytest.mark.parametrize("name", [EVIDENCE_COLORMAP, DIFFERENCE_COLORMAP])
def test_colors_equal_those_of_matplotlib(name: str) -> None:
    levels = np.arange(256)
    expected = 255 * matplotlib.colormaps[name](levels)[:, :3]
    assert np.abs(color_table(name) - expected).max() <= 0.5
    values = np.concatenate([levels / 255, (levels + 0.49) / 255, (levels - 0.49) / 255]).clip(0, 1)
    np.testing.assert_array_equal(colorize(values, name), np.concatenate([color_table(name)] * 3))
