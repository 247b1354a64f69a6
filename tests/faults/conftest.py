"""A distillation to be interrupted, and its uninterrupted reference run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from camkd.runs.folder import Run
from support.forked_cli import run_camkd

ATTEMPTS = int(os.environ.get("CAMKD_FAULT_TRIES", "3"))
"""Number of attempts of a fault that can strike at any time; `make test-faults` makes more."""


@dataclass(frozen=True)
class DistillCommand:
    """Arguments of a `camkd distill` from cached teacher outputs that takes a second or two."""

    arguments: Sequence[str]

    def for_folder(self, out: Path) -> list[str]:
        return [*self.arguments, "--out", str(out), "--resume"]


@pytest.fixture(scope="session")
def distill_command(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DistillCommand:
    root = tmp_path_factory.mktemp("faults")
    common = ["--data", str(easy_folder), "--batch-size", "12", "--precision", "fp32", "--figure-every", "0"]
    result = run_camkd(
        "teacher", "--model", "resnet8", *common, "--epochs", "3", "--lr", "0.1", "--out", str(root / "teacher"),
        cache=root / "cache",
    )  # fmt: skip
    assert result.status == 0, result.stderr
    student = ["--teacher", str(root / "teacher"), "--student", "resnet8", "--epochs", "8", "--augment", "strong"]
    return DistillCommand(["distill", *student, *common])


@pytest.fixture(scope="session")
def reference_run(distill_command: DistillCommand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run without any fault."""
    root = tmp_path_factory.mktemp("reference")
    result = run_camkd(*distill_command.for_folder(root / "run"), cache=root / "cache")
    assert result.status == 0, result.stderr
    return root / "run"


def history_without_times(folder: Path) -> list[dict[str, Any]]:
    rows = Run(folder).read_history()
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def assert_same_run(folder: Path, reference: Path, cache: Path) -> None:
    """Assert bit-identical weights, equal history with every epoch once, and no temporary files."""
    assert (folder / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    history = history_without_times(folder)
    expected = history_without_times(reference)
    assert history == expected
    assert [row["epoch"] for row in history] == list(range(1, len(expected) + 1))
    assert not [*folder.rglob(".*"), *cache.rglob(".*")]
