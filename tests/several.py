"""One distillation that several tests train with several processes, alone, and on two machines."""

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
"""Terms of each picture, terms between the pictures of a batch, terms with weights and normalisation of their own."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def started(
    size: int, arguments: Sequence[str], slurm: bool = False, program: Sequence[str] = ("-m", "camkd")
) -> list[subprocess.Popen[str]]:
    """``size`` processes of one command, which meet over loopback."""
    port = str(free_port())
    processes = []
    for rank in range(size):
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if slurm:
            meet |= {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(size), "SLURM_LOCALID": str(rank)}
            meet |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "here"}
        elif size > 1:
            meet |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        command = [sys.executable, *program, *arguments]
        environment = {**os.environ, **meet, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
    return processes


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each."""
    said = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def curve(folder: Path) -> list[list[float]]:
    """Losses of each epoch, all terms, and what was judged."""
    names = ("train_loss", "val_loss", "val_cam_cosine")
    return [[*(row[name] for name in names), *row["terms"].values()] for row in Run(folder).read_history()]


@pytest.fixture(scope="session")
def teacher(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "resnet8"
    arguments = ["teacher", "--data", str(easy_folder), "--model", "resnet8", "--epochs", "2", *QUICK]
    assert main([*arguments, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def distil(teacher: Path, easy_folder: Path) -> list[str]:
    names = ["--data", str(easy_folder), "--teacher", str(teacher), "--student", "resnet8", "--method", TERMS]
    return ["distill", *names, "--epochs", "2", *QUICK, "--json"]


@pytest.fixture(scope="session")
def alone(distil: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main([*distil, "--out", str(folder)]) == 0
    return folder
