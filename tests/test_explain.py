"""Heatmaps of any pictures: what is drawn, what is answered, and which pictures are picked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from camkd import explain as module
from camkd.cams import predict
from camkd.data.store import Dataset, Split
from camkd.explain import explain, read_pictures, specimens
from camkd.models import build
from camkd.types import InputError


def test_one_entry_a_picture_with_every_model(easy: Dataset, tmp_path: Path) -> None:
    images = easy.test.images[:3]
    models = {"teacher": build("resnet8", 3, 16, 1), "student": build("cam-net", 3, 16, 2)}
    path = tmp_path / "new" / "cams.png"
    entries = explain(images, models, easy.classes, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 100
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    assert len(entries) == 3
    for title, model in models.items():
        assert model.training  # modes come back
        with torch.no_grad():
            chances = model.eval()(x).softmax(1)
        for row, entry in enumerate(entries):
            assert entry[title] == {
                "class": easy.classes[int(chances[row].argmax())],
                "confidence": pytest.approx(float(chances[row].max()), rel=1e-4),
            }


def test_maps_are_of_the_class_the_first_model_predicts(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}

    def spy(images: Any, columns: Any, path: Path, **more: Any) -> None:
        drawn.update(columns=columns, **more)

    monkeypatch.setattr(module, "heatmaps", spy)
    models = {"teacher": build("resnet8", 3, 16, 1).eval(), "student": build("cam-net", 3, 16, 2).eval()}
    explain(easy.test.images, models, easy.classes, tmp_path / "x.png", ["berry"] * 24)
    x = torch.from_numpy(easy.test.images.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        shown = models["teacher"](x).argmax(1)
        cams = {title: predict(model, x).cams for title, model in models.items()}
    assert drawn["shown"] == [easy.classes[i] for i in shown.tolist()]
    assert drawn["truths"] == ["berry"] * 24
    for column in drawn["columns"]:
        np.testing.assert_allclose(column.maps, cams[column.title][torch.arange(24), shown], rtol=1e-3, atol=1e-4)


def test_read_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (10, 200, 30)).save(tmp_path / "wide.png")
    Image.new("L", (16, 16), 77).save(tmp_path / "grey.png")
    images = read_pictures([tmp_path / "wide.png", str(tmp_path / "grey.png")], 16)
    assert (images.shape, images.dtype) == ((2, 16, 16, 3), np.uint8)
    assert np.unique(images[0].reshape(-1, 3), axis=0).tolist() == [[10, 200, 30]]
    assert np.unique(images[1]).tolist() == [77]


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n broken"])
def test_picture_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "good.png")
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png' cannot be read as a picture"):
        read_pictures([tmp_path / "good.png", tmp_path / "bad.png"], 16)


def test_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a picture"):
        read_pictures([tmp_path], 16)


@pytest.mark.parametrize(
    ("labels", "count", "rows"),
    [
        ([2, 0, 0, 1, 2, 1], 3, [1, 3, 0]),
        ([2, 0, 0, 1, 2, 1], 5, [1, 3, 0, 2, 5]),
        ([0, 0, 0, 1], 4, [0, 3, 1, 2]),
        ([0, 1, 2, 3, 4], 2, [0, 1]),
        ([1, 1], 8, [0, 1]),
    ],
)
def test_specimens_are_the_first_of_each_class(labels: list[int], count: int, rows: list[int]) -> None:
    split = Split(np.zeros((len(labels), 1, 1, 3), np.uint8), np.array(labels, np.int64))
    assert specimens(split, count).tolist() == rows


def test_specimens_look_at_labels_alone(easy: Dataset) -> None:
    other = replace(easy.test, images=255 - easy.test.images)
    assert specimens(easy.test).tolist() == specimens(other).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
