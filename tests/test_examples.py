"""The examples run as they are, on few images."""

from __future__ import annotations

import csv
import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from camkd.config import DataConfig, RunConfig, TrainConfig
from camkd.data.sources import open_data
from camkd.distill.losses.registry import TERMS
from camkd.distill.teacher import Teacher
from camkd.experiments.pipeline import train_run
from camkd.runs.folder import Run
from camkd.types import Interrupted
from support.interrupt import InterruptAt

EXAMPLES = Path(__file__).parents[1] / "examples"
EPOCHS = 3  # of one step each


@pytest.fixture(autouse=True)
def accept_any_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept teachers that are trained for too short a time to be accurate."""
    monkeypatch.setattr(Teacher, "check_accuracy", lambda *arguments: "")


@pytest.fixture
def load_example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports an example as a module, which its dataclasses need."""

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.slow
def test_own_network(load_example: Any, easy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracies = load_example("own_network").main(str(easy_folder), str(tmp_path), epochs=EPOCHS)
    assert set(accuracies) == {"plain", "cam-kd"}
    assert "cam-kd: " in capsys.readouterr().out


@pytest.mark.slow
def test_custom_term(load_example: Any, easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, "center", TERMS["cam"])  # removed after the test
    accuracies = load_example("custom_term").main(str(easy_folder), str(tmp_path), epochs=EPOCHS)
    assert set(accuracies) == {"teacher", "control", "student"}
    assert "center" in Run(tmp_path / "student").read_history()[0]["terms"]
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_custom_callback_in_an_interrupted_run(
    load_example: Any, easy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load_example("custom_callback")
    train = TrainConfig(epochs=3, figure_every=0)
    config = RunConfig(DataConfig(str(easy_folder)), train, model="resnet8", role="teacher")
    logger = module.CSVLogger(tmp_path / "epochs.csv")
    with pytest.raises(Interrupted):
        train_run(tmp_path, config, open_data(easy_folder), callbacks=[logger, InterruptAt(epoch=1)])
    path = module.main(str(easy_folder), str(tmp_path), epochs=3)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    history = Run(tmp_path).read_history()
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert rows == [{column: str(row[column]) for column in module.COLUMNS} for row in history]
    assert "epoch 1: best validation accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_timm_teacher_with_a_built_in_teacher(load_example: Any, easy_folder: Path, tmp_path: Path) -> None:
    """tests_extras runs the example with a teacher of timm."""
    accuracy = load_example("timm_teacher").main(str(easy_folder), "resnet8", str(tmp_path), epochs=EPOCHS, size=16)
    assert accuracy == Run(tmp_path / "student").read_metrics()["accuracy"]
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_heatmaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "heatmaps.py"), run_name="__main__")
    paths = capsys.readouterr().out.split()[-4:]
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (256, 256)
    assert len(set(paths)) == 4
