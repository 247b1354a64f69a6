"""Pictures of a run: heatmaps side by side, training curves, the confusion matrix.

Everything is drawn with matplotlib's object API (no pyplot, no global state) from numpy arrays and plain
numbers; nothing here imports torch. Names of classes and runs are drawn as they are: no mathtext, long
ones shortened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from camkd.utils.plot_style import TEXT_COLOR, save_png, shorten, style_context

Pixels = NDArray[np.uint8]
RIGHT, WRONG = "#0b6b4f", "#b3261e"
SIDE = 192  # pixels of a panel of `heatmaps`


class Column(NamedTuple):
    """One model in `heatmaps`: maps ``(N,h,w)`` and, for each picture, its answer and confidence (0 to 1)."""

    title: str
    maps: NDArray[Any]
    answers: Sequence[str]
    confidences: Sequence[float]


def enlarged(image: Pixels, size: tuple[int, int]) -> Pixels:
    """A picture ``(H,W,3)`` at ``size = (height, width)``: its own pixels when larger, averages when smaller.

    >>> enlarged(np.zeros((32, 32, 3), np.uint8), (192, 192)).shape
    (192, 192, 3)
    """
    grows = size[0] >= image.shape[0] and size[1] >= image.shape[1]
    method = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
    return np.asarray(Image.fromarray(image).resize(size[::-1], method))


def overlay(image: Pixels, cam: NDArray[Any], size: tuple[int, int]) -> Pixels:
    """A map laid over its picture, ``(height, width, 3)`` uint8 of ``size = (height, width)`` pixels.

    ``image (H,W,3)`` uint8 is shown in greys, so that colour means evidence and nothing else; ``cam (h,w)``
    is cut at zero, divided by its maximum (a map without positive evidence stays at zero) and enlarged
    bilinearly with its cells as areas, whatever its grid.

    >>> overlay(np.zeros((2, 2, 3), np.uint8), np.eye(2), (4, 4)).shape
    (4, 4, 3)
    """
    evidence = np.maximum(np.nan_to_num(np.asarray(cam, np.float32), posinf=0), 0)
    peak = evidence.max(initial=0)
    map_image = Image.fromarray(evidence / (peak if peak > 0 else 1))
    share = np.asarray(map_image.resize(size[::-1], Image.Resampling.BILINEAR))
    return _blend(enlarged(image, size) @ np.array([0.299, 0.587, 0.114]) / 255, share)


def overlay_whole(image: Pixels, cam: NDArray[Any]) -> Pixels:
    """A map over the centre square of a picture ``(H,W,3)`` in its own pixels; what lies beside it is pale: not seen.

    >>> overlay_whole(np.zeros((20, 30, 3), np.uint8), np.eye(2)).shape
    (20, 30, 3)
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    seen = (slice(top, top + side), slice(left, left + side))
    pale = np.asarray(255 - (255 - image @ np.array([0.299, 0.587, 0.114])) * 0.45, np.uint8)
    drawn = np.repeat(pale[..., None], 3, -1)
    drawn[seen] = overlay(image[seen], cam, (side, side))
    return drawn


def heatmaps(
    images: Pixels,
    columns: Sequence[Column],
    path: Path,
    *,
    shown: Sequence[str] | None = None,
    truths: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    blocks: int = 2,
) -> None:
    """Save a PNG with one row a picture: the picture, then each model's map of the same class over it.

    ``images (N,H,W,3)`` uint8; ``shown`` names the class each row's maps are of, where that is one; ``truths`` the true
    classes where they are known, and then answers carry a tick or a cross; ``names`` are the pictures' own. Rows are
    laid out in ``blocks`` side by side. All maps share one colour scale. Raises ValueError without pictures or when
    the numbers differ.

    >>> teacher = Column("teacher", np.ones((1, 8, 8)), ["cat"], [0.93])
    >>> pictures = np.zeros((1, 32, 32, 3), np.uint8)
    >>> heatmaps(pictures, [teacher], Path("cams.png"), shown=["cat"])  # doctest: +SKIP
    """
    counts = {len(images), *(len(part) for c in columns for part in c[1:])}
    counts |= {len(words) for words in (shown, truths, names) if words is not None}
    if len(counts) > 1 or not len(images):
        raise ValueError(f"each picture needs a map, a class and answers; there are {sorted(counts)} of them")
    with style_context():
        sheet = _Sheet(len(images), 1 + len(columns), blocks, images.shape[2] / images.shape[1])
        for row, image in enumerate(images):
            truth, name, maps_of = (words[row] if words else None for words in (truths, names, shown))
            _picture_panel(sheet.panel(row, 0), enlarged(image, sheet.size), truth or name, maps_of)
            for place, column in enumerate(columns, 1):
                cam = overlay(image, column.maps[row], sheet.size)
                _map_panel(
                    sheet.panel(row, place),
                    cam,
                    column.answers[row],
                    column.confidences[row],
                    truth,
                )
        for place, title in enumerate(["picture", *(c.title for c in columns)]):
            sheet.title(place, title)
        sheet.colour_bar()
    save_png(sheet.figure, path)


