"""How the project's figures look and how they are saved: colours, fonts, names that fit, PNG and SVG."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from camkd.utils.files import atomic_write

TEXT_COLOR = "#1b1f24"  # `svg` turns this colour into the page's own text colour
SERIES_COLORS = (
    "#2a78d6",
    "#e07b00",
    "#159a75",
    "#b2559b",
    "#8a8f98",
    "#c0392b",
)  # readable on white and near-black
_WIDE_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Devanagari")


@contextmanager
def style_context() -> Iterator[None]:
    """Our look, and silence about letters that no installed font has (they show as boxes).

    >>> with drawing():
    ...     figure = Figure()
    """
    wide = [name for name in _WIDE_FONTS if name in font_manager.get_font_names()]
    look: dict[Any, Any] = {"font.family": ["DejaVu Sans", *wide], "font.size": 9.5, "text.parse_math": False}
    look |= {"svg.fonttype": "none", "svg.hashsalt": "camkd"}
    look |= dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], TEXT_COLOR)
    with matplotlib.rc_context(look), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def save_png(figure: Figure, path: Path) -> None:
    """Save a figure as PNG on white, whole or not at all; equal figures give equal bytes."""
    with atomic_write(path) as temporary, style_context():
        figure.savefig(temporary, format="png", facecolor="white", metadata={"Software": None})


def figure_to_svg(figure: Figure) -> str:
    """A figure as an ``<svg>`` element for a page: transparent, in the page's own text colour.

    >>> svg(Figure())[:4]
    '<svg'
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with style_context():
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    named = text[text.index("<svg") :].replace(TEXT_COLOR, "currentColor").strip()
    return re.sub(r'<g id="[^"]*">', "<g>", named)  # the same names in every figure: not for one page


def shorten(name: str, room: int) -> str:
    """A name on one line of at most ``room`` columns (wide characters take two), cut with an ellipsis.

    >>> shorten("Burmilla shorthair", 10)
    'Burmilla …'
    """
    name = "".join(c if c.isprintable() else " " for c in name)
    if sum(map(_columns, name)) <= room:
        return name
    while name and sum(map(_columns, name)) > room - 1:
        name = name[:-1]
    return name + "…"


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
