"""Run folders: contents, refused folders, resume, and teacher outputs that are computed once."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camkd.config import DataConfig, DistillConfig, RunConfig, Select, TrainConfig
from camkd.data.dataset import Dataset, Split
from camkd.data.sources import open_data
from camkd.distill.teacher import Teacher, find_teacher, load_teacher
from camkd.evaluate import SplitPredictions, predict_split
from camkd.experiments import pipeline, teacher_student
from camkd.experiments.finished_runs import reevaluate
from camkd.experiments.pipeline import TeacherWithCache, channel_statistics, prepare_teacher, train_run
from camkd.experiments.teacher_student import train_all
from camkd.models import MODELS, ImageClassifier
from camkd.models.resnet import BasicBlock, ResNet
from camkd.report.gallery import gallery_rows
from camkd.runs.folder import Run
from camkd.runs.loading import load, read_model_info
from camkd.runs.per_image import read_per_image
from camkd.runs.resume import Resume
from camkd.train import heatmap_figures
from camkd.train.callbacks import Callback
from camkd.train.validation import Validator
from camkd.types import InputError, Interrupted
from camkd.utils import devices
from camkd.utils.distributed import ProcessGroupInfo
from support.interrupt import InterruptAt, Messages
from support.untrained import save_untrained

pytestmark = pytest.mark.slow

METRICS = {"accuracy", "val_accuracy", "params", "macs", "epochs", "seconds", "images_per_second", "ece", "nll"}
METRICS |= {"per_class", "confusion", "cam_form", "balanced_accuracy", "macro_f1", "min_recall"}
METRICS |= {"val_balanced_accuracy", "val_loss"}
MAP_METRICS = {f"cam_{name}{level}" for name in ("cosine", "pearson", "iou") for level in ("", "_center", "_mean_map")}
MAP_METRICS |= {f"cam_disagreement{level}" for level in ("", "_center", "_mean_map", "_shuffled")}
TEACHER_METRICS = {"teacher_accuracy", "teacher_agreement", *MAP_METRICS}
HISTORY = {"epoch", "train_loss", "terms", "lr", "val_accuracy", "val_loss", "images_per_second", "seconds"}
HISTORY |= {"val_balanced_accuracy"}
HISTORY_WITH_TEACHER = {"val_teacher_agreement", "val_cam_cosine"}
DATA = DataConfig(data="easy")
ONE = TrainConfig(epochs=1, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32", device="cpu", figure_every=0)
TWO = replace(ONE, epochs=2)
PLAIN = DistillConfig(method="plain")


def run_config(
    model: str = "resnet8",
    role: Any = "student",
    train: TrainConfig = ONE,
    distill: DistillConfig = PLAIN,
    data: DataConfig = DATA,
) -> RunConfig:
    return RunConfig(data, train, distill, model, role)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def teacher_folder(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained teacher run on `easy`: a ResNet-8."""
    folder = tmp_path_factory.mktemp("teacher") / "resnet8"
    train_run(folder, run_config("resnet8", "teacher", ONE), easy)
    return folder


@pytest.fixture
def loaded_teacher(easy: Dataset, teacher_folder: Path) -> Teacher:
    return load_teacher(teacher_folder, easy, "cpu")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache for this test."""
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take longer than the training here."""
    monkeypatch.setattr(pipeline, "draw_examples", lambda *arguments: None)
    monkeypatch.setattr(teacher_student, "draw_examples", lambda *arguments: None)
    monkeypatch.setattr(heatmap_figures, "draw_examples", lambda *arguments: None)


# --- contents of run folders


