"""Who makes the runs of a comparison: this process, one run after another, or several at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait

import torch

from camkd.config import TrainConfig
from camkd.data.dataset import Dataset
from camkd.data.sources import open_dataset
from camkd.distill.cache import TeacherCache
from camkd.distill.teacher import load_teacher
from camkd.experiments import pipeline
from camkd.experiments.compare.plan import Plan
from camkd.train.callbacks import Callback
from camkd.types import InputError

RunResult = tuple[tuple[str, int], Exception | None]
"""Which run ended, and why if it failed."""


def iter_runs(
    plan: Plan, data: Dataset, runs: Sequence[tuple[str, int]], processes: int, watch: Callback
) -> Iterator[RunResult]:
    """Make ``runs`` one after another, or in ``processes`` at once, each with the plan's number of threads."""
    if processes > 1:
        yield from in_parallel(plan, runs, processes, watch)
        return
    threads, worker = torch.get_num_threads(), Worker(plan, data)
    torch.set_num_threads(plan.threads)
    try:
        for run in runs:
            yield run, worker(*run, watch)
    finally:
        torch.set_num_threads(threads)


class Worker:
    """One process's share: pictures and teacher are opened once."""

    def __init__(self, plan: Plan, data: Dataset) -> None:
        self.plan, self.data = plan, data
        self.teacher = load_teacher(plan.teacher, data, plan.train.device)
        self.known: dict[str, tuple[TeacherCache | None, TrainConfig]] = {}

    def knowledge(self, method: str) -> tuple[TeacherCache | None, TrainConfig]:
        """What `pipeline.prepare_teacher_cache` says for a method, asked once."""
        if method not in self.known:
            self.known[method] = pipeline.prepare_teacher_cache(
                self.teacher, self.data, self.plan.train, self.plan.taught(method)
            )
        return self.known[method]

    def __call__(self, method: str, seed: int, watch: Callback) -> Exception | None:
        """Make one run; the error it ended with, if it diverged."""
        plan, (knowledge, config) = self.plan, self.knowledge(method)
        try:
            pipeline.train_run(
                plan.place(method, seed).folder,
                self.data,
                plan.student,
                "student" if knowledge else "control",
                (plan.data, replace(config, seed=seed)),
                plan.taught(method),
                self.teacher,
                knowledge,
                resume=True,
                watch=_Steps(watch, method, seed),
            )
        except FloatingPointError as error:
            return error
        return None


class _Steps(Callback):
    """Shows the steps of a run and what is said of it, not its epochs: a comparison has too many of them."""

    def __init__(self, watch: Callback, method: str, seed: int) -> None:
        self.watch, self.method, self.seed = watch, method, seed
        self.step = watch.step  # type: ignore[method-assign]

    def note(self, text: str) -> None:
        self.watch.note(f"{self.method}, seed {self.seed}: {text}")

    def start(self, name: str, steps: int, done: int) -> None:
        self.watch.start(f"{self.method}, {name}", steps, done)


# --- several processes


def in_parallel(plan: Plan, runs: Sequence[tuple[str, int]], processes: int, watch: Callback) -> Iterator[RunResult]:
    """Yield each run as it ends; a process gets its next run as soon as it is free. ``watch`` is told what it notes."""
    context = multiprocessing.get_context("spawn")
    waiting, crew = list(reversed(runs)), {}
    with _termination_interrupts():
        try:
            for _ in range(min(processes, len(runs))):
                ours, theirs = context.Pipe()
                crew[ours] = context.Process(target=_serve, args=(plan, theirs), daemon=True)
                crew[ours].start()
                theirs.close()
                _send(ours, waiting.pop())
            busy = list(crew)
            while busy:
                connection = wait(busy)[0]
                assert isinstance(connection, Connection)
                said = _received(connection)
                if isinstance(said, str):
                    watch.note(said)
                    continue
                yield said
                if waiting:
                    _send(connection, waiting.pop())
                else:
                    connection.close()
                    busy.remove(connection)
        except BaseException:
            for connection, process in crew.items():
                connection.close()  # nobody listens: it does not wait to be heard
                process.terminate()  # it saves the state of its run first
            raise
        finally:
            for process in crew.values():
                process.join()


def _send(connection: Connection, run: tuple[str, int]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens: what comes back will say so
        connection.send(run)


def _received(connection: Connection) -> RunResult | str:
    try:
        said: RunResult | str | Exception = connection.recv()
    except (EOFError, ConnectionError):
        raise ChildProcessError(
            "a process of the comparison died, perhaps for lack of memory: add --resume, and give fewer --processes."
        ) from None
    if isinstance(said, Exception):
        raise said
    return said


class _Told(Callback):
    """Passes on what is noted of a run, to the process that hands out the runs."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def note(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more: the run is saved all the same
            self.connection.send(text)


def _serve(plan: Plan, connection: Connection) -> None:
    """One process: a run for each (method, seed) it is sent, until nobody listens any more."""
    torch.set_num_threads(plan.threads)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        try:
            worker = Worker(plan, open_dataset(plan.data))
            while True:
                method, seed = connection.recv()
                connection.send(((method, seed), worker(method, seed, _Told(connection))))
        except (InputError, OSError) as error:
            connection.send(error)


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # the run's state is saved


@contextlib.contextmanager
def _termination_interrupts() -> Iterator[None]:
    """SIGTERM is an interruption like Ctrl-C, so that the processes are told; only a main thread may say so."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
