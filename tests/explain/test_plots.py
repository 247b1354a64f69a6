"""Overlays and heatmap figures: sizes, positions of pixels, captions and unusual names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.explain.plots import (
    PANEL_SIZE,
    HeatmapColumn,
    Pixels,
    overlay,
    overlay_full_image,
    resize_image,
    save_heatmaps,
)
from camkd.types import Preprocessing
from camkd.utils.plot_style import EVIDENCE_COLORMAP, colorize
from support.unusual_names import UNUSUAL_NAMES


def gray_images(n: int, height: int = 32, width: int = 32) -> Pixels:
    return np.full((n, height, width, 3), 128, np.uint8)


def random_column(n: int, title: str = "teacher", caption_classes: list[str] | None = None) -> HeatmapColumn:
    maps = np.random.default_rng(0).standard_normal((n, 8, 8))
    return HeatmapColumn(title, maps, caption_classes or ["cat"] * n, [0.9] * n)


def colorfulness(pixels: Pixels) -> np.ndarray:
    """Distance of each pixel from gray."""
    return np.ptp(pixels[..., :3].astype(int), axis=-1)


def read_png(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- overlay


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (2, 8)])
def test_peak_of_the_map_is_drawn_at_its_location(grid: tuple[int, int]) -> None:
    h, w = grid
    for row, column in [(0, 0), (0, w - 1), (h - 1, 0), (1, w // 2)]:
        cam = np.zeros(grid)
        cam[row, column] = 5
        color = colorfulness(overlay(gray_images(1)[0], cam, (160, 160)))
        weight = np.maximum(color - np.median(color), 0)
        y, x = np.unravel_index(weight.argmax(), weight.shape)
        assert row * 160 // h <= y < (row + 1) * 160 // h
        assert column * 160 // w <= x < (column + 1) * 160 // w


def test_overlay_treats_cells_as_areas() -> None:
    cam = np.zeros((8, 8))
    cam[2, 5] = 1
    color = colorfulness(overlay(gray_images(1)[0], cam, (160, 160))).astype(float)
    weight = np.abs(color - color[-1, 0])
    y, x = np.mgrid[0:160, 0:160]
    assert (weight * y).sum() / weight.sum() == pytest.approx(2.5 * 20 - 0.5, abs=1)
    assert (weight * x).sum() / weight.sum() == pytest.approx(5.5 * 20 - 0.5, abs=1)


def test_overlay_ignores_scale_and_negative_evidence() -> None:
    cam = np.random.default_rng(1).standard_normal((8, 8))
    image = gray_images(1)[0]
    pixels = overlay(image, cam, (64, 64))
    np.testing.assert_allclose(pixels.astype(int), overlay(image, 1000 * cam, (64, 64)), atol=1)
    np.testing.assert_array_equal(pixels, overlay(image, np.where(cam < 0, -99, cam), (64, 64)))


@pytest.mark.parametrize("cam", [np.zeros((4, 4)), -np.ones((4, 4)), np.full((4, 4), np.nan)])
def test_overlay_without_evidence_has_the_color_of_zero(cam: np.ndarray) -> None:
    pixels = overlay(gray_images(1)[0], cam, (16, 16))
    assert (pixels == pixels[0, 0]).all()
    assert pixels[0, 0].max() < 120


def test_overlay_keeps_the_image_visible_everywhere() -> None:
    image = gray_images(1)[0].copy()
    image[:, ::2] = 255
    image[:, 1::2] = 0
    pixels = overlay(image, np.ones((8, 8)), (32, 32)).astype(int)
    assert (pixels[:, ::2].sum(-1) - pixels[:, 1::2].sum(-1) > 100).all()


def test_overlay_full_image_draws_the_center_square_and_pale_margins() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    cam = np.eye(4)
    pixels = overlay_full_image(image, cam, Preprocessing(64))
    assert pixels.shape == image.shape
    np.testing.assert_array_equal(pixels[:, 5:25], overlay(image[:, 5:25], cam, (20, 20)))
    for margin in (pixels[:, :5], pixels[:, 25:]):
        assert colorfulness(margin).max() == 0
        assert margin.min() >= 255 * 0.55 - 1


@pytest.mark.parametrize(("width", "height"), [(90, 30), (30, 90), (61, 20), (20, 61)])
@pytest.mark.parametrize("end", ["first", "last"])
def test_overlay_of_a_padded_image_is_the_part_of_the_map_on_the_image(width: int, height: int, end: str) -> None:
    """The peak of the map lies at one end of the image, and a peak in the padding is not drawn."""
    image = np.full((height, width, 3), 128, np.uint8)
    longer = max(width, height)
    cam = np.zeros((longer, longer))
    position = longer // 10 if end == "first" else longer - 1 - longer // 10
    row, column = (longer // 2, position) if width > height else (position, longer // 2)
    cam[row - 1 : row + 2, column - 1 : column + 2] = 1
    cam[:2, :2] = 1  # in the padding
    pixels = overlay_full_image(image, cam, Preprocessing(longer, "pad"))
    assert pixels.shape == image.shape
    brightest = np.unravel_index(pixels.sum(-1, dtype=int).argmax(), (height, width))
    offset = (longer - np.array([height, width])) / 2
    np.testing.assert_allclose(brightest, np.array([row, column]) - offset, atol=1.5)
    bright = np.argwhere(pixels.sum(-1, dtype=int) > pixels.sum(-1, dtype=int).min() + 100)
    assert np.abs(bright - (np.array([row, column]) - offset)).max() <= 3


def test_overlay_of_a_padded_image_is_a_strip_of_the_overlay_of_the_padded_square() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 48, 3), np.uint8)
    cam = np.random.default_rng(1).random((6, 6))
    square = np.full((48, 48, 3), 127, np.uint8)
    square[16:32] = image
    pixels = overlay_full_image(image, cam, Preprocessing(48, "pad"))
    np.testing.assert_allclose(pixels, overlay(square, cam, (48, 48))[16:32], atol=1)


def test_overlay_has_the_colors_of_the_report_and_of_the_exported_page() -> None:
    """The image is black: a pixel is the color of its value times the opacity, plus the darkest gray."""
    values = np.linspace(0, 1, 50)
    pixels = overlay(np.zeros((50, 50, 3), np.uint8), np.tile(values, (50, 1)), (50, 50))[0]
    opacity = (0.35 + 0.4 * values)[:, None]
    expected = opacity * colorize(values, EVIDENCE_COLORMAP) + (1 - opacity) * 25.5
    assert np.abs(pixels - expected).max() <= 1


def test_resize_image_repeats_pixels_to_enlarge_and_averages_to_shrink() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    np.testing.assert_array_equal(resize_image(image, (12, 18)), image.repeat(3, 0).repeat(3, 1))
    mean = image.reshape(2, 2, 3, 2, 3).mean((1, 3))
    np.testing.assert_allclose(resize_image(image, (2, 3)), mean, atol=1)


# --- heatmaps


@pytest.mark.parametrize(
    ("images", "models", "blocks", "panels_across", "panels_down"),
    [(8, 3, 2, 8, 4), (3, 2, 2, 6, 2), (2, 3, 1, 4, 2)],
)
@pytest.mark.slow
def test_size_of_the_figure(
    tmp_path: Path, images: int, models: int, blocks: int, panels_across: int, panels_down: int
) -> None:
    path = tmp_path / "cams.png"
    columns = [random_column(images, title) for title in ("teacher", "student", "control")[:models]]
    save_heatmaps(gray_images(images), columns, path, map_classes=["cat"] * images, blocks=blocks)
    height, width, _ = read_png(path).shape
    gaps = 2 * 24 + (panels_across - blocks) * 10 + (blocks - 1) * 56
    assert width == panels_across * PANEL_SIZE + gaps
    assert height == 44 + panels_down * (PANEL_SIZE + 46) + 62


def test_figure_shows_the_image_and_its_overlays(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    maps = np.zeros((1, 8, 8))
    maps[0, 1, 6] = 1
    columns = [HeatmapColumn(title, maps, ["cat"], [0.5]) for title in ("teacher", "student")]
    save_heatmaps(images, columns, tmp_path / "cams.png", map_classes=["cat"], true_classes=["cat"])
    panels = read_png(tmp_path / "cams.png")[44 : 44 + 192]
    np.testing.assert_array_equal(panels[:, 24:216], resize_image(images[0], (192, 192)))
    for left in (24 + 202, 24 + 404):
        np.testing.assert_array_equal(panels[:, left : left + 192], overlay(images[0], maps[0], (192, 192)))


def test_panels_keep_the_aspect_ratio_of_the_image(tmp_path: Path) -> None:
    save_heatmaps(gray_images(1, 30, 60), [random_column(1)], tmp_path / "cams.png", map_classes=["cat"])
    assert read_png(tmp_path / "cams.png").shape[0] == 44 + PANEL_SIZE // 2 + 46 + 62


def test_wrong_predictions_differ_from_correct_ones_in_color_and_mark(tmp_path: Path) -> None:
    captions = []
    for true_class in ("cat", "dog"):
        path = tmp_path / f"{true_class}.png"
        save_heatmaps(gray_images(1), [random_column(1)], path, map_classes=["cat"], true_classes=[true_class])
        captions.append(read_png(path)[44 + 192 : 44 + 215, 226:418].astype(int))
    is_red = [(caption[..., 0] - caption[..., 1]).max() > 60 for caption in captions]
    assert is_red == [False, True]
    correct, wrong = (caption.sum(-1) < 500 for caption in captions)
    assert (correct != wrong).sum() > 10, "the mark must differ, not only its color"


def test_long_names_of_images_are_cut_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("camkd.explain.plots._draw_caption", lambda axes, offset, text, **style: drawn.append(text))
    name = "IMG_20260102_123456_in_the_mountains.jpeg"
    save_heatmaps(gray_images(1), [random_column(1)], tmp_path / "cams.png", names=[name])
    caption = drawn[0]
    assert caption.startswith("IMG_20260")
    assert caption.endswith("ains.jpeg")
    assert len(caption) == 19


def test_unusual_names_are_drawn_without_warnings(tmp_path: Path) -> None:
    n = len(UNUSUAL_NAMES)
    columns = [random_column(n, title, UNUSUAL_NAMES) for title in (UNUSUAL_NAMES[0], UNUSUAL_NAMES[3])]
    path = tmp_path / "cams.png"
    save_heatmaps(gray_images(n), columns, path, map_classes=UNUSUAL_NAMES, true_classes=UNUSUAL_NAMES)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("map_classes", [[], ["cat"], ["cat"] * 3])
def test_unequal_lengths_are_rejected(tmp_path: Path, map_classes: list[str]) -> None:
    with pytest.raises(ValueError, match=f"got 2 images, .*, {len(map_classes)} map_classes"):
        save_heatmaps(gray_images(2), [random_column(2)], tmp_path / "cams.png", map_classes=map_classes)
    assert not list(tmp_path.iterdir())


def test_figure_without_images_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 0"):
        save_heatmaps(gray_images(0), [], tmp_path / "cams.png", map_classes=[])
