"""Run one distillation in several processes, and in one process as the reference."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from camkd.cli.main import main
from camkd.runs.folder import Run

QUICK = ["--batch-size", "21", "--precision", "fp32", "--figure-every", "0", "--lr", "0.05"]
TERMS = "ce=0.5,kd=0.5,cam=1,sp=100,rkd-d=1,hint=0.1,review=0.1"
"""Terms per image, terms between the images of a batch, and terms with weights and normalization of their own."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def start_processes(
    world_size: int, arguments: Sequence[str], slurm: bool = False, program: Sequence[str] = ("-m", "camkd")
) -> list[subprocess.Popen[str]]:
    """Start a command in several processes that connect over loopback."""
    port = str(free_port())
    processes = []
    for rank in range(world_size):
        launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if slurm:
            launch |= {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(world_size), "SLURM_LOCALID": str(rank)}
            launch |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "here"}
        elif world_size > 1:
            launch |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
        command = [sys.executable, *program, *arguments]
        environment = {**os.environ, **launch, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
    return processes


def wait_for(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Return exit status, stdout and stderr of each process."""
    outputs = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def loss_curve(folder: Path) -> list[list[float]]:
    """Return training loss, validation loss, map cosine and all terms, epoch by epoch."""
    names = ("train_loss", "val_loss", "val_cam_cosine")
    return [[*(row[name] for name in names), *row["terms"].values()] for row in Run(folder).read_history()]


@pytest.fixture(scope="session")
def teacher(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-8 teacher run on `easy_folder`."""
    folder = tmp_path_factory.mktemp("teacher") / "resnet8"
    arguments = ["teacher", "--data", str(easy_folder), "--model", "resnet8", "--epochs", "2", *QUICK]
    assert main([*arguments, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def distill_arguments(teacher: Path, easy_folder: Path) -> list[str]:
    """The arguments of a distillation from `teacher`, without ``--out``."""
    names = ["--data", str(easy_folder), "--teacher", str(teacher), "--student", "resnet8", "--method", TERMS]
    return ["distill", *names, "--epochs", "2", *QUICK, "--json"]


@pytest.fixture(scope="session")
def reference_run(distill_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distillation in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main([*distill_arguments, "--out", str(folder)]) == 0
    return folder
