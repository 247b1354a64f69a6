"""Calibration of a run: files, metrics, a second calibration, its reversal, and what reads the threshold."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from camkd.cams import predict
from camkd.config import DataConfig, RunConfig, TeacherConfig, TrainConfig
from camkd.data.dataset import Dataset
from camkd.evaluate import predict_split
from camkd.evaluate.metrics import ece, nll
from camkd.experiments.calibrate import calibrate
from camkd.experiments.finished_runs import open_model_data, reevaluate
from camkd.export.web.site import _page_config
from camkd.models import build
from camkd.models.io import ModelInfo, save
from camkd.report.report import write_report
from camkd.runs.folder import UNCALIBRATED_FILE, Run
from camkd.runs.loading import load, read_model_info
from camkd.train.head import fit_head
from camkd.types import InputError
from support.cli import camkd

pytestmark = pytest.mark.slow


def ignore(*arguments: Any) -> None:
    pass


def run_calibration(source: Path, **options: Any) -> dict[str, Any]:
    return calibrate(str(source), device="cpu", progress=ignore, message=ignore, **options)


@pytest.fixture(scope="module")
def noisy_folder(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `easy`, each fourth validation and test image in the folder of another class."""
    root = tmp_path_factory.mktemp("images") / "noisy"
    for name, split in easy.splits.items():
        for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            is_wrong = name != "train" and number % 4 == 0
            folder = root / name / easy.classes[(int(label) + is_wrong) % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module")
def trained(easy: Dataset, noisy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A confident network: the head of a CAM-Net, trained on correct labels."""
    folder = tmp_path_factory.mktemp("runs") / "student"
    train = TrainConfig(augment="none", precision="fp32", device="cpu", weight_decay=0.001)
    config = RunConfig(DataConfig("easy"), train, role="teacher", model="cam-net", teacher=TeacherConfig("head"))
    model = fit_head(build("cam-net", 3, 16), easy, config, Run(folder))
    info = ModelInfo("cam-net", easy.classes, 16, 1, 1, "student", "plain", str(noisy_folder), "f" * 64, 0)
    save(model, folder, info)
    Run(folder).start(config.options(), {})
    return folder


@pytest.fixture
def student(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "student"))


def logits_of(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    data = open_model_data(str(folder), None, ignore)
    return predict_split(load(folder), data.splits[split]).logits, torch.from_numpy(np.array(data.splits[split].labels))


def test_calibration_divides_the_logits_and_measures_again(student: Path) -> None:
    before, labels = logits_of(student, "test")
    result = run_calibration(student, precision=0.6)
    after, _ = logits_of(student, "test")
    temperature = result["temperature"]
    assert temperature > 1.2
    torch.testing.assert_close(after * temperature, before, rtol=1e-4, atol=1e-4)
    info, metrics = read_model_info(student), Run(student).read_metrics()
    assert (info.temperature, info.threshold) == (temperature, result["threshold"])
    assert (
        metrics["ece"]
        == result["test"]["calibrated"]["ece"]
        == pytest.approx(ece(before / temperature, labels), abs=1e-5)
    )
    assert result["test"]["uncalibrated"]["nll"] == pytest.approx(nll(before, labels), rel=1e-4)
    validation = result["validation"]
    assert validation["calibrated"]["nll"] < validation["uncalibrated"]["nll"]
    assert metrics["coverage"] == result["test"]["calibrated"]["coverage"]
    assert json.loads((student / "calibration.json").read_text()) == {k: v for k, v in result.items() if k != "run"}
    model = load(student)
    prediction = predict(model, torch.rand(2, 3, 16, 16))
    assert prediction.cams is not None
    torch.testing.assert_close(prediction.cams.mean((2, 3)) + model.head.bias, prediction.logits)


def test_second_calibration_changes_nothing_and_undo_restores_all_bits(student: Path) -> None:
    weights = (student / "model.safetensors").read_bytes()
    info = read_model_info(student)
    first = run_calibration(student)
    calibrated = (student / "model.safetensors").read_bytes()
    assert calibrated != weights
    second = run_calibration(student)
    assert second["temperature"] == 1.0
    assert second["total_temperature"] == first["temperature"]
    assert second["test"] == first["test"]
    assert (student / "model.safetensors").read_bytes() == calibrated
    run_calibration(student, undo=True)
    assert (student / "model.safetensors").read_bytes() == weights
    assert asdict(read_model_info(student)) == asdict(info)
    assert not (student / "calibration.json").exists()
    assert not (student / UNCALIBRATED_FILE).exists()
    assert "coverage" not in Run(student).read_metrics()
    with pytest.raises(InputError, match="must be calibrated for --undo"):
        run_calibration(student, undo=True)


def test_note_about_the_students_of_a_calibrated_teacher(student: Path) -> None:
    info = json.loads((student / "model.json").read_text(encoding="utf-8"))
    (student / "model.json").write_text(json.dumps({**info, "role": "teacher"}), encoding="utf-8")
    notes: list[str] = []
    for _ in range(2):
        calibrate(str(student), device="cpu", progress=ignore, message=notes.append)
    assert len([note for note in notes if "the teacher has other weights now" in note]) == 1


def test_copy_leaves_the_run_unchanged(student: Path, tmp_path: Path) -> None:
    contents = {path: path.read_bytes() for path in student.rglob("*") if path.is_file()}
    (student / "checkpoints").mkdir()
    out = tmp_path / "calibrated"
    result = run_calibration(student, out=out)
    assert result["run"] == str(out)
    assert {path: path.read_bytes() for path in student.rglob("*") if path.is_file()} == contents
    assert read_model_info(out).temperature == result["temperature"]
    assert not (out / "checkpoints").exists()
    with pytest.raises(InputError, match="--out must be a new folder"):
        run_calibration(student, out=out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": 0.0}, r"precision must be more than 0 and at most 1, got 0\.0"),
        ({"precision": 1.5}, r"got 1\.5"),
        ({"precision": float("nan")}, "got nan"),
    ],
)
def test_invalid_precision(student: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_calibration(student, **options)


def test_shipped_model_needs_a_folder() -> None:
    with pytest.raises(InputError, match="--out must be a new folder for the shipped model 'cam-net-cifar10'"):
        run_calibration(Path("cam-net-cifar10"))


@pytest.mark.parametrize("copies", [False, True])
def test_error_leaves_the_run_unchanged(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: bool
) -> None:
    contents = {path: path.read_bytes() for path in student.rglob("*") if path.is_file()}

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("camkd.experiments.calibrate.write_per_image", fail)
    out = tmp_path / "copy" if copies else None
    with pytest.raises(OSError, match="disk full"):
        run_calibration(student, out=out)
    assert not (tmp_path / "copy").exists()
    assert {path: path.read_bytes() for path in student.rglob("*") if path.is_file()} == contents


@pytest.fixture(scope="module")
def calibrated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "student"
    run_calibration(trained, precision=0.8, out=out)
    return out


def set_threshold(folder: Path, threshold: float) -> None:
    values = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**values, "threshold": threshold}))


def test_explain_marks_unsure_answers(calibrated: Path, noisy_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(calibrated, tmp_path / "student"))
    images = sorted((noisy_folder / "test" / "sky").glob("*.png"))[:3]
    set_threshold(folder, 1.0)
    output = camkd("explain", str(folder), *map(str, images), "--out", str(tmp_path / "a.json"), "--json")
    assert all(record["student"]["unsure"] for record in output.json["images"].values())
    assert "student unsure: " in output.err
    set_threshold(folder, 0.01)
    output = camkd("explain", str(folder), *map(str, images), "--out", str(tmp_path / "b.png"), "--json")
    assert not any(record["student"]["unsure"] for record in output.json["images"].values())
    assert "student unsure" not in output.err


def test_evaluation_counts_the_answers(calibrated: Path) -> None:
    metrics = reevaluate(str(calibrated), None, None, "cpu", ignore, ignore).metrics
    stored = Run(calibrated).read_metrics()
    for name in ("threshold", "coverage", "answered_accuracy"):
        assert metrics[name] == pytest.approx(stored[name])


def test_report_and_exported_files_have_the_threshold(calibrated: Path, tmp_path: Path) -> None:
    page = write_report([calibrated], tmp_path / "report.html").read_text(encoding="utf-8")
    record = json.loads((calibrated / "calibration.json").read_text())
    assert f"{record['total_temperature']:.3f}" in page
    assert "Errors among the answers" in page
    assert f"{record['threshold']:.3f}" in page
    model_file = tmp_path / "model.onnx"
    model_file.write_bytes(b"")
    assert _page_config(str(calibrated), model_file)["threshold"] == record["threshold"]


def test_command_prints_before_and_after(student: Path) -> None:
    output = camkd("calibrate", str(student), "--precision", "0.9", "--device", "cpu")
    assert output.status == 0
    assert "temperature " in output.err
    assert "threshold " in output.err
    assert "ECE before" in output.out
    assert camkd("calibrate", str(student), "--undo", "--json").json == {"run": str(student)}
