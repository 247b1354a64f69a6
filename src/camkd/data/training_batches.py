"""Batches of a training epoch by the settings of a run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from camkd.config import TrainConfig, num_augmented_epochs
from camkd.data.batches import SampleBatch, epoch_order
from camkd.data.class_balance import balanced_batches


def training_batches(labels: NDArray[np.int64], config: TrainConfig, epoch: int) -> list[SampleBatch]:
    """Return the batches of a training epoch.

    Args:
        labels: Labels of the training images ``(N,)``.
        config: Settings of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        The batches, ``N`` samples together: each image once in random order, or with ``balance`` ``sampler`` those of
        `balanced_batches`.
    """
    if config.balance == "sampler":
        augment_epochs = num_augmented_epochs(config)
        return balanced_batches(labels, config.augment_seed, epoch, config.batch_size, augment_epochs)
    order = epoch_order(len(labels), config.augment_seed, epoch, config.batch_size)
    return [SampleBatch(indices, epoch % (config.augment_epochs or config.epochs)) for indices in order]
