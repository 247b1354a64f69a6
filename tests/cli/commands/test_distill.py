"""The command ``distill``: a student of a trained teacher, and default folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from camkd.runs.folder import Run
from support.cli import QUICK, camkd

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_figures")]


def test_output_is_the_metrics_of_the_student(teacher_run: Any, easy_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    data = ["--dataset", str(easy_folder), *QUICK, "--out", str(folder), "--json"]
    output = camkd("distill", "--teacher", str(teacher_run.folder), "--student", "resnet8", "--method", "kd", *data)
    assert output.json == {**Run(folder).read_metrics(), "out": str(folder)}
    assert output.json["teacher_accuracy"] == Run(teacher_run.folder).read_metrics()["accuracy"]
    assert (folder / "report.html").exists()


def test_default_folders(teacher_run: Any, easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher is found in its default folder by the name of its model."""
    monkeypatch.chdir(tmp_path)
    default = Path("runs/easy/teacher-resnet8")
    shutil.copytree(teacher_run.folder, default)
    assert camkd(*teacher_run.arguments, "--resume").json["out"] == str(default)
    data = ["--data", str(easy_folder), *QUICK, "--json"]
    output = camkd("distill", "--teacher", "resnet8", "--method", "plain", *data)
    assert output.json["out"] == "runs/easy/cam-net-plain-from-resnet8"
    assert (tmp_path / "runs" / "easy" / "cam-net-plain-from-resnet8" / "metrics.json").exists()
