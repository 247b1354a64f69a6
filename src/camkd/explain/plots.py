"""Heatmap figures and overlays.

Figures are drawn from NumPy arrays and plain numbers with matplotlib's object API, without pyplot. This module does not
import torch. Class names and titles are drawn literally, without mathtext; long names are shortened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from camkd.data.images import place
from camkd.types import Preprocessing
from camkd.utils.plot_style import EVIDENCE_COLORMAP, TEXT_COLOR, colorize, save_png, style_context, wrap
from camkd.utils.text import shorten, shorten_middle

Pixels = NDArray[np.uint8]
"""An image ``(H, W, 3)`` or several images ``(N, H, W, 3)``, uint8, RGB."""

CORRECT_COLOR = "#0b6b4f"
WRONG_COLOR = "#b3261e"

PANEL_SIZE = 192
"""Longer side of a panel of `save_heatmaps`, in pixels."""

LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luma of ITU-R BT.601."""

DPI = 100
"""Resolution of figures in pixels per inch."""

POINTS_PER_PIXEL = 72 / DPI
"""Conversion of pixels to matplotlib's points, 1/72 inch."""


class HeatmapColumn(NamedTuple):
    """A column of `save_heatmaps`: the maps of one model for ``N`` images, with a caption for each map."""

    title: str
    """Title of the model."""
    maps: NDArray[Any]
    """Maps ``(N, h, w)``."""
    caption_classes: Sequence[str]
    """Class name in the caption of each map ``(N,)``, for example the class that the model predicts."""
    confidences: Sequence[float]
    """Probability of each caption's class, 0 to 1, ``(N,)``."""


