"""Figures: sizes, places of pixels, and names that would trip a plotting library."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.explain import plots as figures
from camkd.report import plots as report_plots
from camkd.utils import plot_style as drawing

AWKWARD = [
    "$x_1$",
    "_hidden",
    "a\\b^{c",
    "très long " * 9,
    "日本の猫",
    "<script>&\"'",
    "tab\tand\nline",
    "100%",
    "🦉",
]


def grey(n: int, height: int = 32, width: int = 32) -> figures.Pixels:
    return np.full((n, height, width, 3), 128, np.uint8)


def column(n: int, title: str = "teacher", answers: list[str] | None = None) -> figures.Column:
    maps = np.random.default_rng(0).standard_normal((n, 8, 8))
    return figures.Column(title, maps, answers or ["cat"] * n, [0.9] * n)


def colourful(pixels: figures.Pixels) -> np.ndarray:
    """How far each pixel is from grey."""
    return np.ptp(pixels[..., :3].astype(int), axis=-1)


def pixels_of(path: Path) -> figures.Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- overlay


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (2, 8)])
def test_a_hot_cell_lands_on_its_part_of_the_picture(grid: tuple[int, int]) -> None:
    h, w = grid
    for row, col in [(0, 0), (0, w - 1), (h - 1, 0), (1, w // 2)]:
        cam = np.zeros(grid)
        cam[row, col] = 5
        colour = colourful(figures.overlay(grey(1)[0], cam, (160, 160)))
        weight = np.maximum(colour - np.median(colour), 0)
        y, x = np.unravel_index(weight.argmax(), weight.shape)
        assert row * 160 // h <= y < (row + 1) * 160 // h
        assert col * 160 // w <= x < (col + 1) * 160 // w


def test_overlay_treats_cells_as_areas() -> None:
    cam = np.zeros((8, 8))
    cam[2, 5] = 1
    colour = colourful(figures.overlay(grey(1)[0], cam, (160, 160))).astype(float)
    weight = np.abs(colour - colour[-1, 0])
    y, x = np.mgrid[0:160, 0:160]
    assert (weight * y).sum() / weight.sum() == pytest.approx(2.5 * 20 - 0.5, abs=1)
    assert (weight * x).sum() / weight.sum() == pytest.approx(5.5 * 20 - 0.5, abs=1)


def test_overlay_ignores_scale_and_negative_evidence() -> None:
    cam = np.random.default_rng(1).standard_normal((8, 8))
    image = grey(1)[0]
    shown = figures.overlay(image, cam, (64, 64))
    np.testing.assert_allclose(shown.astype(int), figures.overlay(image, 1000 * cam, (64, 64)), atol=1)
    np.testing.assert_array_equal(shown, figures.overlay(image, np.where(cam < 0, -99, cam), (64, 64)))


@pytest.mark.parametrize("cam", [np.zeros((4, 4)), -np.ones((4, 4)), np.full((4, 4), np.nan)])
def test_overlay_of_a_map_without_evidence_is_the_zero_colour(cam: np.ndarray) -> None:
    shown = figures.overlay(grey(1)[0], cam, (16, 16))
    assert (shown == shown[0, 0]).all()
    assert shown[0, 0].max() < 120


def test_overlay_keeps_the_picture_visible_everywhere() -> None:
    image = grey(1)[0].copy()
    image[:, ::2] = 255
    image[:, 1::2] = 0
    shown = figures.overlay(image, np.ones((8, 8)), (32, 32)).astype(int)
    assert (shown[:, ::2].sum(-1) - shown[:, 1::2].sum(-1) > 100).all()


def test_enlarged_keeps_pixels_and_averages_when_it_shrinks() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    np.testing.assert_array_equal(figures.enlarged(image, (12, 18)), image.repeat(3, 0).repeat(3, 1))
    mean = image.reshape(2, 2, 3, 2, 3).mean((1, 3))
    np.testing.assert_allclose(figures.enlarged(image, (2, 3)), mean, atol=1)


# --- heatmaps


@pytest.mark.parametrize(
    ("pictures", "models", "blocks", "across", "deep"), [(8, 3, 2, 8, 4), (3, 2, 2, 6, 2), (2, 3, 1, 4, 2)]
)
def test_heatmaps_have_the_grids_size(
    tmp_path: Path, pictures: int, models: int, blocks: int, across: int, deep: int
) -> None:
    path = tmp_path / "cams.png"
    columns = [column(pictures, title) for title in ("teacher", "student", "control")[:models]]
    figures.heatmaps(grey(pictures), columns, path, shown=["cat"] * pictures, blocks=blocks)
    height, width, _ = pixels_of(path).shape
    gaps = 2 * 24 + (across - blocks) * 10 + (blocks - 1) * 56
    assert width == across * figures.SIDE + gaps
    assert height == 44 + deep * (figures.SIDE + 46) + 62


def test_heatmaps_show_the_picture_itself_and_each_map_beside_it(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    hot = np.zeros((1, 8, 8))
    hot[0, 1, 6] = 1
    columns = [figures.Column(name, hot, ["cat"], [0.5]) for name in ("teacher", "student")]
    figures.heatmaps(image, columns, tmp_path / "cams.png", shown=["cat"], truths=["cat"])
    drawn = pixels_of(tmp_path / "cams.png")[44 : 44 + 192]
    np.testing.assert_array_equal(drawn[:, 24:216], figures.enlarged(image[0], (192, 192)))
    for left in (24 + 202, 24 + 404):
        np.testing.assert_array_equal(drawn[:, left : left + 192], figures.overlay(image[0], hot[0], (192, 192)))


def test_heatmaps_keep_the_pictures_proportions(tmp_path: Path) -> None:
    figures.heatmaps(grey(1, 30, 60), [column(1)], tmp_path / "cams.png", shown=["cat"])
    assert pixels_of(tmp_path / "cams.png").shape[0] == 44 + figures.SIDE // 2 + 46 + 62


def test_a_wrong_answer_looks_different_from_a_right_one(tmp_path: Path) -> None:
    for truth in ("cat", "dog"):
        figures.heatmaps(grey(1), [column(1)], tmp_path / f"{truth}.png", shown=["cat"], truths=[truth])
    captions = [pixels_of(tmp_path / f"{truth}.png")[44 + 192 : 44 + 215, 226:418] for truth in ("cat", "dog")]
    assert [(c[..., 0].astype(int) - c[..., 1]).max() > 60 for c in captions] == [False, True]  # red
    dark = [(c.astype(int).sum(-1) < 500) for c in captions]
    assert (dark[0] != dark[1]).sum() > 10  # another mark, not only another colour


def test_heatmaps_draw_awkward_names_in_silence(tmp_path: Path) -> None:
    n = len(AWKWARD)
    columns = [column(n, AWKWARD[0], AWKWARD), column(n, AWKWARD[3], AWKWARD)]
    figures.heatmaps(grey(n), columns, tmp_path / "cams.png", shown=AWKWARD, truths=AWKWARD)
    assert (tmp_path / "cams.png").stat().st_size > 1000


@pytest.mark.parametrize("shown", [[], ["cat"], ["cat"] * 3])
def test_heatmaps_refuse_numbers_that_differ(tmp_path: Path, shown: list[str]) -> None:
    with pytest.raises(ValueError, match="each picture needs"):
        figures.heatmaps(grey(2), [column(2)], tmp_path / "cams.png", shown=shown)
    assert not list(tmp_path.iterdir())


def test_heatmaps_refuse_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each picture needs"):
        figures.heatmaps(grey(0), [], tmp_path / "cams.png", shown=[])


# --- curves and confusion


def test_curve_draws_what_is_there() -> None:
    histories = {
        "teacher": [{"epoch": 1, "val_accuracy": 0.5}, {"epoch": 2, "val_accuracy": 0.75}],
        "_student": [
            {"epoch": 1},
            {"epoch": 2, "val_accuracy": float("nan")},
            {"epoch": 3, "val_accuracy": 0.6},
        ],
        "empty": [],
    }
    axes = report_plots.curve(histories, "val_accuracy", "accuracy", percent=True).axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 50], [2, 75]], [[3, 60]]]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text().strip("\N{WORD JOINER}") for text in legend.get_texts()] == [
        "teacher",
        "_student",
    ]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 2


def test_curves_of_more_runs_than_colours_and_of_none() -> None:
    many = {str(i): [{"epoch": e, "train_loss": i + e} for e in (1, 2)] for i in range(9)}
    assert len(report_plots.curve(many, "train_loss", "loss").axes[0].lines) == 9
    assert drawing.figure_to_svg(report_plots.curve({}, "train_loss", "loss")).startswith("<svg")


def test_confusion_is_strong_where_the_share_is_large() -> None:
    axes = report_plots.confusion_figure([[8, 2], [0, 0]], ["cat", "dog"]).axes[0]
    alpha = np.asarray(axes.images[0].get_array())[..., 3]
    assert alpha[0, 0] > alpha[0, 1] > 0
    assert (alpha[1] == 0).all()
    assert [text.get_text() for text in axes.texts] == ["8", "2"]


@pytest.mark.parametrize("k", [1, 9, 100])
def test_confusion_draws_any_number_of_awkward_classes(k: int, tmp_path: Path) -> None:
    names = [AWKWARD[i % len(AWKWARD)] for i in range(k)]
    drawing.save_png(report_plots.confusion_figure(np.eye(k), names), tmp_path / "confusion.png")
    assert pixels_of(tmp_path / "confusion.png").shape[0] >= 260


def test_confusion_refuses_a_table_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="3 classes is 3 x 3"):
        report_plots.confusion_figure(np.eye(2), ["a", "b", "c"])


def test_svg_is_deterministic_escaped_and_in_the_pages_colour() -> None:
    def draw() -> str:
        return drawing.figure_to_svg(
            report_plots.confusion_figure([[8, 2], [1, 9]], ["<script>alert(1)</script>", "a & b"])
        )

    text = draw()
    assert text == draw()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "currentColor" in text
    assert drawing.TEXT_COLOR not in text
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)


def test_shorten_counts_wide_letters_twice() -> None:
    assert drawing.shorten("日本の猫", 8) == "日本の猫"
    assert drawing.shorten("日本の猫", 7) == "日本の…"
    assert drawing.shorten("tab\there", 20) == "tab here"
