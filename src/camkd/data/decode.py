"""Decode many image files into one array file, with worker processes if the work takes long enough."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from subprocess import PIPE, Popen

import numpy as np
from PIL import Image

from camkd.data.dataset import Progress
from camkd.data.images import DecodedRows, decode_rows
from camkd.data.value_range import ValueSummary
from camkd.types import InputError, Preprocessing

FILES_PER_TASK = 64
"""Number of image files that a process decodes at a time."""

IN_PROCESS_SECONDS = 0.5
"""Estimated remaining time up to which no worker processes are started. Their start takes a quarter of a second."""


@dataclass(frozen=True)
class DecodeTask:
    """Image files ``paths`` to decode into ``rows`` of the array file ``file``, with the arguments of `decode_rows`."""

    file: str
    rows: Sequence[int]
    paths: Sequence[str]
    preprocessing: Preprocessing
    summarize_gray: bool

    def to_json(self) -> str:
        """Encode the task as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> DecodeTask:
        """Decode the line of `to_json`."""
        values = json.loads(line)
        preprocessing = values["preprocessing"]
        value_range = preprocessing["value_range"]
        preprocessing["value_range"] = None if value_range is None else tuple(value_range)
        return cls(**{**values, "preprocessing": Preprocessing(**preprocessing)})


class DecoderPool:
    """Pool of processes that decode image files into array files. Use it as a context manager.

    Each worker writes its rows directly into the memory-mapped file. A worker is a new interpreter with the
    ``sys.path`` of the caller. It imports this module but not the ``__main__`` module of the caller. A script
    therefore needs no ``if __name__ == "__main__"`` guard.

    Args:
        workers: Number of processes (default: one per core). With 1, only the current process is used.

    Example:
        >>> with DecoderPool(workers=4) as pool:                         # doctest: +SKIP
        ...     decoded = pool.decode_into(file, {0: path}, Preprocessing(64), no_progress, "reading images")
    """

    def __init__(self, workers: int | None) -> None:
        self.workers = workers or available_cores()
        self._workers: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.close()

    def decode_into(
        self,
        file: Path,
        paths: Mapping[int, str],
        preprocessing: Preprocessing,
        progress: Progress,
        description: str,
        *,
        summarize_gray: bool = False,
    ) -> DecodedRows:
        """Decode image files into rows of an array file.

        Args:
            file: ``.npy`` file of shape ``(N, size, size, 3)``, uint8.
            paths: Image file by row.
            preprocessing: Size, fit, interpolation and value range.
            progress: Progress callback.
            description: Third argument of ``progress``.
            summarize_gray: See `decode_rows`.

        Returns:
            The results of `decode_rows`.

        Raises:
            InputError: If a worker process ends while it decodes an image.
        """
        result = DecodedRows.empty()
        all_rows = list(paths)
        tasks = []
        for start in range(0, len(all_rows), FILES_PER_TASK):
            rows = all_rows[start : start + FILES_PER_TASK]
            row_paths = [paths[row] for row in rows]
            tasks.append(DecodeTask(str(file), rows, row_paths, preprocessing, summarize_gray))
        done = 0
        with closing(self._run(tasks)) as results:
            for task, decoded in zip(tasks, results, strict=True):
                result.update(decoded)
                done += len(task.paths)
                progress(done, len(paths), description)
        return result

    def _run(self, tasks: Sequence[DecodeTask]) -> Generator[DecodedRows, None, None]:
        """Yield the result of each task in order. Start the workers if the estimated remaining time is long."""
        begin = time.monotonic()
        for done, task in enumerate(tasks):
            remaining_seconds = (time.monotonic() - begin) / max(1, done) * (len(tasks) - done)
            if self._workers or (self.workers > 1 and done and remaining_seconds > IN_PROCESS_SECONDS):
                yield from self._run_in_workers(tasks[done:])
                return
            yield _run_task(task)

    def _run_in_workers(self, tasks: Sequence[DecodeTask]) -> Generator[DecodedRows, None, None]:
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

    def _run_in_idle_worker(self, task: DecodeTask) -> DecodedRows:
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

    def run(self, task: DecodeTask) -> DecodedRows:
        """Send a task to the process and wait for its result."""
        assert self.process.stdin and self.process.stdout
        try:
            print(task.to_json(), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise InputError(
                f"a decoder process must exit with status 0, got {self.process.wait()} while it decoded "
                f"{len(task.paths)} images, the first of which is '{task.paths[0]}'. Look for an image that is too "
                "large, or decode with --workers 1."
            )
        errors, summaries, remarks, sha256_of, sizes = map(dict, json.loads(line))
        summaries = {row: ValueSummary(*values) for row, values in summaries.items()}
        sizes = {row: (width, height) for row, (width, height) in sizes.items()}
        return DecodedRows(errors, summaries, remarks, sha256_of, sizes)

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
        decoded = _run_task(DecodeTask.from_json(line))
        print(json.dumps([list(values.items()) for values in decoded]), flush=True)  # JSON has no integer keys


def _run_task(task: DecodeTask) -> DecodedRows:
    images = np.load(task.file, mmap_mode="r+")
    return decode_rows(images, task.rows, task.paths, task.preprocessing, summarize_gray=task.summarize_gray)


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
