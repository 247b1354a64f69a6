"""Unbalanced classes: their counts, a note, and epochs with equally many samples of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from camkd.data.batches import SampleBatch, batch_count, shuffled
from camkd.data.file_names import quote_names
from camkd.utils.hashing import derive_seed

MAX_RATIO = 10
"""Largest ratio of the numbers of training images of two classes without a note."""


def describe_imbalance(labels: NDArray[np.int64], classes: Sequence[str]) -> str | None:
    """Describe classes of very different sizes.

    Args:
        labels: Labels of the training images ``(N,)``.
        classes: Class names.

    Returns:
        A note with the largest and the smallest class and the options for unbalanced classes. None if the largest class
        has at most `MAX_RATIO` times as many images as the smallest.

    Example:
        >>> describe_imbalance(np.array([0] * 30 + [1] * 2), ["robin", "wren"])[:66]
        "the classes are unbalanced, 15:1: 'robin' has 30 training images, "
    """
    counts = np.bincount(labels, minlength=len(classes))
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    if counts[largest] <= MAX_RATIO * counts[smallest]:
        return None
    ratio = f"{counts[largest] / counts[smallest]:.0f}:1" if counts[smallest] else "a class has none"
    return (
        f"the classes are unbalanced, {ratio}: {quote_names([classes[largest]])} has {counts[largest]:,} training "
        f"images, {quote_names([classes[smallest]])} {counts[smallest]:,}. Read balanced_accuracy; --select "
        "balanced_accuracy and --balance sampler or logits count the classes equally"
    )


def balanced_batches(
    labels: NDArray[np.int64], seed: int, epoch: int, batch_size: int, augment_epochs: int
) -> list[SampleBatch]:
    """Draw the batches of an epoch with equally many samples of each class, as many samples as there are images.

    The images of a class are drawn in cycles. A cycle holds each image of the class once, in an order of its own.
    So small classes pass through several cycles per epoch, and large classes through one cycle in several epochs. No
    image is left out, and no image of a class is drawn more often than another, up to one draw.

    In cycle ``c``, an image is shown in its augmented view of epoch ``c % augment_epochs``. A sample that is drawn
    several times in an epoch therefore has a view of its own each time, as long as there are views. The number of views
    of an image is at most ``augment_epochs``, as without balancing, so the teacher cache does not grow.

    Args:
        labels: Labels of the training images ``(N,)``.
        seed: Augmentation seed.
        epoch: Epoch number.
        batch_size: Approximate batch size; see `batch_count`.
        augment_epochs: Number of augmented epochs.

    Returns:
        The batches, ``N`` samples together: a pure function of the arguments. The numbers of samples of two classes
        differ by at most one.

    Example:
        >>> batches = balanced_batches(np.array([0, 0, 0, 0, 0, 1]), seed=0, epoch=0, batch_size=6, augment_epochs=10)
        >>> sorted(batches[0].indices.tolist()), sorted(batches[0].epochs.tolist())
        ([0, 1, 2, 5, 5, 5], [0, 0, 0, 0, 1, 2])
    """
    size = len(labels)
    present, counts = np.unique(labels, return_counts=True)
    members_of = np.split(np.argsort(labels, kind="stable"), counts.cumsum()[:-1])
    share, extra = divmod(size, len(present))
    indices = []
    cycles = []
    for position, (label, members) in enumerate(zip(present.tolist(), members_of, strict=True)):
        first, end = (
            number * share + _round_robin(number * extra, position, len(present)) for number in (epoch, epoch + 1)
        )
        for cycle in range(first // len(members), -(-end // len(members))):
            start = cycle * len(members)
            order = members[_permutation(seed, label, cycle, len(members))]
            drawn = order[max(first - start, 0) : end - start]
            indices.append(drawn)
            cycles.append(np.full(len(drawn), cycle % augment_epochs))
    all_indices = torch.from_numpy(np.concatenate(indices))
    all_cycles = torch.from_numpy(np.concatenate(cycles))
    order_of_epoch = shuffled(size, seed, epoch)
    return [
        SampleBatch(all_indices[rows], all_cycles[rows])
        for rows in order_of_epoch.tensor_split(batch_count(size, batch_size))
    ]


def _round_robin(number: int, position: int, parts: int) -> int:
    """Return how many of ``number`` items a part gets if the parts get one item each in turn."""
    return number // parts + (position < number % parts)


def _permutation(seed: int, label: int, cycle: int, count: int) -> NDArray[np.int64]:
    stream = derive_seed(derive_seed(derive_seed(seed, _SAMPLER_STREAM), label), cycle)
    return np.random.Generator(np.random.PCG64(stream)).permutation(count)


_SAMPLER_STREAM = 0x5A3B1E
"""Number of the random stream of the sampler."""
