"""Metrics of a model on a test split, by hand and against the single metric functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from camkd.cams import center_prior
from camkd.data.dataset import Dataset
from camkd.evaluate import SplitPredictions, chance_level, compute_metrics, faithfulness, measure, predict_split
from camkd.evaluate.metrics import map_similarities, means
from camkd.models import build


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build("resnet8", 3, 16, seed=1).eval()


# --- compute_metrics


def test_classification_metrics_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]])
    labels = torch.tensor([0, 0, 1, 1])
    predictions = SplitPredictions(logits, torch.rand(4, 4, 4), torch.tensor([0, 1, 0, 1]), "exact")
    metrics = compute_metrics(predictions, labels, ("cat", "dog"), None)
    assert metrics["accuracy"] == 0.5
    assert metrics["confusion"] == [[1, 1], [1, 1]]
    assert {name: entry["recall"] for name, entry in metrics["per_class"].items()} == {"cat": 0.5, "dog": 0.5}
    assert metrics["balanced_accuracy"] == metrics["min_recall"] == 0.5
    expected_nll = -float(logits.softmax(1)[range(4), labels].log().mean())
    assert metrics["nll"] == pytest.approx(expected_nll)
    assert metrics["cam_form"] == "exact"
    assert not any(name.startswith(("teacher", "cam_cosine")) for name in metrics)


def test_localization_metrics_have_chance_levels() -> None:
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0] = maps[1, 2, 1] = 1
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :2, :2] = True  # at the peak of the first map
    masks[1, 2:4, 2:4] = True  # beside the peak of the second map, at the center
    predictions = SplitPredictions(torch.eye(2), maps, torch.tensor([0, 1]), "exact")
    metrics = compute_metrics(predictions, torch.tensor([0, 1]), ("cat", "dog"), None, masks)
    assert metrics["cam_inside"] == metrics["cam_pointing_game"] == 0.5
    assert metrics["cam_inside_chance"] == metrics["cam_pointing_game_chance"] == 4 / 64
    assert metrics["mask_images"] == 2
    assert metrics["cam_pointing_game_center"] == 0.5  # the first of four equal center cells has its center at (3, 3)
    weights = center_prior(4, 4) / center_prior(4, 4).sum()
    assert metrics["cam_inside_center"] == pytest.approx(float(weights[0, 0] + weights[1, 1]) / 2)


def test_localization_uses_the_images_with_a_mask_only() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, logits = torch.rand(9, 4, 4, generator=generator), torch.randn(9, 2, generator=generator)
    masks = torch.rand(9, 16, 16, generator=generator) < 0.3
    masks[[0, 4, 8]] = False
    labels, kept = torch.zeros(9, dtype=torch.int64), torch.tensor([1, 2, 3, 5, 6, 7])
    metrics, expected = (
        compute_metrics(
            SplitPredictions(logits[rows], maps[rows], torch.zeros(len(rows), dtype=torch.int64), "exact"),
            labels[rows],
            ("cat", "dog"),
            None,
            masks[rows],
        )
        for rows in (torch.arange(9), kept)
    )
    assert metrics["mask_images"] == 6
    names = [f"cam_{name}{level}" for name in ("inside", "pointing_game") for level in ("", "_chance", "_center")]
    assert {name: metrics[name] for name in names} == {name: expected[name] for name in names}
    without = compute_metrics(
        SplitPredictions(logits, maps, torch.zeros(9, dtype=torch.int64), "exact"),
        labels,
        ("cat", "dog"),
        None,
        torch.zeros_like(masks),
    )
    assert not {"mask_images", *names} & without.keys()


def test_accuracy_of_a_class_without_images_is_absent() -> None:
    predictions = SplitPredictions(torch.eye(3)[[0, 1]], torch.rand(2, 4, 4), torch.tensor([0, 1]), "gradient")
    metrics = compute_metrics(predictions, torch.tensor([0, 0]), ("a", "b", "c"), None)
    assert metrics["per_class"].keys() == {"a"}
    assert metrics["per_class"]["a"]["recall"] == metrics["balanced_accuracy"] == metrics["min_recall"] == 0.5
    interval = stats.binomtest(1, 2).proportion_ci(0.95, method="wilson")
    assert [metrics["per_class"]["a"][end] for end in ("low", "high")] == pytest.approx([interval.low, interval.high])
    assert metrics["per_class"]["a"]["images"] == 2
    assert metrics["confusion"] == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_confusion_matrix_of_more_than_1000_classes_is_absent() -> None:
    predictions = SplitPredictions(torch.eye(1001)[:1], torch.rand(1, 4, 4), torch.tensor([0]), "gradient")
    metrics = compute_metrics(predictions, torch.tensor([0]), tuple(map(str, range(1001))), None)
    assert "confusion" not in metrics


def test_metrics_of_agreement_with_a_teacher() -> None:
    labels = torch.tensor([0, 1, 1])
    class_ids = torch.tensor([0, 1, 0])
    student = SplitPredictions(torch.eye(2)[[0, 0, 0]], torch.rand(3, 4, 4), class_ids, "exact")
    teacher = SplitPredictions(torch.eye(2)[class_ids], torch.rand(3, 8, 8), class_ids, "exact")
    metrics = compute_metrics(student, labels, ("a", "b"), teacher)
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["teacher_accuracy"] == pytest.approx(2 / 3)
    assert metrics["teacher_agreement"] == pytest.approx(2 / 3)
    expected = means(map_similarities(student.maps, teacher.maps, class_ids))
    assert {name: metrics[name] for name in expected} == expected
    assert len(expected) == 15


def test_model_as_its_own_teacher_agrees_fully(model: nn.Module, easy: Dataset) -> None:
    predictions = predict_split(model, easy.test)
    metrics = compute_metrics(predictions, torch.from_numpy(easy.test.labels), easy.classes, predictions)
    assert metrics["teacher_agreement"] == 1.0
    assert metrics["cam_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["cam_iou"] == pytest.approx(1.0)
    assert metrics["teacher_accuracy"] == metrics["accuracy"]


def test_maps_of_different_classes_are_rejected(model: nn.Module, easy: Dataset) -> None:
    predictions = predict_split(model, easy.test)
    teacher = predictions._replace(class_ids=(predictions.class_ids + 1) % 3)
    with pytest.raises(AssertionError, match="different classes"):
        compute_metrics(predictions, torch.from_numpy(easy.test.labels), easy.classes, teacher)


# --- measure


def test_chance_level_is_the_higher_of_those_present() -> None:
    assert chance_level({"cam_cosine_center": 0.4, "cam_cosine_mean_map": 0.6}) == 0.6
    assert chance_level({"cam_cosine_center": 0.4}) == 0.4


def test_maps_that_do_not_depend_on_the_image_are_no_more_than_chance() -> None:
    """A student whose map is the same for all images reaches at most the chance level, whichever map it is."""
    rows, columns = np.mgrid[:8, :8]
    rng = np.random.default_rng(0)
    centers = 3.5 + rng.normal(0, 1.2, (200, 2))  # objects near the center of the image
    blobs = [np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 4) for y, x in centers]
    class_ids = torch.zeros(200, dtype=torch.int64)
    teacher = SplitPredictions(torch.eye(2)[class_ids], torch.from_numpy(np.float32(blobs)), class_ids, "exact")
    for constant_map in (teacher.maps.mean(0), center_prior(8, 8), torch.ones(8, 8)):
        student = teacher._replace(maps=constant_map.expand(200, 8, 8))
        metrics = compute_metrics(student, class_ids, ("a", "b"), teacher)
        assert metrics["cam_cosine"] <= chance_level(metrics) + 0.005
    metrics = compute_metrics(teacher, class_ids, ("a", "b"), teacher)
    assert metrics["cam_cosine"] > chance_level(metrics) + 0.1


@pytest.mark.slow
def test_measure_combines_predictions_agreement_and_faithfulness(model: nn.Module, easy: Dataset) -> None:
    teacher = predict_split(build("resnet8", 3, 16, seed=2).eval(), easy.test)
    metrics, per_image, _ = measure(model, easy, teacher)
    assert metrics["test_images"] == 24
    assert metrics["accuracy"] == np.mean(per_image["predicted"] == per_image["label"])
    assert metrics["cam_cosine"] == pytest.approx(per_image["cam_cosine"].mean())
    expected = faithfulness(model, easy.test)
    assert {name: metrics[name] for name in expected} == expected
    agree = per_image["predicted"] == per_image["teacher_predicted"]
    level = max(metrics["cam_cosine_center"], metrics["cam_cosine_mean_map"])
    assert metrics["cam_disagreement"] == np.mean(per_image["cam_cosine"][agree] <= level)
    for suffix in ("_center", "_mean_map", "_shuffled"):
        share = np.mean(per_image[f"cam_cosine{suffix}"][agree] <= level)
        assert metrics[f"cam_disagreement{suffix}"] == share
    for suffix in ("", "_center", "_mean_map"):
        assert metrics[f"cam_cosine{suffix}"] == pytest.approx(per_image[f"cam_cosine{suffix}"].mean())
    assert "cam_cosine_shuffled" not in metrics


def test_measure_groups_similarities_by_outcome(model: nn.Module, easy: Dataset) -> None:
    teacher = predict_split(build("resnet8", 3, 16, seed=2).eval(), easy.test)
    metrics, per_image, _ = measure(model, easy, teacher)
    assert sum(group["images"] for group in metrics["by_outcome"].values()) == 24
    correct = per_image["predicted"] == per_image["label"]
    teacher_correct = per_image["teacher_predicted"] == per_image["label"]
    masks = {
        "both_right": correct & teacher_correct,
        "only_student": correct & ~teacher_correct,
        "both_wrong": ~(correct | teacher_correct),
    }
    for name, mask in masks.items():
        group = metrics["by_outcome"][name]
        assert group["images"] == mask.sum()
        assert not mask.any() or group["cam_iou"] == pytest.approx(per_image["cam_iou"][mask].mean())


def test_metrics_of_agreement_are_absent_without_a_teacher(model: nn.Module, easy: Dataset) -> None:
    metrics, per_image, _ = measure(model, easy, None)
    assert not {"cam_disagreement", "by_outcome", "cam_cosine", "teacher_accuracy"} & set(metrics)
    assert list(per_image) == ["label", "predicted", "confidence"]


def test_disagreement_is_absent_if_no_prediction_agrees(model: nn.Module, easy: Dataset) -> None:
    predictions = predict_split(model, easy.test)
    logits = -predictions.logits
    teacher = predictions._replace(logits=logits, class_ids=logits.argmax(1))
    metrics = measure(model, easy, teacher).metrics
    assert not [name for name in metrics if name.startswith("cam_disagreement")]
