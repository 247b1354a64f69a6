"""Progress on stderr, as plain lines."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from camkd.cli import progress
from camkd.cli.progress import ProgressReporter

Captured = pytest.CaptureFixture[str]


def epoch_row(**values: Any) -> dict[str, Any]:
    row = {
        "epoch": 1,
        "val_accuracy": 0.875,
        "val_balanced_accuracy": 0.75,
        "val_loss": 0.5,
        "train_loss": 1.25,
        "terms": {"ce": 1.25},
    }
    return {**row, "lr": 0.4, "images_per_second": 1234.5, **values}


def train_epoch(reporter: ProgressReporter, **values: Any) -> None:
    reporter.on_train_start("student", total_steps=4, completed_steps=2)
    for _ in range(2):
        reporter.on_batch_end(24)
    reporter.on_epoch_end(epoch_row(**values), nn.Identity())


def test_message_is_one_line_without_markup(capsys: Captured) -> None:
    with ProgressReporter() as reporter:
        reporter.on_message("[red] " + "long " * 100 + "message")
    assert capsys.readouterr().err == "[red] " + "long " * 100 + "message" + "\n"


def test_epoch_is_one_line(capsys: Captured) -> None:
    with ProgressReporter() as reporter:
        train_epoch(reporter)
    assert capsys.readouterr().err == (
        "student  epoch 1  validation 87.5%, balanced 75.0%, loss 0.500  training loss 1.250  lr 0.4  1,234 images/s  "
        "0:00 left\n"
    )


def test_epoch_with_several_terms_and_a_teacher(capsys: Captured) -> None:
    with ProgressReporter() as reporter:
        train_epoch(reporter, terms={"ce": 1.0, "cam": 0.25}, val_teacher_agreement=0.75, val_cam_cosine=0.5)
    assert (
        "training loss 1.250 (ce 1.000, cam 0.250)  teacher agreement 75.0%  CAM cosine 0.50" in capsys.readouterr().err
    )


def test_long_jobs_print_lines(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.0)
    with ProgressReporter() as reporter:
        for done in (500, 1000):
            reporter.progress(done, 1000, "decoding")
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert lines == ["decoding 500 of 1,000 0:00 left", "decoding 1,000 of 1,000 0:00 left"]


def test_quiet_reporter_prints_nothing(capsys: Captured) -> None:
    with ProgressReporter(quiet=True) as reporter:
        reporter.message("hidden")
        train_epoch(reporter)
    assert capsys.readouterr().err == ""
