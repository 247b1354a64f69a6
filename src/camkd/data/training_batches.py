"""Batches of a training epoch by the settings of a run."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camkd.config import TrainConfig, num_augmented_epochs
from camkd.data.batches import SampleBatch, batch_count, epoch_order
from camkd.data.class_balance import balanced_batches
from camkd.data.dataset import UNLABELED
from camkd.utils.hashing import derive_seed


def training_batches(labels: NDArray[np.int64], config: TrainConfig, epoch: int) -> list[SampleBatch]:
    """Return the batches of a training epoch.

    Args:
        labels: Labels of the training images ``(N,)``.
        config: Settings of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        The batches: each labeled image once in random order, or with ``balance`` ``sampler`` those of
        `balanced_batches`, and unlabeled images of `unlabeled_samples` in the same ratio in every batch.
    """
    is_unlabeled = labels == UNLABELED
    if is_unlabeled.any():
        return _mixed_batches(np.flatnonzero(~is_unlabeled), np.flatnonzero(is_unlabeled), labels, config, epoch)
    return _labeled_batches(labels, config, epoch)


def unlabeled_samples(count: int, drawn: int, seed: int, epoch: int, augment_epochs: int) -> SampleBatch:
    """Draw unlabeled images for an epoch, in cycles.

    A cycle holds each image once, in an order of its own. In cycle ``c``, an image is shown in its augmented view of
    epoch ``c % augment_epochs``, so the number of views of an image is at most ``augment_epochs``.

    Args:
        count: Number of unlabeled images.
        drawn: Number of images to draw.
        seed: Augmentation seed.
        epoch: Epoch number.
        augment_epochs: Number of augmented epochs.

    Returns:
        Indices in ``0..count - 1`` and their augmented epochs, ``drawn`` of each: a pure function of the arguments.

    Example:
        >>> samples = [unlabeled_samples(3, 2, seed=0, epoch=epoch, augment_epochs=5) for epoch in range(3)]
        >>> [samples.epochs.tolist() for samples in samples]
        [[0, 0], [0, 1], [1, 1]]
    """
    positions = np.arange(epoch * drawn, (epoch + 1) * drawn)
    cycles = positions // count
    indices = np.empty(drawn, np.int64)
    for cycle in np.unique(cycles):
        is_inside = cycles == cycle
        indices[is_inside] = _permutation(seed, int(cycle), count)[positions[is_inside] % count]
    return SampleBatch(torch.from_numpy(indices), torch.from_numpy(cycles % augment_epochs))


def _permutation(seed: int, cycle: int, count: int) -> NDArray[np.int64]:
    stream = derive_seed(derive_seed(seed, _STREAM), cycle)
    return np.random.Generator(np.random.PCG64(stream)).permutation(count)


def epoch_size(labels: NDArray[np.int64], config: TrainConfig) -> int:
    """Return the number of samples of a training epoch, labeled and unlabeled.

    Args:
        labels: Labels of the training images ``(N,)``.
        config: Settings of the run.

    Example:
        >>> epoch_size(np.array([0, 1, UNLABELED, UNLABELED, UNLABELED]), TrainConfig(unlabeled_ratio=1.0))
        4
    """
    num_unlabeled = int((labels == UNLABELED).sum())
    num_labeled = len(labels) - num_unlabeled
    if not num_unlabeled or config.unlabeled_ratio is None:
        return len(labels)
    return num_labeled + max(1, round(config.unlabeled_ratio * num_labeled))


def draws_in_cycles(config: TrainConfig) -> bool:
    """Return whether an epoch may have samples of several augmented epochs."""
    return config.balance == "sampler" or config.unlabeled_ratio is not None


def _labeled_batches(labels: NDArray[np.int64], config: TrainConfig, epoch: int) -> list[SampleBatch]:
    augment_epochs = num_augmented_epochs(config)
    if config.balance == "sampler":
        return balanced_batches(labels, config.augment_seed, epoch, config.batch_size, augment_epochs)
    order = epoch_order(len(labels), config.augment_seed, epoch, config.batch_size)
    return [SampleBatch(indices, epoch % augment_epochs) for indices in order]


def _mixed_batches(
    labeled: NDArray[np.int64], unlabeled: NDArray[np.int64], labels: NDArray[np.int64], config: TrainConfig, epoch: int
) -> list[SampleBatch]:
    """Return batches that all have the same ratio of labeled and unlabeled images, up to one image."""
    augment_epochs = num_augmented_epochs(config)
    size = epoch_size(labels, config)
    own = _labeled_batches(labels[labeled], config, epoch)
    other = unlabeled_samples(len(unlabeled), size - len(labeled), config.augment_seed, epoch, augment_epochs)
    count = batch_count(size, config.batch_size)
    parts = (
        (torch.from_numpy(labeled)[torch.cat([batch.indices for batch in own])], _join_epochs(own)),
        (torch.from_numpy(unlabeled)[other.indices], _join_epochs([other])),
    )
    indices, epochs = (
        [torch.cat(pieces) for pieces in zip(*(part[field].tensor_split(count) for part in parts), strict=True)]
        for field in (0, 1)
    )
    if draws_in_cycles(config):
        return [SampleBatch(*samples) for samples in zip(indices, epochs, strict=True)]
    return [SampleBatch(rows, epoch % augment_epochs) for rows in indices]


def _join_epochs(batches: list[SampleBatch]) -> Tensor:
    """Return the augmented epoch of each sample of some batches."""
    return torch.cat([torch.as_tensor(batch.epochs).expand(len(batch.indices)) for batch in batches])


_STREAM = 0x71F5
"""Number of the random stream of the unlabeled images."""
