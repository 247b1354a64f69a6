"""Pictures of different sizes, and a teacher of timm, to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.cli.main import main
from camkd.runs.load_model import read_model_info

CLASSES = ("berry", "leaf", "sky")
SIZES = [(48, 48), (64, 64), (90, 60), (60, 90), (128, 100)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 pictures of a class, of different sizes and kinds of file, that differ in colour."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (tmp_path / "mixed" / name).mkdir(parents=True)
        for number in range(60):
            width, height = SIZES[number % len(SIZES)]
            pixels = rng.integers(0, 60, (height, width, 3))
            pixels[:, :, label] += 120
            suffix = ("png", "jpg")[number % 2]
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "mixed" / name / f"{number:03d}.{suffix}")
    return tmp_path / "mixed"


def test_a_folder_of_mixed_sizes_and_a_teacher_of_timm(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "run"
    options = ["--data", str(folder), "--size", "64", "--epochs", "2", "--batch-size", "30", "--precision", "fp32"]
    status = main(
        ["train", "--teacher", "timm:resnet10t", "--student", "cam-net", *options, "--out", str(out), "--json"]
    )
    printed = capsys.readouterr()
    assert status == 0, printed.err
    found = json.loads(printed.out)
    assert found["student"]["cam_form"] == "exact"
    assert 0 <= found["student"]["cam_cosine"] <= 1
    assert read_model_info(out / "teacher").architecture == "timm:resnet10t"
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "resnet10t" in report
    picture = next((folder / "leaf").iterdir())
    assert main(["explain", str(out), str(picture), "--out", str(out / "one.png"), "--method", "layercam"]) == 0
    with Image.open(out / "one.png") as figure:
        assert figure.size[0] > 100
