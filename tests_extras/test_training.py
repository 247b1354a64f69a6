"""Training with a timm teacher on images of different sizes, to report and heatmaps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.cli.main import main
from camkd.runs.loading import read_model_info

pytestmark = pytest.mark.slow

CLASSES = ("berry", "leaf", "sky")
SIZES = [(48, 48), (64, 64), (90, 60), (60, 90), (128, 100)]


@pytest.fixture
def mixed_images(tmp_path: Path) -> Path:
    """A folder with 30 images per class, which differ in color. Image sizes and file formats are mixed."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        folder = tmp_path / "mixed" / name
        folder.mkdir(parents=True)
        for number in range(30):
            width, height = SIZES[number % len(SIZES)]
            pixels = rng.integers(0, 60, (height, width, 3))
            pixels[:, :, label] += 120
            suffix = ("png", "jpg")[number % 2]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.{suffix}")
    return tmp_path / "mixed"


def test_timm_teacher_on_images_of_mixed_sizes(
    mixed_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    models = ["--teacher", "timm:resnet10t", "--student", "cam-net"]
    options = ["--size", "64", "--epochs", "2", "--batch-size", "15", "--precision", "fp32"]
    status = main(["train", *models, "--data", str(mixed_images), *options, "--out", str(out), "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    metrics = json.loads(captured.out)
    assert metrics["student"]["cam_form"] == "exact"
    assert 0 <= metrics["student"]["cam_cosine"] <= 1
    assert read_model_info(out / "teacher").architecture == "timm:resnet10t"
    assert "resnet10t" in (out / "report.html").read_text(encoding="utf-8")

    image = next((mixed_images / "leaf").iterdir())
    heatmap = out / "heatmap.png"
    assert main(["explain", str(out), str(image), "--out", str(heatmap), "--method", "layercam"]) == 0
    with Image.open(heatmap) as figure:
        assert figure.size[0] > 100
