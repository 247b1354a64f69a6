"""A run to be disturbed, and how it ends when nothing happens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from camkd.runs.folder import Run
from forks import camkd

TRIES = int(os.environ.get("CAMKD_FAULT_TRIES", "3"))
"""How often a fault is tried that has endless many places to happen; `make test-faults` tries oftener."""


@dataclass(frozen=True)
class DistillConfig:
    """A distillation from stored answers that takes a second or two, to be disturbed."""

    arguments: Sequence[str]

    def command(self, out: Path) -> list[str]:
        return [*self.arguments, "--out", str(out), "--resume"]


@pytest.fixture(scope="session")
def lesson(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    root = tmp_path_factory.mktemp("faults")
    common = ["--data", str(easy_folder), "--batch-size", "12", "--precision", "fp32", "--figure-every", "0"]
    taught = camkd(
        "teacher", "--model", "resnet8", *common, "--epochs", "3", "--lr", "0.1", "--out", str(root / "teacher"),
        cache=root / "cache",
    )  # fmt: skip
    assert taught.status == 0, taught.said
    student = ["--teacher", str(root / "teacher"), "--student", "resnet8", "--epochs", "8", "--augment", "strong"]
    return DistillConfig(["distill", *student, *common])


@pytest.fixture(scope="session")
def undisturbed(lesson: DistillConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run when nothing happens."""
    root = tmp_path_factory.mktemp("undisturbed")
    ended = camkd(*lesson.command(root / "run"), cache=root / "cache")
    assert ended.status == 0, ended.said
    return root / "run"


def timeless(folder: Path) -> list[dict[str, Any]]:
    rows = Run(folder).read_history()
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def same(folder: Path, other: Path, cache: Path) -> None:
    """The same weights to the bit, the same curve, every epoch once; nothing lies about."""
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert timeless(folder) == timeless(other)
    assert [row["epoch"] for row in timeless(folder)] == list(range(1, len(timeless(other)) + 1))
    assert not [*folder.rglob(".*"), *cache.rglob(".*")]
