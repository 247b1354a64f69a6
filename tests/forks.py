"""Commands in processes of their own, forked from one that has imported everything: real ones that start at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["camkd.cli.commands.train", "camkd.experiments.pipeline", "camkd.cli.progress", "matplotlib.pyplot"]
)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int | None
    said: str


@dataclass(frozen=True)
class Started:
    """A command that runs, and its stderr."""

    process: BaseProcess
    stderr: IO[str]

    def send(self, number: int) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def ended(self) -> Ended:
        said = self.stderr.read()
        self.process.join()
        return Ended(self.process.exitcode, said)


def _work(arguments: Sequence[str], environment: Mapping[str, str], before: str, stderr: Connection) -> None:
    os.dup2(stderr.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background has told us to ignore
    os.environ.update(environment)
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = ["camkd", *arguments]
    import torch

    from camkd.cli.main import main

    torch.set_num_threads(1)
    exec(before, {})
    sys.exit(main(sys.argv[1:]))


@contextmanager
def started(arguments: Sequence[str], cache: Path, before: str = "") -> Iterator[Started]:
    """Run a command while the block runs; ``before`` is what its process does first."""
    reader, writer = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_work, args=(list(arguments), {"CAMKD_CACHE": str(cache)}, before, writer))
    with reader, open(reader.fileno(), encoding="utf-8", errors="replace", closefd=False) as stderr:
        with writer:
            process.start()
        try:
            yield Started(process, stderr)
        finally:
            process.kill()
            process.join()
            process.close()


def camkd(*arguments: str, cache: Path, before: str = "") -> Ended:
    """Run a command to its end."""
    with started(arguments, cache, before) as command:
        return command.ended()
