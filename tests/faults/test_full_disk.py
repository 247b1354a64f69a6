"""A disk that is full at any write: it is said, with the file and the bytes; what was there stays; then it goes on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from faults.conftest import TRIES, DistillConfig, same
from forks import camkd
from tallying import Tally

pytestmark = pytest.mark.fault

FULL = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


def test_no_file_can_grow_beyond_a_limit(
    lesson: DistillConfig, undisturbed: Path, tmp_path: Path, tally: Tally
) -> None:
    """Any limit, from what has no room for a configuration to what has room for all: the first that hits ends it."""
    dice, command = random.Random(0), lesson.command(tmp_path / "run")
    cache, hits = tmp_path / "cache", 0
    for number in range(TRIES):
        limit = int(10 ** (2 + 4 * (number + dice.random()) / TRIES))  # larger and larger, so that it gets further
        ended = camkd(str(limit), *command, cache=cache, before=FULL)
        if ended.status == 0:
            break
        hits += 1
        with tally("no file may grow beyond some size"):
            assert ended.status in (1, 2), ended.said
            assert "Traceback" not in ended.said
            said = ended.said.splitlines()[-1]
            assert said.startswith("camkd: ")
            assert str(tmp_path) in said
            assert "bytes" in said or "no room for" in said
    ended = camkd(*command, cache=cache)
    with tally("goes on when there is room again"):
        assert ended.status == 0, ended.said
        same(tmp_path / "run", undisturbed, cache)
    assert hits
