"""Figures as SVG, and names of limited width."""

from __future__ import annotations

import re

import pytest
from matplotlib.figure import Figure

from camkd.utils.plot_style import TEXT_COLOR, figure_to_svg, shorten, style_context


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


def test_svg_uses_the_text_color_of_the_page() -> None:
    text = draw_svg()
    assert "currentColor" in text
    assert TEXT_COLOR not in text


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [("日本の猫", 8, "日本の猫"), ("日本の猫", 7, "日本の…"), ("tab\there", 20, "tab here"), ("owl", 3, "owl")],
)
def test_shorten_counts_wide_characters_twice(name: str, width: int, expected: str) -> None:
    assert shorten(name, width) == expected
