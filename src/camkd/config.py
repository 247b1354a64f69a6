"""Everything a training run is told, as plain data: it imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Which pictures.

    Args:
        data: shapes, cifar10, cifar100, or a folder of pictures with one folder a class.
        size: side of the pictures in pixels (default: the source's own, 64 for mixed folders).
        limit: use the first N pictures of each split, class-balanced, for trials.
        workers: processes that decode a folder (default: all cores).
        bad_images: what to do about unreadable pictures: stop and list them, or go on without them.
    """

    data: str = "shapes"
    size: int | None = None
    limit: int | None = None
    workers: int | None = None
    bad_images: Literal["fail", "skip"] = "fail"


@dataclass(frozen=True)
class TrainConfig:
    """How to train: stochastic gradient descent with Nesterov momentum, warm-up, then a cosine to zero.

    Args:
        epochs: passes over the training pictures.
        batch_size: pictures a step.
        lr: peak learning rate for a batch of 128; scaled in proportion for other sizes.
        weight_decay: of all weights but normalisation and biases.
        warmup: share of the run over which the learning rate rises.
        smoothing: label smoothing.
        clip: largest norm of the gradient.
        ema: decay a step of the averaged weights, which are what is evaluated and kept.
        views: how pictures are augmented: none, light (flip, crop), or strong (+ rotation, colour, cutout, mixing).
        view_epochs: epochs after which the views come again, so that the teacher knows them (default: never).
        view_seed: seed of the views and of the pictures' order, the same for runs to be compared.
        seed: seed of the initial weights.
        precision: number format of the forward pass; auto takes bf16 where the processor is good at it.
        device: auto, cpu, cuda, cuda:1 or mps.
        figure_every: epochs between two pictures of the student's maps (0: only at the end).
    """

    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    warmup: float = 0.2
    smoothing: float = 0.0
    clip: float = 5.0
    ema: float = 0.998
    views: str = "light"
    view_epochs: int | None = None
    view_seed: int = 0
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    figure_every: int = 5
