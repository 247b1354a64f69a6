"""`camkd audit --teacher`: planted label errors are found by cleanlab on out-of-sample predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.cli.main import main
from camkd.data.sources import open_data
from camkd.models import build
from camkd.models.io import ModelInfo, save

CLASSES = ("berry", "leaf", "sky")
WRONG = {"train": 8, "val": 2, "test": 2}


def write_images(root: Path) -> set[str]:
    """Write noisy images in one color per class. Return the names of those in the folder of another class."""
    rng = np.random.default_rng(0)
    wrong = set()
    for split, count in {"train": 150, "val": 30, "test": 30}.items():
        for number in range(count):
            label = number % 3
            pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[..., label] += 120
            folder = CLASSES[(label + (number < WRONG[split])) % 3]
            path = root / split / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            if number < WRONG[split]:
                wrong.add(f"{split}/{folder}/{number}.png")
    return wrong


def save_run(folder: Path, root: Path, config: str) -> Path:
    """Save a network with random weights as a run that was trained on the images."""
    data = open_data(root)
    model = build("resnet8", 3, 32, seed=1)
    info = ModelInfo("resnet8", data.classes, 32, 0, 0, "teacher", "plain", data.name, data.fingerprint, 0)
    save(model, folder, replace(info, source_fingerprint=data.source_fingerprint))
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "splits"), [("train: head\n", ("train", "val", "test")), ("train: all\n", ("val", "test"))]
)
def test_planted_label_errors_are_found(
    config: str, splits: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = write_images(tmp_path / "colors")
    run = save_run(tmp_path / "run", tmp_path / "colors", config)
    arguments = ["audit", str(tmp_path / "colors"), "--teacher", str(run), "--out", str(tmp_path / "out"), "--json"]
    capsys.readouterr()
    assert main([*arguments, "--fail-on", "label-errors"]) == 1
    captured = capsys.readouterr()
    finding = json.loads(captured.out)["findings"]["label-errors"]
    names = {group["images"][0]["name"] for group in finding["groups"]}
    assert names == {name for name in wrong if name.split("/")[0] in splits}, "recall and precision are 1"
    assert all(group["label_confidence"] < group["confidence"] for group in finding["groups"])
    assert ("so their labels are not checked" in captured.err) == ("train" not in splits)
    html = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    section = html.split('<section id="label-errors"')[1].split("</section>")[0]
    assert section.count("<img") == 3 * len(names)
    assert section.count("map of ") == 2 * len(names)
