"""Plots of the report: training curves and confusion matrix."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.report.plots import confusion_figure, curve_figure
from camkd.utils.plot_style import TEXT_COLOR, figure_to_svg, save_png
from support.unusual_names import UNUSUAL_NAMES

# --- training curves


def test_curve_skips_missing_and_non_finite_values() -> None:
    histories = {
        "teacher": [{"epoch": 1, "val_accuracy": 0.5}, {"epoch": 2, "val_accuracy": 0.75}],
        "_student": [
            {"epoch": 1},
            {"epoch": 2, "val_accuracy": float("nan")},
            {"epoch": 3, "val_accuracy": 0.6},
        ],
        "empty": [],
    }
    axes = curve_figure(histories, "val_accuracy", "accuracy", percent=True).axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 50], [2, 75]], [[3, 60]]]
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text().strip("\N{WORD JOINER}") for text in legend.get_texts()]
    assert labels == ["teacher", "_student"]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 2


def test_curve_draws_more_runs_than_colors() -> None:
    histories = {str(i): [{"epoch": epoch, "train_loss": i + epoch} for epoch in (1, 2)] for i in range(9)}
    assert len(curve_figure(histories, "train_loss", "loss").axes[0].lines) == 9


def test_curve_without_runs_is_a_figure() -> None:
    assert figure_to_svg(curve_figure({}, "train_loss", "loss")).startswith("<svg")


# --- confusion matrix


def test_opacity_of_a_cell_grows_with_its_share_of_the_row() -> None:
    axes = confusion_figure([[8, 2], [0, 0]], ["cat", "dog"]).axes[0]
    alpha = np.asarray(axes.images[0].get_array())[..., 3]
    assert alpha[0, 0] > alpha[0, 1] > 0
    assert (alpha[1] == 0).all()
    assert [text.get_text() for text in axes.texts] == ["8", "2"]


@pytest.mark.parametrize("k", [1, 9, 100])
def test_confusion_figure_draws_unusual_class_names(k: int, tmp_path: Path) -> None:
    names = [UNUSUAL_NAMES[i % len(UNUSUAL_NAMES)] for i in range(k)]
    save_png(confusion_figure(np.eye(k), names), tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.height >= 260


def test_confusion_figure_rejects_a_matrix_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        confusion_figure(np.eye(2), ["a", "b", "c"])


def test_svg_is_deterministic_escaped_and_uses_the_text_color_of_the_page() -> None:
    def draw_svg() -> str:
        return figure_to_svg(confusion_figure([[8, 2], [1, 9]], ["<script>alert(1)</script>", "a & b"]))

    text = draw_svg()
    assert text == draw_svg()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "currentColor" in text
    assert TEXT_COLOR not in text
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
