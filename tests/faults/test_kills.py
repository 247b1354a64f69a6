"""A run that is killed or asked to stop, anywhere and often, ends with the bits of one that is not."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from faults.conftest import TRIES, DistillConfig, same
from forks import camkd, started
from tallying import Tally

pytestmark = pytest.mark.fault

Once = Callable[[list[str], Path], bool]
"""Disturbs the command that it is given, whose cache is the folder; whether that came before its end."""


def disturbed(lesson: DistillConfig, undisturbed: Path, root: Path, tally: Tally, fault: str, once: Once) -> None:
    """Disturb a run and go on with it until that has happened ``TRIES`` times; whenever it ends another begins."""
    hits, places = 0, [root / "0"]
    for _ in range(10 * TRIES):
        if once(lesson.command(places[-1] / "run"), places[-1] / "cache"):
            hits += 1
        else:
            places.append(root / str(len(places)))
        if hits == TRIES:
            break
    assert hits
    with tally(fault, hits):
        for place in places:
            ended = camkd(*lesson.command(place / "run"), cache=place / "cache")
            assert ended.status == 0, ended.said
            same(place / "run", undisturbed, place / "cache")


@pytest.mark.parametrize(
    ("fault", "signals", "ends"),
    [
        ("killed at a random moment", [signal.SIGKILL], [-signal.SIGKILL]),
        ("SIGTERM at a random moment", [signal.SIGTERM], [130, -signal.SIGTERM]),
        ("SIGINT at a random moment", [signal.SIGINT], [130]),
        ("SIGTERM twice", [signal.SIGTERM, signal.SIGTERM], [130, -signal.SIGTERM]),
    ],
)
def test_at_any_moment(
    lesson: DistillConfig,
    undisturbed: Path,
    tmp_path: Path,
    tally: Tally,
    fault: str,
    signals: Sequence[int],
    ends: Sequence[int],
) -> None:
    """Some moments after the teacher was introduced."""
    dice = random.Random(fault)

    def once(command: list[str], cache: Path) -> bool:
        with started(command, cache) as running:
            for line in running.stderr:
                if "answers" in line:
                    break
            running.process.join(dice.uniform(0, 0.9))
            for number in signals:
                running.send(number)
            ended = running.ended()
        assert ended.status in (0, *ends), ended.said
        return ended.status != 0

    disturbed(lesson, undisturbed, tmp_path, tally, fault, once)


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
    "killed in the knowledge store": "/teacher/",
    "killed in the data store": "/data/",
    "killed in the weights": "model.safetensors",
    "killed in the metrics": "metrics.json",
}


@pytest.mark.parametrize("fault", PLACES)
def test_in_the_middle_of_a_write(
    lesson: DistillConfig, undisturbed: Path, tmp_path: Path, tally: Tally, fault: str
) -> None:
    """At the n-th time that such a file is touched."""
    dice = random.Random(fault)

    def once(command: list[str], cache: Path) -> bool:
        ended = camkd(PLACES[fault], str(dice.randint(1, 12)), *command, cache=cache, before=DIES)
        assert ended.status in (0, -signal.SIGKILL), ended.said
        return ended.status != 0

    disturbed(lesson, undisturbed, tmp_path, tally, fault, once)