class _Sheet:
    """The grid of `heatmaps`, laid out in pixels: blocks of rows, each row a picture and its maps."""

    GAP, CAPTION, MARGIN, BETWEEN, HEAD, FOOT = 10, 46, 24, 56, 44, 62

    def __init__(self, rows: int, across: int, blocks: int, aspect: float) -> None:
        blocks = min(blocks, rows)
        self.deep = -(-rows // blocks)
        self.blocks = -(-rows // self.deep)  # five rows in four blocks fill three
        self.size = (round(SIDE / max(aspect, 1)), round(SIDE * min(aspect, 1)))
        block = across * (self.size[1] + self.GAP) - self.GAP
        self.step = block + self.BETWEEN
        self.width = max(2 * self.MARGIN + self.blocks * self.step - self.BETWEEN, 560)
        self.height = self.HEAD + self.deep * (self.size[0] + self.CAPTION) + self.FOOT
        self.figure = Figure((self.width / 100, self.height / 100), dpi=100)

    def left_top(self, row: int, place: int) -> tuple[int, int]:
        block, level = divmod(row, self.deep)
        left = self.MARGIN + block * self.step + place * (self.size[1] + self.GAP)
        return left, self.HEAD + level * (self.size[0] + self.CAPTION)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def panel(self, row: int, place: int) -> Axes:
        return self.axes(*self.left_top(row, place), self.size[1], self.size[0])

    def title(self, place: int, text: str) -> None:
        for block in range(self.blocks):
            left, top = self.left_top(block * self.deep, place)
            x, y = (left + self.size[1] / 2) / self.width, 1 - (top - 10) / self.height
            self.figure.text(x, y, shorten(text, _room(self.size[1])), ha="center", fontsize=11.5, weight="bold")

    def colour_bar(self) -> None:
        top = self.height - self.FOOT + 14
        axes = self.axes(self.MARGIN, top, 260, 14)
        ramp = np.tile(np.linspace(0, 1, 260), (14, 1))
        axes.imshow(_blend(np.full_like(ramp, 0.5), ramp), aspect="auto", extent=(0, 1, 0, 1))
        axes.set_yticks([])
        axes.set_xticks([0, 0.5, 1], ["0", "½", "1"], fontsize=9)
        axes.tick_params(length=2, pad=2)
        words = "evidence for the class,\nas a share of each map's maximum"
        middle = 1 - (top + 7) / self.height
        self.figure.text((self.MARGIN + 274) / self.width, middle, words, va="center", fontsize=9)


def _room(pixels: int) -> int:
    """How many letters of a caption fit."""
    return max(4, pixels // 9)


def _blend(grey: NDArray[Any], share: NDArray[Any]) -> Pixels:
    """Greys and evidence (both 0 to 1) in one colour: more evidence, more colour and less picture."""
    cover = (0.35 + 0.4 * share)[..., None]
    colour = matplotlib.colormaps["inferno"](share)[..., :3]
    mixed = (1 - cover) * (0.1 + 0.85 * grey[..., None]) + cover * colour
    return np.asarray(mixed * 255 + 0.5, np.uint8)


def _picture_panel(axes: Axes, image: Pixels, name: str | None, shown: str | None) -> None:
    room = _room(image.shape[1])
    if name is not None:
        _caption(axes, 5, shorten(name, room), fontsize=11, weight="bold")
    if shown is not None:
        _caption(axes, 5 if name is None else 24, shorten(f"maps: {shown}", room + 6), fontsize=8.5, alpha=0.75)
    _pixels(axes, image)


def _map_panel(axes: Axes, image: Pixels, answer: str, confidence: float, truth: str | None) -> None:
    mark = "" if truth is None else "✓ " if answer == truth else "✗ "
    colour = TEXT_COLOR if truth is None else RIGHT if answer == truth else WRONG
    _caption(axes, 5, mark + shorten(answer, _room(image.shape[1]) - 2), fontsize=11, color=colour)
    _caption(axes, 24, f"{confidence:.0%} sure", fontsize=8.5, alpha=0.75)
    _pixels(axes, image)


def _caption(axes: Axes, below: int, words: str, **style: Any) -> None:
    """Centred text ``below`` pixels under a panel."""
    at: dict[str, Any] = {
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "ha": "center",
        "va": "top",
    }
    axes.annotate(words, (0.5, 0), (0, -below * 0.72), **at, **style)


def _pixels(axes: Axes, image: Pixels) -> None:
    axes.imshow(image, interpolation="none", aspect="auto")
    axes.set_axis_off()
