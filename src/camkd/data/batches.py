"""Batches of sample indices: shuffled for training, in order for evaluation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from camkd.data.dataset import Split, max_rows


class SampleBatch(NamedTuple):
    """Samples of a training batch.

    Attributes:
        indices: Sample indices ``(B,)`` int64.
        epochs: Augmented epoch of the view of each sample ``(B,)`` int64, or one epoch for all samples.
    """

    indices: Tensor
    epochs: Tensor | int


DEFAULT_MAX_IMAGES = 250
"""Default maximum number of images per batch of `sequential_batches`."""

MAX_BATCH_BYTES = 1 << 22
"""Maximum number of pixel bytes per batch of `sequential_batches`: 27 images of 224x224 pixels."""


def epoch_order(count: int, seed: int, epoch: int, batch_size: int) -> tuple[Tensor, ...]:
    """Shuffle the samples of an epoch and split them into batches. The batch sizes differ by at most one.

    Args:
        count: Number of samples.
        seed: Augmentation seed.
        epoch: Epoch number.
        batch_size: Approximate batch size; see `batch_count`.

    Returns:
        Sample indices of each batch, int64. Each sample occurs once.
    """
    return shuffled(count, seed, epoch).tensor_split(batch_count(count, batch_size))


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of ``0..count - 1`` for an epoch, int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def batch_count(count: int, batch_size: int) -> int:
    """Return the number of batches per epoch.

    Args:
        count: Number of samples.
        batch_size: Approximate batch size.

    Returns:
        ``round(count / batch_size)``, at least 1.

    Example:
        >>> batch_count(1000, 128)
        8
    """
    return max(1, round(count / batch_size))


def sequential_batches(split: Split, max_images: int | None = None) -> tuple[Tensor, ...]:
    """Split the sample indices into batches in the order of the split, for evaluation.

    Args:
        split: Split with the images.
        max_images: Maximum number of images per batch (default: `DEFAULT_MAX_IMAGES`). The pixels of a batch also take
            at most `MAX_BATCH_BYTES`.

    Returns:
        Sample indices of each batch, int64.
    """
    size = min(max_images or DEFAULT_MAX_IMAGES, max_rows(MAX_BATCH_BYTES, split.images))
    batches: tuple[Tensor, ...] = torch.arange(len(split)).split(size)
    return batches
