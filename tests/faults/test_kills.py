"""A run that is killed or stopped at any time, repeatedly, ends bit-identical to an uninterrupted run."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from faults.conftest import ATTEMPTS, DistillCommand, assert_same_run
from support.fault_table import FaultTable
from support.forked_cli import run_camkd, start_camkd

pytestmark = [pytest.mark.fault, pytest.mark.slow]

Interrupt = Callable[[list[str], Path], bool]
"""Run a command with a cache folder and interrupt it. Return whether it ended before it was complete."""


def assert_survives(
    command: DistillCommand, reference: Path, root: Path, fault_table: FaultTable, fault: str, interrupt: Interrupt
) -> None:
    """Interrupt and resume runs until there were ``ATTEMPTS`` interruptions. A completed run is followed by a new run.

    All runs must then complete and equal the reference.
    """
    interrupted = 0
    folders = [root / "0"]
    for _ in range(10 * ATTEMPTS):
        if interrupt(command.for_folder(folders[-1] / "run"), folders[-1] / "cache"):
            interrupted += 1
        else:
            folders.append(root / str(len(folders)))
        if interrupted == ATTEMPTS:
            break
    assert interrupted
    with fault_table.count(fault, interrupted):
        for folder in folders:
            result = run_camkd(*command.for_folder(folder / "run"), cache=folder / "cache")
            assert result.status == 0, result.stderr
            assert_same_run(folder / "run", reference, folder / "cache")


@pytest.mark.parametrize(
    ("fault", "signals", "statuses"),
    [
        ("SIGKILL at a random time", [signal.SIGKILL], [-signal.SIGKILL]),
        ("SIGTERM at a random time", [signal.SIGTERM], [130, -signal.SIGTERM]),
        ("SIGINT at a random time", [signal.SIGINT], [130]),
        ("SIGTERM twice at a random time", [signal.SIGTERM, signal.SIGTERM], [130, -signal.SIGTERM]),
    ],
)
def test_signal_at_a_random_time(
    distill_command: DistillCommand,
    reference_run: Path,
    tmp_path: Path,
    fault_table: FaultTable,
    fault: str,
    signals: Sequence[int],
    statuses: Sequence[int],
) -> None:
    """Send the signals within a second after the message about the teacher cache, which precedes training."""
    rng = random.Random(fault)

    def interrupt(command: list[str], cache: Path) -> bool:
        with start_camkd(command, cache) as running:
            for line in running.stderr:
                if "teacher cache" in line:
                    break
            running.process.join(rng.uniform(0, 0.9))
            for number in signals:
                running.send_signal(number)
            result = running.wait()
        assert result.status in (0, *statuses), result.stderr
        return result.status != 0

    assert_survives(distill_command, reference_run, tmp_path, fault_table, fault, interrupt)


KILL_AT_FILE_ACCESS = """
import os, signal, sys

accesses, pattern, last = 0, sys.argv.pop(1), int(sys.argv.pop(1))

def kill(event, arguments):
    global accesses
    accesses += event.startswith(("open", "os.", "tempfile.", "mmap.")) and pattern in repr(arguments)
    if accesses == last:
        accesses += 1
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
"""

PATTERNS = {
    "SIGKILL while writing a checkpoint's state": "last-",
    "SIGKILL while writing a checkpoint's best weights": "best-",
    "SIGKILL while writing the teacher cache": "/cache/teacher/",
    "SIGKILL while writing the dataset cache": "/data/",
    "SIGKILL while writing the weights": "model.safetensors",
    "SIGKILL while writing the metrics": "metrics.json",
}
"""Part of the path of the files whose access is interrupted, by fault."""


@pytest.mark.parametrize("fault", PATTERNS)
def test_sigkill_while_writing(
    distill_command: DistillCommand, reference_run: Path, tmp_path: Path, fault_table: FaultTable, fault: str
) -> None:
    """Kill the process at a random one of the first 12 accesses to a matching file."""
    rng = random.Random(fault)

    def interrupt(command: list[str], cache: Path) -> bool:
        arguments = [PATTERNS[fault], str(rng.randint(1, 12)), *command]
        result = run_camkd(*arguments, cache=cache, setup=KILL_AT_FILE_ACCESS)
        assert result.status in (0, -signal.SIGKILL), result.stderr
        return result.status != 0

    assert_survives(distill_command, reference_run, tmp_path, fault_table, fault, interrupt)
