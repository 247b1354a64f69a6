"""Explanations of images: classes, maps, captions and choice of examples."""

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
from camkd.cams.gather import gather_classes
from camkd.data.dataset import Dataset, Split
from camkd.explain import explain
from camkd.explain.explain import draw_explanation, example_rows, explain_batches
from camkd.models import build


def reference_predictions(model: nn.Module, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return probabilities ``(N, K)`` and maps of all classes ``(N, K, h, w)``, from one batch."""
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        probabilities = model(x).softmax(1)
        cams = predict(model, x).cams
    assert cams is not None
    return probabilities, cams


@pytest.fixture
def models() -> dict[str, nn.Module]:
    return {"teacher": build("resnet8", 3, 16, 1), "student": build("cam-net", 3, 16, 2)}


# --- explain_batches


@pytest.mark.parametrize("top", [1, 2, 3])
def test_maps_are_of_the_top_classes_of_the_first_model(easy: Dataset, models: dict[str, nn.Module], top: int) -> None:
    images = easy.test.images
    explanation = explain_batches(models, batches_of(models, images[:10], images[10:]), top=top)
    probabilities, _ = reference_predictions(models["teacher"], images)
    top_classes = probabilities.topk(top).indices
    assert explanation.class_ids.tolist() == top_classes.tolist()
    assert list(explanation.maps_by_model) == ["teacher", "student"]
    for title, model_maps in explanation.maps_by_model.items():
        assert models[title].training, "the mode must be restored"
        probabilities, cams = reference_predictions(models[title], images)
        np.testing.assert_allclose(model_maps.probabilities, probabilities, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(model_maps.maps, gather_classes(cams, top_classes), rtol=1e-3, atol=1e-4)


def test_method_applies_to_all_models_and_layer_to_one(easy: Dataset, models: dict[str, nn.Module]) -> None:
    images = easy.test.images[:2]
    default = explain_batches(models, batches_of(models, images)).maps_by_model
    layercam = explain_batches(
        models, batches_of(models, images), method="layercam", layers={"teacher": "layer1"}
    ).maps_by_model
    assert layercam["teacher"].maps.shape[2:] == (16, 16)
    assert layercam["student"].maps.shape == default["student"].maps.shape
    assert layercam["student"].maps.min() >= 0 > default["student"].maps.min()  # LayerCAM ends in a ReLU


@pytest.mark.parametrize("method", ["cam", "gradcam"])
@pytest.mark.parametrize("against", [[0], [2, 0]])
def test_contrast_maps_are_of_the_most_probable_other_classes(
    easy: Dataset, models: dict[str, nn.Module], against: list[int], method: str
) -> None:
    images = easy.test.images
    explanation = explain_batches(models, batches_of(models, images[:10], images[10:]), method=method, against=against)
    probabilities, _ = reference_predictions(models["teacher"], images)
    assert any(int(k) in against for k in probabilities.argmax(1)), "one of the images must show the fallback"
    others = [k for k in range(3) if k not in against]
    expected_ids = torch.tensor(others)[probabilities[:, others].argmax(1)][:, None]
    assert explanation.class_ids.tolist() == expected_ids.tolist()
    assert explanation.against == tuple(against)
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    for title, model_maps in explanation.maps_by_model.items():
        reference = copy.deepcopy(models[title]).eval()
        contrast = torch.tensor([against] * len(images))
        prediction = predict(reference, x, method=method, classes=expected_ids, against=contrast)
        np.testing.assert_allclose(model_maps.maps, prediction.cams.detach(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(model_maps.probabilities, prediction.logits.detach().softmax(1), atol=1e-4)


def test_exact_contrast_is_a_difference_of_maps(easy: Dataset, models: dict[str, nn.Module]) -> None:
    images = easy.test.images[:6]
    explanation = explain_batches(models, batches_of(models, images), top=2, against=[1])
    assert sorted({int(k) for k in explanation.class_ids.flatten()}) == [0, 2]
    for title, model_maps in explanation.maps_by_model.items():
        _, cams = reference_predictions(models[title], images)
        expected = gather_classes(cams, torch.from_numpy(explanation.class_ids)) - cams[:, 1:2]
        np.testing.assert_allclose(model_maps.maps, expected, rtol=1e-3, atol=1e-4)


# --- figures


def batches_of(models: dict[str, nn.Module], *batches: NDArray[np.uint8]) -> list[dict[str, NDArray[np.uint8]]]:
    """Return batches of the same images for every model."""
    return [dict.fromkeys(models, images) for images in batches]


@pytest.fixture
def save_heatmaps_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace `save_heatmaps` with a function that records its arguments."""
    arguments: dict[str, Any] = {}

    def record(images: Any, columns: Any, path: Path, **options: Any) -> None:
        arguments.update(images=images, columns=columns, **options)

    monkeypatch.setattr(explain, "save_heatmaps", record)
    return arguments


def test_caption_of_a_map_is_the_models_prediction(
    easy: Dataset, models: dict[str, nn.Module], tmp_path: Path, save_heatmaps_arguments: dict[str, Any]
) -> None:
    images = easy.test.images
    explanation = explain_batches(models, batches_of(models, images))
    draw_explanation(images, explanation, easy.classes, tmp_path / "x.png", true_classes=["berry"] * 24)
    probabilities, _ = reference_predictions(models["teacher"], images)
    assert save_heatmaps_arguments["map_classes"] == [easy.classes[k] for k in probabilities.argmax(1)]
    assert save_heatmaps_arguments["true_classes"] == ["berry"] * 24
    for column in save_heatmaps_arguments["columns"]:
        probabilities, _ = reference_predictions(models[column.title], images)
        confidence, predicted = probabilities.max(1)
        assert column.caption_classes == [easy.classes[k] for k in predicted]
        np.testing.assert_allclose(column.confidences, confidence, rtol=1e-3, atol=1e-5)


def test_caption_of_one_of_several_maps_is_its_class(
    easy: Dataset, models: dict[str, nn.Module], tmp_path: Path, save_heatmaps_arguments: dict[str, Any]
) -> None:
    images = easy.test.images[:4]
    explanation = explain_batches(models, batches_of(models, images), top=2)
    draw_explanation(images, explanation, easy.classes, tmp_path / "x.png", names=["a", "b", "c", "d"])
    columns = save_heatmaps_arguments["columns"]
    assert [column.title for column in columns] == ["teacher", "student"] * 2
    assert save_heatmaps_arguments["names"] == ["a", "b", "c", "d"]
    for position, column in enumerate(columns):
        class_ids = explanation.class_ids[:, position // 2]
        assert column.caption_classes == [easy.classes[k] for k in class_ids]
        probabilities, _ = reference_predictions(models[column.title], images)
        expected = probabilities[torch.arange(4), torch.from_numpy(class_ids)]
        np.testing.assert_allclose(column.confidences, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("top", [1, 2])
def test_figure_names_both_sides_of_a_contrast(
    easy: Dataset, models: dict[str, nn.Module], tmp_path: Path, save_heatmaps_arguments: dict[str, Any], top: int
) -> None:
    images = easy.test.images[:4]
    explanation = explain_batches(models, batches_of(models, images), top=top, against=[1])
    draw_explanation(images, explanation, easy.classes, tmp_path / "x.png", names=["a", "b", "c", "d"])
    columns = save_heatmaps_arguments["columns"]
    names = [[f"{easy.classes[k]} vs. leaf" for k in row] for row in explanation.class_ids.T]
    if top == 1:
        assert save_heatmaps_arguments["map_classes"] == names[0]
        assert all(" vs. " not in name for column in columns for name in column.caption_classes)
    else:
        assert [list(column.caption_classes) for column in columns] == [names[0], names[0], names[1], names[1]]
    assert save_heatmaps_arguments["footnote"].startswith("Every map is a contrast: ")
    assert (
        "minus the evidence for leaf. The model predicts one of these 3 classes" in save_heatmaps_arguments["footnote"]
    )


# --- choice of examples


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
def test_example_rows_take_the_classes_in_turn(labels: list[int], count: int, rows: list[int]) -> None:
    split = Split(np.zeros((len(labels), 1, 1, 3), np.uint8), np.array(labels, np.int64))
    assert example_rows(split, count).tolist() == rows


def test_example_rows_depend_only_on_labels(easy: Dataset) -> None:
    inverted = replace(easy.test, images=255 - easy.test.images)
    assert example_rows(easy.test).tolist() == example_rows(inverted).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
