"""Students of another image size than their teacher: `camkd` commands, teacher outputs, and what the key depends on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from camkd.cams import predict
from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.dataset import Dataset
from camkd.data.sources import open_data, open_dataset
from camkd.data.views import Views
from camkd.distill.cache import list_stores
from camkd.distill.cache.build import build_teacher_cache
from camkd.distill.teacher import Teacher, load_teacher
from camkd.evaluate import predict_split
from camkd.experiments import pipeline
from camkd.runs.loading import load, read_model_info
from camkd.types import InputError
from support.cli import QUICK, camkd
from support.untrained import save_untrained

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
LARGE, SMALL = 24, 16
TRAIN = TrainConfig(epochs=2, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32", device="cpu", figure_every=0)


@pytest.fixture(scope="module")
def small(easy_folder: Path) -> Dataset:
    return open_data(easy_folder, size=SMALL)


@pytest.fixture(scope="module")
def teacher(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """An untrained ResNet-8 for the larger images, and the dataset of smaller images."""
    folder = save_untrained(tmp_path_factory.mktemp("teachers") / "resnet8", "resnet8", small.at_size(LARGE), LARGE)
    return load_teacher(folder, small, "cpu")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of teacher outputs for each test."""
    monkeypatch.setattr("camkd.distill.cache.store.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("camkd.distill.predictions.cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def fresh_teacher(teacher: Teacher) -> Teacher:
    """Return the teacher without its opened images and computed predictions."""
    return replace(teacher)


def run_config(**train: Any) -> RunConfig:
    return RunConfig(train=replace(TRAIN, **train), distill=DistillConfig(method="kd"), model="cam-net")


# --- datasets at another size


def test_dataset_at_another_size_has_the_same_samples(small: Dataset, easy_folder: Path) -> None:
    large = small.at_size(LARGE)
    expected = open_data(easy_folder, size=LARGE)
    for name, split in large.splits.items():
        np.testing.assert_array_equal(split.images, expected.splits[name].images)
        np.testing.assert_array_equal(split.labels, small.splits[name].labels)
        assert split.names == small.splits[name].names
    assert large.size == LARGE
    assert large.source_fingerprint == small.source_fingerprint
    assert large.fingerprint != small.fingerprint
    assert small.at_size(SMALL) is small
    assert large.at_size(SMALL).fingerprint == small.fingerprint
    bilinear = open_data(easy_folder, size=LARGE, interpolation="bilinear")
    assert small.at_size(LARGE, "bilinear").fingerprint == bilinear.fingerprint != large.fingerprint
    assert large.at_size(LARGE, "bilinear").fingerprint == bilinear.fingerprint


@pytest.mark.parametrize("options", [{"limit": 9}, {"train_limit": 7}, {"limit": 12, "train_limit": 5}])
@pytest.mark.parametrize("source", ["folder", "shapes"])
def test_limits_hold_at_every_size(easy_folder: Path, source: str, options: dict[str, int]) -> None:
    data = open_data(easy_folder if source == "folder" else "shapes", size=SMALL, **options)  # type: ignore[arg-type]
    large = data.at_size(LARGE)
    assert [len(split) for split in large.splits.values()] == [len(split) for split in data.splits.values()]
    assert large.train.images.shape[1:3] == (LARGE, LARGE)
    assert large.source_fingerprint == data.source_fingerprint
    again = data.limited(4)
    assert again.at_size(LARGE).train.images.shape == (4, LARGE, LARGE, 3)


def test_images_that_changed_meanwhile_are_refused(small: Dataset) -> None:
    changed = replace(small, source_fingerprint="0" * 64)
    with pytest.raises(InputError, match=f"at {LARGE} pixels must be those at {SMALL} pixels"):
        changed.at_size(LARGE)


def test_arrays_in_memory_have_one_size(easy: Dataset) -> None:
    with pytest.raises(InputError, match=r"image size of easy must be 16.*got 24"):
        easy.at_size(LARGE)


# --- teacher outputs


def test_teacher_is_evaluated_on_its_own_images(teacher: Teacher, small: Dataset) -> None:
    large = small.at_size(LARGE)
    for split in ("val", "test"):
        predictions = getattr(teacher, f"{split}_predictions")
        expected = predict_split(teacher.model, large.splits[split])
        assert torch.equal(predictions.logits, expected.logits)
        assert torch.equal(predictions.maps, expected.maps)


@pytest.mark.parametrize("policy", ["none", "light", "strong", "photo", "photo-mix"])
def test_teacher_gets_the_views_of_the_student_at_its_own_size(teacher: Teacher, small: Dataset, policy: str) -> None:
    cache = build_teacher_cache(teacher, run_config(augment=policy))
    samples = torch.tensor([5, 17, 2])
    student_images = Views(small.train, 3, policy, 0, CPU)[1, samples].x
    outputs = cache.compute(1, samples, student_images)
    views = Views(small.at_size(LARGE).train, 3, policy, 0, CPU, frame=SMALL)[1, samples]
    with torch.no_grad():
        expected = predict(teacher.model, views.x)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=2e-3, atol=2e-3)
    cached = cache.get(1, samples)
    assert cached is not None
    assert torch.equal(cached.logits, outputs.logits)


