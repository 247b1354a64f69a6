"""A run to be disturbed, and how it ends when nothing happens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

TRIES = int(os.environ.get("CAMKD_FAULT_TRIES", "3"))
"""How often a fault is tried that has endless many places to happen; `make test-faults` tries oftener."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    said: str


def camkd(*arguments: str, cache: Path, before: str = "") -> Ended:
    """Run a command in a process of its own; ``before`` is what that process does first."""
    code = f"{before}\nimport sys\nfrom camkd.cli import main\nsys.exit(main(sys.argv[1:]))"
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "CAMKD_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Ended(ended.returncode, ended.stderr)


@dataclass(frozen=True)
class Lesson:
    """A distillation from stored answers that takes a second or two, to be disturbed."""

    arguments: Sequence[str]

    def command(self, out: Path) -> list[str]:
        return [*self.arguments, "--out", str(out), "--resume"]


@pytest.fixture(scope="session")
def lesson(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    root = tmp_path_factory.mktemp("faults")
    common = ["--data", str(easy_folder), "--batch-size", "12", "--precision", "fp32", "--figure-every", "0"]
    taught = camkd(
        "teacher", "--model", "resnet8", *common, "--epochs", "3", "--lr", "0.1", "--out", str(root / "teacher"),
        cache=root / "cache",
    )  # fmt: skip
    assert taught.status == 0, taught.said
    student = ["--teacher", str(root / "teacher"), "--student", "resnet8", "--epochs", "8", "--views", "strong"]
    return Lesson(["distill", *student, *common])


@pytest.fixture(scope="session")
def undisturbed(lesson: Lesson, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run when nothing happens."""
    root = tmp_path_factory.mktemp("undisturbed")
    ended = camkd(*lesson.command(root / "run"), cache=root / "cache")
    assert ended.status == 0, ended.said
    return root / "run"
