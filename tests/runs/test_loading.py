"""Loading models from runs, checkpoints and saved folders, and by the names of pretrained networks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import camkd
from camkd.models import build
from camkd.models.external import PretrainedInfo
from camkd.models.io import ModelInfo
from camkd.runs import loading
from camkd.runs.folder import Run
from camkd.types import InputError

CONFIG = {"data": "pets", "student": "resnet8", "method": "kd", "teacher": "runs/teacher", "seed": 3}
PROVENANCE = {"classes": ["cat", "dog"], "size": 16, "role": "student", "data_fingerprint": "f" * 64}


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """An unfinished run with one checkpoint: no ``model.json``, no weights and no metrics."""
    run = Run(tmp_path / "unfinished")
    run.start(CONFIG, PROVENANCE)
    ema_weights = build("resnet8", 2, 16, seed=1).state_dict()
    best_weights = build("resnet8", 2, 16, seed=2).state_dict()
    run.checkpoints.save(10, {"average": ema_weights, "step": 10}, (1, best_weights))
    return run.folder


def assert_equal_weights(model: nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


# --- finished runs


@pytest.mark.slow
@pytest.mark.parametrize("role", ["student", "control", "teacher"])
def test_unfinished_run_loads_the_same_model_as_the_finished_run(finished: Any, tmp_path: Path, role: str) -> None:
    expected = camkd.load(finished.folder / role)  # a finished run saves the weights of its best epoch
    assert expected.info is not None
    assert expected.info.role == role
    folder = tmp_path / "unfinished"
    shutil.copytree(finished.folder / role, folder)
    for name in ("model.json", "model.safetensors", "metrics.json"):
        (folder / name).unlink()
    model = camkd.load(folder)
    assert model.info == replace(expected.info, sha256="")
    assert model.metrics == {}
    assert_equal_weights(model, expected.state_dict())


@pytest.mark.slow
def test_folder_of_camkd_train_and_saved_folder_load_the_student(finished: Any, tmp_path: Path) -> None:
    student = camkd.load(finished.folder / "student")
    model = camkd.load(str(finished.folder))
    assert not model.training
    assert model.info == student.info
    assert model.metrics == student.metrics != {}
    assert_equal_weights(model, student.state_dict())
    model.save_pretrained(tmp_path)
    assert_equal_weights(camkd.load(tmp_path), student.state_dict())


# --- unfinished runs and checkpoints


def test_unfinished_run_loads_its_best_weights(unfinished: Path) -> None:
    _, best = Run(unfinished).checkpoints.load()
    assert best is not None
    for source in (unfinished, str(unfinished), unfinished / "checkpoints"):
        model = camkd.load(source)
        assert not model.training
        assert_equal_weights(model, best)
        params = sum(parameter.numel() for parameter in model.parameters())
        assert model.info is not None
        assert model.info.macs > 0
        assert replace(model.info, macs=0) == ModelInfo(
            "resnet8", ("cat", "dog"), 16, params, 0, "student", "kd", "pets", "f" * 64, 3, "runs/teacher"
        )


def test_checkpoint_file_loads_its_weights(unfinished: Path) -> None:
    state, best = Run(unfinished).checkpoints.load()
    assert best is not None
    assert_equal_weights(camkd.load(unfinished / "checkpoints" / "last-00000010.pt"), state["average"])
    assert_equal_weights(camkd.load(str(unfinished / "checkpoints" / "best-00001.pt")), best)


def test_model_of_a_checkpoint_can_be_saved(unfinished: Path, tmp_path: Path) -> None:
    model = camkd.load(unfinished)
    model.save_pretrained(tmp_path / "saved")
    saved = camkd.load(tmp_path / "saved")
    assert_equal_weights(saved, model.state_dict())
    assert model.info is not None
    assert saved.info is not None
    assert replace(saved.info, sha256="") == model.info.portable()


def test_missing_checkpoint_is_an_input_error_that_lists_checkpoints(unfinished: Path) -> None:
    with pytest.raises(InputError, match=r"\(best-00001\.pt, last-00000010\.pt\), got 'last-9\.pt'"):
        camkd.load(unfinished / "checkpoints" / "last-9.pt")


@pytest.mark.fault("truncated checkpoint")
def test_truncated_checkpoint_is_an_input_error(unfinished: Path) -> None:
    path = unfinished / "checkpoints" / "last-00000010.pt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{path.name} must have .* bytes, got"):
        camkd.load(path)


def test_checkpoint_of_another_architecture_is_an_input_error(unfinished: Path) -> None:
    Run(unfinished).update_config({"student": "cam-net"})
    with pytest.raises(InputError, match=r"unfinished.*'cam-net'"):
        camkd.load(unfinished)


def test_run_without_classes_is_an_input_error(unfinished: Path) -> None:
    (unfinished / "environment.json").write_text("{}", encoding="utf-8")  # holds the classes of a run
    with pytest.raises(InputError, match=r"unfinished must record its classes, got none\. Finish the run"):
        camkd.load(unfinished)


def test_run_without_architecture_is_an_input_error(unfinished: Path) -> None:
    (unfinished / "config.yaml").unlink()
    with pytest.raises(InputError, match="unfinished must record its architecture"):
        camkd.load(unfinished)


# --- names


def test_pretrained_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "pretrained_info", lambda name: PretrainedInfo(("cat", "dog"), 16, "bicubic"))
    monkeypatch.setattr(loading, "build", lambda name, classes, size: build("resnet8", classes, size, seed=2))
    model = camkd.load("timm:resnet8.cats")
    assert not model.training
    expected = build("resnet8", 2, 16, seed=2)
    assert_equal_weights(model, expected.state_dict())
    params = sum(parameter.numel() for parameter in expected.parameters())
    assert model.info is not None
    assert model.info.macs > 0
    assert replace(model.info, macs=0) == ModelInfo(
        "timm:resnet8.cats", ("cat", "dog"), 16, params, 0, "model", "", "", "", 0
    )


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_external_network_without_pretrained_weights_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError, match=name.partition(":")[0]):
        camkd.load(name)


def test_folder_without_a_model_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        camkd.load(tmp_path)
    assert str(caught.value) == (
        f"{str(tmp_path)!r} must be a run folder with a trained model, a shipped name (shipped: cam-net-cifar10) or "
        "hf:owner/name. "
        "Train a model with 'camkd train', or give the folder of a trained model."
    )
