"""Compute teacher outputs before training, and estimate the cost."""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from camkd.config import RunConfig, epochs_in_budget
from camkd.data.augment import pick_augment
from camkd.data.batches import batch_count
from camkd.data.dataset import Dataset, Progress, no_progress
from camkd.data.sources import open_dataset
from camkd.data.training_batches import draws_in_cycles, epoch_size, training_batches
from camkd.data.views import Views
from camkd.distill.cache.build import build_teacher_cache, make_teacher_fn, record_format_for
from camkd.distill.cache.store import Store
from camkd.distill.teacher import load_teacher
from camkd.models import build
from camkd.types import InputError, Prediction
from camkd.utils.devices import keep_freed_memory, pick_device
from camkd.utils.files import check_writable

BATCHES_PER_TASK = 8
"""Number of batches of a task. After each task, progress is reported and a worker process may stop."""

TRIALS = 3
"""Number of trials of the throughput measurement. The fastest trial counts."""


class CacheCost(NamedTuple):
    """Cost of the cached outputs of a teacher.

    Attributes:
        bytes_per_image: Size of a record in bytes.
        images: Number of training images, which is the number of records per epoch.
        epochs: Number of augmented epochs of the run whose outputs fit into the cache budget.
        images_per_second: Measured throughput of the teacher.
        computed_before: Number of records in the store that are valid already.
    """

    bytes_per_image: int
    images: int
    epochs: int
    images_per_second: float
    computed_before: int = 0

    def summary(self) -> dict[str, Any]:
        """Return the cost, total bytes, and seconds for the missing outputs, as ``--json`` prints them."""
        bytes_per_epoch = self.bytes_per_image * self.images
        missing = self.images * self.epochs - self.computed_before
        return {
            **self._asdict(),
            "bytes_per_epoch": bytes_per_epoch,
            "bytes": bytes_per_epoch * self.epochs,
            "seconds": missing / self.images_per_second,
        }


class _Precomputer:
    """Teacher, cache and augmented views of one process. A call computes the missing outputs of a task.

    A task is the epoch and the index of the first of up to `BATCHES_PER_TASK` consecutive batches.
    """

    def __init__(self, config: RunConfig, data: Dataset) -> None:
        self.config = config
        keep_freed_memory()
        teacher = load_teacher(Path(config.distill.teacher), data, config.train.device)
        self.cache = build_teacher_cache(teacher, config)
        self.data = data

    @cached_property
    def _views(self) -> Views:
        train = self.config.train
        device = torch.device(pick_device(train.device))
        augment = pick_augment(train.augment, self.data)
        return Views(self.data.train, len(self.data.classes), augment, train.augment_seed, device)

    def images(self, epoch: int, indices: Tensor) -> Tensor:
        """Return the augmented views at the teacher's image size, ``(N, 3, H, W)``."""
        return self._views[epoch, indices].x if self.cache.render is None else self.cache.render(epoch, indices)

    @property
    def store(self) -> Store:
        store = self.cache.store
        assert store is not None
        return store

    @property
    def epochs(self) -> int:
        """Number of augmented epochs of the run whose outputs fit into the cache budget."""
        return epochs_in_budget(self.config, self.store.epoch_bytes)

    def tasks(self) -> Iterator[tuple[int, int]]:
        """Yield the tasks of all `epochs`; those of every training epoch of the run if samples are drawn in cycles."""
        num_batches = batch_count(epoch_size(self.data.train.labels, self.config.train), self.config.train.batch_size)
        return (
            (epoch, start) for epoch in range(self.num_task_epochs) for start in range(0, num_batches, BATCHES_PER_TASK)
        )

    @property
    def num_task_epochs(self) -> int:
        return self.config.train.epochs if draws_in_cycles(self.config.train) else self.epochs

    def __call__(self, task: tuple[int, int]) -> int:
        """Compute the missing outputs of a task. A batch with a missing output is computed as a whole.

        The batches are those of training, because the last bits of an output depend on the other images of its batch.
        If samples are drawn in cycles, the missing outputs of a batch are computed, so these bits depend on the order
        of the tasks too: several processes may give other last bits.

        Returns:
            The number of images of the task, including images with cached outputs.
        """
        epoch, start = task
        train = self.config.train
        train = replace(train, augment_epochs=self.epochs)
        num_images = 0
        for indices, epochs in training_batches(self.data.train.labels, train, epoch)[start : start + BATCHES_PER_TASK]:
            if isinstance(epochs, Tensor):
                if not self.store.read_samples(epochs.numpy(), indices.numpy())["checksum"].all():
                    self.cache.outputs(epochs, indices, self._views[epochs, indices].x)
            elif not self.store.contains(epochs, indices.numpy()):
                outputs = self.cache.teacher_fn(self.images(epochs, indices))
                self.store.write(epochs, indices.numpy(), self.store.record_format.encode(outputs))
            num_images += len(indices)
        return num_images