@pytest.mark.parametrize("role", ["teacher", "control", "student"])
def test_files_of_a_run_folder(finished: Any, role: str) -> None:
    folder = finished.folder / role
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    pages = {"config.yaml", "environment.json", "metrics.jsonl", "metrics.json", "model.safetensors", "model.json"}
    checkpoints = {name for name in files if name.startswith("checkpoints/")}
    manifests_and_states = (Path(name) for name in checkpoints if "best" not in name)
    pages |= {"gallery.json", "per_image.npz"}
    assert files - checkpoints == pages | {"figures/cams.png", "figures/cams-epoch-001.png"}
    assert sorted(path.name.partition("-")[0] + path.suffix for path in manifests_and_states) == [
        "last.json", "last.json", "last.pt", "last.pt",
    ]  # fmt: skip
    assert f"checkpoints/best-{Run(folder).read_metrics()['best_epoch']:05d}.pt" in checkpoints
    metrics = Run(folder).read_metrics()
    assert set(metrics) >= METRICS | (TEACHER_METRICS if role != "teacher" else set())
    if role == "teacher":
        assert not TEACHER_METRICS & set(metrics)
    rows = Run(folder).read_history()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(set(row) == HISTORY | (HISTORY_WITH_TEACHER if role != "teacher" else set()) for row in rows)
    assert metrics["val_accuracy"] == max(row["val_accuracy"] for row in rows)
    assert metrics["epochs"] == 2
    assert metrics["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert metrics["images_per_second"] == pytest.approx(2 * 96 / metrics["seconds"])


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_per_image_records_agree_with_metrics(finished: Any, easy_folder: Path, role: str) -> None:
    records, metrics = (
        read_per_image(Run(finished.folder / role).per_image_file),
        Run(finished.folder / role).read_metrics(),
    )
    assert metrics["test_images"] == len(records["label"]) == 24
    assert metrics["accuracy"] == np.mean(records["predicted"] == records["label"])
    assert set(records["name"]) == {str(path.relative_to(easy_folder)) for path in easy_folder.glob("test/*/*.png")}
    assert ("teacher_agreement" in metrics) == ("teacher_predicted" in records) == (role == "student")
    if role == "student":
        assert metrics["teacher_agreement"] == np.mean(records["predicted"] == records["teacher_predicted"])
        assert metrics["cam_iou"] == pytest.approx(np.mean(records["cam_iou"]))


def test_every_metric_is_documented(finished: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    metrics = Run(finished.folder / "student").read_metrics()
    names = {re.sub("_(shuffled|center|mean_map)$", "", name) for name in (*metrics, *metrics["by_outcome"])}
    assert {"road", "cam_spearman", "faithfulness_images"} < names
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_default_optimizer_is_stored_in_the_configuration(easy: Dataset, tmp_path: Path, easy_folder: Path) -> None:
    config = TrainConfig(epochs=1, batch_size=24, precision="fp32", device="cpu", figure_every=0)
    for name, expected in (("cam-net", ("adamw", 0.01, 0.01)), ("resnet8", ("sgd", 0.2, 5e-4))):
        train_run(tmp_path / name, run_config(name, "teacher", config, data=DataConfig(data=str(easy_folder))), easy)
        options = Run(tmp_path / name).config()
        assert (options["optimizer"], options["lr"], options["weight_decay"]) == expected


def test_model_info_and_metrics_agree_with_the_model(finished: Any, easy: Dataset) -> None:
    info = read_model_info(finished.folder / "student")
    model = load(finished.folder / "student")
    metrics = Run(finished.folder / "student").read_metrics()
    assert (info.architecture, info.role, info.method) == ("cam-net", "student", "cam-kd")
    assert (info.classes, info.size) == (easy.classes, 16)
    assert info.teacher == str((finished.folder / "teacher").resolve())
    assert info.params == metrics["params"] == sum(p.numel() for p in model.parameters())
    counts = np.array(metrics["confusion"])
    assert counts.sum() == len(easy.test)
    assert counts.sum(1).tolist() == [8, 8, 8]
    assert metrics["accuracy"] == pytest.approx(np.trace(counts) / 24)
    recalls = {name: entry["recall"] for name, entry in metrics["per_class"].items()}
    assert recalls == pytest.approx(dict(zip(easy.classes, np.diag(counts) / 8, strict=True)))
    assert metrics["balanced_accuracy"] == pytest.approx(metrics["accuracy"])  # the classes have equally many images


def test_three_runs_and_a_report(finished: Any) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {"teacher", "control", "student", "report.html"}
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 1
    control, student = (Run(finished.folder / role).config() for role in ("control", "student"))
    assert (control["method"], student["method"]) == ("plain", "cam-kd")
    different = {name for name in student if student[name] != control[name]}
    assert different == {"method"}
    student, control = (read_per_image(Run(finished.folder / role).per_image_file) for role in ("student", "control"))
    correct, control_correct = (rows["predicted"] == rows["label"] for rows in (student, control))
    summary = teacher_student.summary(finished.folder)
    assert "in one run" in summary
    assert f"only the student predicts {(correct & ~control_correct).sum()} correctly" in summary


def test_gallery_of_the_student_has_all_three_models(finished: Any, easy: Dataset) -> None:
    """A resumed ``camkd train`` uses the same images again."""
    gallery = json.loads(Run(finished.folder / "student").gallery_file.read_text(encoding="utf-8"))
    roles = ("teacher", "student", "control")
    assert [model["sha256"] for model in gallery["models"]] == [
        read_model_info(finished.folder / role).sha256 for role in roles
    ]
    assert {image["row"] for image in gallery["images"]} == set(range(len(easy.test)))
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert gallery["images"][0]["thumbnail"] in page


def test_normalization_uses_training_statistics(finished: Any, easy: Dataset) -> None:
    pixels = easy.train.images.reshape(-1, 3) / 255.0
    model = load(finished.folder / "student")
    assert model.mean.flatten().tolist() == pytest.approx(pixels.mean(0).tolist(), rel=1e-5)
    assert model.std.flatten().tolist() == pytest.approx(pixels.std(0).tolist(), rel=1e-4)


def test_channel_statistics() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2050, 4, 4, 3)).astype(np.uint8)
    images[..., 2] = 77  # no deviation
    mean, deviation = channel_statistics(images)
    pixels = images.reshape(-1, 3).astype(np.float64) / 255
    assert mean == pytest.approx(pixels.mean(0).tolist(), rel=1e-6)
    assert deviation[:2] == pytest.approx(pixels.std(0)[:2].tolist(), rel=1e-5)
    assert deviation[2] == pytest.approx(1e-3)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("select", "best"), [("accuracy", 2), ("balanced_accuracy", 3), ("nll", 1)])
