"""A full disk at any write: the error names file and size, existing files stay intact, and the run can be resumed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from faults.conftest import ATTEMPTS, DistillCommand, assert_same_run
from support.fault_table import FaultTable
from support.forked_cli import run_camkd

pytestmark = [pytest.mark.fault, pytest.mark.slow]

LIMIT_FILE_SIZE = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


def test_resume_after_file_size_limits(
    distill_command: DistillCommand, reference_run: Path, tmp_path: Path, fault_table: FaultTable
) -> None:
    """Raise the limit from below the size of a configuration file until the whole run fits."""
    rng = random.Random(0)
    command = distill_command.for_folder(tmp_path / "run")
    cache = tmp_path / "cache"
    failures = 0
    for attempt in range(ATTEMPTS):
        limit = int(10 ** (2 + 4 * (attempt + rng.random()) / ATTEMPTS))  # increasing: each attempt gets further
        result = run_camkd(str(limit), *command, cache=cache, setup=LIMIT_FILE_SIZE)
        if result.status == 0:
            break
        failures += 1
        with fault_table.count("file size limit"):
            assert result.status in (1, 2), result.stderr
            assert "Traceback" not in result.stderr
            message = result.stderr.splitlines()[-1]
            assert message.startswith("camkd: ")
            assert str(tmp_path) in message
            assert "bytes" in message or "a full disk" in message
    result = run_camkd(*command, cache=cache)
    with fault_table.count("resume after a full disk"):
        assert result.status == 0, result.stderr
        assert_same_run(tmp_path / "run", reference_run, cache)
    assert failures
