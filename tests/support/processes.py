"""Training in several processes, and in one process as the reference."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.sources import open_dataset
from camkd.distill.teacher import load_teacher
from camkd.experiments.pipeline import prepare_teacher, train_run
from camkd.runs.folder import Run
from camkd.runs.resume import Resume
from camkd.train.callbacks import Callback
from camkd.utils.distributed import init_distributed
from support.forked_cli import FORK_SERVER, RunningCommand, start_camkd

TRAIN = TrainConfig(epochs=2, batch_size=21, precision="fp32", figure_every=0, lr=0.05)
METHOD = "ce=0.5,kd=0.5,cam=1,sp=100,rkd-d=1,hint=0.1,review=0.1"
"""Terms per image, terms between the images of a batch, and terms with weights and normalization of their own."""

TIMEOUT = 240
"""Seconds that a process may run."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def launch_environments(world_size: int, launcher: str) -> list[dict[str, str]]:
    """Return the environment variables that a launcher sets for each process on this machine.

    Args:
        world_size: Number of processes.
        launcher: ``torchrun`` or ``slurm``.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    if launcher == "torchrun":
        return [
            {**address, "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
            for rank in range(world_size)
        ]
    job = {**address, "SLURM_NTASKS": str(world_size), "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "localhost"}
    return [{**job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(world_size)]


@contextmanager
def start_processes(
    world_size: int, arguments: Sequence[str], launcher: str = "torchrun", stdout: Path | None = None
) -> Iterator[list[RunningCommand]]:
    """Run a ``camkd`` command in several processes that connect over loopback, and kill them after the block.

    Args:
        world_size: Number of processes.
        arguments: Arguments of the command.
        launcher: ``torchrun`` or ``slurm``.
        stdout: Folder for the standard outputs, one file per rank (None: they are not kept).
    """
    cache = Path(os.environ["CAMKD_CACHE"])
    with ExitStack() as stack:
        commands = []
        for rank, environment in enumerate(launch_environments(world_size, launcher)):
            path = os.devnull if stdout is None else str(stdout / str(rank))
            setup = f"import os, sys\nos.environ.update({environment!r})\nsys.stdout = open({path!r}, 'w')"
            commands.append(stack.enter_context(start_camkd(arguments, cache, setup)))
        yield commands


def wait_for(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Return exit status, stdout and stderr of each process."""
    outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def run_in_processes(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function in several processes of one process group, and return the results in order of rank.

    Args:
        world_size: Number of processes.
        function: A function of an importable module, such as `support.collectives`.
        arguments: Arguments of the function, equal in all processes.
    """
    readers = []
    processes = []
    for environment in launch_environments(world_size, "torchrun"):
        reader, writer = FORK_SERVER.Pipe(duplex=False)
        process = FORK_SERVER.Process(target=_call, args=(environment, writer, function, arguments))
        process.start()
        writer.close()
        readers.append(reader)
        processes.append(process)
    try:
        return [_receive(reader) for reader in readers]
    finally:
        for process in processes:
            process.join(TIMEOUT)
            process.kill()


def _call(
    environment: Mapping[str, str], connection: Connection, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with init_distributed("cpu"):
        connection.send(function(*arguments))


def _receive(reader: Connection) -> Any:
    assert reader.poll(TIMEOUT), "the process is still running"
    try:
        return reader.recv()
    except EOFError:
        pytest.fail("the process failed; its traceback is above")


def loss_curve(folder: Path) -> list[list[float]]:
    """Return training loss, validation loss, cosine of the maps and all terms of every epoch."""
    names = ("train_loss", "val_loss", "val_cam_cosine")
    return [[*(row[name] for name in names), *row["terms"].values()] for row in Run(folder).read_history()]


def command_line(config: RunConfig) -> list[str]:
    """Return the ``camkd`` command of a run, without ``--out``."""
    defaults = RunConfig(role=config.role).options()
    arguments = ["teacher" if config.role == "teacher" else "distill"]
    for name, value in config.options().items():
        if value != defaults[name]:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return arguments


def student_config(data: str, teacher: str) -> RunConfig:
    """Return the configuration of the student that the tests train in several processes."""
    return RunConfig(DataConfig(data=data), TRAIN, DistillConfig(teacher, METHOD), model="resnet8")


def distill(
    folder: Path, config: RunConfig, *, resume: Resume | None = None, callbacks: Sequence[Callback] = ()
) -> None:
    """Distill a student from a trained run."""
    data = open_dataset(config.data)
    teacher = load_teacher(Path(config.distill.teacher), data, config.train.device)
    teacher_with_cache, config = prepare_teacher(teacher, config)
    train_run(folder, config, data, teacher_with_cache, resume=resume, callbacks=callbacks)


@pytest.fixture(scope="session")
def teacher(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-8 teacher run on `easy_folder`."""
    folder = tmp_path_factory.mktemp("teacher") / "resnet8"
    config = RunConfig(DataConfig(data=str(easy_folder)), TRAIN, model="resnet8", role="teacher")
    train_run(folder, config, open_dataset(config.data))
    return folder


@pytest.fixture(scope="session")
def distill_arguments(teacher: Path, easy_folder: Path) -> list[str]:
    """The command line of a distillation from `teacher`, without ``--out``."""
    return [*command_line(student_config(str(easy_folder), str(teacher))), "--json"]


@pytest.fixture(scope="session")
def reference_run(teacher: Path, easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `distill_arguments` in one process."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    distill(folder, student_config(str(easy_folder), str(teacher)))
    return folder
