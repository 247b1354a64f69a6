"""Pytest hooks that count fault injections by kind and print a table at the end of the session.

A test marked ``fault("name")`` is one attempt of that fault. A test that makes several attempts is marked ``fault``
without a name, and counts its attempts with the fixture ``fault_table``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class FaultTable:
    """Numbers of attempts and passes of each fault, ``[attempts, passed]``."""

    counts: dict[str, list[int]] = field(default_factory=dict)

    @contextmanager
    def count(self, fault: str, attempts: int = 1) -> Iterator[None]:
        """Count attempts of ``fault``. They have passed if the block raises nothing."""
        count = self.counts.setdefault(fault, [0, 0])
        count[0] += attempts
        yield
        count[1] += attempts


TABLE = pytest.StashKey[FaultTable]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = FaultTable()


@pytest.fixture(scope="session")
def fault_table(pytestconfig: pytest.Config) -> FaultTable:
    return pytestconfig.stash[TABLE]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count a marked test, unless it is skipped."""
    mark = item.get_closest_marker("fault")
    if mark is None or not mark.args:
        return (yield)
    count = item.config.stash[TABLE].counts.setdefault(mark.args[0], [0, 0])
    count[0] += 1
    try:
        result = yield
    except pytest.skip.Exception:
        count[0] -= 1
        raise
    count[1] += 1
    return result


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    counts = config.stash[TABLE].counts
    if not counts:
        return
    terminalreporter.section("faults")
    width = max(map(len, counts))
    terminalreporter.line(f"{'fault':{width}}  attempts  passed  failed")
    for fault, (attempts, passed) in sorted(counts.items()):
        terminalreporter.line(f"{fault:{width}}  {attempts:8}  {passed:6}  {attempts - passed:6}")
