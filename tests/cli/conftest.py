"""Fixtures of command line tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from camkd.data import sources
from camkd.experiments import finished_runs, pipeline, teacher_student
from camkd.train import heatmap_figures
from support.cli import QUICK, Output, camkd


class TeacherRun(NamedTuple):
    """A run of ``camkd teacher --json``."""

    folder: Path
    arguments: list[str]
    output: Output


@pytest.fixture(scope="session")
def teacher_run(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TeacherRun:
    """A finished ``camkd teacher --json`` of a ResNet-8 with the options `QUICK`; tests must not change its folder."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    arguments = ["teacher", "--model", "resnet8", "--dataset", str(easy_folder), *QUICK, "--json"]
    return TeacherRun(folder, arguments, camkd(*arguments, "--out", str(folder)))


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures, which take longer than a short training."""
    for module in (pipeline, teacher_student, heatmap_figures):
        monkeypatch.setattr(module, "draw_examples", lambda *arguments: None)


@pytest.fixture
def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a command opens a dataset."""

    def fail(*arguments: Any, **options: Any) -> None:
        pytest.fail("a dataset was opened")

    monkeypatch.setattr(sources, "open_dataset", fail)
    monkeypatch.setattr(finished_runs, "open_data", fail)