def test_saved_weights_are_those_of_the_best_epoch(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: Select, best: int
) -> None:
    scores = iter([0.9, 0.9, 0.1])
    losses = iter([0.3, 0.4, 0.5])

    def validate(self: Validator, model: nn.Module) -> dict[str, float]:
        return {"val_accuracy": next(scores), "val_loss": next(losses), "val_balanced_accuracy": 0.5}

    monkeypatch.setattr(Validator, "__call__", validate)
    averaged_weights: list[Tensor] = []

    class Averages(Callback):
        def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
            averaged_weights.append(model.state_dict()["fc.weight"].clone())

    config = replace(ONE, epochs=3, batch_size=96, select=select)
    metrics = train_run(tmp_path, run_config("resnet8", "teacher", config), easy, callbacks=[Averages()])
    assert metrics["best_epoch"] == best
    assert (metrics["val_accuracy"], metrics["val_loss"]) == [(0.9, 0.3), (0.9, 0.4), (0.1, 0.5)][best - 1]
    assert torch.equal(load(tmp_path).state_dict()["fc.weight"], averaged_weights[metrics["best_epoch"] - 1])


# --- folders that hold a run


def test_folder_with_a_run_is_refused(easy: Dataset, teacher_folder: Path) -> None:
    before = weights(teacher_folder)
    with pytest.raises(InputError, match=r"finished run.*--resume"):
        train_run(teacher_folder, run_config("resnet8", "teacher", ONE), easy)
    assert weights(teacher_folder) == before


def test_finished_run_is_not_trained_again(easy: Dataset, teacher_folder: Path) -> None:
    steps, before = InterruptAt(), Run(teacher_folder).read_metrics()
    metrics = train_run(teacher_folder, run_config("resnet8", "teacher", ONE), easy, resume=Resume(), callbacks=[steps])
    assert metrics == before
    assert steps.count == 0


@pytest.mark.parametrize("read", [read_per_image, gallery_rows])
def test_corrupt_record_is_restored_as_its_error_advises(
    easy: Dataset, teacher_folder: Path, tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    run, steps = Run(Path(shutil.copytree(teacher_folder, tmp_path / "run"))), InterruptAt()
    path = run.per_image_file if read is read_per_image else run.gallery_file
    before = path.read_bytes()
    path.write_bytes(before[:-9])
    with pytest.raises(InputError, match=r"metrics\.json.*--resume"):
        read(path)
    run.metrics_file.unlink()
    train_run(run.folder, run_config("resnet8", "teacher", ONE), easy, resume=Resume(), callbacks=[steps])
    assert path.read_bytes() == before
    assert steps.count == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 3}, "epochs must be 1.*got 3"),
        ({"lr": 0.2}, "lr must be 0.4.*got 0.2"),
        ({"seed": 5}, "seed must be 0"),
    ],
)
def test_other_settings_are_refused(easy: Dataset, teacher_folder: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        train_run(teacher_folder, run_config("resnet8", "teacher", replace(ONE, **changes)), easy, resume=Resume())


def test_other_model_is_refused(easy: Dataset, teacher_folder: Path) -> None:
    with pytest.raises(InputError, match=r"model must be resnet8.*got cam-net"):
        train_run(teacher_folder, run_config("cam-net", "teacher", ONE), easy, resume=Resume())


@pytest.mark.usefixtures("no_figures")
def test_other_method_or_teacher_is_refused(easy: Dataset, tmp_path: Path, loaded_teacher: Teacher) -> None:
    train_run(tmp_path, run_config("resnet8", "control", ONE), easy)
    with pytest.raises(InputError, match=r"method must be plain.*got kd"):
        train_run(tmp_path, run_config("resnet8", "control", ONE, DistillConfig(method="kd")), easy, resume=Resume())
    with pytest.raises(InputError, match=r"The teacher's weights must be .*\(teacher auto\), got .*\(teacher /"):
        train_run(
            tmp_path, run_config("resnet8", "control", ONE), easy, TeacherWithCache(loaded_teacher), resume=Resume()
        )


def test_file_instead_of_a_run_folder_is_refused(easy: Dataset, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"must be a folder, got the file .*taken"):
        train_run(tmp_path / "taken", run_config("resnet8", "teacher", ONE), easy)
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 2), (24, 25)])
def test_batch_smaller_than_the_number_of_processes_is_refused(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, world_size: int
) -> None:
    monkeypatch.setattr(pipeline, "process_group", lambda: ProcessGroupInfo(1, world_size))
    config = run_config("resnet8", "teacher", replace(ONE, batch_size=batch_size))
    with pytest.raises(
        InputError, match=rf"must have {world_size} images or more, .*, got {batch_size}\. .*--batch-size"
    ):
        train_run(tmp_path / "run", config, easy)
    assert not (tmp_path / "run").exists()


def folder_config(folder: Path, teacher: str) -> RunConfig:
    """The configuration of `finished`."""
    train = TrainConfig(epochs=2, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32")
    return RunConfig(DataConfig(data=str(folder)), train, DistillConfig(teacher))


def test_finished_runs_are_not_trained_again(finished: Any, easy_folder: Path) -> None:
    modified = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("model.safetensors")}
    steps = InterruptAt()
    config = folder_config(easy_folder, "resnet8")
    results = train_all(finished.folder, config, open_data(easy_folder), resume=Resume(), callbacks=[steps])
    assert steps.count == 0
    assert {role: Run(finished.folder / role).read_metrics() for role in results} == results
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("model.safetensors")} == modified


