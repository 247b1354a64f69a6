"""Methods x seeds on one data set with one budget and one knowledge store: every run a run folder, paired by seed."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import yaml

from camkd import pipeline
from camkd.comparison import Arm, Comparison
from camkd.config import DataConfig, Lesson, TrainConfig
from camkd.data.sources import open_pictures
from camkd.data.store import Dataset, Progress
from camkd.files import write_text
from camkd.filling import Job, fill
from camkd.knowledge import Knowledge
from camkd.methods import METHODS
from camkd.objectives import objective, written
from camkd.runs import Run, describe
from camkd.teachers import adopt_teacher
from camkd.train import Watch
from camkd.types import InputError

PLAN = "comparison.yaml"
LONGEST_SLUG = 100


@dataclass(frozen=True)
class Plan:
    """What is compared, and what all have in common. ``threads`` is of each run: results depend on it to the bit."""

    folder: Path
    teacher: Path
    student: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    data: DataConfig
    train: TrainConfig
    lesson: Lesson
    threads: int = 1

    def place(self, method: str, seed: int) -> Run:
        """The folder of one run."""
        return Run(self.folder / slug(method) / f"seed-{seed}")

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(method, seed) of every run, seed by seed, so that the first differences are known early."""
        return [(method, seed) for seed in self.seeds for method in self.methods]

    def missing(self) -> list[tuple[str, int]]:
        """The runs that are not finished yet."""
        return [(method, seed) for method, seed in self.runs if not self.place(method, seed).finished]

    def taught(self, method: str) -> Lesson:
        return replace(self.lesson, method=method)

    def settings(self, pictures: str) -> dict[str, Any]:
        """What all runs have in common: runs with other settings are another comparison."""
        harmless = (*pipeline.HARMLESS, "seed", "method")
        everything = {**asdict(self.data), **asdict(self.train), **asdict(self.lesson)}
        common = {name: value for name, value in everything.items() if name not in harmless}
        weights = describe(self.teacher).sha256
        named = {"teacher": str(self.teacher.resolve()), "teacher_weights": weights, "student": self.student}
        return {**named, "pictures": pictures, **common, "threads": self.threads}


