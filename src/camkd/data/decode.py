"""Decode many image files into one array file, with worker processes if the work takes long enough."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from queue import SimpleQueue
from subprocess import PIPE, Popen
from typing import NamedTuple

import numpy as np
from PIL import Image

from camkd.data.dataset import Progress
from camkd.data.images import decode_rows
from camkd.types import InputError

FILES_PER_TASK = 64
"""Number of image files that a process decodes at a time."""

IN_PROCESS_SECONDS = 0.5
"""Estimated remaining time up to which no worker processes are started. Their start takes a quarter of a second."""

Errors = dict[int, str]
"""Error message by row, for each row whose file cannot be decoded."""


class DecodeTask(NamedTuple):
    """Image files ``paths`` to decode into consecutive rows of the array file ``file``, starting at row ``start``."""

    file: str
    start: int
    paths: Sequence[str]


class DecoderPool:
    """Pool of processes that decode image files into array files. Use it as a context manager.

    Each worker writes its rows directly into the memory-mapped file. A worker is a new interpreter with the
    ``sys.path`` of the caller. It imports this module but not the ``__main__`` module of the caller. A script
    therefore needs no ``if __name__ == "__main__"`` guard.

    Args:
        workers: Number of processes (default: one per core). With 1, only the current process is used.

    Example:
        >>> with DecoderPool(workers=4) as pool:                         # doctest: +SKIP
        ...     errors = pool.decode_into(file, paths, no_progress, "reading images")
    """

    def __init__(self, workers: int | None) -> None:
        self.workers = workers or _available_cores()
        self._workers: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.close()

    def decode_into(self, file: Path, paths: Sequence[str], progress: Progress, description: str) -> Errors:
        """Decode ``paths[i]`` into row ``i`` of an array file.

        Args:
            file: ``.npy`` file of shape ``(N, size, size, 3)``, uint8.
            paths: ``N`` image files.
            progress: Progress callback.
            description: Third argument of ``progress``.

        Returns:
            The error message for each row whose file cannot be decoded.

        Raises:
            InputError: If a worker process ends while it decodes an image.
        """
        errors: Errors = {}
        starts = range(0, len(paths), FILES_PER_TASK)
        tasks = [DecodeTask(str(file), start, paths[start : start + FILES_PER_TASK]) for start in starts]
        with closing(self._run(tasks)) as results:
            for task, task_errors in zip(tasks, results, strict=True):
                errors |= task_errors
                progress(task.start + len(task.paths), len(paths), description)
        return errors

    def _run(self, tasks: Sequence[DecodeTask]) -> Generator[Errors, None, None]:
        """Yield the result of each task in order. Start the workers if the estimated remaining time is long."""
        begin = time.monotonic()
        for done, task in enumerate(tasks):
            remaining_seconds = (time.monotonic() - begin) / max(1, done) * (len(tasks) - done)
            if self._workers or (self.workers > 1 and done and remaining_seconds > IN_PROCESS_SECONDS):
                yield from self._run_in_workers(tasks[done:])
                return
            yield _run_task(task)

    def _run_in_workers(self, tasks: Sequence[DecodeTask]) -> Generator[Errors, None, None]:
        for _ in range(len(self._workers), min(self.workers, len(tasks))):
            self._workers.append(_Worker())
            self._idle.put(self._workers[-1])
        with ThreadPoolExecutor(len(self._workers)) as threads:
            try:
                yield from threads.map(self._run_in_idle_worker, tasks)
            except BaseException:  # an error, Ctrl-C or a closed generator: do not wait for running tasks
                for worker in self._workers:
                    worker.process.kill()
                threads.shutdown(cancel_futures=True)
                raise

    def _run_in_idle_worker(self, task: DecodeTask) -> Errors:
        worker = self._idle.get()
        try:
            return worker.run(task)
        finally:
            self._idle.put(worker)


class _Worker:
    """Python process that runs one task after another and exits at the end of its standard input."""

    def __init__(self) -> None:
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from camkd.data.decode import worker_main; worker_main({Image.MAX_IMAGE_PIXELS!r})"
        )
        single_threaded = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = Popen(
            [sys.executable, "-c", code],
            stdin=PIPE,
            stdout=PIPE,
            encoding="ascii",
            env={**os.environ, **single_threaded},
            process_group=0,  # only the caller receives Ctrl-C
        )

    def run(self, task: DecodeTask) -> Errors:
        """Send a task to the process and wait for its result."""
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps(task), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise InputError(
                f"a decoder process exited with status {self.process.wait()} while it decoded {len(task.paths)} "
                f"images, the first of which is '{task.paths[0]}'. Look for an image that is too large, or decode with "
                "--workers 1."
            )
        return dict(json.loads(line))

    def close(self) -> None:
        """Kill the process and wait for its end."""
        with suppress(BrokenPipeError), self.process:  # an unsent task may still be in the buffer of the pipe
            self.process.kill()


def worker_main(max_pixels: int | None) -> None:
    """Run the tasks of a `DecoderPool`: read one task per line from stdin, write one result per line to stdout.

    Args:
        max_pixels: ``PIL.Image.MAX_IMAGE_PIXELS`` of the parent process.
    """
    Image.MAX_IMAGE_PIXELS = max_pixels
    for line in sys.stdin:
        errors = _run_task(DecodeTask(*json.loads(line)))
        print(json.dumps(list(errors.items())), flush=True)


def _run_task(task: DecodeTask) -> Errors:
    return decode_rows(np.load(task.file, mmap_mode="r+"), task.start, task.paths)


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
