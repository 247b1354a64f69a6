"""Several processes train the network that one would: real processes over loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from camkd.runs.folder import Run
from camkd.runs.load_model import load
from camkd.types import InputError
from camkd.utils import distributed
from camkd.utils.distributed import ProcessGroupInfo, _named
from several import curve, ended, free_port, started


@pytest.mark.parametrize(("size", "slurm"), [(2, False), (3, False), (4, False), (2, True)])
def test_the_loss_curve_is_that_of_one_process(
    distil: list[str], alone: Path, tmp_path: Path, size: int, slurm: bool
) -> None:
    found = ended(started(size, [*distil, "--out", str(tmp_path / "run")], slurm))
    assert [status for status, _, _ in found] == [0] * size, found
    for ours, theirs in zip(curve(tmp_path / "run"), curve(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-5)
    weights, expected = load(tmp_path / "run").state_dict(), load(alone).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=5e-2, atol=5e-3, msg=name)
    assert json.loads(found[0][1])["accuracy"] == Run(tmp_path / "run").read_metrics()["accuracy"]
    assert [said for _, said, _ in found[1:]] == [""] * (size - 1), "one process speaks"
    assert not (tmp_path / "run" / ".lock").exists()


LEAVES = """
from pathlib import Path
import torch
from camkd.utils.distributed import all_gather, init_distributed
with init_distributed("cpu"):
    all_gather(torch.ones(2))
    torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1)
names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
print([name for name in names if "gloo" in name])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="names of threads are read from /proc")
def test_no_thread_is_left_when_they_part() -> None:
    """One that outlives the interpreter aborts a process whose work is done."""
    assert ended(started(2, [], program=("-c", LEAVES))) == [(0, "[]\n", "")] * 2


def test_the_users_mistake_is_said_once_and_ends_all(distil: list[str], alone: Path) -> None:
    found = ended(started(2, [*distil, "--out", str(alone)]))
    assert [status for status, _, _ in found] == [2, 2]
    assert "holds a finished run" in found[0][2]


def long_run(distil: list[str], folder: Path) -> list[str]:
    return [*distil, "--epochs", "400", "--out", str(folder), "--resume"]


def until_trained(process: subprocess.Popen[str]) -> None:
    """Read what the first process says until it has trained for an epoch."""
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 1 " in line:
            return
    raise AssertionError(f"it ended before the first epoch, with status {process.wait()}")


def rest(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status, and what else it says on stderr."""
    with process:  # closes its pipes
        assert process.stderr is not None
        said = process.stderr.read()
        return process.wait(240), said


@pytest.mark.fault("one of two processes asked to stop")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_one_stops_all_with_the_state_saved(distil: list[str], tmp_path: Path, number: int) -> None:
    first, second = started(2, long_run(distil, tmp_path / "run"))
    until_trained(first)
    second.send_signal(number)
    status, said = rest(first)
    assert (status, rest(second)[0]) == (130, 130)
    assert "what was trained is saved" in said
    state, _ = Run(tmp_path / "run").checkpoints.load()
    assert state["epoch"] >= 1


@pytest.mark.fault("one of two processes killed")
def test_a_killed_process_ends_the_others_and_the_run_goes_on(distil: list[str], tmp_path: Path) -> None:
    first, second = started(2, long_run(distil, tmp_path / "run"))
    until_trained(first)
    second.kill()
    status, said = rest(first)
    rest(second)
    assert status == 1
    assert "another of the 2 processes ended: start them again with --resume" in said
    assert "Traceback" not in said
    before = Run(tmp_path / "run").checkpoints.load()[0]["step"]
    first, second = started(2, long_run(distil, tmp_path / "run"))
    assert first.stderr is not None
    assert any(" epoch " in line for line in first.stderr)
    first.send_signal(signal.SIGTERM)
    assert (rest(first)[0], rest(second)[0]) == (130, 130)
    assert Run(tmp_path / "run").checkpoints.load()[0]["step"] > before


ONCE = """
import os, signal, sys
from pathlib import Path
from camkd.cli import main as cli
from camkd.train import state

mark, save = Path(sys.argv.pop(1)), state.TrainState.save

def once(self, run):
    save(self, run)
    if os.environ["RANK"] == "1" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

state.TrainState.save = once
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.fault("one of two processes killed")
def test_torchrun_starts_them_again_after_one_was_killed(distil: list[str], tmp_path: Path) -> None:
    """An elastic restart: one process kills itself once, after the first epoch."""
    script = tmp_path / "once.py"
    script.write_text(ONCE)
    elastic = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [sys.executable, *elastic, "--master-port", str(free_port()), str(script), str(tmp_path / "mark")]
    run = tmp_path / "run"
    found = subprocess.run(
        [*command, *distil, "--out", str(run), "--resume"], capture_output=True, text=True, timeout=280
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert (tmp_path / "mark").exists()
    assert [row["epoch"] for row in Run(run).read_history()] == [1, 2]


# --- who is who


def test_alone_nothing_happens() -> None:
    x = torch.rand(3, 2, requires_grad=True)
    assert distributed.process_group() == ProcessGroupInfo(0, 1)
    assert distributed.all_gather(x) is x
    assert distributed.all_reduce_sum(x) is x
    assert distributed.run_on_rank0(lambda: 5) == 5


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_the_batch(size: int) -> None:
    batch = torch.arange(7)
    parts = [ProcessGroupInfo(rank, size).shard(batch) for rank in range(size)]
    assert torch.equal(torch.cat(parts), batch)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({**TORCHRUN, "WORLD_SIZE": "1"}, None),
        (TORCHRUN, (1, 4, 1, "host:29500")),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (
            {"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456",
             "MASTER_ADDR": "node7"},
            (5, 8, 1, "node7:33456"),
        ),
    ],
)  # fmt: skip
def test_the_environment_says_who_is_who(environment: dict[str, str], expected: Any) -> None:
    assert _named(environment) == expected


def test_half_an_environment_is_refused() -> None:
    with pytest.raises(InputError, match="WORLD_SIZE is set, but MASTER_ADDR is not"):
        _named({"WORLD_SIZE": "2", "RANK": "0"})
