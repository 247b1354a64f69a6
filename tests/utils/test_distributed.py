"""Data-parallel training: collectives, stop requests, launchers, and runs that equal those of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from camkd.runs.folder import Run
from camkd.runs.loading import load
from camkd.types import InputError
from camkd.utils import distributed
from camkd.utils.distributed import ProcessGroupInfo, StopFlag, _launch_settings
from support import collectives
from support.forked_cli import RunningCommand
from support.processes import (
    TIMEOUT,
    free_port,
    launch_environments,
    loss_curve,
    run_in_processes,
    start_processes,
    wait_for,
)

# --- one process


def test_functions_are_the_identity_in_a_single_process() -> None:
    x = torch.rand(3, 2, requires_grad=True)
    assert distributed.process_group() == ProcessGroupInfo(0, 1)
    assert distributed.all_gather(x, [3]) is x
    assert distributed.all_reduce_sum(x) is x
    assert distributed.run_on_rank0(lambda: 5) == 5
    with distributed.init_distributed("cpu") as group:
        assert group == ProcessGroupInfo(0, 1)


def test_stop_flag_of_a_single_process_returns_the_request_at_once() -> None:
    requested = False
    stop = StopFlag(lambda: requested)
    assert not stop.poll()
    assert not stop.wait()
    requested = True
    assert stop.poll()
    assert stop.wait()


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [*range(12), 21, 96, 100, 1001])
def test_shards_are_those_of_tensor_split(world_size: int, count: int) -> None:
    batch = torch.arange(count)
    groups = [ProcessGroupInfo(rank, world_size) for rank in range(world_size)]
    shards = [group.shard(batch) for group in groups]
    sizes = [len(shard) for shard in batch.tensor_split(world_size)]
    assert torch.equal(torch.cat(shards), batch)
    assert [len(shard) for shard in shards] == sizes
    assert all(group.shard_sizes(count) == sizes for group in groups)
    assert max(sizes) - min(sizes) <= 1


# --- collectives


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[3, 2], [2, 2, 1], [1, 0, 1]])
def test_all_gather_of_unequal_shards_is_differentiable(sizes: list[int]) -> None:
    """The gradient of a shard is the sum over all processes."""
    results = run_in_processes(len(sizes), collectives.gather_shards, sizes)
    whole = torch.arange(sum(sizes), dtype=torch.float64)
    gradient = sum(rank + 1 for rank in range(len(sizes))) * 3 * whole.square()
    assert [values for values, _ in results] == [whole.tolist()] * len(sizes)
    assert [values for _, values in results] == [shard.tolist() for shard in gradient.split(sizes)]


@pytest.mark.slow
def test_all_reduce_sum_leaves_its_input_unchanged() -> None:
    assert run_in_processes(2, collectives.sum_ranks) == [(1.0, 3.0), (2.0, 3.0)]


@pytest.mark.slow
def test_all_reduce_gradients() -> None:
    assert run_in_processes(2, collectives.sum_gradients) == [[[3.0, 3.0], [3.0], None]] * 2


@pytest.mark.slow
def test_run_on_rank0_returns_the_result_everywhere() -> None:
    assert run_in_processes(2, collectives.rank_of_rank0_call) == [0, 0]


@pytest.mark.slow
def test_run_on_rank0_raises_the_error_everywhere() -> None:
    assert run_in_processes(2, collectives.error_of_rank0_call) == ["failed in rank 0"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_stop_one_step_after_a_request_to_one(rank: int) -> None:
    assert run_in_processes(2, collectives.steps_until_stop, rank, 3) == [4, 4]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_wait_returns_a_request_at_once(rank: int) -> None:
    assert run_in_processes(2, collectives.results_of_wait, rank) == [[False, True, False, True]] * 2


# --- runs


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "launcher"), [(2, "torchrun"), (3, "slurm"), (4, "torchrun")])
def test_loss_curve_equals_that_of_one_process(
    distill_arguments: list[str], reference_run: Path, tmp_path: Path, world_size: int, launcher: str
) -> None:
    folder = tmp_path / "run"
    with start_processes(world_size, [*distill_arguments, "--out", str(folder)], launcher, tmp_path) as commands:
        results = [command.wait() for command in commands]
    assert [result.status for result in results] == [0] * world_size, results
    for values, expected in zip(loss_curve(folder), loss_curve(reference_run), strict=True):
        assert values == pytest.approx(expected, rel=2e-3, abs=1e-5)
    weights = load(folder).state_dict()
    for name, tensor in load(reference_run).state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=5e-2, atol=5e-3, msg=name)
    outputs = [(tmp_path / str(rank)).read_text() for rank in range(world_size)]
    assert json.loads(outputs[0])["accuracy"] == Run(folder).read_metrics()["accuracy"]
    assert outputs[1:] == [""] * (world_size - 1), "only rank 0 prints"
    assert not (folder / ".lock").exists()


@pytest.mark.slow
def test_input_error_ends_all_processes(distill_arguments: list[str], reference_run: Path) -> None:
    with start_processes(2, [*distill_arguments, "--out", str(reference_run)]) as commands:
        results = [command.wait() for command in commands]
    assert [result.status for result in results] == [2, 2]
    assert f"got {reference_run}, which holds a finished run. Add --resume" in results[0].stderr


PRINT_GLOO_THREADS = """
from pathlib import Path
import torch
from camkd.utils.distributed import all_gather, init_distributed
with init_distributed("cpu"):
    all_gather(torch.ones(2), [2, 2])
    torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1)
