"""The command ``train``: three runs, their metrics as JSON, and a report."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from camkd.runs.folder import Run
from support.cli import QUICK, Output, camkd

pytestmark = pytest.mark.slow


class TrainRun(NamedTuple):
    """A run of ``camkd train --json``."""

    folder: Path
    arguments: list[str]
    output: Output


@pytest.fixture(scope="module")
def train_run(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    folder = tmp_path_factory.mktemp("runs") / "all"
    arguments = ["train", "--teacher", "resnet8", "--student", "resnet8", "--data", str(easy_folder), *QUICK]
    arguments += ["--teacher-epochs", "2", "--out", str(folder), "--json"]
    return TrainRun(folder, arguments, camkd(*arguments))


def test_output_is_the_metrics_of_three_runs(train_run: TrainRun) -> None:
    folder, _, output = train_run
    roles = ("teacher", "control", "student")
    assert output.json == {**{role: Run(folder / role).read_metrics() for role in roles}, "out": str(folder)}
    assert "96 training, 24 validation and 24 test images of 16x16 pixels in 3 classes" in output.err
    assert output.err.count("epoch 1") == 3
    assert output.err.count("epoch 2") == 1, "of the teacher"
    assert str(folder / "report.html") in output.last_line
    assert (folder / "report.html").exists()


def test_existing_run_is_refused_without_resume(train_run: TrainRun) -> None:
    output = camkd(*train_run.arguments)
    assert (output.status, output.out) == (2, "")
    assert "Add --resume" in output.last_line


def test_resumed_run_with_other_settings_is_refused(train_run: TrainRun) -> None:
    output = camkd(*train_run.arguments, "--resume", "--lr", "0.3")
    assert output.status == 2
    assert "lr must be 0.4" in output.last_line
    assert "got 0.3" in output.last_line


def test_resumed_finished_run_prints_the_same(train_run: TrainRun) -> None:
    assert camkd(*train_run.arguments, "--resume").json == train_run.output.json
