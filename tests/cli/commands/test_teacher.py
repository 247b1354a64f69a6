"""The command ``teacher``: output, configuration files, interruption."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from camkd.cli.progress import ProgressReporter
from camkd.runs.folder import Run
from camkd.runs.loading import load
from support.cli import camkd
from support.interrupt import InterruptAt

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_figures")]


def same_weights(folder: Path, other: Path) -> bool:
    weights = load(folder).state_dict()
    other_weights = load(other).state_dict()
    return weights.keys() == other_weights.keys() and all(
        torch.equal(weights[name], other_weights[name]) for name in weights
    )


def test_output_is_the_metrics_of_the_run(teacher_run: Any) -> None:
    assert teacher_run.output.json == {**Run(teacher_run.folder).read_metrics(), "out": str(teacher_run.folder)}


def test_flags_override_the_configuration_file(easy_folder: Path, tmp_path: Path) -> None:
    settings = {"data": str(easy_folder), "model": "resnet8", "epochs": 1, "batch_size": 48, "lr": 0.25}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    folder = tmp_path / "run"
    arguments = ["--config", str(tmp_path / "a.yaml"), "--lr", "0.5", "--out", str(folder), "--json"]
    assert camkd("teacher", *arguments).json["out"] == str(folder)
    config = Run(folder).config()
    assert {name: config[name] for name in settings} == {**settings, "lr": 0.5}


@pytest.mark.parametrize(("command", "role"), [("teacher", "teacher"), ("distill", "student"), ("distill", "control")])
def test_configuration_of_a_run_repeats_the_run(finished: Any, command: str, role: str, tmp_path: Path) -> None:
    original = finished.folder / role
    repeated = tmp_path / "repeated"
    output = camkd(command, "--config", str(original / "config.yaml"), "--out", str(repeated), "--json")
    assert output.json["out"] == str(repeated)
    assert Run(repeated).config() == Run(original).config()
    assert same_weights(repeated, original)


def test_printed_command_resumes_an_interrupted_run(
    teacher_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a run"  # a shell would split this name
    arguments = [*teacher_run.arguments, "--out", str(folder)]
    interrupt = InterruptAt(2)
    with monkeypatch.context() as patch:
        patch.setattr(ProgressReporter, "on_batch_end", lambda reporter, count: interrupt.on_batch_end(count))
        output = camkd(*arguments)
    assert (output.status, output.out) == (130, "")
    assert "the state is saved" in output.last_line
    program, *resume_arguments = shlex.split(output.last_line.partition("Resume with: ")[2])
    assert program == "camkd"
    assert resume_arguments == [*arguments, "--resume"]
    assert Run(folder).checkpoints
    assert not Run(folder).finished
    assert camkd(*resume_arguments).json["epochs"] == 1
    assert same_weights(folder, teacher_run.folder)


def test_diverging_training_exits_with_status_1(easy_folder: Path, tmp_path: Path) -> None:
    arguments = ["teacher", "--model", "resnet8", "--data", str(easy_folder), "--batch-size", "24", "--lr", "1e30"]
    output = camkd(*arguments, "--epochs", "1", "--out", str(tmp_path / "run"), "--json")
    assert (output.status, output.out) == (1, "")
    assert re.search(r"got \S+ in epoch 1, batch \d", output.last_line)
    assert "--lr" in output.last_line
    assert not Run(tmp_path / "run").finished