_precomputer: _Precomputer | None = None
"""Precomputer of a worker process, created by `_start_worker`."""


def _start_worker(config: RunConfig, threads: int) -> None:
    global _precomputer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and lets the workers finish their tasks
    torch.set_num_threads(threads)
    _precomputer = _Precomputer(config, open_dataset(config.data))


def _run_task(task: tuple[int, int]) -> int:
    assert _precomputer is not None
    return _precomputer(task)


def precompute(config: RunConfig, data: Dataset, processes: int, progress: Progress) -> Store:
    """Compute and cache the teacher outputs that a run needs, within the cache budget.

    After an interruption, the next call computes the missing outputs.

    Args:
        config: Configuration of the run. ``config.distill.teacher`` is the teacher's run folder.
        data: The dataset.
        processes: Number of processes, which share the CPU cores.
        progress: Callback ``progress(done, total, description)``.

    Returns:
        The store of the outputs.

    Raises:
        InputError: If the teacher does not fit the dataset, the budget is smaller than one epoch, or the disk is full.
        ChildProcessError: If a worker process ends unexpectedly.
    """
    precomputer = _Precomputer(config, data)
    if not precomputer.epochs:
        raise InputError(
            f"--cache-budget must hold one epoch of {precomputer.store.epoch_bytes / 1e9:.3g} GB, got "
            f"{config.distill.cache_budget}. Choose a larger budget."
        )
    check_writable(precomputer.store.folder, "Set CAMKD_CACHE to a writable folder.")
    tasks = list(precomputer.tasks())
    total = precomputer.num_task_epochs * len(data.train)
    done = 0
    if processes == 1:
        for task in tasks:
            done += precomputer(task)
            progress(done, total, "computing teacher outputs")
        return precomputer.store
    threads = max(1, torch.get_num_threads() // processes)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start_worker, (config, threads))
    try:
        for num_images in pool.map(_run_task, tasks):
            done += num_images
            progress(done, total, "computing teacher outputs")
    except BrokenProcessPool:
        raise ChildProcessError(
            "A worker process ended unexpectedly, perhaps for lack of memory. Computed outputs are kept. Use fewer "
            "--processes."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return precomputer.store


def estimate_cost(config: RunConfig, data: Dataset, progress: Progress = no_progress) -> CacheCost:
    """Estimate the cost of `precompute` in one process: count the valid records and measure the teacher's throughput.

    Args:
        config: Configuration of the run. ``config.distill.teacher`` is the teacher's run folder.
        data: The dataset.
        progress: Callback ``progress(done, total, description)``.

    Returns:
        The cost.
    """
    precomputer = _Precomputer(config, data)
    store = precomputer.store
    computed = 0
    started_epochs = [epoch for epoch in store.epochs() if epoch < precomputer.epochs]
    for done, epoch in enumerate(started_epochs, 1):
        computed += store.verify_epoch(epoch)[0]
        progress(done, len(started_epochs), "reading the cache")
    x = precomputer.images(0, torch.arange(min(config.train.batch_size, len(data.train))))
    speed = _images_per_second(precomputer.cache.teacher_fn, x)
    return CacheCost(store.record_format.dtype.itemsize, len(data.train), precomputer.epochs, speed, computed)


def estimate_architecture_cost(architecture: str, config: RunConfig, images: int, classes: int, size: int) -> CacheCost:
    """Estimate the cost of a cache without dataset and trained teacher, with random images and random weights.

    Args:
        architecture: Model name of the teacher.
        config: Configuration of the run.
        images: Number of training images.
        classes: Number of classes.
        size: Side of the images in pixels.

    Returns:
        The cost, with ``computed_before=0``.
    """
    model = build(architecture, classes, size, pretrained=False)
    device = pick_device(config.train.device)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher_fn = make_teacher_fn(model, size, config.train)
    record_format = record_format_for(model, size, teacher_fn, config.distill.cache_map_size)
    x = torch.rand(config.train.batch_size, 3, size, size).to(device, memory_format=torch.channels_last)
    bytes_per_image = record_format.dtype.itemsize
    epochs = epochs_in_budget(config, images * bytes_per_image)
    return CacheCost(bytes_per_image, images, epochs, _images_per_second(teacher_fn, x))


def _images_per_second(teacher_fn: Callable[[Tensor], Prediction], x: Tensor) -> float:
    """Return the best throughput of `TRIALS` trials, after a warm-up call."""
    teacher_fn(x)
    best_seconds = math.inf
    for _ in range(TRIALS):
        started = time.perf_counter()
        teacher_fn(x).logits.cpu()
        best_seconds = min(best_seconds, time.perf_counter() - started)
    return len(x) / best_seconds
