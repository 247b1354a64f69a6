"""Many picture files into one array file, on several processes where there is enough to do."""

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

import numpy as np
from PIL import Image

from camkd.data.dataset import Progress
from camkd.data.images import decode_rows
from camkd.types import InputError

FILES_AT_ONCE = 64
SECONDS_ALONE = 0.5
"""How long a piece of work this process does by itself: the others take a quarter of a second to start."""

Task = tuple[str, int, Sequence[str]]
"""An array file, the row to begin with, and the pictures to decode into it."""

Reasons = dict[int, str]
"""Why the rows that are in it could not be read."""


class Decoders:
    """Decodes pictures into array files; use it as a context manager.

    ``workers`` is the number of processes (default: one a core; 1: this one alone). Each writes its rows straight
    into the memory-mapped file. They are fresh interpreters with the caller's ``sys.path`` that import this module
    and nothing of the caller's main one, so a script needs no ``if __name__ == "__main__"`` for them.
    """

    def __init__(self, workers: int | None) -> None:
        self.workers = workers or _cores()
        self._processes: list[_Process] = []
        self._idle: SimpleQueue[_Process] = SimpleQueue()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.close()

    def fill(self, file: Path, paths: Sequence[str], progress: Progress, what: str) -> Reasons:
        """Decode ``paths[i]`` into row ``i`` of ``file``, an array ``(N, size, size, 3) uint8``.

        Returns the reason for each row that could not be read. Raises `InputError` where a process dies of a picture.
        """
        bad: Reasons = {}
        starts = range(0, len(paths), FILES_AT_ONCE)
        tasks = [(str(file), start, paths[start : start + FILES_AT_ONCE]) for start in starts]
        with closing(self._answers(tasks)) as answers:
            for (_, start, chunk), reasons in zip(tasks, answers, strict=True):
                bad |= reasons
                progress(start + len(chunk), len(paths), what)
        return bad

    def _answers(self, tasks: Sequence[Task]) -> Generator[Reasons, None, None]:
        """The answer to each task, in order; from the processes as soon as they pay."""
        begun = time.monotonic()
        for done, task in enumerate(tasks):
            left = (time.monotonic() - begun) / max(1, done) * (len(tasks) - done)
            if self._processes or (self.workers > 1 and done and left > SECONDS_ALONE):
                yield from self._shared(tasks[done:])
                return
            yield _work(*task)

    def _shared(self, tasks: Sequence[Task]) -> Generator[Reasons, None, None]:
        for _ in range(len(self._processes), min(self.workers, len(tasks))):
            self._processes.append(_Process())
            self._idle.put(self._processes[-1])
        with ThreadPoolExecutor(len(self._processes)) as waiting:
            try:
                yield from waiting.map(self._ask, tasks)
            except BaseException:  # an error, Ctrl-C, or nobody who wants more: what goes on is not waited for
                for process in self._processes:
                    process.python.kill()
                waiting.shutdown(cancel_futures=True)
                raise

    def _ask(self, task: Task) -> Reasons:
        process = self._idle.get()
        try:
            return process.ask(task)
        finally:
            self._idle.put(process)


class _Process:
    """A Python that answers one task after another, and ends when its input does."""

    def __init__(self) -> None:
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from camkd.data.decode import serve; serve({Image.MAX_IMAGE_PIXELS!r})"
        )
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.python = Popen(
            [sys.executable, "-c", code],
            stdin=PIPE,
            stdout=PIPE,
            encoding="ascii",
            env={**os.environ, **one_thread},
            process_group=0,  # so that Ctrl-C is the caller's alone to see
        )

    def ask(self, task: Task) -> Reasons:
        assert self.python.stdin and self.python.stdout
        try:
            print(json.dumps(task), file=self.python.stdin, flush=True)
            answer = self.python.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise InputError(
                f"a process died (status {self.python.wait()}) of one of {len(task[2])} pictures, the first of which "
                f"is '{task[2][0]}': look for one that is far too large, or decode with --workers 1."
            )
        return dict(json.loads(answer))

    def close(self) -> None:
        with suppress(BrokenPipeError), self.python:  # a task that never reached it is still in the pipe's buffer
            self.python.kill()


def serve(most_pixels: int | None) -> None:
    """What a process of `Decoders` does: a task a line on stdin, its answer a line on stdout."""
    Image.MAX_IMAGE_PIXELS = most_pixels
    for line in sys.stdin:
        print(json.dumps(list(_work(*json.loads(line)).items())), flush=True)


def _work(file: str, start: int, paths: Sequence[str]) -> Reasons:
    return decode_rows(np.load(file, mmap_mode="r+"), start, paths)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
