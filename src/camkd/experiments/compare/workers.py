"""Train the runs of a comparison, in this process or in several worker processes."""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait

import torch

from camkd.config import RunConfig
from camkd.data.dataset import Dataset
from camkd.data.sources import open_dataset
from camkd.distill.teacher import load_teacher
from camkd.experiments import pipeline
from camkd.experiments.compare.plan import Plan
from camkd.runs.resume import Resume
from camkd.train.callbacks import Callback
from camkd.types import InputError

RunResult = tuple[tuple[str, int], Exception | None]
"""(method, seed) of a run that ended, and the error if it diverged."""


def iter_runs(
    plan: Plan, data: Dataset, runs: Sequence[tuple[str, int]], processes: int, callback: Callback
) -> Iterator[RunResult]:
    """Train runs and yield the result of each run.

    Args:
        plan: The resolved plan. Each run uses ``plan.threads`` threads.
        data: The dataset, for a single process. Several worker processes open the dataset of ``plan`` themselves.
        runs: (method, seed) of each run.
        processes: Number of processes, each for one run at a time.
        callback: Callback that receives messages, and the steps of runs in a single process.

    Yields:
        The results, in the order in which the runs end.

    Raises:
        ChildProcessError: If a worker process ends unexpectedly.
    """
    if processes > 1:
        yield from _iter_parallel(plan, runs, processes, callback)
        return
    threads = torch.get_num_threads()
    worker = Worker(plan, data)
    torch.set_num_threads(plan.threads)
    try:
        for run in runs:
            yield run, worker(*run, callback)
    finally:
        torch.set_num_threads(threads)


class Worker:
    """Train runs in one process, which opens dataset and teacher once.

    Args:
        plan: The plan.
        data: The dataset.
    """

    def __init__(self, plan: Plan, data: Dataset) -> None:
        self.plan = plan
        self.data = data
        self.teacher = load_teacher(plan.teacher, data, plan.config.train.device)
        self._prepared: dict[str, tuple[pipeline.TeacherWithCache, RunConfig]] = {}

    def prepare(self, method: str) -> tuple[pipeline.TeacherWithCache, RunConfig]:
        """Return the result of `prepare_teacher` for a method, computed at the first call."""
        if method not in self._prepared:
            config = self.plan.config_for(method)
            self._prepared[method] = pipeline.prepare_teacher(self.teacher, config)
        return self._prepared[method]

    def __call__(self, method: str, seed: int, callback: Callback) -> Exception | None:
        """Train one run.

        Returns:
            The error of a run that diverged, else None.
        """
        teacher_with_cache, config = self.prepare(method)
        config = replace(
            config,
            role="student" if teacher_with_cache.cache else "control",
            train=replace(config.train, seed=seed),
        )
        try:
            pipeline.train_run(
                self.plan.run_folder(method, seed).folder,
                config,
                self.data,
                teacher_with_cache,
                resume=Resume(),
                callbacks=[_StepsAndMessages(callback, method, seed)],
            )
        except FloatingPointError as error:
            return error
        return None


class _StepsAndMessages(Callback):
    """Forward the steps and messages of a run. Epochs are not forwarded, because a comparison has too many."""

    def __init__(self, callback: Callback, method: str, seed: int) -> None:
        self.callback = callback
        self.method = method
        self.seed = seed

    def on_message(self, text: str) -> None:
        self.callback.on_message(f"{self.method}, seed {self.seed}: {text}")

    def on_train_start(self, name: str, total_steps: int, completed_steps: int) -> None:
        self.callback.on_train_start(f"{self.method}, {name}", total_steps, completed_steps)

    def on_batch_end(self, num_images: int) -> None:
        self.callback.on_batch_end(num_images)


def _iter_parallel(
    plan: Plan, runs: Sequence[tuple[str, int]], processes: int, callback: Callback
) -> Iterator[RunResult]:
    """Train runs in several processes. Each process receives its next run when its last run ends."""
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(runs))
    workers = {}
    with _sigterm_as_interrupt():
        try:
            for _ in range(min(processes, len(runs))):
                connection, worker_connection = context.Pipe()
                workers[connection] = context.Process(target=_serve, args=(plan, worker_connection), daemon=True)
                workers[connection].start()
                worker_connection.close()
                _send(connection, waiting.pop())
            busy = list(workers)
            while busy:
                ready = wait(busy)[0]
                assert isinstance(ready, Connection)
                message = _receive(ready)
                if isinstance(message, str):
                    callback.on_message(message)
                    continue
                yield message
                if waiting:
                    _send(ready, waiting.pop())
                else:
                    ready.close()
                    busy.remove(ready)
        except BaseException:
            for connection, process in workers.items():
                connection.close()  # the worker must not block on a message
                process.terminate()  # the worker saves the state of its run first
            raise
        finally:
            for process in workers.values():
                process.join()


def _send(connection: Connection, run: tuple[str, int]) -> None:
    with contextlib.suppress(BrokenPipeError):  # a dead worker is reported by `_receive`
        connection.send(run)


def _receive(connection: Connection) -> RunResult | str:
    try:
        message: RunResult | str | Exception = connection.recv()
    except (EOFError, ConnectionError):
        raise ChildProcessError(
            "A worker process of the comparison ended unexpectedly, perhaps for lack of memory. Add --resume, and use "
            "fewer --processes."
        ) from None
    if isinstance(message, Exception):
        raise message
    return message


class _SendMessages(Callback):
    """Send the messages of a run to the parent process."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def on_message(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the run is saved even if the parent has ended
            self.connection.send(text)


def _serve(plan: Plan, connection: Connection) -> None:
    """Train each (method, seed) that the parent sends, until the parent closes the connection."""
    torch.set_num_threads(plan.threads)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        try:
            worker = Worker(plan, open_dataset(plan.config.data))
            while True:
                method, seed = connection.recv()
                connection.send(((method, seed), worker(method, seed, _SendMessages(connection))))
        except (InputError, OSError) as error:
            connection.send(error)


def _stop_with_parent() -> None:
    """Interrupt this process when its parent ends. The state of the run is saved."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if sys.platform == "win32":  # os.kill would end the process at once
        _thread.interrupt_main(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` on SIGTERM, so that workers are stopped. Does nothing outside the main thread."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
