"""Methods x seeds on one data set with one budget and one knowledge store: every run a run folder, paired by seed."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
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
from camkd.runs import Run
from camkd.teachers import adopt_teacher
from camkd.train import Watch
from camkd.types import InputError

PLAN = "comparison.yaml"


@dataclass(frozen=True)
class Plan:
    """What is compared, and what all have in common."""

    folder: Path
    teacher: Path
    student: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    data: DataConfig
    train: TrainConfig
    lesson: Lesson

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

    def settings(self) -> dict[str, Any]:
        """What all runs have in common: runs with other settings are another comparison."""
        harmless = (*pipeline.HARMLESS, "seed", "method")
        everything = {**asdict(self.data), **asdict(self.train), **asdict(self.lesson)}
        common = {name: value for name, value in everything.items() if name not in harmless}
        return {"teacher": str(self.teacher.resolve()), "student": self.student, **common}


def methods_of(text: str) -> tuple[str, ...]:
    """``plain, kd, ce=0.1+cam=1:pool=2``: methods separated by commas, the terms of a written sum by ``+``.

    Raises ``InputError`` where there is none, or one comes twice.
    """
    methods = tuple(part.strip() for part in text.split(",") if part.strip())
    if not methods:
        raise InputError("a comparison needs methods: give --methods some, like plain,kd,cam-kd.")
    twice = next((method for place, method in enumerate(methods) if method in methods[:place]), None)
    if twice:
        raise InputError(f"the method {twice!r} is given twice: name each once.")
    return methods


def slug(method: str) -> str:
    """A method as the name of a folder.

    >>> slug("ce=0.1+cam=1:pool=2")
    'ce=0.1+cam=1_pool=2'
    """
    return re.sub(r"[^\w.+=-]+", "_", method)


def claim(plan: Plan, *, resume: bool) -> None:
    """Take the folder for this comparison.

    Raises ``InputError`` where it holds another, or one that was begun and ``resume`` is not given.
    """
    path, settings = plan.folder / PLAN, plan.settings()
    if plan.folder.exists() and not plan.folder.is_dir():
        raise InputError(f"{plan.folder} is a file, but a comparison is a folder: give another --out.")
    if not path.exists():
        write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        return
    if not resume:
        raise InputError(f"{plan.folder} holds a comparison: add --resume to go on with it, or give another --out.")
    before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    changed = next((name for name in settings if settings[name] != before.get(name)), None)
    if changed:
        raise InputError(
            f"{plan.folder} was started with {changed} = {before.get(changed)}, now it is {settings[changed]}: "
            "resume with the same settings, or give another --out."
        )


def carry_out(plan: Plan, data: Dataset, processes: int, watch: Watch, progress: Progress) -> Comparison:
    """Make the runs that are missing, one after another or in ``processes`` at once, and return what they amount to.

    The teacher is asked first, about all views that any run will see. Raises ``Interrupted`` after Ctrl-C: what is
    done is kept, and runs that were on their way go on from where they stopped.
    """
    missing = plan.missing()
    if missing:
        plan = _within_budget(plan, data, watch)
        if any(pipeline.objective_of(_lesson(plan, method), plan.train).asks_teacher for method, _ in missing):
            _ask_first(plan, data, processes, progress)
        ended: Iterator[tuple[str, int]]
        if processes == 1:
            worker = _Worker(plan, data)
            ended = (worker(method, seed, watch) for method, seed in missing)
        else:
            ended = _in_parallel(plan, missing, processes)
        for method, seed in ended:
            found, done = plan.place(method, seed).read_metrics(), len(plan.runs) - len(plan.missing())
            watch.note(
                f"{method}, seed {seed}: validation {found['val_accuracy']:.1%}, {found['seconds']:,.0f} s; "
                f"{done} of {len(plan.runs)} runs are done"
            )
    return collect(plan)


def collect(plan: Plan) -> Comparison:
    """The finished runs of a comparison."""
    arms = []
    for method in plan.methods:
        runs = {seed: plan.place(method, seed) for seed in plan.seeds}
        arms.append(Arm(method, {seed: run.read_metrics() for seed, run in runs.items() if run.finished}))
    return Comparison(tuple(arms))


def _lesson(plan: Plan, method: str) -> Lesson:
    return replace(plan.lesson, method=method)


def _stored(plan: Plan) -> str | None:
    """A method whose teacher's answers are kept; all such methods share one store."""
    for method in plan.methods:
        goal = pipeline.objective_of(_lesson(plan, method), plan.train)
        if goal.asks_teacher and "features" not in goal.needs:
            return method
    return None


def _within_budget(plan: Plan, data: Dataset, watch: Watch) -> Plan:
    """As many different views as the knowledge budget has room for, for every method alike."""
    config = pipeline.settled(plan.train, *(plan.place(*run).folder for run in plan.runs), watch=watch)
    method = _stored(plan)
    if method is not None:
        teacher = adopt_teacher(plan.teacher, data, config.device)
        _, config = pipeline.taught_by(teacher, data, config, _lesson(plan, method), watch)
    return replace(plan, train=config)


def _ask_first(plan: Plan, data: Dataset, processes: int, progress: Progress) -> None:
    method = _stored(plan)
    if method is not None:
        fill(Job(plan.teacher, plan.data, plan.train, _lesson(plan, method)), data, processes, progress)


class _Worker:
    """One process's share: pictures and teacher are opened once."""

    def __init__(self, plan: Plan, data: Dataset) -> None:
        self.plan, self.data = plan, data
        self.teacher = adopt_teacher(plan.teacher, data, plan.train.device)

    def __call__(self, method: str, seed: int, watch: Watch) -> tuple[str, int]:
        plan = self.plan
        config, lesson = replace(plan.train, seed=seed), _lesson(plan, method)
        knowledge, config = pipeline.taught_by(self.teacher, self.data, config, lesson)
        run = plan.place(method, seed)
        pipeline.train_run(
            run.folder,
            self.data,
            plan.student,
            "student" if knowledge else "control",
            (plan.data, config),
            lesson,
            self.teacher,
            knowledge,
            resume=True,
            watch=_Steps(watch),
        )
        return method, seed


class _Steps(Watch):
    """Shows the steps of a run, not its epochs: a comparison has too many of them."""

    def __init__(self, watch: Watch) -> None:
        self.start, self.step = watch.start, watch.step  # type: ignore[method-assign]


# --- several processes


def _in_parallel(plan: Plan, runs: Sequence[tuple[str, int]], processes: int) -> Iterator[tuple[str, int]]:
    """Yield (method, seed) of each run as it ends; a process gets its next run as soon as it is free."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // processes)
    waiting, crew = list(reversed(runs)), {}
    try:
        for _ in range(min(processes, len(runs))):
            ours, theirs = context.Pipe()
            crew[ours] = context.Process(target=_serve, args=(plan, threads, theirs), daemon=True)
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


def _received(connection: Connection) -> tuple[str, int]:
    try:
        said: tuple[str, int] | Exception = connection.recv()
    except (EOFError, ConnectionError):
        raise InputError(
            "a process of the comparison died, perhaps for lack of memory: add --resume, and give fewer --processes."
        ) from None
    if isinstance(said, Exception):
        raise said
    return said


def _serve(plan: Plan, threads: int, connection: Connection) -> None:
    """One process: a run for each (method, seed) it is sent, until nobody listens any more."""
    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        try:
            worker = _Worker(plan, open_pictures(plan.data))
            while True:
                method, seed = connection.recv()
                worker(method, seed, Watch())
                connection.send((method, seed))
        except (InputError, FloatingPointError, OSError) as error:
            connection.send(error)