@pytest.mark.usefixtures("no_figures", "store")
def test_interrupted_student_resumes_to_the_same_bits(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    data = open_data(easy_folder)
    config = folder_config(easy_folder, str(finished.folder))  # a folder of `camkd train` selects its teacher
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match="student"):
        train_all(folder, config, data, callbacks=[InterruptAt(8 + 6)])
    assert not Run(folder / "student").finished
    steps = InterruptAt()
    results = train_all(folder, config, data, resume=Resume(), callbacks=[steps])
    assert steps.count == 2
    assert set(results) == {"teacher", "control", "student"}
    assert not (folder / "teacher").exists()
    assert (folder / "report.html").exists()
    for role in ("control", "student"):
        assert weights(folder / role) == weights(finished.folder / role)
    assert results["student"]["accuracy"] == Run(finished.folder / "student").read_metrics()["accuracy"]


# --- teachers


def distill(
    folder: Path, data: Dataset, model: str, teacher: Teacher, settings: DistillConfig, train: TrainConfig
) -> tuple[int, TrainConfig]:
    """Train a student and return the number of images the teacher processed, and the resolved training settings."""
    teacher_with_cache, config = prepare_teacher(teacher, run_config(model, train=train, distill=settings))
    train_run(folder, config, data, teacher_with_cache)
    return teacher_with_cache.cache.num_computed if teacher_with_cache.cache else 0, config.train


@pytest.mark.usefixtures("no_figures")
def test_teacher_outputs_are_computed_once(easy: Dataset, tmp_path: Path, loaded_teacher: Teacher, store: Path) -> None:
    computed = {}

    def student(name: str, model: str, settings: DistillConfig, train: TrainConfig = TWO) -> None:
        computed[name], _ = distill(tmp_path / name, easy, model, loaded_teacher, settings, train)

    student("cold", "cam-net", DistillConfig(method="cam-kd"))
    student("warm", "cam-net", DistillConfig(method="cam-kd"))
    student("other-model", "resnet8", DistillConfig(method="cam-kd"), replace(TWO, seed=3))
    student("other-method", "resnet8", DistillConfig(method="kd"), replace(TWO, lr=0.2))
    student("other-views", "resnet8", DistillConfig(method="kd"), replace(ONE, augment_seed=1))
    student("no-store", "resnet8", DistillConfig(method="kd", cache_budget="0"), replace(ONE, augment_seed=1))
    student("plain", "resnet8", DistillConfig(method="plain"), ONE)
    twice, once = 2 * 96, 96
    assert computed == {
        "cold": twice,
        "warm": 0,
        "other-model": 0,
        "other-method": 0,
        "other-views": once,
        "no-store": once,
        "plain": 0,
    }
    assert weights(tmp_path / "cold") == weights(tmp_path / "warm")
    assert len(list(store.iterdir())) == 2


@pytest.mark.usefixtures("no_figures", "store")
def test_full_budget_repeats_augmented_epochs(easy: Dataset, tmp_path: Path, loaded_teacher: Teacher) -> None:
    teacher_with_cache, _ = prepare_teacher(loaded_teacher, run_config(train=TWO, distill=DistillConfig(method="kd")))
    assert teacher_with_cache.cache is not None
    store = teacher_with_cache.cache.store
    assert store is not None
    budget = f"{store.epoch_bytes + 1}B"
    num_computed, config = distill(
        tmp_path / "run", easy, "cam-net", loaded_teacher, DistillConfig(method="kd", cache_budget=budget), TWO
    )
    assert (num_computed, config.augment_epochs) == (96, 1)
    assert Run(tmp_path / "run").config()["augment_epochs"] == 1
    assert Run(tmp_path / "run").read_metrics()["augment_epochs"] == 1
    assert store.epochs() == [0]


@pytest.mark.usefixtures("no_figures")
def test_features_are_not_cached(easy: Dataset, tmp_path: Path, loaded_teacher: Teacher, store: Path) -> None:
    num_computed, _ = distill(tmp_path / "at", easy, "cam-net", loaded_teacher, DistillConfig(method="at"), ONE)
    assert num_computed == 96
    assert not store.exists()
    assert Run(tmp_path / "at").read_history()[0]["terms"]["at"] > 0
    assert set(Run(tmp_path / "at").read_metrics()) >= TEACHER_METRICS


@pytest.mark.usefixtures("no_figures", "store")
@pytest.mark.parametrize("method", ["cam-kd", "at"])
def test_teacher_is_unchanged(easy: Dataset, tmp_path: Path, loaded_teacher: Teacher, method: str) -> None:
    before = {name: tensor.clone() for name, tensor in loaded_teacher.model.state_dict().items()}
    loaded_teacher.model.layer2.train()
    modes = [module.training for module in loaded_teacher.model.modules()]
    distill(tmp_path / "run", easy, "cam-net", loaded_teacher, DistillConfig(method=method), ONE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded_teacher.model.state_dict().items())
    assert [module.training for module in loaded_teacher.model.modules()] == modes
    assert all(p.grad is None and not p.requires_grad for p in loaded_teacher.model.parameters())


