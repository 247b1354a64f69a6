"""Run ``camkd`` commands in separate processes, forked from a server that has already imported everything."""

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

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(
    ["camkd.cli.commands.train", "camkd.experiments.pipeline", "camkd.cli.progress", "matplotlib.pyplot"]
)


@dataclass(frozen=True)
class Result:
    """Exit status and stderr of a finished command."""

    status: int | None
    stderr: str


@dataclass(frozen=True)
class RunningCommand:
    """A running command and its stderr."""

    process: BaseProcess
    stderr: IO[str]

    def send_signal(self, number: int) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def wait(self) -> Result:
        """Read the rest of stderr and wait for the end of the process."""
        stderr = self.stderr.read()
        self.process.join()
        return Result(self.process.exitcode, stderr)


def _run(arguments: Sequence[str], environment: Mapping[str, str], setup: str, stderr: Connection) -> None:
    os.dup2(stderr.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell sets it to be ignored in background jobs
    os.environ.update(environment)
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = ["camkd", *arguments]
    import torch

    from camkd.cli.main import main

    torch.set_num_threads(1)
    exec(setup, {})
    sys.exit(main(sys.argv[1:]))


@contextmanager
def start_camkd(arguments: Sequence[str], cache: Path, setup: str = "") -> Iterator[RunningCommand]:
    """Run a command for the duration of the block, then kill it.

    Args:
        arguments: Arguments of the command.
        cache: Folder for ``CAMKD_CACHE``.
        setup: Python code that the process executes first. It may remove arguments from ``sys.argv``.
    """
    reader, writer = FORK_SERVER.Pipe(duplex=False)
    process = FORK_SERVER.Process(target=_run, args=(list(arguments), {"CAMKD_CACHE": str(cache)}, setup, writer))
    with reader, open(reader.fileno(), encoding="utf-8", errors="replace", closefd=False) as stderr:
        with writer:
            process.start()
        try:
            yield RunningCommand(process, stderr)
        finally:
            process.kill()
            process.join()
            process.close()


def run_camkd(*arguments: str, cache: Path, setup: str = "") -> Result:
    """Run a command to its end."""
    with start_camkd(arguments, cache, setup) as command:
        return command.wait()
