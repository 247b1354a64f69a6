"""A run that is killed, anywhere and often, ends with the bits of one that is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from camkd.runs import Run
from faults.conftest import TRIES, Lesson, camkd
from tallying import Tally


def timeless(folder: Path) -> list[dict[str, Any]]:
    rows = Run(folder).read_history()
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def same(folder: Path, other: Path) -> None:
    """The same weights to the bit, the same curve, every epoch once."""
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert timeless(folder) == timeless(other)
    assert [row["epoch"] for row in timeless(folder)] == list(range(1, len(timeless(other)) + 1))
    assert not list(folder.rglob(".*"))


def started(arguments: list[str], cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "CAMKD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "camkd", *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_killed_at_any_moment(lesson: Lesson, undisturbed: Path, tmp_path: Path, tally: Tally) -> None:
    """Again and again, some moments after training began, until that has happened often enough; then it may end."""
    dice = random.Random(0)
    command, kills = lesson.command(tmp_path / "run"), 0
    while kills < TRIES:
        with started(command, tmp_path / "cache") as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "answers" in line:
                    break
            try:
                process.wait(dice.uniform(0.05, 0.9))
                break  # it came to its end
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
    ended = camkd(*command, cache=tmp_path / "cache")
    for _ in range(kills):
        with tally("killed at a random moment"):
            assert ended.status == 0, ended.said
            same(tmp_path / "run", undisturbed)
    assert kills


DIES = """
import os, signal, sys

seen, name, call = 0, sys.argv.pop(1), int(sys.argv.pop(1))

def die(event, arguments):
    global seen
    seen += event.startswith(("open", "os.", "tempfile.", "mmap.")) and name in repr(arguments)
    if seen == call:
        seen += 1
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
"""

PLACES = {
    "killed in a checkpoint's state": "last-",
    "killed in a checkpoint's best weights": "best-",
    "killed in the knowledge store": "/knowledge/",
    "killed in the data store": "/data/",
    "killed in the weights": "model.safetensors",
    "killed in the metrics": "metrics.json",
}


@pytest.mark.parametrize("fault", PLACES)
def test_killed_in_the_middle_of_a_write(
    lesson: Lesson, undisturbed: Path, tmp_path: Path, tally: Tally, fault: str
) -> None:
    """At the n-th time that such a file is touched."""
    dice, kills = random.Random(fault), 0
    command = lesson.command(tmp_path / "run")
    while kills < TRIES:
        place = [PLACES[fault], str(dice.randint(1, 12))]
        ended = camkd(*place, *command, cache=tmp_path / "cache", before=DIES)
        if ended.status == 0:
            break
        assert ended.status == -signal.SIGKILL, ended.said
        kills += 1
    ended = camkd(*command, cache=tmp_path / "cache")
    for _ in range(kills):
        with tally(fault):
            assert ended.status == 0, ended.said
            same(tmp_path / "run", undisturbed)
    assert kills
