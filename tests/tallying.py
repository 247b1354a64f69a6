"""Faults are counted: how often each was tried, what survived, what was lost; a table ends the tests.

A test of a fault is marked ``fault("its name")`` and is a try. One that tries it often is marked ``fault`` alone and
counts itself, by ``tally``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Tally:
    """What came of each fault: ``[tries, survived]``."""

    counts: dict[str, list[int]] = field(default_factory=dict)

    @contextmanager
    def __call__(self, fault: str, tries: int = 1) -> Iterator[None]:
        """Some tries of ``fault``, which survived if the block ends well."""
        count = self.counts.setdefault(fault, [0, 0])
        count[0] += tries
        yield
        count[1] += tries


TALLY = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    return pytestconfig.stash[TALLY]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count a marked test; one that skips does not count."""
    mark, counts = item.get_closest_marker("fault"), item.config.stash[TALLY].counts
    if mark is None or not mark.args:
        return (yield)
    count = counts.setdefault(mark.args[0], [0, 0])
    count[0] += 1
    try:
        result = yield
    except pytest.skip.Exception:
        count[0] -= 1
        raise
    count[1] += 1
    return result


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    counts = config.stash[TALLY].counts
    if not counts:
        return
    terminalreporter.section("faults")
    width = max(map(len, counts))
    terminalreporter.line(f"{'fault':{width}}  tries  survived  lost")
    for fault, (tries, survived) in sorted(counts.items()):
        terminalreporter.line(f"{fault:{width}}  {tries:5}  {survived:8}  {tries - survived:4}")
