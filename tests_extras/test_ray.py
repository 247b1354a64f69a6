"""Ray Train: the program of docs/machines.md with two workers gives the loss curve of torchrun."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from camkd.config import DataConfig, RunConfig, TrainConfig
from camkd.data.sources import open_dataset
from camkd.experiments.pipeline import train_run
from camkd.runs.folder import Run

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parent.parent / "docs" / "machines.md"
CLASSES = ("berry", "leaf", "sky")
TRAIN: dict[str, Any] = {"batch_size": 21, "precision": "fp32", "figure_every": 0, "lr": 0.05, "epochs": 2}


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all workers share: images of three classes, a teacher and the options of a student."""
    root = tmp_path_factory.mktemp("shared")
    rng = np.random.default_rng(0)
    images = root / "images"
    for number in range(120):
        folder = images / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60, (16, 16, 3))
        pixels[:, :, number % 3] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
    config = RunConfig(DataConfig(data=str(images)), TrainConfig(**TRAIN), model="resnet8", role="teacher")
    train_run(root / "teacher", config, open_dataset(config.data))
    options = {"method": "ce=0.5,kd=0.5,cam=1,sp=100", "student": "resnet8", "teacher": str(root / "teacher")}
    (root / "student.yaml").write_text(yaml.safe_dump({**TRAIN, "data": str(images), **options}))
    return root


@pytest.fixture
def program(shared_folder: Path, tmp_path: Path) -> Path:
    """The program of the page, with the shared folder of this test."""
    block = re.search(r"## Ray Train\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert block is not None
    path = tmp_path / "program.py"
    path.write_text(block[1].replace("/shared", str(shared_folder)))
    return path


@pytest.fixture
def ray_process(program: Path) -> Iterator[subprocess.Popen[str]]:
    """The running program. All processes of Ray are killed after the test."""
    settings = {
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_agent_register_timeout_ms": "600000",  # for slow machines
        "RAY_worker_register_timeout_seconds": "600",
    }
    with subprocess.Popen(
        [sys.executable, str(program)],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_two_workers_equal_two_processes_of_torchrun(shared_folder: Path, ray_process: subprocess.Popen[str]) -> None:
    """tests/utils/test_distributed.py compares the processes of torchrun with a single process."""
    output, _ = ray_process.communicate(timeout=3000)
    assert ray_process.returncode == 0, output[-5000:]
    runs = shared_folder / "runs"
    command = ["distill", "--config", str(shared_folder / "student.yaml"), "--out", str(runs / "torchrun")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "camkd"]
    subprocess.run([sys.executable, *launch, *command], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    rows = Run(runs / "student").read_history()
    torchrun_rows = Run(runs / "torchrun").read_history()
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, expected in zip(rows, torchrun_rows, strict=True):
        for name in ("train_loss", "val_loss", "val_cam_cosine"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5)
        assert row["terms"] == pytest.approx(expected["terms"], rel=1e-5)
