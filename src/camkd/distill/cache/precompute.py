"""Asking a teacher ahead of time about the views that runs will see, and what that takes."""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from camkd.config import DataConfig, DistillConfig, TrainConfig, epochs_in_budget
from camkd.data.augment import Views, batch_count, epoch_order
from camkd.data.dataset import Dataset, Progress, no_progress
from camkd.data.sources import open_dataset
from camkd.distill.cache import Store
from camkd.distill.cache.build import build_teacher_cache, make_teacher_fn, record_format_for
from camkd.distill.teacher import load_teacher
from camkd.models import build
from camkd.types import InputError
from camkd.utils.devices import keep_freed_memory, pick_device

BATCHES_AT_ONCE = 8
TRIALS = 3


@dataclass(frozen=True)
class Job:
    """Which views of which pictures to ask which teacher about: the run's own options, and the teacher's folder."""

    teacher: Path
    data: DataConfig
    train: TrainConfig
    lesson: DistillConfig


class CacheCost(NamedTuple):
    """What answers take: bytes a picture, pictures an epoch, epochs within the budget, and the teacher's speed."""

    bytes_per_picture: int
    pictures: int
    epochs: int
    pictures_per_second: float
    asked_before: int = 0

    @property
    def figures(self) -> dict[str, Any]:
        """With what follows from them, for people and ``--json``."""
        epoch = self.bytes_per_picture * self.pictures
        views = self.pictures * self.epochs
        return {
            **self._asdict(),
            "bytes_per_epoch": epoch,
            "bytes": epoch * self.epochs,
            "seconds": (views - self.asked_before) / self.pictures_per_second,
        }


class _Filler:
    """One process's share of the work: the teacher, its store and the views."""

    def __init__(self, job: Job, data: Dataset) -> None:
        self.job, train = job, data.train
        keep_freed_memory()
        teacher = load_teacher(job.teacher, data, job.train.device)
        self.knowledge = build_teacher_cache(teacher, data, job.train, job.lesson)
        device = torch.device(pick_device(job.train.device))
        policy, seed = job.train.augment, job.train.augment_seed
        self.views = Views(train, len(data.classes), policy, seed, device)

    @property
    def store(self) -> Store:
        store = self.knowledge.store
        assert store is not None
        return store

    @property
    def epochs(self) -> int:
        """As many as there is room for."""
        return epochs_in_budget(self.job.train, self.job.lesson, self.store.epoch_bytes)

    def tasks(self) -> Iterator[tuple[int, int]]:
        """(epoch, first batch) of each piece of work."""
        count = batch_count(len(self.views), self.job.train.batch_size)
        return ((epoch, start) for epoch in range(self.epochs) for start in range(0, count, BATCHES_AT_ONCE))

    def __call__(self, task: tuple[int, int]) -> int:
        """Do a piece of work, in the batches of a training run, so that every bit is what that run would get."""
        epoch, start = task
        order = epoch_order(len(self.views), self.job.train.augment_seed, epoch, self.job.train.batch_size)
        done = 0
        for samples in order[start : start + BATCHES_AT_ONCE]:
            if not self.store.contains(epoch, samples.numpy()):
                answer = self.knowledge.teacher(self.views[epoch, samples].x)
                self.store.write(epoch, samples.numpy(), self.store.layout.encode(answer))
            done += len(samples)
        return done


_filler: _Filler | None = None  # one a process


def _begin(job: Job, threads: int) -> None:
    global _filler
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's: it lets the others finish their piece
    torch.set_num_threads(threads)
    _filler = _Filler(job, open_dataset(job.data))


def _work(task: tuple[int, int]) -> int:
    assert _filler is not None
    return _filler(task)


def precompute(job: Job, data: Dataset, processes: int, progress: Progress) -> Store:
    """Ask about every view that is not known yet; interrupted, it goes on where it was when it is called again.

    Raises ``InputError`` where the budget has no room for an epoch or the disk is full.
    """
    filler = _Filler(job, data)
    if not filler.epochs:
        raise InputError(
            f"a knowledge budget of {job.lesson.cache_budget} has no room for one epoch of "
            f"{filler.store.epoch_bytes / 1e9:.3g} GB: give a larger --cache-budget."
        )
    tasks, total, done = list(filler.tasks()), filler.epochs * len(data.train), 0
    if processes == 1:
        for task in tasks:
            done += filler(task)
            progress(done, total, "asking the teacher")
        return filler.store
    threads = max(1, torch.get_num_threads() // processes)
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (job, threads))
    try:
        for answered in pool.map(_work, tasks):
            done += answered
            progress(done, total, "asking the teacher")
    except BrokenProcessPool:
        raise ChildProcessError(
            "a process that asked the teacher died, perhaps for lack of memory: what is known is kept, give fewer "
            "--processes."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return filler.store


def estimate_cost(job: Job, data: Dataset, progress: Progress = no_progress) -> CacheCost:
    """What `fill` would take here in one process: what is known is read, and the teacher measured for a moment."""
    filler = _Filler(job, data)
    store, known = filler.store, 0
    begun = [epoch for epoch in store.epochs() if epoch < filler.epochs]
    for done, epoch in enumerate(begun, 1):
        known += store.verify_epoch(epoch)[0]
        progress(done, len(begun), "reading what is known")
    x = filler.views[0, torch.arange(min(job.train.batch_size, len(filler.views)))].x
    speed = _speed(filler.knowledge.teacher, x)
    return CacheCost(store.layout.dtype.itemsize, len(data.train), filler.epochs, speed, known)


def estimate_architecture_cost(
    architecture: str, config: TrainConfig, lesson: DistillConfig, pictures: int, classes: int, size: int
) -> CacheCost:
    """The same for pictures that are not here: ``pictures`` of ``size`` pixels in ``classes`` classes.

    The teacher's architecture is what counts; its weights are drawn.
    """
    model = build(architecture, classes, size, pretrained=False)
    device = pick_device(config.device)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    answer = make_teacher_fn(model, size, config)
    layout = record_format_for(model, size, answer, lesson.cache_map_size)
    x = torch.rand(config.batch_size, 3, size, size).to(device, memory_format=torch.channels_last)
    epochs = epochs_in_budget(config, lesson, pictures * layout.dtype.itemsize)
    return CacheCost(layout.dtype.itemsize, pictures, epochs, _speed(answer, x))


def _speed(answer: Any, x: torch.Tensor) -> float:
    """Pictures a second, the best of a few trials."""
    answer(x)
    best = math.inf
    for _ in range(TRIALS):
        started = time.perf_counter()
        answer(x).logits.cpu()
        best = min(best, time.perf_counter() - started)
    return len(x) / best