def resize_image(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize an image: nearest neighbor to enlarge, average to shrink.

    Args:
        image: ``(H, W, 3)``.
        size: Height and width of the result.

    Returns:
        The image at ``size``. If at least one side shrinks, averages are taken along both sides.

    Example:
        >>> resize_image(np.zeros((32, 32, 3), np.uint8), (192, 192)).shape
        (192, 192, 3)
    """
    enlarges = size[0] >= image.shape[0] and size[1] >= image.shape[1]
    method = Image.Resampling.NEAREST if enlarges else Image.Resampling.BOX
    return np.asarray(Image.fromarray(image).resize(size[::-1], method))


def overlay(
    image: Pixels,
    cam: NDArray[Any],
    size: tuple[int, int],
    part: tuple[float, float, float, float] = (0, 0, 1, 1),
) -> Pixels:
    """Draw a map over its image.

    The image is drawn in gray, so that color shows only the positive values of the map, the evidence for the class. The
    map is clipped at zero, divided by its maximum and resized bilinearly, with cells as areas. NaN and infinite values
    count as zero. A map without positive values stays zero.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        cam: The map ``(h, w)``, on any grid.
        size: Height and width of the result in pixels.
        part: Left, top, right and bottom of the part of the map that lies on the image, as fractions of its sides.

    Returns:
        The overlay, ``(*size, 3)`` uint8, RGB.

    Example:
        >>> overlay(np.zeros((2, 2, 3), np.uint8), np.eye(2), (4, 4)).shape
        (4, 4, 3)
    """
    positive = np.maximum(np.nan_to_num(np.asarray(cam, np.float32), posinf=0), 0)
    peak = positive.max(initial=0)
    cam_image = Image.fromarray(positive / (peak if peak > 0 else 1))
    width, height = cam_image.size
    box = (part[0] * width, part[1] * height, part[2] * width, part[3] * height)
    intensity = np.asarray(cam_image.resize(size[::-1], Image.Resampling.BILINEAR, box))
    return _blend(resize_image(image, size) @ LUMA_WEIGHTS / 255, intensity)


def overlay_full_image(image: Pixels, cam: NDArray[Any], preprocessing: Preprocessing) -> Pixels:
    """Draw a map over an image, at the resolution of the image.

    With the fit ``crop`` the map covers the center square, and the pixels outside it are drawn in pale gray. With
    ``pad`` the map covers the padded square, and its part that lies on the image is drawn.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        cam: The map of the input of the network ``(h, w)``, on any grid.
        preprocessing: Preprocessing of the model.

    Returns:
        The overlay, ``(H, W, 3)`` uint8, RGB.

    Example:
        >>> overlay_full_image(np.zeros((20, 30, 3), np.uint8), np.eye(2), Preprocessing(64)).shape
        (20, 30, 3)
    """
    height, width = image.shape[:2]
    if preprocessing.fit == "pad":
        left, top, right, bottom = (
            position / preprocessing.size for position in place(width, height, preprocessing).target
        )
        return overlay(image, cam, (height, width), (left, top, right, bottom))
    side = min(height, width)
    top = (height - side) // 2
    left = (width - side) // 2
    square = (slice(top, top + side), slice(left, left + side))
    pale = np.asarray(255 - (255 - image @ LUMA_WEIGHTS) * 0.45, np.uint8)
    pixels = np.repeat(pale[..., None], 3, -1)
    pixels[square] = overlay(image[square], cam, (side, side))
    return pixels


def save_heatmaps(
    images: Pixels,
    columns: Sequence[HeatmapColumn],
    path: Path,
    *,
    map_classes: Sequence[str] | None = None,
    true_classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    blocks: int = 2,
    footnote: str | None = None,
) -> None:
    """Save a PNG with one row per image: the image, then one overlay per column.

    Each map is divided by its own maximum. Colors therefore compare locations within a map, not the magnitudes of
    different maps.

    Args:
        images: ``(N, H, W, 3)`` uint8, RGB.
        columns: One column per model and class.
        path: The PNG file to write.
        map_classes: Class of all maps of each image ``(N,)``, drawn under the image. None if an image has maps of
            several classes.
        true_classes: True class of each image ``(N,)``, drawn under the image. If given, a caption is marked with a
            tick if its class is the true class, and with a cross otherwise.
        names: Name of each image ``(N,)``, drawn under the image if ``true_classes`` is None.
        blocks: Maximum number of blocks. The rows are divided into blocks of equal height, side by side.
        footnote: Text below the color bar. It is broken into lines of the figure's width.

    Raises:
        ValueError: If there are no images, or an argument does not have one entry per image.

    Example:
        >>> images = np.zeros((1, 32, 32, 3), np.uint8)
        >>> teacher = HeatmapColumn("teacher", np.ones((1, 8, 8)), ["cat"], [0.93])
        >>> save_heatmaps(images, [teacher], Path("cams.png"), map_classes=["cat"])  # doctest: +SKIP
    """
    _check_lengths(images, columns, {"map_classes": map_classes, "true_classes": true_classes, "names": names})
    with style_context():
        grid = _HeatmapGrid(len(images), 1 + len(columns), blocks, images.shape[2] / images.shape[1], footnote or "")
        for row, image in enumerate(images):
            true_class = true_classes[row] if true_classes else None
            name = names[row] if names else None
            map_class = map_classes[row] if map_classes else None
            max_characters = _max_characters(grid.panel_size[1])
            caption = shorten(true_class, max_characters) if true_class else None
            if caption is None and name is not None:
                caption = shorten_middle(name, max_characters - 2)  # bold
            _draw_image(grid.panel(row, 0), resize_image(image, grid.panel_size), caption, map_class)
            for position, column in enumerate(columns, 1):
                _draw_map(
                    grid.panel(row, position),
                    overlay(image, column.maps[row], grid.panel_size),
                    column.caption_classes[row],
                    column.confidences[row],
                    true_class,
                )
        for position, title in enumerate(["image", *(column.title for column in columns)]):
            grid.draw_title(position, title)
        grid.draw_footer()
    save_png(grid.figure, path)


def _check_lengths(images: Pixels, columns: Sequence[HeatmapColumn], texts: Mapping[str, Sequence[str] | None]) -> None:
    """Raise ``ValueError`` unless there is an image and every argument of `save_heatmaps` has one entry per image."""
    lengths = {"images": len(images)}
    for index, column in enumerate(columns):
        for field in ("maps", "caption_classes", "confidences"):
            lengths[f"columns[{index}].{field}"] = len(getattr(column, field))
    lengths |= {name: len(values) for name, values in texts.items() if values is not None}
    if not len(images) or len(set(lengths.values())) > 1:
        raise ValueError(
            "images, maps and captions must have equal lengths of 1 or more, got "
            f"{', '.join(f'{length} {name}' for name, length in lengths.items())}. Pass one entry per image."
        )


class _HeatmapGrid:
    """Layout of `save_heatmaps` in pixels. A row is an image and its overlays; blocks of rows stand side by side."""

    PANEL_GAP = 10
    CAPTION_HEIGHT = 46
    MARGIN = 24
    BLOCK_GAP = 56
    HEADER_HEIGHT = 44
    FOOTER_HEIGHT = 62
    FOOTNOTE_LINE_HEIGHT = 16
    FOOTNOTE_SIZE = 9
    MIN_WIDTH = 560
    ROUNDING = 1e-9  # pixels: before 3.11.1, Matplotlib truncates the figure's size and rounds up that of an image

    def __init__(self, rows: int, panels_per_row: int, blocks: int, aspect: float, footnote: str) -> None:
        blocks = min(blocks, rows)
        self.rows_per_block = -(-rows // blocks)
        self.blocks = -(-rows // self.rows_per_block)  # for example, five rows at two per block: three blocks, not four
        self.panel_size = (round(PANEL_SIZE / max(aspect, 1)), round(PANEL_SIZE * min(aspect, 1)))
        block_width = panels_per_row * (self.panel_size[1] + self.PANEL_GAP) - self.PANEL_GAP
        self.block_step = block_width + self.BLOCK_GAP
        self.width = max(2 * self.MARGIN + self.blocks * self.block_step - self.BLOCK_GAP, self.MIN_WIDTH)
        rows_height = self.rows_per_block * (self.panel_size[0] + self.CAPTION_HEIGHT)
        self.footer_top = self.HEADER_HEIGHT + rows_height
        lines = wrap(footnote, self.width - 2 * self.MARGIN, self.FOOTNOTE_SIZE, DPI) if footnote else []
        self.footnote = "\n".join(lines)
        self.height = self.footer_top + self.FOOTER_HEIGHT + self.FOOTNOTE_LINE_HEIGHT * len(lines)
        size = ((self.width + self.ROUNDING) / DPI, (self.height + self.ROUNDING) / DPI)
        self.figure = Figure(size, dpi=DPI)

    def left_top(self, row: int, position: int) -> tuple[int, int]:
        block, block_row = divmod(row, self.rows_per_block)
        left = self.MARGIN + block * self.block_step + position * (self.panel_size[1] + self.PANEL_GAP)
        top = self.HEADER_HEIGHT + block_row * (self.panel_size[0] + self.CAPTION_HEIGHT)
        return left, top

    def add_axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = 1 - (top + height) / self.height
        size = ((width - self.ROUNDING) / self.width, (height - self.ROUNDING) / self.height)
        return self.figure.add_axes((left / self.width, bottom, *size))

    def panel(self, row: int, position: int) -> Axes:
        return self.add_axes(*self.left_top(row, position), self.panel_size[1], self.panel_size[0])

    def draw_title(self, position: int, text: str) -> None:
        """Draw the title of a column above each block."""
        text = shorten(text, _max_characters(self.panel_size[1]))
        for block in range(self.blocks):
            left, top = self.left_top(block * self.rows_per_block, position)
            x = (left + self.panel_size[1] / 2) / self.width
            y = 1 - (top - 10) / self.height
            self.figure.text(x, y, text, ha="center", fontsize=11.5, weight="bold")

    def draw_footer(self) -> None:
        """Draw the color bar, and the footnote below it."""
        top = self.footer_top + 14
        axes = self.add_axes(self.MARGIN, top, 260, 14)
        ramp = np.tile(np.linspace(0, 1, 260), (14, 1))
        axes.imshow(_blend(np.full_like(ramp, 0.5), ramp), aspect="auto", extent=(0, 1, 0, 1))
        axes.set_yticks([])
        axes.set_xticks([0, 0.5, 1], ["0", "½", "1"], fontsize=9)
        axes.tick_params(length=2, pad=2)
        label = "evidence for the class,\nas a share of each map's maximum"
        middle = 1 - (top + 7) / self.height
        self.figure.text((self.MARGIN + 274) / self.width, middle, label, va="center", fontsize=9)
        bottom = 1 - (self.footer_top + self.FOOTER_HEIGHT - 8) / self.height
        self.figure.text(self.MARGIN / self.width, bottom, self.footnote, va="top", fontsize=self.FOOTNOTE_SIZE)


def _max_characters(pixels: int) -> int:
    """Return the number of caption characters that fit into a width in pixels."""
    return max(4, pixels // 9)


def _blend(gray: NDArray[Any], intensity: NDArray[Any]) -> Pixels:
    """Blend a gray image with the colors of a map, both in 0..1; the opacity of a color grows with the map value."""
    opacity = (0.35 + 0.4 * intensity)[..., None]
    color = colorize(intensity, EVIDENCE_COLORMAP) / 255
    blended = (1 - opacity) * (0.1 + 0.85 * gray[..., None]) + opacity * color
    return np.asarray(blended * 255 + 0.5, np.uint8)


def _draw_image(axes: Axes, image: Pixels, name: str | None, map_class: str | None) -> None:
    if name is not None:
        _draw_caption(axes, 5, name, fontsize=11, weight="bold")
    if map_class is not None:
        offset = 5 if name is None else 24
        _draw_caption(
            axes, offset, shorten(f"maps: {map_class}", _max_characters(image.shape[1]) + 6), fontsize=8.5, alpha=0.75
        )
    _draw_pixels(axes, image)


def _draw_map(axes: Axes, image: Pixels, caption_class: str, confidence: float, true_class: str | None) -> None:
    if true_class is None:
        mark = ""
        color = TEXT_COLOR
    elif caption_class == true_class:
        mark = "✓ "
        color = CORRECT_COLOR
    else:
        mark = "✗ "
        color = WRONG_COLOR
    caption = mark + shorten(caption_class, _max_characters(image.shape[1]) - 2)
    _draw_caption(axes, 5, caption, fontsize=11, color=color)
    _draw_caption(axes, 24, f"{confidence:.0%} confidence", fontsize=8.5, alpha=0.75)
    _draw_pixels(axes, image)


def _draw_caption(axes: Axes, offset: int, text: str, **style: Any) -> None:
    """Draw centered text ``offset`` pixels below a panel."""
    layout: dict[str, Any] = {
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "ha": "center",
        "va": "top",
    }
    axes.annotate(text, (0.5, 0), (0, -offset * POINTS_PER_PIXEL), **layout, **style)


def _draw_pixels(axes: Axes, image: Pixels) -> None:
    axes.imshow(image, interpolation="none", aspect="auto")
    axes.set_axis_off()
