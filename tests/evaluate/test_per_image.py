"""Per-image record, and the images with disagreeing maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camkd.cams import center_prior
from camkd.evaluate import SplitPredictions, disagreeing_maps, disagreement, per_image_record
from camkd.evaluate.metrics import cosine, derangement, iou_top
from support.evaluation_inputs import random_maps

CLASS_0 = torch.zeros(6, dtype=torch.int64)


def random_predictions(seed: int) -> SplitPredictions:
    """Predictions of 3 classes for 6 images, with maps of class 0."""
    return SplitPredictions(random_maps(seed, 6, 3), random_maps(seed + 1000, 6, 4, 4), CLASS_0, "exact")


# --- record


def test_record_by_hand() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    predictions = SplitPredictions(logits, torch.ones(2, 2, 2), torch.tensor([0, 1]), "exact")
    record = per_image_record(predictions, torch.tensor([1, 1]), None, ("a/1.png", "b/ü.png"))
    assert {name: column.tolist() for name, column in record.items() if name != "confidence"} == {
        "label": [1, 1],
        "predicted": [0, 1],
        "name": ["a/1.png", "b/ü.png"],
    }
    np.testing.assert_allclose(record["confidence"], [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-1))], rtol=1e-6)


def test_record_with_a_teacher_compares_maps() -> None:
    teacher = random_predictions(1)
    student = random_predictions(0)
    record = per_image_record(student, CLASS_0, teacher, None)
    assert list(record) == [
        *("label", "predicted", "confidence"),
        *("teacher_predicted", "teacher_confidence", "cam_cosine", "cam_iou"),
        *("cam_cosine_center", "cam_cosine_mean_map", "cam_cosine_shuffled"),
    ]
    assert record["teacher_predicted"].tolist() == teacher.logits.argmax(1).tolist()
    np.testing.assert_array_equal(record["cam_cosine"], cosine(student.maps, teacher.maps))
    np.testing.assert_array_equal(record["cam_iou"], iou_top(student.maps, teacher.maps))


def test_record_has_the_cosine_of_maps_that_do_not_depend_on_the_image() -> None:
    teacher = random_predictions(1)
    student = random_predictions(0)
    record = per_image_record(student, CLASS_0, teacher, None)
    other = derangement(6)
    for i in range(6):
        teacher_map = teacher.maps[i][None]
        mean_map = torch.stack([teacher.maps[j] for j in range(6) if j != i]).mean(0)[None]
        expected = {
            "center": cosine(center_prior(4, 4)[None], teacher_map),
            "mean_map": cosine(mean_map, teacher_map),
            "shuffled": cosine(student.maps[other[i]][None], teacher_map),
        }
        for suffix, value in expected.items():
            assert record[f"cam_cosine_{suffix}"][i] == pytest.approx(value.item(), abs=1e-6), suffix


def test_record_of_a_single_image_has_no_map_of_another_image() -> None:
    predictions = SplitPredictions(torch.eye(2)[:1], torch.rand(1, 4, 4), torch.tensor([0]), "exact")
    record = per_image_record(predictions, torch.tensor([0]), predictions, None)
    assert "cam_cosine_center" in record
    assert not {"cam_cosine_mean_map", "cam_cosine_shuffled"} & set(record)


def test_maps_on_different_grids_are_compared_on_the_larger() -> None:
    teacher = random_predictions(1)
    teacher = teacher._replace(maps=teacher.maps[:, :2, :2].abs())
    student_maps = torch.nn.functional.interpolate(teacher.maps[None], (6, 6), mode="bilinear")[0]
    record = per_image_record(teacher._replace(maps=student_maps), CLASS_0, teacher, None)
    assert record["cam_cosine"] == pytest.approx([1] * 6)


# --- disagreeing maps


def test_disagreeing_maps_are_sorted_by_similarity() -> None:
    record = {
        "predicted": np.array([0, 0, 1, 1, 0, 2]),
        "teacher_predicted": np.array([0, 1, 1, 1, 0, 2]),
        "cam_cosine": np.array([0.5, 0.1, 0.9, 0.2, 0.5, 0.75], np.float32),
    }
    assert disagreeing_maps(record, 0.7).tolist() == [3, 0, 4]  # 1 has another prediction; 2 and 5 have similar maps
    assert disagreeing_maps(record, 0.1).tolist() == []


def test_disagreeing_maps_include_the_level_itself() -> None:
    record = {"predicted": np.zeros(2), "teacher_predicted": np.zeros(2), "cam_cosine": np.array([0.5, 0.25])}
    assert disagreeing_maps(record, 0.25).tolist() == [1]


def test_share_of_disagreeing_maps_and_its_chance_levels() -> None:
    record = {
        "predicted": np.array([0, 0, 1, 1, 0]),
        "teacher_predicted": np.array([0, 1, 1, 1, 0]),
        "cam_cosine": np.array([0.5, 0.1, 0.9, 0.2, 0.8], np.float32),
        "cam_cosine_center": np.array([0.6, 0.1, 0.8, 0.9, 0.75], np.float32),
        "cam_cosine_mean_map": np.array([0.5, 0.7, 0.8, 0.1, 0.9], np.float32),
        "cam_cosine_shuffled": np.array([0.1, 0.9, 0.2, 0.3, 0.9], np.float32),
    }
    assert disagreement(record, 0.7) == {  # the second image has another prediction
        "cam_disagreement": 2 / 4,
        "cam_disagreement_center": 1 / 4,
        "cam_disagreement_mean_map": 2 / 4,
        "cam_disagreement_shuffled": 3 / 4,
    }
    assert disagreement({**record, "predicted": record["teacher_predicted"] + 1}, 0.7) == {}
