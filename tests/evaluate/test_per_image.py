"""Per-image record, its file, and the images with disagreeing maps."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from camkd.evaluate import (
    SplitPredictions,
    disagreeing_maps,
    per_image_record,
    read_per_image,
    write_per_image,
)
from camkd.evaluate.metrics import cosine, iou_top
from camkd.types import InputError
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
    ]
    assert record["teacher_predicted"].tolist() == teacher.logits.argmax(1).tolist()
    np.testing.assert_array_equal(record["cam_cosine"], cosine(student.maps, teacher.maps))
    np.testing.assert_array_equal(record["cam_iou"], iou_top(student.maps, teacher.maps))


def test_maps_on_different_grids_are_compared_on_the_larger() -> None:
    teacher = random_predictions(1)
    teacher = teacher._replace(maps=teacher.maps[:, :2, :2].abs())
    student_maps = torch.nn.functional.interpolate(teacher.maps[None], (6, 6), mode="bilinear")[0]
    record = per_image_record(teacher._replace(maps=student_maps), CLASS_0, teacher, None)
    assert record["cam_cosine"] == pytest.approx([1] * 6)


# --- file


def test_record_survives_a_round_trip_without_pickles(tmp_path: Path) -> None:
    names = tuple(f"c/{i}.png" for i in range(6))
    record = per_image_record(random_predictions(0), CLASS_0, random_predictions(1), names)
    path = tmp_path / "per_image.npz"
    write_per_image(path, record)
    stored = read_per_image(path)
    assert list(stored) == list(record)
    for name, column in record.items():
        assert stored[name].dtype == column.dtype
        np.testing.assert_array_equal(stored[name], column)
    assert all(name.endswith(".npy") for name in zipfile.ZipFile(path).namelist())
    assert [entry.name for entry in tmp_path.iterdir()] == ["per_image.npz"]


def test_record_with_python_objects_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "per_image.npz"
    write_per_image(path, {"label": np.arange(3)})
    with pytest.raises(ValueError, match="pickle"):
        write_per_image(path, {"label": np.array([object()])})
    assert read_per_image(path)["label"].tolist() == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["per_image.npz"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"no archive"])
def test_damaged_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "per_image.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"per_image\.npz must be .*damaged.*--resume"):
        read_per_image(path)


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
