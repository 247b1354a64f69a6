"""What is known of each test picture: the record, its file, and the pictures the alarm names."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from camkd.data.dataset import Dataset
from camkd.evaluate import (
    SplitPredictions,
    chance_level,
    disagreeing_maps,
    faithfulness,
    measure,
    per_image_record,
    predict_split,
    read_per_image,
    write_per_image,
)
from camkd.evaluate.metrics import cosine, iou_top
from camkd.models import build
from camkd.types import InputError


def answers(seed: int, n: int, cells: int, shown: torch.Tensor) -> SplitPredictions:
    generator = torch.Generator().manual_seed(seed)
    logits, maps = torch.randn(n, 3, generator=generator), torch.randn(n, cells, cells, generator=generator)
    return SplitPredictions(logits, maps, shown, "exact")


def test_the_record_says_each_picture_by_hand() -> None:
    shown = torch.tensor([0, 1])
    own = SplitPredictions(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.ones(2, 2, 2), shown, "exact")
    found = per_image_record(own, torch.tensor([1, 1]), None, ("a/1.png", "b/ü.png"))
    assert {name: column.tolist() for name, column in found.items() if name != "confidence"} == {
        "label": [1, 1],
        "predicted": [0, 1],
        "name": ["a/1.png", "b/ü.png"],
    }
    np.testing.assert_allclose(found["confidence"], [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-1))], rtol=1e-6)


def test_the_record_beside_a_teacher_has_the_likeness_of_both_maps() -> None:
    theirs = answers(1, 6, 4, torch.zeros(6, dtype=torch.int64))
    own = answers(0, 6, 4, theirs.class_ids)
    found = per_image_record(own, torch.zeros(6, dtype=torch.int64), theirs, None)
    assert list(found) == [
        *("label", "predicted", "confidence"),
        *("teacher_predicted", "teacher_confidence", "cam_cosine", "cam_iou"),
    ]
    assert found["teacher_predicted"].tolist() == theirs.logits.argmax(1).tolist()
    np.testing.assert_array_equal(found["cam_cosine"], cosine(own.maps, theirs.maps))
    np.testing.assert_array_equal(found["cam_iou"], iou_top(own.maps, theirs.maps))


def test_maps_of_two_grids_are_compared_on_the_larger() -> None:
    theirs = answers(1, 3, 2, torch.zeros(3, dtype=torch.int64))
    theirs = theirs._replace(maps=theirs.maps.abs())
    own = theirs._replace(maps=torch.nn.functional.interpolate(theirs.maps[None], (6, 6), mode="bilinear")[0])
    assert per_image_record(own, theirs.class_ids, theirs, None)["cam_cosine"] == pytest.approx([1, 1, 1])


def test_the_file_holds_the_record_without_pickles(tmp_path: Path) -> None:
    shown = torch.zeros(6, dtype=torch.int64)
    pictures = per_image_record(
        answers(0, 6, 4, shown), shown, answers(1, 6, 4, shown), tuple(f"c/{i}.png" for i in range(6))
    )
    path = tmp_path / "per_image.npz"
    write_per_image(path, pictures)
    found = read_per_image(path)
    assert list(found) == list(pictures)
    for name, column in pictures.items():
        assert found[name].dtype == column.dtype
        np.testing.assert_array_equal(found[name], column)
    assert all(name.endswith(".npy") for name in zipfile.ZipFile(path).namelist())
    assert [entry.name for entry in tmp_path.iterdir()] == ["per_image.npz"]


def test_a_record_with_objects_is_not_written_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "per_image.npz"
    write_per_image(path, {"label": np.arange(3)})
    with pytest.raises(ValueError, match="pickle"):
        write_per_image(path, {"label": np.array([object()])})
    assert read_per_image(path)["label"].tolist() == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["per_image.npz"]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a file", b"no archive"])
def test_a_damaged_record_is_said(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "per_image.npz"
    path.write_bytes(damage)
    with pytest.raises(InputError, match=r"pictures\.npz is damaged"):
        read_per_image(path)


def test_alarmed_are_the_same_answers_with_maps_at_chance_least_alike_first() -> None:
    pictures = {
        "predicted": np.array([0, 0, 1, 1, 0, 2]),
        "teacher_predicted": np.array([0, 1, 1, 1, 0, 2]),
        "cam_cosine": np.array([0.5, 0.1, 0.9, 0.2, 0.5, 0.75], np.float32),
    }
    assert disagreeing_maps(pictures, 0.7).tolist() == [3, 0, 4]  # 1: another answer; 2 and 5: alike
    assert disagreeing_maps(pictures, 0.1).tolist() == []


def test_alarmed_at_the_level_itself() -> None:
    pictures = {"predicted": np.zeros(2), "teacher_predicted": np.zeros(2), "cam_cosine": np.array([0.5, 0.25])}
    assert disagreeing_maps(pictures, 0.25).tolist() == [1]


def test_chance_is_the_higher_of_the_levels_there_are() -> None:
    assert chance_level({"cam_cosine_centre": 0.4, "cam_cosine_shuffled": 0.6}) == 0.6
    assert chance_level({"cam_cosine_centre": 0.4}) == 0.4


def test_measure_puts_it_all_together(easy: Dataset) -> None:
    model, teacher = build("resnet8", 3, 16, seed=1).eval(), build("resnet8", 3, 16, seed=2).eval()
    theirs = predict_split(teacher, easy.test)
    figures, pictures, _ = measure(model, easy, theirs)
    assert figures["test_images"] == 24
    assert figures["accuracy"] == np.mean(pictures["predicted"] == pictures["label"])
    assert figures["cam_cosine"] == pytest.approx(pictures["cam_cosine"].mean())
    assert {name: figures[name] for name in faithfulness(model, easy.test)} == faithfulness(model, easy.test)
    same = pictures["predicted"] == pictures["teacher_predicted"]
    level = max(figures["cam_cosine_centre"], figures["cam_cosine_shuffled"])
    assert figures["cam_disagreement"] == np.mean(pictures["cam_cosine"][same] <= level)
    assert sum(group["pictures"] for group in figures["by_outcome"].values()) == 24
    right, taught = (pictures[name] == pictures["label"] for name in ("predicted", "teacher_predicted"))
    groups = {"both_right": right & taught, "only_student": right & ~taught, "both_wrong": ~(right | taught)}
    for name, group in groups.items():
        found = figures["by_outcome"][name]
        assert found["pictures"] == group.sum()
        assert not group.any() or found["cam_iou"] == pytest.approx(pictures["cam_iou"][group].mean())


def test_no_teacher_no_comparison(easy: Dataset) -> None:
    figures, pictures, _ = measure(build("resnet8", 3, 16, seed=1).eval(), easy, None)
    assert not {"cam_disagreement", "by_outcome", "cam_cosine", "teacher_accuracy"} & set(figures)
    assert list(pictures) == ["label", "predicted", "confidence"]


def test_without_one_common_answer_there_is_no_share_of_alarms(easy: Dataset) -> None:
    model = build("resnet8", 3, 16, seed=1).eval()
    own = predict_split(model, easy.test)
    other = own._replace(logits=-own.logits)
    assert "cam_disagreement" not in measure(model, easy, other._replace(class_ids=other.logits.argmax(1))).metrics
