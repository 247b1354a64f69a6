"""Heatmaps of any pictures: what is drawn, what is answered, and which pictures are picked."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camkd.cams import predict
from camkd.data.dataset import Dataset, Split
from camkd.explain import explain as module
from camkd.explain.explain import draw_explanation, draw_heatmaps, example_rows, explain_batches
from camkd.models import build


def chances_of(model: nn.Module, images: NDArray[np.uint8]) -> Tensor:
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x).softmax(1)


def maps_of(model: nn.Module, images: NDArray[np.uint8]) -> Tensor:
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        maps = predict(copy.deepcopy(model).eval(), x).cams
    assert maps is not None
    return maps


@pytest.fixture
def models() -> dict[str, nn.Module]:
    return {"teacher": build("resnet8", 3, 16, 1), "student": build("cam-net", 3, 16, 2)}


@pytest.mark.parametrize("top", [1, 2, 3])
def test_maps_are_of_the_classes_that_are_likeliest_to_the_first_model(
    easy: Dataset, models: dict[str, nn.Module], top: int
) -> None:
    images = easy.test.images
    looks = explain_batches(models, [images[:10], images[10:]], top=top)
    likeliest = chances_of(models["teacher"], images).topk(top).indices
    assert looks.class_ids.tolist() == likeliest.tolist()
    assert list(looks.by) == ["teacher", "student"]
    for title, one in looks.by.items():
        assert models[title].training  # modes come back
        np.testing.assert_allclose(one.probabilities, chances_of(models[title], images), rtol=1e-3, atol=1e-5)
        wanted = maps_of(models[title], images)[torch.arange(24)[:, None], likeliest]
        np.testing.assert_allclose(one.maps, wanted, rtol=1e-3, atol=1e-4)


def test_a_method_and_a_layer_reach_the_model_they_are_meant_for(easy: Dataset, models: dict[str, nn.Module]) -> None:
    images = easy.test.images[:2]
    plain, other = (
        explain_batches(models, [images]),
        explain_batches(models, [images], method="layercam", layers={"teacher": "layer1"}),
    )
    assert other.by["teacher"].maps.shape[2:] == (16, 16)
    assert other.by["student"].maps.shape == plain.by["student"].maps.shape
    assert other.by["student"].maps.min() >= 0 > plain.by["student"].maps.min()  # LayerCAM is rectified


def drawn_by(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    drawn: dict[str, Any] = {}

    def spy(images: Any, columns: Any, path: Path, **more: Any) -> None:
        drawn.update(images=images, columns=columns, **more)

    monkeypatch.setattr(module, "heatmaps", spy)
    return drawn


def test_under_a_map_stands_the_models_answer(
    easy: Dataset, models: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, images = drawn_by(monkeypatch), easy.test.images
    draw_heatmaps(images, models, easy.classes, tmp_path / "x.png", ["berry"] * 24)
    assert drawn["shown"] == [easy.classes[k] for k in chances_of(models["teacher"], images).argmax(1)]
    assert drawn["truths"] == ["berry"] * 24
    for column in drawn["columns"]:
        sure, answer = chances_of(models[column.title], images).max(1)
        assert column.answers == [easy.classes[k] for k in answer]
        np.testing.assert_allclose(column.confidences, sure, rtol=1e-3, atol=1e-5)


def test_under_maps_of_several_classes_stand_these(
    easy: Dataset, models: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, images = drawn_by(monkeypatch), easy.test.images[:4]
    looks = explain_batches(models, [images], top=2)
    draw_explanation(images, looks, easy.classes, tmp_path / "x.png", names=["a", "b", "c", "d"])
    assert [column.title for column in drawn["columns"]] == ["teacher", "student"] * 2
    assert drawn["names"] == ["a", "b", "c", "d"]
    for place, column in enumerate(drawn["columns"]):
        classes = looks.class_ids[:, place // 2]
        assert column.answers == [easy.classes[k] for k in classes]
        sure = chances_of(models[column.title], images)[torch.arange(4), torch.from_numpy(classes)]
        np.testing.assert_allclose(column.confidences, sure, rtol=1e-3, atol=1e-5)


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
    assert example_rows(split, count).tolist() == rows


def test_specimens_look_at_labels_alone(easy: Dataset) -> None:
    other = replace(easy.test, images=255 - easy.test.images)
    assert example_rows(easy.test).tolist() == example_rows(other).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