@pytest.mark.usefixtures("no_figures", "store")
def test_teacher_with_gradient_maps(easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(num_classes: int, image_size: int) -> ResNet:
        return ResNet(BasicBlock, (8, 16), (1, 1), num_classes, image_size, hidden_features=6)

    monkeypatch.setitem(MODELS, "tiny-mlp", make)
    folder = tmp_path / "teacher"
    teacher_metrics = train_run(folder, run_config("tiny-mlp", "teacher", replace(ONE, epochs=6)), easy)
    teacher = load_teacher(folder, easy, "cpu")
    distill(tmp_path / "run", easy, "cam-net", teacher, DistillConfig(method="cam-kd"), ONE)
    metrics = Run(tmp_path / "run").read_metrics()
    assert (teacher_metrics["cam_form"], metrics["cam_form"]) == ("gradient", "exact")
    assert -1 <= metrics["cam_cosine"] <= 1
    assert metrics["teacher_accuracy"] == teacher_metrics["accuracy"]


def test_teacher_with_other_classes_is_refused(easy: Dataset, teacher_folder: Path) -> None:
    with pytest.raises(InputError, match=r"must be a, b, c \(3\).* got berry, leaf, sky \(3\)"):
        load_teacher(teacher_folder, replace(easy, classes=("a", "b", "c")), "cpu")


def test_find_teacher(finished: Any, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_teacher(str(teacher_folder), "easy") == teacher_folder
    assert find_teacher(str(finished.folder), "easy") == finished.folder / "teacher"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        find_teacher("resnet50", "cifar10")
    assert "camkd teacher --data cifar10 --model resnet50" in str(refused.value)
    with pytest.raises(InputError, match="'nobody'"):
        find_teacher("nobody", "cifar10")
    default = tmp_path / "runs" / "cifar10" / "teacher-resnet50"
    default.mkdir(parents=True)
    (default / "model.json").write_text("{}", encoding="utf-8")
    assert find_teacher("resnet50", "cifar10").resolve() == default.resolve()


# --- evaluation of finished runs


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_reevaluate_gives_the_metrics_of_the_run(finished: Any, role: str) -> None:
    metrics = Run(finished.folder / role).read_metrics()
    repeated = reevaluate(str(finished.folder / role), None, None, "cpu", lambda *done: None, print).metrics
    assert set(repeated) >= {"accuracy", "ece", "nll", "confusion"} | (TEACHER_METRICS if role == "student" else set())
    groups = [(repeated, metrics)]
    groups += [(group, metrics["by_outcome"][name]) for name, group in repeated.pop("by_outcome", {}).items()]
    for group, stored in groups:
        for name, value in group.items():
            expected = stored[name]
            assert value == (pytest.approx(expected, rel=1e-3, abs=1e-5) if isinstance(value, float) else expected)


def test_reevaluate_uses_the_limit_of_the_run(easy_folder: Path, tmp_path: Path) -> None:
    data_config = DataConfig(data=str(easy_folder), limit=9)
    data = open_data(easy_folder, limit=9)
    metrics = train_run(
        tmp_path / "run", run_config("resnet8", "teacher", replace(ONE, batch_size=9), data=data_config), data
    )
    repeated = reevaluate(str(tmp_path / "run"), None, None, "cpu", lambda *done: None, print).metrics
    assert repeated["test_images"] == metrics["test_images"] == 9
    assert repeated["confusion"] == metrics["confusion"]
    other = reevaluate(str(tmp_path / "run"), str(easy_folder), None, "cpu", lambda *done: None, print).metrics
    assert other["test_images"] == 24


def test_folder_without_splits_is_evaluated_whole(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    student = str(finished.folder / "student")
    shutil.copytree(easy_folder / "train", tmp_path / "new")
    shutil.copytree(easy_folder / "test", tmp_path / "held" / "test")
    messages: list[str] = []
    on_new_folder = reevaluate(student, str(tmp_path / "new"), None, "cpu", lambda *done: None, messages.append).metrics
    data = open_data(easy_folder)
    predicted = predict_split(load(student), data.train).logits.argmax(1)
    assert on_new_folder["accuracy"] == pytest.approx((predicted.numpy() == data.train.labels).mean())
    assert on_new_folder["test_images"] == 96
    assert messages == [f"evaluated on all 96 images of {str(tmp_path / 'new')!r}"]
    test_folder_only, all_splits = (
        reevaluate(student, str(folder), None, "cpu", lambda *done: None, messages.append).metrics
        for folder in (tmp_path / "held", easy_folder)
    )
    assert (test_folder_only["test_images"], test_folder_only["confusion"]) == (24, all_splits["confusion"])
    assert messages[-1] == f"evaluated on the 24 test images of {str(easy_folder)!r}"


def test_moved_training_folder_is_not_evaluated_whole(easy_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(easy_folder / "train", tmp_path / "mine")
    data_config = DataConfig(data=str(tmp_path / "mine"), train_limit=60)
    data = open_data(tmp_path / "mine", train_limit=60)
    metrics = train_run(tmp_path / "run", run_config("resnet8", "teacher", ONE, data=data_config), data)
    given = reevaluate(str(tmp_path / "run"), str(tmp_path / "mine"), None, "cpu", lambda *done: None, print)
    assert given.metrics["confusion"] == metrics["confusion"]
    (tmp_path / "mine").rename(tmp_path / "moved")
    messages: list[str] = []
    moved = reevaluate(str(tmp_path / "run"), str(tmp_path / "moved"), None, "cpu", lambda *done: None, messages.append)
    assert moved.metrics["confusion"] == metrics["confusion"]
    assert 0 < moved.metrics["test_images"] == metrics["test_images"] < 30
    assert messages[0] == f"evaluated on the {metrics['test_images']} test images of {str(tmp_path / 'moved')!r}"
    assert any("held out" in line for line in messages)


def test_changed_images_give_a_message(easy_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(easy_folder, tmp_path / "mine")
    data_config, messages = DataConfig(data=str(tmp_path / "mine"), train_limit=60), list[str]()
    data = open_data(tmp_path / "mine", train_limit=60)
    train_run(tmp_path / "run", run_config("resnet8", "teacher", ONE, data=data_config), data)
    reevaluate(str(tmp_path / "run"), None, None, "cpu", lambda *done: None, messages.append)
    assert messages == []
    learnt = data.train.names[0] if data.train.names else ""
    shutil.copy(tmp_path / "mine" / learnt, tmp_path / "mine" / learnt.replace("train", "test"))
    reevaluate(str(tmp_path / "run"), None, None, "cpu", lambda *done: None, messages.append)
    assert len(messages) == 1
    assert f"{str(tmp_path / 'mine')!r} have changed" in messages[0]


def test_teacher_as_the_folder_of_all_three_runs(finished: Any) -> None:
    control = str(finished.folder / "control")
    given = reevaluate(control, None, str(finished.folder), "cpu", lambda *done: None, print).metrics
    assert given == reevaluate(control, None, None, "cpu", lambda *done: None, print).metrics


def test_reevaluate_on_other_classes_is_refused(finished: Any, tmp_path: Path, easy_folder: Path) -> None:
    (tmp_path / "other").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / "other" / split).mkdir()
        for old, new in (("berry", "apple"), ("leaf", "leaf")):
            (tmp_path / "other" / split / new).symlink_to(easy_folder / split / old)
    with pytest.raises(InputError, match=r"must be classes of .* \(berry, leaf, sky\), got 'apple'"):
        reevaluate(str(finished.folder / "student"), str(tmp_path / "other"), None, "cpu", lambda *done: None, print)


# --- settings


@dataclass(frozen=True)
class WrongSetting:
    named: str
    model: str = "resnet8"
    distill: DistillConfig = PLAIN
    config: TrainConfig = ONE
    teacher_epochs: int | None = None


@pytest.mark.parametrize(
    "wrong",
    [
        WrongSetting("'nope'", model="nope"),
        WrongSetting("got 'magic'", distill=DistillConfig(method="magic")),
        WrongSetting(
            "got 'never' in 'cam=1:schedule=never'", distill=DistillConfig(method="ce=1,cam=1:schedule=never")
        ),
        WrongSetting("got 'pool' in 'kd=1:pool=4'", distill=DistillConfig(method="ce=1,kd=1:pool=4")),
        WrongSetting("got 'wild'", config=replace(ONE, augment="wild")),
        WrongSetting("quantum", config=replace(ONE, device="quantum")),
        WrongSetting("epochs must be .*, got 0", config=replace(ONE, epochs=0)),
        WrongSetting("teacher_epochs must be .*, got 0", teacher_epochs=0),
        WrongSetting(
            "batch_size must be 2 or more",
            distill=DistillConfig(method="ce=1,cam=1:control=shuffled"),
            config=replace(ONE, batch_size=1),
        ),
        WrongSetting("batch_size must be .*, got -1", config=replace(ONE, batch_size=-1)),
        WrongSetting("lr must be .*, got 0.0", config=replace(ONE, lr=0.0)),
        WrongSetting("lr must be .*, got nan", config=replace(ONE, lr=float("nan"))),
        WrongSetting("lr must be .*, got inf", config=replace(ONE, lr=float("inf"))),
        WrongSetting("weight_decay must be .*, got -0.1", config=replace(ONE, weight_decay=-0.1)),
        WrongSetting("warmup_fraction must be .*, got 1.5", config=replace(ONE, warmup_fraction=1.5)),
        WrongSetting("label_smoothing must be .*, got 2.0", config=replace(ONE, label_smoothing=2.0)),
        WrongSetting("grad_clip must be .*, got 0.0", config=replace(ONE, grad_clip=0.0)),
        WrongSetting("ema_decay must be .*, got 1.1", config=replace(ONE, ema_decay=1.1)),
        WrongSetting("seed must be .*, got -1", config=replace(ONE, seed=-1)),
        WrongSetting("augment_seed must be .*, got 10000000000", config=replace(ONE, augment_seed=10**10)),
        WrongSetting("figure_every must be .*, got -1", config=replace(ONE, figure_every=-1)),
        WrongSetting("cache_budget must be .*, got -1", distill=DistillConfig(method="kd", cache_budget=-1)),
    ],
    ids=lambda wrong: wrong.named,
)
def test_wrong_setting_is_refused(wrong: WrongSetting) -> None:
    with pytest.raises(InputError, match=wrong.named):
        pipeline.check_config(run_config(wrong.model, train=wrong.config, distill=wrong.distill), wrong.teacher_epochs)


@pytest.mark.parametrize(
    "config", [TrainConfig(), ONE, replace(ONE, warmup_fraction=0.0, ema_decay=0.0, weight_decay=0.0, grad_clip=1e-9)]
)
def test_valid_settings_pass(config: TrainConfig) -> None:
    center = DistillConfig(method="ce=1,cam=1:control=center")
    pipeline.check_config(run_config("cam-net", train=replace(config, batch_size=1), distill=center))
    early = DistillConfig(method="ce=0.1,cam=1:schedule=early", cache_budget="1GB")
    pipeline.check_config(run_config("cam-net", train=config, distill=early), 1)
    json.dumps(config.__dict__)


def test_resolve_settings(easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "bf16_speedup", lambda: 3.0)
    auto = run_config(train=replace(ONE, precision="auto", device="cpu"))

    def resolve(config: RunConfig, *folders: Path) -> TrainConfig:
        return pipeline.resolve_settings(config, easy, *folders).train

    assert resolve(auto).precision == "bf16"
    assert resolve(replace(auto, train=replace(auto.train, precision="fp32"))).precision == "fp32"
    for folder, options in {
        "teacher": {"model": "resnet8", "precision": "fp32", "augment": "strong", "augment_epochs": 5},
        "control": {"student": "cam-net", "method": "plain", "precision": "bf16", "augment_epochs": 2},
    }.items():
        Run(tmp_path / folder).start(options, {"data_fingerprint": "abc"})
    folders = [tmp_path / role for role in ("teacher", "control", "student")]
    resolved = resolve(auto, *folders)
    assert resolved.precision == "fp32", "that of the first stored run"
    assert resolved.augment_epochs == 2, "that of the control"
    assert resolved.augment == "strong", "that of the first stored run"
    assert resolve(auto).augment == "light"
    assert resolve(replace(auto, train=replace(auto.train, augment="none")), *folders).augment == "none"
    assert resolve(replace(auto, train=replace(auto.train, augment_epochs=7)), *folders).augment_epochs == 7


@pytest.mark.usefixtures("no_figures", "store")
def test_resumed_run_keeps_its_augmented_epochs_at_any_budget(
    easy: Dataset, tmp_path: Path, loaded_teacher: Teacher
) -> None:
    folder = tmp_path / "run"
    small_budget = DistillConfig(method="kd", cache_budget="15kB")
    computed, train = distill(folder, easy, "cam-net", loaded_teacher, small_budget, TWO)
    assert (computed, train.augment_epochs) == (96, 1)
    config = pipeline.resolve_settings(
        run_config("cam-net", train=TWO, distill=DistillConfig(method="kd")), easy, folder
    )
    assert config.train.augment_epochs == 1
    teacher_with_cache, config = prepare_teacher(loaded_teacher, config)
    assert train_run(folder, config, easy, teacher_with_cache, resume=Resume())["augment_epochs"] == 1


# --- a teacher that does not fit the images


def corrupt(teacher: Teacher, kind: str) -> Teacher:
    model = copy.deepcopy(teacher.model)
    assert isinstance(model, ImageClassifier)
    with torch.no_grad():
        if kind == "order of classes":
            model.fc.weight.copy_(model.fc.weight.roll(1, 0))
            model.fc.bias.copy_(model.fc.bias.roll(1, 0))
        elif kind == "normalization":
            model.set_normalization([90.0] * 3, [0.01] * 3)
        else:
            for parameter in model.parameters():
                parameter.normal_()
    return replace(teacher, model=model)


def test_teacher_accuracy_is_reported(easy: Dataset, loaded_teacher: Teacher) -> None:
    right = (loaded_teacher.val_predictions.class_ids.numpy() == easy.val.labels).mean()
    assert loaded_teacher.check_accuracy() == f"validation accuracy {right:.1%}"
    messages = Messages()
    prepare_teacher(loaded_teacher, run_config(distill=DistillConfig(method="kd")), [messages])
    assert messages.texts[0] == f"teacher: validation accuracy {right:.1%}"


def with_predictions(teacher: Teacher, predicted: list[int], labels: list[int]) -> Teacher:
    """Return the teacher with these predictions on as many validation images."""
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    changed = replace(teacher, student_data=replace(teacher.student_data, val=Split(images, np.array(labels))))
    logits = torch.zeros(len(labels), len(teacher.student_data.classes))
    predictions = SplitPredictions(logits, torch.zeros(len(labels), 1, 1), torch.tensor(predicted), "exact")
    changed.__dict__["val_predictions"] = predictions  # the value of a cached property
    return changed


@pytest.mark.fault("teacher of unbalanced classes")
@pytest.mark.parametrize(
    ("counts", "correct"),
    [
        ((980, 20), (972, 14)),  # 98.6 % where guessing gives 98.0 %
        ((39, 4), (38, 3)),  # 10:1
        ((500, 300, 5), (480, 120, 4)),
        ((990, 5, 5), (985, 0, 4)),
    ],
)
def test_good_teacher_of_unbalanced_classes_is_accepted(
    loaded_teacher: Teacher, counts: tuple[int, ...], correct: tuple[int, ...]
) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    predicted = [
        label if number < correct[label] else (label + 1) % len(counts)
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    accuracy = sum(correct) / sum(counts)
    assert with_predictions(loaded_teacher, predicted, labels).check_accuracy() == f"validation accuracy {accuracy:.1%}"


@pytest.mark.fault("teacher of unbalanced classes")
@pytest.mark.parametrize(
    ("counts", "predicted"),
    [
        ((980, 20), [0] * 1000),  # the most frequent class: 98.0 % are correct
        ((980, 20), [0] * 19 + [1] + [0] * 980),  # one image differs, at random
        ((2, 2), [0, 0, 0, 0]),
        ((4, 1), [0, 0, 0, 0, 0]),
        ((30, 3), [1] * 30 + [0] * 3),  # classes in another order
        ((2, 1, 1), [1, 1, 2, 0]),
    ],
)
def test_guessing_teacher_of_unbalanced_classes_is_refused(
    loaded_teacher: Teacher, counts: tuple[int, ...], predicted: list[int]
) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    teacher = with_predictions(loaded_teacher, predicted, labels)
    with pytest.raises(InputError, match=rf"above {1 / len(counts):.1%}, .* add --weak-teacher accept\."):
        teacher.check_accuracy()
    assert "no better than guessing: balanced accuracy" in teacher.check_accuracy("accept")


@pytest.mark.fault("teacher of unbalanced classes")
@pytest.mark.parametrize("predicted", [[0] * 10 + [1], [1] * 11])
def test_validation_images_of_one_class_cannot_judge_a_teacher(loaded_teacher: Teacher, predicted: list[int]) -> None:
    text = with_predictions(loaded_teacher, predicted, [0] * 11).check_accuracy()
    assert text.endswith("cannot be compared with guessing: all validation images are of one class")


@pytest.mark.fault("teacher that does not fit the dataset")
def test_few_validation_images_raise_the_bound(loaded_teacher: Teacher) -> None:
    """Two of three images are right. The three orders of the predictions 0, 1, 0 have 2, 1 and 0 correct images."""
    with pytest.raises(
        InputError,
        match=r"above 33\.3%, that of guessing, .* 87\.8% on the 3 .* got 66\.7% .*accept\. .* lower the bound\.$",
    ):
        with_predictions(loaded_teacher, [0, 1, 0], [0, 1, 2]).check_accuracy()
    assert with_predictions(loaded_teacher, [0, 1, 2], [0, 1, 2]).check_accuracy() == "validation accuracy 100.0%"


@pytest.mark.fault("teacher that does not fit the dataset")
def test_teacher_of_another_class_order_or_of_arrays_of_another_size_is_refused(finished: Any, easy: Dataset) -> None:
    large = replace(easy.train, images=easy.train.images.repeat(2, 1).repeat(2, 2))
    with pytest.raises(InputError, match=r"must be 16.*got 32"):
        load_teacher(finished.folder / "teacher", replace(easy, train=large), "cpu")
    with pytest.raises(InputError, match=r"must be sky, berry, leaf \(3\).*got berry, leaf, sky \(3\)"):
        load_teacher(finished.folder / "teacher", replace(easy, classes=("sky", "berry", "leaf")), "cpu")


@pytest.mark.fault("teacher that does not fit the dataset")
@pytest.mark.parametrize("kind", ["order of classes", "normalization", "weights"])
def test_teacher_near_chance_is_refused(easy: Dataset, loaded_teacher: Teacher, kind: str) -> None:
    with pytest.raises(InputError, match=r"above 33\.3%, .* on the 24 validation images"):
        prepare_teacher(corrupt(loaded_teacher, kind), run_config(distill=DistillConfig(method="cam-kd")))
    messages = Messages()
    accepted = run_config(distill=DistillConfig(method="cam-kd", weak_teacher="accept"))
    teacher_with_cache, _ = prepare_teacher(corrupt(loaded_teacher, kind), accepted, [messages])
    assert teacher_with_cache.cache is not None
    assert "no better than guessing" in messages.texts[0]
    plain, config = prepare_teacher(corrupt(loaded_teacher, kind), run_config())
    assert plain.cache is None
    assert config == run_config()


def test_weak_teacher_is_refused_before_times_are_estimated(easy: Dataset, tmp_path: Path) -> None:
    save_untrained(tmp_path / "teacher", "resnet8", easy)
    messages = Messages()
    config = run_config(train=replace(ONE, precision="fp32"), distill=DistillConfig(str(tmp_path / "teacher")))
    with pytest.raises(InputError, match="--weak-teacher accept"):
        train_all(tmp_path / "run", config, easy, callbacks=[messages])
    assert not any("estimated time" in text for text in messages.texts)
    assert not (tmp_path / "run").exists()
