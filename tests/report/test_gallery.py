"""The gallery: selection of images, stored maps, file size, and merging the galleries of several runs."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from camkd.cams import predict
from camkd.data.dataset import Dataset, Split
from camkd.evaluate import SplitPredictions, predict_split
from camkd.evaluate.metrics import cosine, map_similarities
from camkd.models import build
from camkd.report.gallery import MAX_BYTES, GalleryModel, gallery_rows, quantize_maps, select_images, write_gallery
from camkd.report.merge_galleries import merge_galleries
from camkd.report.report import write_report
from camkd.report.run_summary import RunSummary
from camkd.types import InputError
from camkd.utils.files import load_json
from run_folders import (
    CHECKSUMS,
    CLASSES,
    NUM_IMAGES,
    cam_cosine_of,
    gallery_content,
    metrics_content,
    write_gallery_json,
    write_run,
)


def split_predictions(predicted: list[int], maps: torch.Tensor | None = None, classes: int = 3) -> SplitPredictions:
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()
    if maps is None:
        maps = torch.ones(len(predicted), 2, 2)
    return SplitPredictions(logits, maps, torch.zeros(len(predicted)), "exact")


# --- selection of images


def test_every_confusion_cell_gets_one_image_before_a_second() -> None:
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 50)
    predicted = labels.clone()
    predicted[[7, 8, 9, 60, 120]] = torch.tensor([1, 1, 2, 0, 0])
    rows = select_images(labels, split_predictions(predicted.tolist()), count=8)
    assert sorted(rows) == [0, 7, 9, 50, 51, 60, 100, 120]
    assert len({(int(labels[row]), int(predicted[row])) for row in rows}) == 7


def test_agreeing_image_with_the_lowest_map_cosine_comes_first() -> None:
    """The maps of images 2 and 3 do not overlap, and image 3 has other predictions."""
    labels = torch.zeros(4, dtype=torch.long)
    left = torch.tensor([[1.0, 0.0]])
    right = torch.tensor([[0.0, 1.0]])
    student = split_predictions([0, 0, 0, 1], torch.stack([left, left + 0.5 * right, right, right]))
    teacher = split_predictions([0, 0, 0, 0], torch.stack([left, left, left, left]))
    assert select_images(labels, student, teacher, count=6)[0] == 2
    assert select_images(labels, student, teacher) == select_images(labels, student, teacher)


def test_images_that_only_the_student_predicts_correctly_are_selected() -> None:
    labels = torch.zeros(500, dtype=torch.long)
    teacher_predicted = [0] * 500
    teacher_predicted[437] = 1
    assert 437 in select_images(labels, split_predictions([0] * 500), split_predictions(teacher_predicted), count=60)


@pytest.mark.parametrize("count", [1, 7, 299, 400])
def test_selection_has_distinct_rows_up_to_the_count(count: int) -> None:
    labels = torch.arange(300) % 3
    predictions = split_predictions(labels.tolist())
    rows = select_images(labels, predictions, predictions, count)
    assert len(rows) == len(set(rows)) == min(count, 300)


# --- stored maps


def dequantize(levels: np.ndarray[Any, Any], scales: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return scales[:, None, None] * (levels.astype(float) - 128) / 127  # type: ignore[no-any-return]


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_quantization_error_is_at_most_half_a_level(numbers: list[float]) -> None:
    maps = np.array(numbers).reshape(1, 2, 2)
    levels, scales = quantize_maps(maps)
    assert levels.dtype == np.uint8
    assert np.abs(dequantize(levels, scales) - maps).max() <= scales[0] / 254 * (1 + 1e-9)


def test_zero_and_non_finite_maps_are_stored_as_zero() -> None:
    levels, scales = quantize_maps(np.array([[[0.0, 0.0]], [[np.nan, np.inf]]]))
    assert levels.tolist() == [[[128, 128]], [[128, 128]]]
    assert scales.tolist() == [0, 0]


@pytest.fixture(scope="module")
def models(easy: Dataset) -> dict[str, GalleryModel]:
    torch.manual_seed(0)
    return {
        role: GalleryModel(build("cam-net", 3, 16, seed).eval(), CHECKSUMS[role], easy.test)
        for seed, role in enumerate(("teacher", "student"))
    }


def test_gallery_holds_predictions_and_maps_of_the_models(
    easy: Dataset, models: dict[str, GalleryModel], tmp_path: Path
) -> None:
    path = tmp_path / "gallery.json"
    write_gallery(path, easy, models, [5, 2])
    record = json.loads(path.read_text(encoding="utf-8"))["images"][0]
    assert gallery_rows(path) == [5, 2]
    assert record["label"] == easy.test.labels[5]
    thumbnail = Image.open(io.BytesIO(base64.b64decode(record["thumbnail"].partition(",")[2])))
    assert (np.asarray(thumbnail) == easy.test.images[5]).all()
    x = torch.from_numpy(easy.test.images[5:6].copy()).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        predictions = [predict(entry.model, x) for entry in models.values()]
    for stored, expected in zip(record["predictions"], predictions, strict=True):
        assert expected.cams is not None
        probabilities = expected.logits.softmax(1)[0]
        assert stored["predicted"] == int(probabilities.argmax())
        assert stored["confidence"] == pytest.approx(float(probabilities.max()), abs=1e-3)
        levels = np.frombuffer(base64.b64decode(stored["maps"]), np.uint8).reshape(3, *stored["grid"])
        maps = dequantize(levels, np.array(stored["scales"]))
        np.testing.assert_allclose(maps, expected.cams[0].numpy(), atol=float(expected.cams.abs().max()) / 200)
    class_id = record["predictions"][0]["predicted"]
    expected_cosine = cosine(predictions[0].cams[:, class_id], predictions[1].cams[:, class_id])  # type: ignore[index]
    assert record["predictions"][1]["cam_cosine"] == pytest.approx(float(expected_cosine), abs=1e-3)
    assert "cam_cosine" not in record["predictions"][0]


def test_stored_cosine_equals_the_metric_for_different_grids(easy: Dataset, tmp_path: Path) -> None:
    names = {"teacher": "resnet8", "student": "resnet50"}
    models = {
        role: GalleryModel(build(name, 3, 16, 4).eval(), CHECKSUMS[role], easy.test) for role, name in names.items()
    }
    write_gallery(tmp_path / "gallery.json", easy, models, [3, 8])
    records = json.loads((tmp_path / "gallery.json").read_text(encoding="utf-8"))["images"]
    teacher = predict_split(models["teacher"].model, easy.test)
    student = predict_split(models["student"].model, easy.test, teacher.class_ids)
    assert student.maps.shape != teacher.maps.shape
    expected = map_similarities(student.maps, teacher.maps, teacher.class_ids)["cam_cosine"][[3, 8]].tolist()
    assert [record["predictions"][1]["cam_cosine"] for record in records] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"images": [{}]}', '{"images": [{"row": "x"}]}'])
def test_corrupt_gallery_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "gallery.json"
    assert gallery_rows(path) == []
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"gallery\.json .* --resume"):
        gallery_rows(path)


class LargeMaps(nn.Module):
    """Classifier with many classes and large maps."""

    def __init__(self, classes: int, grid: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.head = nn.Conv2d(3, classes, 1)
        self.average = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.average(self.head(self.pool(x)))  # type: ignore[no-any-return]


def large_dataset(classes: int, side: int, count: int) -> Dataset:
    """Return a dataset of noise, which compresses worst, with long names."""
    rng = np.random.default_rng(0)
    names = tuple(f"class number {k} with a name" for k in range(classes))
    images = rng.integers(0, 256, (count, side, side, 3)).astype(np.uint8)
    split = Split(images, np.arange(count) % classes, None, tuple(f"test/{'x' * 60}/{i}.jpg" for i in range(count)))
    return Dataset("large", names, split, split, split, "f" * 64, "f" * 64, ())


@pytest.mark.parametrize(("classes", "side"), [(20, 64), (100, 224), pytest.param(1000, 224, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_page_stays_under_five_megabytes(tmp_path: Path, classes: int, side: int) -> None:
    """Three runs, each with another gallery of noise images with maps of the largest size.

    The heatmap figures are noise, too.
    """
    data = large_dataset(classes, side, 200)
    torch.manual_seed(0)
    roles = ("teacher", "control", "student")
    models = {role: GalleryModel(LargeMaps(classes, 16).eval(), CHECKSUMS[role], data.test) for role in roles}
    counts = [[5 if r == c else int((7 * r + c) % 50 == 0) for c in range(classes)] for r in range(classes)]
    noise = np.random.default_rng(0).integers(0, 256, (300, 600, 3)).astype(np.uint8)
    for index, role in enumerate(roles):
        folder = write_run(tmp_path / "run" / role, {"accuracy": 0.9, "confusion": counts}, list(data.classes))
        write_gallery(folder / "gallery.json", data, models, list(range(10 * index, 180 + 10 * index)))
        assert (folder / "gallery.json").stat().st_size <= MAX_BYTES
        for epoch in range(1, 12):
            Image.fromarray(noise).save(folder / "figures" / f"cams-epoch-{epoch:03d}.png")
        (folder / "figures" / "cams-epoch-001.png").rename(folder / "figures" / "cams.png")
    page = write_report([tmp_path / "run"], tmp_path / "report.html")
    assert page.stat().st_size < 5_000_000
    assert '"images":[{' in page.read_text(encoding="utf-8")


def test_many_classes_keep_the_maps_of_true_and_predicted_classes(tmp_path: Path) -> None:
    data = large_dataset(100, 32, 8)
    torch.manual_seed(0)
    models = {
        role: GalleryModel(LargeMaps(100, 8).eval(), CHECKSUMS[role], data.test) for role in ("teacher", "student")
    }
    write_gallery(tmp_path / "gallery.json", data, models, list(range(8)))
    for record in json.loads((tmp_path / "gallery.json").read_text(encoding="utf-8"))["images"]:
        assert len(record["class_ids"]) == 10
        predicted = {prediction["predicted"] for prediction in record["predictions"]}
        assert {record["label"], *predicted} <= set(record["class_ids"])


# --- merging


def run_with_gallery(folder: Path, *roles: str, **changes: Any) -> RunSummary:
    """Write a run with a gallery of the models ``roles`` and return its summary."""
    content = gallery_content(*roles, **changes)
    write_gallery_json(write_run(folder, metrics_content(0.9)), content)
    model_info = {"classes": CLASSES, "sha256": CHECKSUMS[folder.name]}
    return RunSummary(folder.name, folder.name, metrics_content(0.9), model_info=model_info, gallery=content)


def test_models_are_matched_by_checksum(tmp_path: Path) -> None:
    """The teacher has no gallery: its predictions come from the gallery of the student.

    Those of the control come from the control's gallery.
    """
    teacher = replace(run_with_gallery(tmp_path / "teacher", "teacher"), gallery={})
    control = run_with_gallery(tmp_path / "control", "teacher", "control")
    student = run_with_gallery(tmp_path / "student", "teacher", "student")
    merged = merge_galleries([teacher, control, student], student)
    assert merged is not None
    assert [column["name"] for column in merged["columns"]] == ["teacher", "control", "student"]
    assert (merged["teacher"], merged["main"]) == (0, 2)
    assert len(merged["images"]) == NUM_IMAGES
    assert all(prediction is not None for image in merged["images"] for prediction in image["predictions"])
    assert merged["images"][3]["predictions"][1]["cam_cosine"] == cam_cosine_of(3)


def test_teacher_of_a_single_student_gets_a_column(tmp_path: Path) -> None:
    student = run_with_gallery(tmp_path / "student", "teacher", "student")
    merged = merge_galleries([student], student)
    assert merged is not None
    assert [column["name"] for column in merged["columns"]] == ["teacher", "student"]


def test_cosine_with_another_teacher_is_dropped(tmp_path: Path) -> None:
    student = run_with_gallery(tmp_path / "student", "teacher", "student")
    control = run_with_gallery(tmp_path / "control", "teacher", "control")
    control.gallery["models"][0]["sha256"] = "another"
    merged = merge_galleries([student, control], run_with_gallery(tmp_path / "teacher", "teacher"))
    assert merged is not None
    index = next(index for index, column in enumerate(merged["columns"]) if column["name"] == "control")
    assert {image["predictions"][index]["cam_cosine"] for image in merged["images"]} == {None}


def test_gallery_of_another_dataset_is_left_out(tmp_path: Path) -> None:
    student = run_with_gallery(tmp_path / "student", "teacher", "student")
    control = run_with_gallery(tmp_path / "control", "teacher", "control", source_fingerprint="0" * 64)
    merged = merge_galleries([control, student], student)
    assert merged is not None
    assert {image["predictions"][1] is None for image in merged["images"]} == {True}


INVALID_CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "version": lambda g: g.update(version=1),
    "images is text": lambda g: g.update(images="none"),
    "no image": lambda g: g.update(images=[]),
    "no checksum": lambda g: g.update(models=[{"title": "teacher"}]),
    "remote thumbnail": lambda g: g["images"][0].update(thumbnail="https://example.org/spy.png"),
    "markup in thumbnail": lambda g: g["images"][0].update(thumbnail='data:image/png;base64,"><script>'),
    "label out of range": lambda g: g["images"][0].update(label=3),
    "name is a list": lambda g: g["images"][0].update(name=["x"]),
    "too few classes": lambda g: g["images"][0].update(class_ids=[0, 1]),
    "missing prediction": lambda g: g["images"][0]["predictions"].pop(),
    "NaN": lambda g: g["images"][0]["predictions"][0].update(confidence=float("nan")),
    "too large for a float": lambda g: g["images"][0]["predictions"][0].update(confidence=10**400),
    "infinite row": lambda g: g["images"][0].update(row=float("inf")),
    "predicted is text": lambda g: g["images"][0]["predictions"][0].update(predicted="0"),
    "too few bytes": lambda g: g["images"][0]["predictions"][0].update(maps="AAAA"),
    "grid without width": lambda g: g["images"][0]["predictions"][0].update(grid=[4]),
}


@pytest.mark.parametrize("change", INVALID_CHANGES)
def test_invalid_gallery_is_not_shown(change: str) -> None:
    content = gallery_content("teacher", "student")
    INVALID_CHANGES[change](content)
    stored = load_json(json.dumps(content))
    model_info = {"classes": CLASSES, "sha256": CHECKSUMS["student"]}
    student = RunSummary("student", "student", metrics_content(0.9), model_info=model_info, gallery=stored)
    assert merge_galleries([student], student) is None


def test_page_without_valid_gallery_has_no_script(tmp_path: Path) -> None:
    content = gallery_content("teacher", "student")
    INVALID_CHANGES["remote thumbnail"](content)
    folder = write_gallery_json(write_run(tmp_path / "student", metrics_content(0.9)), content)
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no valid gallery for this run" in page
    assert "<script" not in page
    assert "example.org" not in page