def methods_of(text: str) -> tuple[str, ...]:
    """``plain, kd, ce=0.1+cam=1:pool=2``: methods separated by commas, the terms of a written sum by ``+``.

    Sums come back in the form of `camkd.objectives.written`. Raises ``InputError`` where there is none, or one comes
    twice, or commas leave it open where a sum ends.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError("a comparison needs methods: give --methods some, like plain,kd,cam-kd.")
    terms = [part for part in parts if "=" in part and len(objective(part).terms) == 1]
    if len(terms) > 1:
        raise InputError(
            f"{terms[0]!r} and {terms[1]!r} may be two methods or two terms of one: write the sum as "
            f"{terms[0]}+{terms[1]}, as commas separate methods."
        )
    goals = [objective(part) for part in parts]
    for place, (part, goal) in enumerate(zip(parts, goals, strict=True)):
        if goal in goals[:place]:
            raise InputError(f"{part!r} is the same method as {parts[goals.index(goal)]!r}: name each once.")
    return tuple(part if part in METHODS else written(goal) for part, goal in zip(parts, goals, strict=True))


def slug(method: str) -> str:
    """A method as the name of a folder.

    >>> slug("ce=0.1+cam=1:pool=2")
    'ce=0.1+cam=1_pool=2'
    """
    safe = re.sub(r"[^\w.+=-]", "_", method)
    if len(safe) <= LONGEST_SLUG:
        return safe
    return f"{safe[: LONGEST_SLUG - 9]}-{hashlib.sha256(method.encode()).hexdigest()[:8]}"


def prepare(plan: Plan, data: Dataset, *, resume: bool, watch: Watch) -> Plan:
    """Settle what all runs have in common, take the folder, and return the plan as it will be carried out.

    A comparison goes on in the number format, with the views and the threads that it was begun with. Raises
    ``InputError`` where the folder is another's, where a setting, the pictures or the teacher are not those that it, or
    one of its finished runs, was begun with, and where ``resume`` is not given for one that was begun.
    """
    before = _begun(plan.folder, resume)
    if before:
        precision = before["precision"] if plan.train.precision == "auto" else plan.train.precision
        view_epochs = plan.train.view_epochs or before["view_epochs"]
        train = replace(plan.train, precision=precision, view_epochs=view_epochs)
        plan = replace(plan, train=train, threads=before["threads"])
    teacher = adopt_teacher(plan.teacher, data, plan.train.device)
    config = pipeline.settled(plan.train, watch=watch)
    stored = _stored(plan)
    if stored is not None:
        _, config = pipeline.taught_by(teacher, data, config, plan.taught(stored), watch)
    plan = replace(plan, train=config)
    settings = plan.settings(data.fingerprint)
    for name, value in settings.items():
        if before and value != before.get(name):
            raise InputError(
                f"{plan.folder} was started with {name} = {before.get(name)}, now it is {value}: "
                "resume with the same settings, or give another --out."
            )
    write_text(plan.folder / PLAN, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    worker = _Worker(plan, data)
    for method, seed in plan.runs:
        if plan.place(method, seed).finished:
            worker(method, seed, Watch())  # nothing is trained: it says if the run was another
    return plan


def _begun(folder: Path, resume: bool) -> dict[str, Any]:
    """What the comparison in ``folder`` was started with, empty where it is free."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, but a comparison is a folder: give another --out.")
    if not folder.exists() or not any(folder.iterdir()):
        return {}
    try:
        before = yaml.safe_load((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError):
        before = None
    if not isinstance(before, dict) or not {"precision", "view_epochs", "threads"} <= before.keys():
        raise InputError(f"{folder} holds something else than a comparison: give another --out.")
    if not resume:
        raise InputError(f"{folder} holds a comparison: add --resume to go on with it, or give another --out.")
    return before


def carry_out(plan: Plan, data: Dataset, processes: int, watch: Watch, progress: Progress) -> dict[str, str]:
    """Make the runs that are missing, one after another or in ``processes`` at once.

    The teacher is asked first, about all views that any run will see. A run that diverges is left as it is and the
    others go on; returned is what was said of each such run. After Ctrl-C what is done is kept, and runs that were on
    their way go on from where they stopped when the comparison is resumed.
    """
    missing, failed = plan.missing(), {}
    stored = _stored(replace(plan, methods=tuple(method for method, _ in missing)))
    if stored is not None:
        knowledge, _ = _Worker(plan, data).knowledge(stored)
        if knowledge is not None and knowledge.store is not None:
            fill(Job(plan.teacher, plan.data, plan.train, plan.taught(stored)), data, processes, progress)
    for (method, seed), error in _made(plan, data, missing, processes, watch):
        name = f"{method}, seed {seed}"
        if error is not None:
            failed[name] = str(error)
            watch.note(f"{name} failed: {error}")
            continue
        found, done = plan.place(method, seed).read_metrics(), len(plan.runs) - len(plan.missing())
        watch.note(
            f"{name}: validation {found['val_accuracy']:.1%}, {found['seconds']:,.0f} s; "
            f"{done} of {len(plan.runs)} runs are done"
        )
    return failed


def collect(plan: Plan) -> Comparison:
    """The finished runs of a comparison."""
    arms = []
    for method in plan.methods:
        runs = {seed: plan.place(method, seed) for seed in plan.seeds}
        arms.append(Arm(method, {seed: run.read_metrics() for seed, run in runs.items() if run.finished}))
    return Comparison(tuple(arms))


def _stored(plan: Plan) -> str | None:
    """A method whose teacher's answers are kept; all such methods share one store."""
    for method in plan.methods:
        goal = pipeline.objective_of(plan.taught(method), plan.train)
        if goal.asks_teacher and "features" not in goal.needs:
            return method
    return None


Made = tuple[tuple[str, int], Exception | None]
"""Which run ended, and why if it failed."""


def _made(plan: Plan, data: Dataset, runs: Sequence[tuple[str, int]], processes: int, watch: Watch) -> Iterator[Made]:
    if processes > 1:
        yield from _in_parallel(plan, runs, processes)
        return
    threads, worker = torch.get_num_threads(), _Worker(plan, data)
    torch.set_num_threads(plan.threads)
    try:
        for run in runs:
            yield run, worker(*run, watch)
    finally:
        torch.set_num_threads(threads)


class _Worker:
    """One process's share: pictures and teacher are opened once."""

    def __init__(self, plan: Plan, data: Dataset) -> None:
        self.plan, self.data = plan, data
        self.teacher = adopt_teacher(plan.teacher, data, plan.train.device)
        self.known: dict[str, tuple[Knowledge | None, TrainConfig]] = {}

    def knowledge(self, method: str) -> tuple[Knowledge | None, TrainConfig]:
        """What `pipeline.taught_by` says for a method, asked once."""
        if method not in self.known:
            self.known[method] = pipeline.taught_by(self.teacher, self.data, self.plan.train, self.plan.taught(method))
        return self.known[method]

    def __call__(self, method: str, seed: int, watch: Watch) -> Exception | None:
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
                watch=_Steps(watch, method),
            )
        except FloatingPointError as error:
            return error
        return None


class _Steps(Watch):
    """Shows the steps of a run, not its epochs: a comparison has too many of them."""

    def __init__(self, watch: Watch, method: str) -> None:
        self.watch, self.method = watch, method
        self.step = watch.step  # type: ignore[method-assign]

    def start(self, name: str, steps: int, done: int) -> None:
        self.watch.start(f"{self.method}, {name}", steps, done)


# --- several processes


def _in_parallel(plan: Plan, runs: Sequence[tuple[str, int]], processes: int) -> Iterator[Made]:
    """Yield each run as it ends; a process gets its next run as soon as it is free."""
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
                yield _received(connection)
                if waiting:
                    _send(connection, waiting.pop())
                else:
                    connection.close()
                    busy.remove(connection)
        except BaseException:
            for process in crew.values():
                process.terminate()  # it saves the state of its run first
            raise
        finally:
            for process in crew.values():
                process.join()


def _send(connection: Connection, run: tuple[str, int]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens: what comes back will say so
        connection.send(run)


def _received(connection: Connection) -> Made:
    try:
        said: Made | Exception = connection.recv()
    except (EOFError, ConnectionError):
        raise ChildProcessError(
            "a process of the comparison died, perhaps for lack of memory: add --resume, and give fewer --processes."
        ) from None
    if isinstance(said, Exception):
        raise said
    return said


def _serve(plan: Plan, connection: Connection) -> None:
    """One process: a run for each (method, seed) it is sent, until nobody listens any more."""
    torch.set_num_threads(plan.threads)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        try:
            worker = _Worker(plan, open_pictures(plan.data))
            while True:
                method, seed = connection.recv()
                connection.send(((method, seed), worker(method, seed, Watch())))
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