def test_large_images_are_not_opened_once_the_outputs_are_cached(
    teacher: Teacher, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for training, nor for the predictions on the validation and test images."""

    def train(name: str) -> dict[str, Any]:
        fresh = fresh_teacher(teacher)
        with_cache, config = pipeline.prepare_teacher(fresh, run_config())
        pipeline.train_run(tmp_path / name, config, small, with_cache)
        return pipeline.Run(tmp_path / name).read_history()[-1] | {"test": fresh.test_predictions.logits.tolist()}

    monkeypatch.setattr(pipeline, "evaluate_and_save", lambda *arguments: {"accuracy": 1.0})
    monkeypatch.setattr("camkd.distill.teacher.ROUNDING", -1.0)
    monkeypatch.setattr(Teacher, "check_accuracy", lambda self, weak: "weak")
    first = train("first")

    def fail(self: Dataset, size: int, interpolation: str) -> Dataset:
        raise AssertionError(f"the images are opened at {size} pixels")

    monkeypatch.setattr(Dataset, "at_size", fail)
    second = train("second")
    times = {"seconds", "images_per_second"}
    assert {key: first[key] for key in first.keys() - times} == {key: second[key] for key in second.keys() - times}


def test_corrupt_predictions_are_computed_again(teacher: Teacher, empty_cache: Path) -> None:
    expected = fresh_teacher(teacher).val_predictions
    (file,) = (empty_cache / "predictions").iterdir()
    content = bytearray(file.read_bytes())
    for corrupt in (content[:100], content[: len(content) // 2], b"", bytes(len(content))):
        file.write_bytes(corrupt)
        assert torch.equal(fresh_teacher(teacher).val_predictions.logits, expected.logits)
    start = content.index(b"logits.npy") + 400
    content[start] ^= 1
    file.write_bytes(content)
    assert torch.equal(fresh_teacher(teacher).val_predictions.logits, expected.logits)
    assert file.read_bytes() != bytes(content)


def test_predictions_are_computed_if_the_cache_cannot_be_written(teacher: Teacher, empty_cache: Path) -> None:
    empty_cache.write_text("a file where the folder should be", encoding="utf-8")
    fresh = fresh_teacher(teacher)
    assert fresh.val_predictions.logits.shape == (24, 3)


def test_key_depends_on_the_size_of_the_teacher_and_on_the_frame(teacher: Teacher, small: Dataset) -> None:
    def key(teacher: Teacher, augment: str) -> str:
        store = build_teacher_cache(teacher, run_config(augment=augment)).store
        assert store is not None
        return store.folder.name

    other_frame = replace(teacher, student_data=small.at_size(20))
    other_teachers = [other_frame, replace(teacher, size=32), replace(teacher, interpolation="bilinear")]
    keys = [key(other, "light") for other in (teacher, *other_teachers)] + [key(teacher, "none")]
    assert len(set(keys)) == 5
    for policy in ("none", "photo", "photo-mix"):
        assert key(teacher, policy) == key(other_frame, policy), "views without a frame serve students of every size"


# --- commands


@pytest.fixture(scope="module")
def runs(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher of larger images, and `camkd train` and `camkd distill` of smaller images."""
    root = tmp_path_factory.mktemp("two-sizes")
    data = ("--data", str(easy_folder))
    options = ("--seed", "0", *QUICK)
    trained = camkd("teacher", *data, "--size", str(LARGE), "--model", "resnet8", "--out", str(root / "t"), *options)
    assert trained.status == 0, trained.err
    for command in ("train", "distill"):
        small = ("--size", str(SMALL), "--teacher", str(root / "t"), "--weak-teacher", "accept")
        done = camkd(command, *data, *small, "--student", "resnet8", "--out", str(root / command), *options)
        assert done.status == 0, done.err
    return root


def test_each_model_has_its_own_size(runs: Path) -> None:
    sizes = {name: read_model_info(runs / name).size for name in ("t", "train/student", "train/control", "distill")}
    assert sizes == {"t": LARGE, "train/student": SMALL, "train/control": SMALL, "distill": SMALL}


def test_gallery_and_report_show_the_teacher(runs: Path) -> None:
    """The teacher's predictions in the student's gallery are those at the teacher's size."""
    gallery = json.loads((runs / "train" / "student" / "gallery.json").read_text(encoding="utf-8"))
    assert [model["title"] for model in gallery["models"]] == ["teacher", "student", "control"]
    config = pipeline.Run(runs / "distill").config()
    data = open_dataset(DataConfig(data=config["data"], size=SMALL))
    expected = predict_split(load(runs / "t"), data.at_size(LARGE).test).logits.argmax(1)
    for record in gallery["images"]:
        assert record["predictions"][0]["predicted"] == int(expected[record["row"]])
    page = (runs / "train" / "report.html").read_text(encoding="utf-8")
    assert f"{LARGE} px" in page
    assert f"{SMALL} px" in page


def test_evaluate_repeats_the_metrics_of_the_run(runs: Path) -> None:
    stored = pipeline.Run(runs / "distill").read_metrics()
    values = camkd("evaluate", str(runs / "distill"), "--json").json
    for key in ("accuracy", "teacher_accuracy", "teacher_agreement", "cam_cosine"):
        assert values[key] == pytest.approx(stored[key], abs=1e-6)
    assert (stored["image_size"], values["image_size"]) == (SMALL, SMALL)
    assert stored["teacher_accuracy"] == pytest.approx(pipeline.Run(runs / "t").read_metrics()["accuracy"])


def test_explain_shows_each_model_its_own_size(runs: Path, easy_folder: Path, tmp_path: Path) -> None:
    image = sorted(easy_folder.glob("test/*/*.png"))[0]
    values = camkd("explain", str(runs / "distill"), str(image), "--out", str(tmp_path / "x.npz"), "--json").json
    arrays = np.load(tmp_path / "x.npz")
    data = open_data(easy_folder, size=SMALL)
    row = list(data.test.names or ()).index(str(image.relative_to(easy_folder)))
    for title, size in (("teacher", LARGE), ("student", SMALL)):
        model = load(runs / ("t" if title == "teacher" else "distill"))
        x = torch.from_numpy(data.at_size(size).test.images[row : row + 1].copy()).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            expected = model(x).softmax(1).numpy()
        np.testing.assert_allclose(arrays[f"{title}_probabilities"], expected, atol=1e-5)
    assert set(values["images"][str(image)]) == {"teacher", "student"}
    assert camkd("explain", str(runs / "distill"), str(image), "--out", str(tmp_path / "x.png")).status == 0


def test_compare_export_and_precompute_accept_a_larger_teacher(
    runs: Path, easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("--data", str(easy_folder), "--size", str(SMALL), "--teacher", str(runs / "t"))
    options = (*common, "--weak-teacher", "accept", "--student", "resnet8", *QUICK)
    out = tmp_path / "compare"
    done = camkd("compare", *options, "--methods", "plain,kd,at", "--seeds", "1", "--out", str(out))
    assert done.status == 0, done.err
    cache_options = ("--epochs", "1", "--batch-size", "24", "--precision", "fp32")
    done = camkd("cache", "precompute", *common, *cache_options)
    assert done.status == 0, done.err
    assert len(list_stores()) == 1, "training and precomputing share a store"


def test_train_trains_a_teacher_of_another_size(easy_folder: Path, tmp_path: Path) -> None:
    options = ("--data", str(easy_folder), "--size", str(SMALL), "--teacher", "resnet8", "--teacher-size", str(LARGE))
    out = ("--student", "resnet8", "--weak-teacher", "accept", "--out", str(tmp_path / "run"), *QUICK)
    done = camkd("train", *options, *out)
    assert done.status == 0, done.err
    sizes = {role: read_model_info(tmp_path / "run" / role).size for role in ("teacher", "control", "student")}
    assert sizes == {"teacher": LARGE, "control": SMALL, "student": SMALL}
    assert pipeline.Run(tmp_path / "run" / "teacher").config()["size"] == LARGE
    again = camkd("train", *options, *out, "--resume")
    assert again.status == 0, again.err
    other = camkd("train", *options[:-1], "20", *out, "--resume")
    assert other.status == 2
    assert f"(size {LARGE}), got other images (size 20)" in other.last_line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--teacher-size", "24"), "--teacher-size must be given with the name of a model, got --teacher-size 24"),
        (("--teacher-train", "head"), "--teacher-train must be given with the name of a model"),
        (("--teacher", "resnet8", "--teacher-train", "head"), "--train head must be given with trained weights"),
        (("--teacher", "resnet8", "--teacher-size", "0"), "teacher_size must be 1 or more"),
    ],
)
def test_options_of_a_teacher_to_train_are_checked(
    runs: Path, easy_folder: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    teacher = () if "--teacher" in options else ("--teacher", str(runs / "t"))
    out = ("--out", str(tmp_path / "run"))
    done = camkd("train", "--data", str(easy_folder), *teacher, *options, *out, *QUICK)
    assert done.status == 2
    assert message in done.last_line
    assert not (tmp_path / "run").exists()
