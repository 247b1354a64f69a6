"""Ray Train's TorchTrainer with two workers, by the code of docs/machines.md."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from camkd.cli.main import main
from camkd.runs.folder import Run

PAGE = Path(__file__).parent.parent / "docs" / "machines.md"
CLASSES = ("berry", "leaf", "sky")
COMMON = {"batch_size": 21, "precision": "fp32", "figure_every": 0, "lr": 0.05, "epochs": 2}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes that differ in colour, a teacher of them, and what a student is told."""
    root, rng = tmp_path_factory.mktemp("shared"), np.random.default_rng(0)
    for number in range(120):
        place = root / "pictures" / CLASSES[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60, (16, 16, 3))
        pixels[:, :, number % 3] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:03d}.png")
    common = {**COMMON, "data": str(root / "pictures")}
    (root / "teacher.yaml").write_text(yaml.safe_dump({**common, "model": "resnet8"}))
    assert main(["teacher", "--config", str(root / "teacher.yaml"), "--out", str(root / "teacher")]) == 0
    method = {"method": "ce=0.5,kd=0.5,cam=1,sp=100", "student": "resnet8", "teacher": str(root / "teacher")}
    (root / "student.yaml").write_text(yaml.safe_dump({**common, **method}))
    return root


@pytest.fixture
def program(shared: Path, tmp_path: Path) -> Path:
    """The code of the page, with ``/shared`` where it is here."""
    found = re.search(r"## Ray Train\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert found is not None
    path = tmp_path / "program.py"
    path.write_text(found[1].replace("/shared", str(shared)))
    return path


@pytest.fixture
def ray(program: Path) -> Iterator[subprocess.Popen[str]]:
    """It runs; whatever Ray has started ends with the test."""
    busy = {"RAY_agent_register_timeout_ms": "600000", "RAY_worker_register_timeout_seconds": "600"}  # as machines are
    settings = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **busy}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, str(program)],
        env={**os.environ, **settings},
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_two_workers_learn_what_torchrun_s_two_do(shared: Path, ray: subprocess.Popen[str]) -> None:
    """Which learn what one process would: tests/test_distributed.py."""
    said, _ = ray.communicate(timeout=3000)
    assert ray.returncode == 0, said[-5000:]
    command = ["distill", "--config", str(shared / "student.yaml"), "--out", str(shared / "runs" / "torchrun")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "camkd"]
    subprocess.run([sys.executable, *launch, *command], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    ours, theirs = (Run(shared / "runs" / name).read_history() for name in ("student", "torchrun"))
    assert [row["epoch"] for row in ours] == [1, 2]
    for our, their in zip(ours, theirs, strict=True):
        for name in ("train_loss", "val_loss", "val_cam_cosine"):
            assert our[name] == pytest.approx(their[name], rel=1e-5)
        assert our["terms"] == pytest.approx(their["terms"], rel=1e-5)