names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
print([name for name in names if "gloo" in name])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names of threads are read from /proc")
def test_no_thread_outlives_the_process_group() -> None:
    """A thread that outlives the interpreter aborts the process at exit."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PRINT_GLOO_THREADS],
            env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in launch_environments(2, "torchrun")
    ]
    assert wait_for(processes) == [(0, "[]\n", "")] * 2


@contextmanager
def start_long_run(distill_arguments: list[str], folder: Path) -> Iterator[list[RunningCommand]]:
    """Start or resume a run of many epochs in two processes; the block begins after its next epoch."""
    arguments = [*distill_arguments, "--epochs", "400", "--out", str(folder), "--resume"]
    with start_processes(2, arguments) as commands:
        assert any("  epoch " in line for line in commands[0].stderr), "the run ended before its first epoch"
        yield commands


@pytest.mark.slow
@pytest.mark.fault("signal to one of two processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_one_process_stops_both_with_the_state_saved(
    distill_arguments: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    with start_long_run(distill_arguments, folder) as (first, second):
        second.send_signal(number)
        result = first.wait()
        assert (result.status, second.wait().status) == (130, 130)
    assert "state is saved" in result.stderr.splitlines()[-1]
    assert f"--out {folder}" in result.stderr.splitlines()[-1]
    state, _ = Run(folder).checkpoints.load()
    assert state["epoch"] >= 1


@pytest.mark.slow
@pytest.mark.fault("SIGKILL of one of two processes")
def test_killed_process_ends_the_other_and_the_run_resumes(distill_arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start_long_run(distill_arguments, folder) as (first, second):
        second.send_signal(signal.SIGKILL)
        result = first.wait()
    assert result.status == 1
    assert result.stderr.splitlines()[-1] == "camkd: Another of the 2 processes ended. Start all again with --resume."
    assert "Traceback" not in result.stderr
    step = Run(folder).checkpoints.load()[0]["step"]
    with start_long_run(distill_arguments, folder) as (first, second):
        first.send_signal(signal.SIGTERM)
        assert (first.wait().status, second.wait().status) == (130, 130)
    assert Run(folder).checkpoints.load()[0]["step"] > step


KILL_ONCE = """
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from camkd.runs.resume import Resume
from camkd.utils.distributed import init_distributed
from support.interrupt import InterruptAt
from support.processes import distill, student_config

data, teacher, folder, marker = sys.argv[1:]
with init_distributed("cpu") as group:
    callbacks = []
    if group.rank == 1 and not Path(marker).exists():
        Path(marker).touch()
        callbacks = [InterruptAt(epoch=1, number=signal.SIGKILL)]
    distill(Path(folder), student_config(data, teacher), resume=Resume(), callbacks=callbacks)
"""


@pytest.mark.slow
@pytest.mark.fault("SIGKILL of one of two processes")
def test_torchrun_restarts_the_processes_after_one_was_killed(easy_folder: Path, teacher: Path, tmp_path: Path) -> None:
    """Elastic restart: one process kills itself once, after the first epoch."""
    script = tmp_path / "kill_once.py"
    script.write_text(KILL_ONCE)
    marker = tmp_path / "marker"
    folder = tmp_path / "run"
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    result = subprocess.run(
        [sys.executable, *launch, "--master-port", str(free_port()), str(script), str(easy_folder), str(teacher),
         str(folder), str(marker)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "-9" in result.stderr
    assert marker.exists()
    assert [row["epoch"] for row in Run(folder).read_history()] == [1, 2]


# --- launchers

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "123456",
    "MASTER_ADDR": "node7",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({**TORCHRUN, "WORLD_SIZE": "1"}, None),
        (TORCHRUN, (1, 4, 1, "host:29500")),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (SLURM, (5, 8, 1, "node7:33456")),
        ({**SLURM, "MASTER_PORT": "7"}, (5, 8, 1, "node7:7")),
    ],
)
def test_launch_settings_are_read_from_the_environment(environment: dict[str, str], expected: Any) -> None:
    assert _launch_settings(environment) == expected


def test_incomplete_environment_is_an_input_error() -> None:
    with pytest.raises(InputError) as caught:
        _launch_settings({"WORLD_SIZE": "2", "RANK": "0"})
    assert str(caught.value) == (
        "MASTER_ADDR must be set where WORLD_SIZE is, got none. Start the processes with torchrun."
    )


@pytest.mark.parametrize("environment", [{**TORCHRUN, "RANK": "first"}, {"SLURM_NTASKS": "2", "SLURM_PROCID": "first"}])
def test_invalid_environment_is_an_input_error(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"first|SLURM_LOCALID"), distributed.init_distributed("cpu"):
        pass
