"""Everything a training run is told, as plain data: it imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from camkd.types import InputError
from camkd.utils.units import parse_quantity


@dataclass(frozen=True)
class DataConfig:
    """Which pictures.

    Args:
        data: shapes, shapes-cue, cifar10, cifar100, or a folder of pictures with one folder a class.
        size: side of the pictures in pixels (default: the source's own, 64 for mixed folders).
        limit: use the first N pictures of each split, class-balanced, for trials.
        train_limit: train on the first N pictures, class-balanced, and judge on all: what if labels were few?
        workers: processes that decode a folder (default: one a core; 1: this one alone).
        bad_images: what to do about unreadable pictures: stop and list them, or go on without them.
    """

    data: str = "shapes"
    size: int | None = None
    limit: int | None = None
    train_limit: int | None = None
    workers: int | None = None
    bad_images: Literal["fail", "skip"] = "fail"


@dataclass(frozen=True)
class TrainConfig:
    """How to train: a warm-up, then a cosine to zero.

    Args:
        epochs: passes over the training pictures.
        batch_size: pictures a step; an epoch is split evenly, so a step may have a few more or fewer.
        optimizer: sgd (Nesterov momentum 0.9) or adamw; auto takes adamw for cam-net and cam-net-lite, sgd for others.
        lr: peak learning rate for a batch of 128; scaled in proportion for other sizes (default: sgd 0.2, adamw 0.01).
        weight_decay: of all weights but normalisation and biases (default: sgd 0.0005, adamw 0.01).
        warmup_fraction: share of the run over which the learning rate rises.
        label_smoothing: label smoothing, of students alone under 'camkd train'.
        grad_clip: largest norm of the gradient.
        on_nan: where loss or gradient of a batch is not finite: stop, or skip the batch.
        ema_decay: decay a step of the averaged weights, which are what is evaluated and kept.
        augment: how pictures are augmented: none, light (flip, crop), or strong (+ rotation, colour, cutout, mixing).
        augment_epochs: epochs after which the views come again, so that the teacher knows them (default: never).
        augment_seed: seed of the views and of the pictures' order, the same for runs to be compared.
        seed: seed of the initial weights.
        precision: number format of the forward pass; auto takes bf16 where the processor is good at it.
        device: auto, cpu, cuda, cuda:1 or mps.
        figure_every: epochs between two pictures of the student's maps (0: only at the end).
        tensorboard: write scalars and those pictures for TensorBoard, too (an extra), into the run's folder.
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    lr: float | None = None
    weight_decay: float | None = None
    warmup_fraction: float = 0.2
    label_smoothing: float = 0.0
    grad_clip: float = 5.0
    on_nan: Literal["stop", "skip"] = "stop"
    ema_decay: float = 0.998
    augment: str = "light"
    augment_epochs: int | None = None
    augment_seed: int = 0
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    figure_every: int = 5
    tensorboard: bool = False


class OptimizerSettings(NamedTuple):
    """What a step is made with."""

    optimizer: str
    lr: float
    weight_decay: float


DEFAULT_OPTIMIZERS = {"sgd": OptimizerSettings("sgd", 0.2, 5e-4), "adamw": OptimizerSettings("adamw", 0.01, 0.01)}
"""What did best in short runs of the built-in networks (LOG.md)."""


def resolve_optimizer(config: TrainConfig, own: str = "sgd") -> OptimizerSettings:
    """Optimiser, learning rate and weight decay of a run, ``own`` being the optimiser of its network.

    >>> stepping(TrainConfig(lr=0.002), "adamw")
    OptimizerSettings(optimizer='adamw', lr=0.002, weight_decay=0.01)
    """
    usual = DEFAULT_OPTIMIZERS[own if config.optimizer == "auto" else config.optimizer]
    return OptimizerSettings(
        usual.optimizer,
        usual.lr if config.lr is None else config.lr,
        usual.weight_decay if config.weight_decay is None else config.weight_decay,
    )


def num_augmented_epochs(config: TrainConfig) -> int:
    """How many epochs of different views a run sees."""
    return min(config.augment_epochs or config.epochs, config.epochs)


@dataclass(frozen=True)
class DistillConfig:
    """What a student learns from, beside the pictures.

    Args:
        method: a name of 'camkd list methods', or a sum of terms like ce=0.1,kd=0.9:T=4,cam=1:pool=4:schedule=early.
        cache_budget: disk space for the teacher's answers, like 4GB; once full, the views come again.
        cache_map_size: side of the maps that are kept, in cells (default: the teacher's own, at most 8).
    """

    method: str = "cam-kd"
    cache_budget: str = "8GB"
    cache_map_size: int | None = None


def epochs_in_budget(config: TrainConfig, lesson: DistillConfig, epoch_bytes: int) -> int:
    """How many epochs of views the knowledge budget has room for, of those that a run sees."""
    return min(num_augmented_epochs(config), parse_quantity(lesson.cache_budget, "cache_budget", "B") // epoch_bytes)


Range = tuple[str, Callable[[float], bool]]

COUNT: Range = ("1 or more, up to a billion", lambda value: 1 <= value <= 10**9)
NOT_NEGATIVE: Range = ("0 or more", lambda value: value >= 0)
POSITIVE: Range = ("more than 0", lambda value: value > 0)
SHARE: Range = ("between 0 and 1", lambda value: 0 <= value <= 1)
SEED: Range = ("between 0 and 4,294,967,295", lambda value: 0 <= value < 1 << 32)

RANGES: dict[str, Range] = {
    "epochs": COUNT,
    "teacher_epochs": COUNT,
    "batch_size": COUNT,
    "lr": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "warmup_fraction": SHARE,
    "label_smoothing": SHARE,
    "grad_clip": POSITIVE,
    "ema_decay": SHARE,
    "augment_epochs": COUNT,
    "augment_seed": SEED,
    "seed": SEED,
    "figure_every": NOT_NEGATIVE,
    "cache_map_size": COUNT,
}
"""What each number a run is told has to be."""


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raise ``InputError`` for the first of ``values`` that is out of its range in ``RANGES``, or is not finite."""
    for name, (wanted, holds) in RANGES.items():
        value = values.get(name)
        if value is not None and not (abs(value) < math.inf and holds(value)):
            raise InputError(f"{name} is {value}, but has to be {wanted}: give such a number.")
