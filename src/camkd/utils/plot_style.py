"""Style of the project's figures, and their conversion to PNG and SVG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from numpy.typing import NDArray

from camkd.utils.files import atomic_write

TEXT_COLOR = "#1b1f24"
"""Color of text and axes. `figure_to_svg` replaces it by ``currentColor``."""

SERIES_COLORS = ("#2a78d6", "#e07b00", "#159a75", "#b2559b", "#8a8f98", "#c0392b")
"""Colors of data series, legible on white and on near-black backgrounds."""

EVIDENCE_COLORMAP = "inferno"
"""Colormap of the evidence for a class, in figures, in the gallery of the report and on the exported page."""

DIFFERENCE_COLORMAP = "coolwarm"
"""Colormap of the difference of two maps.

Both colormaps are perceptually uniform and suit color-blind readers: van der Walt and Smith 2015; Moreland 2009.
"""

_FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Devanagari")


@contextmanager
def style_context() -> Iterator[None]:
    """Apply the project's style to figures created and saved in the context.

    Warnings about characters without an installed font are suppressed; matplotlib draws these as boxes.

    Example:
        >>> with style_context():
        ...     figure = Figure()
    """
    fallback = [name for name in _FALLBACK_FONTS if name in font_manager.get_font_names()]
    style: dict[Any, Any] = {"font.family": ["DejaVu Sans", *fallback], "font.size": 9.5, "text.parse_math": False}
    style |= {"svg.fonttype": "none", "svg.hashsalt": "camkd"}
    color_keys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style |= dict.fromkeys(color_keys, TEXT_COLOR)
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def save_png(figure: Figure, path: Path) -> None:
    """Save a figure atomically as PNG on a white background. Equal figures give equal bytes."""
    with atomic_write(path) as temporary, style_context():
        figure.savefig(temporary, format="png", facecolor="white", metadata={"Software": None})


def figure_to_svg(figure: Figure) -> str:
    """Return a figure as an ``<svg>`` element for an HTML page.

    The background is transparent, and text and axes have the color of the page's text.

    Example:
        >>> figure_to_svg(Figure())[:4]
        '<svg'
    """
    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with style_context():
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    text = stream.getvalue()
    element = text[text.index("<svg") :].replace(TEXT_COLOR, "currentColor").strip()
    return re.sub(r'<g id="[^"]*">', "<g>", element)  # all figures have the same ids, but ids must be unique in a page


def color_table(name: str) -> NDArray[np.uint8]:
    """Return the colors of a colormap.

    The scripts of the report and of the exported page have the same table and rounding as `colorize`.

    Args:
        name: Name of a colormap of matplotlib.

    Returns:
        RGB ``(256, 3)``, for the values 0, 1/255, ..., 1.

    Example:
        >>> color_table("inferno")[[0, 255]].tolist()
        [[0, 0, 4], [252, 255, 164]]
    """
    return np.asarray(255 * matplotlib.colormaps[name](np.arange(256))[:, :3] + 0.5, np.uint8)


def colorize(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Color values by a colormap.

    Args:
        values: Values in 0..1.
        name: Name of a colormap of matplotlib.

    Returns:
        RGB ``(*values.shape, 3)``.

    Example:
        >>> colorize(np.array([0.0, 1.0]), "inferno").tolist()
        [[0, 0, 4], [252, 255, 164]]
    """
    return color_table(name)[np.floor(255 * values + 0.5).astype(np.intp)]


def wrap(text: str, width: float, fontsize: float, dpi: float = 100) -> list[str]:
    """Break a text at spaces into lines for a figure. A word that is longer than a line is broken inside.

    Args:
        text: The text.
        width: Width of the lines in pixels, at least that of a character.
        fontsize: Font size in points.
        dpi: Resolution of the figure in pixels per inch.

    Returns:
        The lines.

    Example:
        >>> wrap("one two three", 60, 10)
        ['one two', 'three']
    """
    with style_context():
        drawn = Figure(dpi=dpi).text(0, 0, "", fontsize=fontsize)

        def fits(line: str) -> bool:
            drawn.set_text(line)
            return drawn.get_window_extent().width <= width

        lines = [""]
        for word in text.split():
            line = f"{lines[-1]} {word}".strip()
            if fits(line):
                lines[-1] = line
                continue
            lines += [""] if lines[-1] else []
            for character in word:
                lines += [""] if lines[-1] and not fits(lines[-1] + character) else []
                lines[-1] += character
    return lines
