"""What all commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from camkd.config import DataConfig

if TYPE_CHECKING:
    from camkd.cli.progress import ProgressReporter
    from camkd.data.dataset import Dataset


@dataclass(frozen=True)
class Command:
    """A command: a summary in a line, its options, and what it does; it returns what ``--json`` prints, if anything."""

    summary: str
    options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], dict[str, Any] | None]


@dataclass(frozen=True)
class Group:
    """Commands about one thing."""

    summary: str
    commands: dict[str, Command]


class ThresholdFailed(Exception):
    """A command did its work, and what it found is not what its user asked for: exit status 1.

    ``result`` is what ``--json`` prints all the same.
    """

    def __init__(self, sentence: str, result: dict[str, Any]) -> None:
        super().__init__(sentence)
        self.result = result


def open_reporter() -> ProgressReporter:
    """Where a command shows its progress; of several processes the first one's."""
    from camkd.cli.progress import ProgressReporter
    from camkd.utils.distributed import process_group

    return ProgressReporter(quiet=process_group().rank > 0)


def open_data(config: DataConfig, screen: ProgressReporter) -> Dataset:
    """Open the pictures a command is about, and say what they are."""
    from camkd.data.sources import open_dataset
    from camkd.utils.distributed import process_group, run_on_rank0

    def decode() -> None:
        open_dataset(config, screen.progress)

    if process_group().world_size > 1:
        run_on_rank0(decode)  # the others find it done
    data = open_dataset(config, screen.progress)
    screen.message(
        f"{data.name}: {len(data.train):,} training, {len(data.val):,} validation and {len(data.test):,} test pictures "
        f"of {data.train.images.shape[1]} pixels in {len(data.classes)} classes"
    )
    for note in data.notes:
        screen.message(f"  {note}")
    return data


def print_plainly(text: str) -> None:
    """One line for a person, on stderr."""
    print(text, file=sys.stderr)
