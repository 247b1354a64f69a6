"""The gallery: which pictures are chosen, what is kept of their maps, how small it stays, how several become one."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
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
from camkd.evaluate.metrics import cosine, map_likeness
from camkd.models import build
from camkd.report.gallery import BYTES, GalleryModel, gallery_rows, quantised, select_images, write_gallery
from camkd.report.merge_galleries import DIFFERENCE, EVIDENCE, merge_galleries, ramp
from camkd.report.report import write_report
from camkd.report.verdict import RunSummary
from run_folders import CLASSES, SHA, gallery, hang, likeness_of, measured, write_run


def examined(answers: list[int], maps: torch.Tensor | None = None, classes: int = 3) -> SplitPredictions:
    logits = torch.nn.functional.one_hot(torch.tensor(answers), classes).float()
    return SplitPredictions(
        logits, torch.ones(len(answers), 2, 2) if maps is None else maps, torch.zeros(len(answers)), "exact"
    )


# --- which pictures


def test_every_cell_gets_a_picture_before_any_gets_a_second() -> None:
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 50)
    answers = labels.clone()
    answers[[7, 8, 9, 60, 120]] = torch.tensor([1, 1, 2, 0, 0])
    rows = select_images(labels, examined(answers.tolist()), count=8)
    assert sorted(rows) == [0, 7, 9, 50, 51, 60, 100, 120]
    assert len({(int(labels[row]), int(answers[row])) for row in rows}) == 7


def test_the_ones_that_agree_on_the_label_and_least_on_the_region_come_first() -> None:
    """Of three pictures on which both say cat, the one with opposite maps; the one they disagree on is no such case."""
    labels = torch.zeros(4, dtype=torch.long)
    here, there = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    own = examined([0, 0, 0, 1], torch.stack([here, here + 0.5 * there, there, there]))
    teacher = examined([0, 0, 0, 0], torch.stack([here, here, here, here]))
    assert select_images(labels, own, teacher, count=6)[0] == 2
    assert select_images(labels, own, teacher) == select_images(labels, own, teacher)


def test_what_only_the_student_got_right_is_there() -> None:
    labels = torch.zeros(500, dtype=torch.long)
    theirs = [0] * 500
    theirs[437] = 1
    assert 437 in select_images(labels, examined([0] * 500), examined(theirs), count=60)


def test_a_choice_is_of_pictures_and_no_larger_than_asked() -> None:
    labels = torch.arange(300) % 3
    for count in (1, 7, 299, 400):
        rows = select_images(labels, examined(labels.tolist()), examined(labels.tolist()), count)
        assert len(rows) == len(set(rows)) == min(count, 300)


# --- what is kept


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_eight_bits_are_off_by_half_a_level_at_most(numbers: list[float]) -> None:
    maps = np.array(numbers).reshape(1, 2, 2)
    levels, scales = quantised(maps)
    assert levels.dtype == np.uint8
    again = scales[:, None, None] * (levels.astype(float) - 128) / 127
    assert np.abs(again - maps).max() <= scales[0] / 254 * (1 + 1e-9)


def test_maps_without_evidence_or_sense_stay_zero() -> None:
    levels, scales = quantised(np.array([[[0.0, 0.0]], [[np.nan, np.inf]]]))
    assert levels.tolist() == [[[128, 128]], [[128, 128]]]
    assert scales.tolist() == [0, 0]


@pytest.fixture(scope="module")
def models() -> dict[str, GalleryModel]:
    torch.manual_seed(0)
    return {
        role: GalleryModel(build("cam-net", 3, 16, seed).eval(), SHA[role])
        for seed, role in enumerate(("teacher", "student"))
    }


def test_a_gallery_says_what_the_models_say(easy: Dataset, models: dict[str, GalleryModel], tmp_path: Path) -> None:
    path = tmp_path / "gallery.json"
    write_gallery(path, easy, models, [5, 2])
    first = json.loads(path.read_text(encoding="utf-8"))["pictures"][0]
    assert gallery_rows(path) == [5, 2]
    assert first["truth"] == easy.test.labels[5]
    thumbnail = Image.open(io.BytesIO(base64.b64decode(first["image"].partition(",")[2])))
    assert (np.asarray(thumbnail) == easy.test.images[5]).all()
    x = torch.from_numpy(easy.test.images[5:6].copy()).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        told = [predict(exhibit.model, x) for exhibit in models.values()]
    for answer, expected in zip(first["answers"], told, strict=True):
        assert expected.cams is not None
        shares = expected.logits.softmax(1)[0]
        assert answer["label"] == int(shares.argmax())
        assert answer["confidence"] == pytest.approx(float(shares.max()), abs=1e-3)
        levels = np.frombuffer(base64.b64decode(answer["maps"]), np.uint8).reshape(3, *answer["grid"])
        again = np.array(answer["scales"])[:, None, None] * (levels.astype(float) - 128) / 127
        np.testing.assert_allclose(again, expected.cams[0].numpy(), atol=float(expected.cams.abs().max()) / 200)
    shown = first["answers"][0]["label"]
    alike = cosine(told[0].cams[:, shown], told[1].cams[:, shown])  # type: ignore[index]
    assert first["answers"][1]["likeness"] == pytest.approx(float(alike), abs=1e-3)
    assert "likeness" not in first["answers"][0]


def test_likeness_is_the_cosine_of_the_metrics_also_of_unequal_grids(easy: Dataset, tmp_path: Path) -> None:
    names = {"teacher": "resnet8", "student": "resnet50"}
    exhibits = {role: GalleryModel(build(name, 3, 16, 4).eval(), SHA[role]) for role, name in names.items()}
    write_gallery(tmp_path / "gallery.json", easy, exhibits, [3, 8])
    found = json.loads((tmp_path / "gallery.json").read_text(encoding="utf-8"))["pictures"]
    theirs = predict_split(exhibits["teacher"].model, easy.test)
    ours = predict_split(exhibits["student"].model, easy.test, theirs.class_ids)
    assert ours.maps.shape != theirs.maps.shape
    expected = map_likeness(ours.maps, theirs.maps)["cam_cosine"][[3, 8]].tolist()
    assert [picture["answers"][1]["likeness"] for picture in found] == pytest.approx(expected, abs=1e-3)


class Ramps(nn.Module):
    """Many classes and large maps, at once: class ``k`` sees the brightness times ``k``."""

    def __init__(self, classes: int, grid: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.head = nn.Conv2d(3, classes, 1)
        self.average = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.average(self.head(self.pool(x)))  # type: ignore[no-any-return]


def large(classes: int, side: int, count: int) -> Dataset:
    rng = np.random.default_rng(0)
    names = tuple(f"class number {k} with a name" for k in range(classes))
    images = rng.integers(0, 256, (count, side, side, 3)).astype(np.uint8)  # noise: nothing compresses worse
    split = Split(images, np.arange(count) % classes, None, tuple(f"test/{'x' * 60}/{i}.jpg" for i in range(count)))
    return Dataset("large", names, split, split, split, "f" * 64, ())


@pytest.mark.parametrize(("classes", "side"), [(20, 64), (100, 224), (1000, 224)])
def test_a_page_stays_under_five_megabytes(tmp_path: Path, classes: int, side: int) -> None:
    """Three runs with galleries of their own choice, of noise, with the largest maps and drawings that are kept."""
    data = large(classes, side, 200)
    torch.manual_seed(0)
    roles = ("teacher", "control", "student")
    exhibits = {role: GalleryModel(Ramps(classes, 16).eval(), SHA[role]) for role in roles}
    counts = [[5 if r == c else int((7 * r + c) % 50 == 0) for c in range(classes)] for r in range(classes)]
    noise = np.random.default_rng(0).integers(0, 256, (300, 600, 3)).astype(np.uint8)
    for place, role in enumerate(roles):
        folder = write_run(tmp_path / "run" / role, measured(0.9) | {"confusion": counts}, list(data.classes))
        write_gallery(folder / "gallery.json", data, exhibits, list(range(10 * place, 180 + 10 * place)))
        assert (folder / "gallery.json").stat().st_size <= BYTES
        for epoch in range(1, 12):
            Image.fromarray(noise).save(folder / "figures" / f"cams-epoch-{epoch:03d}.png")
        (folder / "figures" / "cams-epoch-001.png").rename(folder / "figures" / "cams.png")
    page = write_report([tmp_path / "run"], tmp_path / "report.html")
    assert page.stat().st_size < 5_000_000
    assert '"pictures":[{' in page.read_text(encoding="utf-8")


def test_many_classes_keep_the_maps_of_those_that_matter(tmp_path: Path) -> None:
    data = large(100, 32, 8)
    torch.manual_seed(0)
    exhibits = {role: GalleryModel(Ramps(100, 8).eval(), SHA[role]) for role in ("teacher", "student")}
    write_gallery(tmp_path / "gallery.json", data, exhibits, list(range(8)))
    for picture in json.loads((tmp_path / "gallery.json").read_text(encoding="utf-8"))["pictures"]:
        assert len(picture["shown"]) == 10
        assert {picture["truth"], *(answer["label"] for answer in picture["answers"])} <= set(picture["shown"])


# --- several as one


def run_of(folder: Path, *roles: str, **changes: Any) -> RunSummary:
    hang(write_run(folder, measured(0.9)), gallery(*roles, **changes))
    return RunSummary(
        folder.name,
        folder.name,
        metrics=measured(0.9),
        model={"classes": CLASSES, "sha256": SHA[folder.name]},
        gallery=gallery(*roles, **changes),
    )


def test_runs_are_known_again_by_their_weights(tmp_path: Path) -> None:
    """The teacher has no gallery of its own: its answers come from the student's, the control's from its own."""
    teacher = replace(run_of(tmp_path / "teacher", "teacher"), gallery={})
    control, student = (
        run_of(tmp_path / "control", "teacher", "control"),
        run_of(tmp_path / "student", "teacher", "student"),
    )
    found = merge_galleries([teacher, control, student], student)
    assert found is not None
    assert [column["name"] for column in found["columns"]] == ["teacher", "control", "student"]
    assert (found["teacher"], found["main"]) == (0, 2)
    assert len(found["pictures"]) == 40
    assert all(answer is not None for picture in found["pictures"] for answer in picture["answers"])
    assert found["pictures"][3]["answers"][1]["likeness"] == likeness_of(3)


def test_a_student_alone_brings_its_teacher(tmp_path: Path) -> None:
    found = merge_galleries([student := run_of(tmp_path / "student", "teacher", "student")], student)
    assert found is not None
    assert [column["name"] for column in found["columns"]] == ["teacher", "student"]


def test_likeness_to_another_teacher_is_not_shown(tmp_path: Path) -> None:
    other = run_of(tmp_path / "control", "teacher", "control")
    other.gallery["models"][0]["sha256"] = "another"
    found = merge_galleries(
        [run_of(tmp_path / "student", "teacher", "student"), other], run_of(tmp_path / "teacher", "teacher")
    )
    assert found is not None
    control = next(place for place, column in enumerate(found["columns"]) if column["name"] == "control")
    assert {picture["answers"][control]["likeness"] for picture in found["pictures"]} == {None}


def test_other_pictures_stay_out(tmp_path: Path) -> None:
    student = run_of(tmp_path / "student", "teacher", "student")
    other = run_of(tmp_path / "control", "teacher", "control", open_model_data="0" * 64)
    found = merge_galleries([other, student], student)
    assert found is not None
    assert {picture["answers"][1] is None for picture in found["pictures"]} == {True}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda g: g.update(version=2),
        lambda g: g.update(pictures="none"),
        lambda g: g.update(pictures=[]),
        lambda g: g.update(models=[{"title": "teacher"}]),
        lambda g: g["pictures"][0].update(image="https://example.org/spy.png"),
        lambda g: g["pictures"][0].update(image='data:image/png;base64,"><script>'),
        lambda g: g["pictures"][0].update(truth=3),
        lambda g: g["pictures"][0].update(name=["x"]),
        lambda g: g["pictures"][0].update(shown=[0, 1]),
        lambda g: g["pictures"][0]["answers"].pop(),
        lambda g: g["pictures"][0]["answers"][0].update(confidence=float("nan")),
        lambda g: g["pictures"][0]["answers"][0].update(confidence=10**400),
        lambda g: g["pictures"][0].update(row=float("inf")),
        lambda g: g["pictures"][0]["answers"][0].update(label="0"),
        lambda g: g["pictures"][0]["answers"][0].update(maps="AAAA"),
        lambda g: g["pictures"][0]["answers"][0].update(grid=[4]),
    ],
)
def test_a_file_that_is_no_gallery_is_not_shown(tmp_path: Path, spoil: Any) -> None:
    content = gallery("teacher", "student")
    spoil(content)
    folder = hang(write_run(tmp_path / "student", measured(0.9)), content)
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no gallery that fits this run" in page
    assert "<script" not in page
    assert "example.org" not in page


# --- colours


def lab(colours: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """CIELAB (D65) of sRGB colours ``(n, 3)`` in 0..1."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    share = linear @ to_xyz.T / (to_xyz @ np.ones(3))
    f = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
}
"""Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB; close enough in sRGB for a yardstick."""


@pytest.mark.parametrize("vision", VISION)
def test_the_colours_are_even_steps_to_every_eye(vision: str) -> None:
    """More evidence is lighter throughout; a difference is lightest at zero, and its two ends are far apart."""
    seen = {
        name: lab(np.clip(np.array([matplotlib.colors.to_rgb(c) for c in ramp(name)]) @ VISION[vision].T, 0, 1))
        for name in (EVIDENCE, DIFFERENCE, "jet")
    }
    assert (np.diff(seen[EVIDENCE][:, 0]) > 0).all()
    lightness = seen[DIFFERENCE][:, 0]
    assert abs(int(lightness.argmax()) - 16) <= 1
    assert np.linalg.norm(seen[DIFFERENCE][0] - seen[DIFFERENCE][-1]) > 60
    assert not (np.diff(seen["jet"][:, 0]) > 0).all(), "the check can fail"
