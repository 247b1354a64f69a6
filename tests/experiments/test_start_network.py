"""The initial network of a teacher: weights, classes, normalization, and the resulting run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camkd.cams import form
from camkd.config import DataConfig, RunConfig, TeacherConfig, TrainConfig
from camkd.data.dataset import Dataset
from camkd.data.views import Views
from camkd.distill.teacher import load_teacher
from camkd.experiments import pipeline
from camkd.experiments.pipeline import check_config, train_run
from camkd.experiments.start_network import resolve_start, start_network
from camkd.models import ImageClassifier, build
from camkd.runs.folder import Run
from camkd.runs.loading import load, read_model_info
from camkd.runs.resume import Resume
from camkd.types import InputError
from support.interrupt import Messages

pytestmark = pytest.mark.slow

TRAIN = TrainConfig(epochs=0, batch_size=24, precision="fp32", device="cpu", figure_every=0)
CPU = torch.device("cpu")


def run_config(weights: Path | None, *, train: TrainConfig = TRAIN, model: str = "resnet8", **start: Any) -> RunConfig:
    teacher = TeacherConfig(weights=None if weights is None else str(weights), **start)
    return RunConfig(DataConfig("easy"), train, model=model, role="teacher", teacher=teacher)


def normalized(model: nn.Module) -> ImageClassifier:
    assert isinstance(model, ImageClassifier)
    model.set_normalization([0.4, 0.5, 0.6], [0.2, 0.3, 0.2])
    return model


def images(data: Dataset) -> Tensor:
    return Views(data.test, 3, "none", 0, CPU)[0, torch.arange(len(data.test))].x


def start(config: RunConfig, data: Dataset) -> ImageClassifier:
    return start_network(resolve_start(config, data), data).eval()


@pytest.fixture
def trained() -> ImageClassifier:
    """A network for 3 classes with a normalization of its own."""
    return normalized(build("resnet8", 3, 16, seed=7)).eval()


@pytest.fixture
def weights(trained: ImageClassifier, tmp_path: Path) -> Path:
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_weights_of_a_file_give_the_logits_of_their_network(
    trained: ImageClassifier, weights: Path, easy: Dataset
) -> None:
    x = images(easy)
    with torch.no_grad():
        assert torch.equal(start(run_config(weights), easy)(x), trained(x))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])),
        ("imagenet", ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])),
        ("auto", ([0.4, 0.5, 0.6], [0.2, 0.3, 0.2])),
    ],
)
def test_normalization(choice: Any, expected: tuple[Sequence[float], ...], weights: Path, easy: Dataset) -> None:
    model = start(run_config(weights, normalization=choice), easy)
    for buffer, values in zip((model.mean, model.std), expected, strict=True):
        torch.testing.assert_close(buffer.flatten(), torch.tensor(values))
    assert model.has_pretrained_normalization


def test_weights_without_normalization_get_the_statistics_of_the_images(
    trained: ImageClassifier, tmp_path: Path, easy: Dataset
) -> None:
    state = {name: value for name, value in trained.state_dict().items() if name not in ("mean", "std")}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    train_run(tmp_path / "run", run_config(tmp_path / "a.pth"), easy)
    pixels = easy.train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(load(tmp_path / "run").mean.flatten(), pixels.mean(0), atol=1e-5)


@pytest.mark.parametrize("source", ["file", "checkpoint"])
def test_other_class_order_permutes_the_head(
    source: str, trained: ImageClassifier, tmp_path: Path, easy: Dataset
) -> None:
    names = ["sky", "berry", "leaf"]
    content: dict[str, Any] = {"model": trained.state_dict()}
    classes = None
    if source == "file":
        content["classes"] = len(names)  # a number, which the file of --classes replaces
        classes = str(tmp_path / "names.txt")
        Path(classes).write_text("\n".join(names), encoding="utf-8")
    else:
        content["class_to_idx"] = {name: index for index, name in enumerate(names)}
    torch.save(content, tmp_path / "a.pth")
    config = resolve_start(run_config(tmp_path / "a.pth", classes=classes), easy)
    assert config.model == "resnet8"
    model = start(config, easy)
    x = images(easy)
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained(x)[:, [names.index(name) for name in easy.classes]])
    assert form(model, x) == "exact"


def test_classes_of_a_larger_network_are_selected_or_grouped(tmp_path: Path, easy: Dataset) -> None:
    large = normalized(build("resnet8", 7, 16, seed=2)).eval()
    names = ["w", "leaf", "sky", "x", "berry", "y", "z"]
    torch.save({"model": large.state_dict(), "classes": names}, tmp_path / "a.pth")
    x = images(easy)
    with torch.no_grad():
        expected = large(x)
    selected = resolve_start(run_config(tmp_path / "a.pth"), easy)
    assert selected.model == "resnet8"
    with torch.no_grad():
        torch.testing.assert_close(start(selected, easy)(x), expected[:, [4, 1, 2]])
    table = tmp_path / "map.csv"
    table.write_text("weights,data\nberry,berry\nw,berry\n1,leaf\nsky,sky\n", encoding="utf-8")
    grouped = resolve_start(run_config(tmp_path / "a.pth", classes=str(table)), easy)
    assert grouped.model == "resnet8+groups-7"
    with torch.no_grad():
        logits = start(grouped, easy)(x)
    torch.testing.assert_close(logits[:, 0], expected[:, [0, 4]].logsumexp(1))
    torch.testing.assert_close(logits[:, 1:], expected[:, [1, 2]])


def test_given_weights_without_training_are_a_finished_run(weights: Path, easy: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = run_config(weights)
    metrics = train_run(folder, config, easy)
    labels = torch.from_numpy(np.array(easy.test.labels))
    with torch.no_grad():
        accuracy = float((load(folder)(images(easy)).argmax(1) == labels).double().mean())
    assert metrics["accuracy"] == pytest.approx(accuracy)
    assert metrics["epochs"] == 0
    assert metrics["best_epoch"] is None
    assert 0 <= metrics["val_accuracy"] <= 1
    assert {path.name for path in folder.iterdir()} >= {
        *("config.yaml", "environment.json", "metrics.json", "model.json", "model.safetensors"),
        *("per_image.npz", "gallery.json", "figures"),
    }
    assert Run(folder).config()["weights"] == str(weights)
    assert load_teacher(folder, easy, "cpu").check_accuracy("accept")


def test_weights_are_identified_by_their_content(weights: Path, easy: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    metrics = train_run(folder, run_config(weights), easy)
    moved = weights.rename(tmp_path / "moved.pth")
    assert train_run(folder, run_config(moved), easy, resume=Resume()) == metrics
    torch.save(build("resnet8", 3, 16, seed=8).state_dict(), moved)
    with pytest.raises(InputError, match="weights of --weights must be those"):
        train_run(folder, run_config(moved), easy, resume=Resume())


def test_grouped_teacher_is_a_run(tmp_path: Path, easy: Dataset) -> None:
    torch.save(normalized(build("resnet8", 5, 16, seed=2)).state_dict(), tmp_path / "a.pth")
    table = tmp_path / "map.csv"
    table.write_text("0,berry\n1,berry\n2,leaf\n3,sky\n", encoding="utf-8")
    config = resolve_start(run_config(tmp_path / "a.pth", classes=str(table)), easy)
    metrics = train_run(tmp_path / "run", config, easy)
    assert metrics["cam_form"] == "gradient"
    info = read_model_info(tmp_path / "run")
    assert (info.architecture, info.classes) == ("resnet8+groups-5", easy.classes)
    assert json.loads((tmp_path / "run" / "environment.json").read_text(encoding="utf-8"))["classes_file"]
    x = images(easy)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "run")(x), start(config, easy)(x))


def test_fine_tuning_starts_from_the_weights(weights: Path, easy: Dataset, tmp_path: Path) -> None:
    train = replace(TRAIN, epochs=1, lr=1e-9, ema_decay=0.0)
    train_run(tmp_path / "run", run_config(weights, train=train), easy)
    head = load(tmp_path / "run").state_dict()["fc.weight"]
    torch.testing.assert_close(head, torch.load(weights, weights_only=True)["fc.weight"])
    metrics = train_run(tmp_path / "default", run_config(weights, train=replace(TRAIN, epochs=1)), easy)
    rows = Run(tmp_path / "default").read_history()
    assert [row["epoch"] for row in rows] == [0, metrics["epochs"]] == [0, 1]
    accuracy = train_run(tmp_path / "unchanged", run_config(weights), easy)["val_accuracy"]
    assert rows[0]["val_accuracy"] == pytest.approx(accuracy)
    assert Run(tmp_path / "default").config()["lr"] < 0.1


@pytest.mark.parametrize("classes", [3, 5])
def test_a_checkpoint_is_a_backbone_if_the_head_is_trained(classes: int, easy: Dataset, tmp_path: Path) -> None:
    large = normalized(build("resnet8", classes, 16, seed=2))
    torch.save(large.state_dict(), tmp_path / "a.pth")
    teacher = TeacherConfig(train="head", head_views=1, weights=str(tmp_path / "a.pth"))
    config = replace(run_config(None), teacher=teacher)
    config = replace(config, train=replace(config.train, epochs=1))
    metrics = train_run(tmp_path / "run", resolve_start(config, easy), easy)
    state = load(tmp_path / "run").state_dict()
    assert all(torch.equal(state[name], value) for name, value in large.state_dict().items() if "fc." not in name)
    assert metrics["val_accuracy"] > 0.5
    assert (metrics["epochs"], metrics["best_epoch"]) == (1, 1)
    assert (tmp_path / "run" / "head.json").exists()
    assert train_run(tmp_path / "run", config, easy, resume=Resume()) == metrics


def test_head_and_then_all_layers(weights: Path, easy: Dataset, tmp_path: Path) -> None:
    teacher = TeacherConfig(train="head,all", head_views=1, weights=str(weights))
    config = replace(run_config(weights), teacher=teacher, train=replace(TRAIN, epochs=2))
    messages = Messages()
    metrics = train_run(tmp_path / "run", config, easy, callbacks=[messages])
    rows = Run(tmp_path / "run").read_history()
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert metrics["epochs"] == 2
    head = train_run(tmp_path / "head", replace(config, teacher=replace(teacher, train="head")), easy)
    assert rows[0]["val_accuracy"] == head["val_accuracy"]
    state, before = load(tmp_path / "run").state_dict(), torch.load(weights, weights_only=True)
    assert not torch.equal(state["conv1.weight"], before["conv1.weight"])
    assert any(text.startswith("head: weight decay") for text in messages.texts)


@pytest.mark.parametrize(
    ("teacher", "epochs", "message"),
    [
        ({"train": "head"}, 1, "--train head must be given with trained weights, got resnet8"),
        ({"train": "head,all"}, 1, "--train head,all must be given with trained weights"),
        ({"classes": "names.txt"}, 1, "--classes must be given with trained weights"),
        ({"normalization": "none"}, 1, "--normalization must be given with --weights, got 'none'"),
        ({}, 0, r"epochs must be 1 or more.* got 0\. Choose"),
        ({"weights": "w.pth", "train": "head"}, 0, "epochs must be 1 or more"),
        ({"weights": "w.pth", "train": "head", "classes": "names.txt"}, 1, "--classes must be given with --train all"),
        ({"weights": "w.pth"}, 0, r"got w\.pth, which does not exist"),
        ({"weights": "w.pth", "head_views": 0}, 1, r"does not exist|head_views must be 1 or more, got 0"),
        ({"weights": "w.pth"}, -1, r"does not exist|epochs must be 1 or more"),
    ],
)
def test_options_that_contradict_each_other(
    teacher: dict[str, Any], epochs: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig(
        DataConfig("easy"),
        replace(TRAIN, epochs=epochs),
        model="resnet8",
        role="teacher",
        teacher=TeacherConfig(**teacher),
    )
    with pytest.raises(InputError, match=message):
        check_config(config)


@pytest.mark.parametrize("kind", ["network", "classes", "names", "text"])
def test_weights_that_do_not_fit_leave_no_run_folder(kind: str, easy: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    model = {"network": "resnet20", "classes": "resnet8"}.get(kind, "resnet8")
    content: Any = {"model": build(model, 5 if kind == "classes" else 3, 16).state_dict()}
    if kind == "names":
        content["classes"] = ["Berry", "Leaf", "Sky"]
    torch.save(content, path)
    if kind == "text":
        path.write_text("weights", encoding="utf-8")
    with pytest.raises(InputError) as raised:
        train_run(tmp_path / "run", run_config(path), easy)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_head_that_cannot_be_trained_leaves_no_run_folder(
    weights: Path, easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("resnet8", 3, 16)
    model.fc = nn.Linear(64, 3, bias=False)
    monkeypatch.setattr(pipeline, "start_network", lambda *arguments: model)
    config = replace(run_config(weights, train=replace(TRAIN, epochs=1)), teacher=TeacherConfig("head"))
    with pytest.raises(InputError, match="resnet8 must have a bias, got none"):
        train_run(tmp_path / "run", config, easy)
    assert not (tmp_path / "run").exists()
