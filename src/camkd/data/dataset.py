"""Datasets and their splits: images, labels, subsets, checksums and fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.data.value_range import ValueRange
from camkd.types import Fit, InputError, Interpolation

SPLITS = ("train", "val", "test")
UNLABELED = -1
"""Label of an image without a label."""

CHUNK_BYTES = 1 << 24
"""Number of bytes of pixels that are read from disk at a time."""

Progress = Callable[[int, int, str], None]
"""Progress callback ``progress(done, total, description)``, called repeatedly during a long operation.

``done`` and ``total`` count the units of work, for example images.
"""


def no_progress(done: int, total: int, description: str) -> None:
    """Ignore the progress. This is the default progress callback."""


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    ``images`` and ``masks`` are memory-mapped and read-only if the dataset was opened from the dataset cache
    (`camkd.data.store`).

    Args:
        images: RGB images, ``(N, H, W, 3) uint8``.
        labels: Class indices, ``(N,) int64``. `UNLABELED` stands for an image without a label.
        masks: Object masks, ``(N, H, W) bool``, True on the object; None if the source has no masks. The mask of an
            image without mask is False everywhere.
        names: Path of each image file, relative to the dataset folder; None if the images are not files.
        checksums: CRC-32 of each image, ``(N,) uint32``; None if the dataset was not opened from the dataset cache.
        weights: Weight of each image in the cross-entropy of the training, ``(N,) float32``, 0 or more; None if all
            images count equally. Metrics do not use it.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None = None
    names: tuple[str, ...] | None = None
    checksums: NDArray[np.uint32] | None = None
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def verify(self, rows: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        """Compare images with the checksums of the split. A split without checksums is not verified.

        Args:
            rows: Indices of the images, ``(B,) int64``.
            pixels: Images at ``rows``, ``(B, H, W, 3) uint8``, as read from disk.

        Raises:
            InputError: If the checksum of an image differs.
        """
        if self.checksums is None:
            return
        corrupt = rows[image_checksums(pixels) != self.checksums[rows]]
        if len(corrupt):
            file = self.images.filename if isinstance(self.images, np.memmap) else None
            folder = Path(file).parent if file else cache_folder() / "data"
            raise InputError(
                f"stored images must match their checksums, got {len(corrupt)} corrupt, the first at index "
                f"{corrupt[0]}. Delete the folder {folder} to rebuild it."
            )

    def take(self, rows: NDArray[np.int64]) -> Split:
        """Copy the samples at ``rows`` into memory.

        Args:
            rows: Indices of the samples, in the order of the result.

        Returns:
            A split of ``len(rows)`` samples.
        """
        return Split(
            images=self.images[rows],
            labels=self.labels[rows],
            masks=None if self.masks is None else self.masks[rows],
            names=None if self.names is None else tuple(self.names[row] for row in rows),
            checksums=None if self.checksums is None else self.checksums[rows],
            weights=None if self.weights is None else self.weights[rows],
        )


@dataclass(frozen=True)
class Dataset:
    """Image classification dataset with a training, a validation and a test split.

    Args:
        name: Name of the source or of the folder.
        classes: Class names. A label is an index into this tuple.
        train: Training split.
        val: Validation split.
        test: Test split.
        fingerprint: SHA-256 of the class names, and of the array shape, labels and pixels of each split, hexadecimal.
        source_fingerprint: SHA-256 of the class names, and of the labels and source files of each split, hexadecimal.
            It does not depend on the size of the images.
        notes: Messages for the user, for example that images were skipped or that a split was made.
        value_range: The gray values that became 0 and 255, if the source has gray images of more than 8 bits.
        fit: Treatment of images that are not square. None for a source whose images are square.
        interpolation: Filter that resized the images. None for a source whose images are not resized.
        open_at: Function ``open_at(size, interpolation) -> Dataset`` that opens the same images at another size, see
            `at_size`. None: the images exist at one size only.
        labeled_part: The dataset before unlabeled images were added to its training split. None: it has none.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    source_fingerprint: str
    notes: tuple[str, ...]
    value_range: ValueRange | None = None
    fit: Fit | None = None
    interpolation: Interpolation | None = None
    open_at: OpenAt | None = field(default=None, repr=False, compare=False)
    labeled_part: Dataset | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.train.images.shape[1])

    @property
    def labeled(self) -> Dataset:
        """The dataset without unlabeled training images; the dataset itself if it has none."""
        return self.labeled_part or self

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name, in the order train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def at_size(self, size: int, interpolation: Interpolation | None = None) -> Dataset:
        """Open the same images at another size, for example at that of a teacher.

        Args:
            size: Side of the images in pixels.
            interpolation: Filter that resizes the images (default: the filter of this dataset). Ignored for a source
                whose images are not resized.

        Returns:
            A dataset with the samples of this dataset in the same order, or the dataset itself if its images are those.

        Raises:
            InputError: If the images exist at one size only, or if the source has changed since it was opened.

        Example:
            >>> data = open_data("shapes", size=32)                    # doctest: +SKIP
            >>> data.at_size(64).train.images.shape                    # doctest: +SKIP
            (10000, 64, 64, 3)
        """
        interpolation = self.interpolation and (interpolation or self.interpolation)
        if (size, interpolation) == (self.size, self.interpolation):
            return self
        if self.open_at is None:
            raise InputError(
                f"the image size of {self.name} must be {self.size}, because its images are arrays in memory, got "
                f"{size}. Use a model of {self.size} pixels."
            )
        other = self.open_at(size, interpolation)
        if other.source_fingerprint != self.source_fingerprint:
            raise InputError(
                f"the images of {self.name} at {size} pixels must be those at {self.size} pixels, got other images. "
                "Start again: files were added, changed or removed meanwhile."
            )
        return other

    def changed(self, change: Callable[[Dataset], Dataset]) -> Dataset:
        """Apply a function to the dataset, and to the same images at any other size.

        Args:
            change: Function ``change(dataset) -> Dataset`` that selects samples or changes labels.

        Returns:
            ``change(self)``, whose `at_size` applies ``change`` too.
        """
        open_at = None if self.open_at is None else partial(_open_changed, self.open_at, change)
        return replace(change(self), open_at=open_at)

    def limited(self, n: int, splits: tuple[str, ...] = SPLITS) -> Dataset:
        """Keep ``n`` images of each of ``splits``: the first images of each class, class-balanced, copied into memory.

        The numbers of images of two classes differ by at most one, unless a class has too few images. The smaller
        dataset has another fingerprint.

        Args:
            n: Maximum number of images per split.
            splits: Names of the splits to limit. All other splits stay complete.

        Returns:
            The smaller dataset, or the dataset itself if none of ``splits`` has more than ``n`` images.

        Raises:
            InputError: If ``n`` is less than 1.
        """
        if n < 1:
            raise InputError(f"limit must be 1 or more, got {n}. Choose a larger number of images.")
        if n >= max(len(self.splits[name]) for name in splits):
            return self
        return self.changed(partial(_limit, n=n, splits=splits))


OpenAt = Callable[[int, Interpolation | None], Dataset]


def _open_changed(
    open_at: OpenAt, change: Callable[[Dataset], Dataset], size: int, interpolation: Interpolation | None
) -> Dataset:
    return open_at(size, interpolation).changed(change)


def _limit(data: Dataset, n: int, splits: tuple[str, ...]) -> Dataset:
    rows = {name: balanced_subset(data.splits[name].labels, n) for name in splits}
    subsets = {name: data.splits[name].take(rows[name]) for name in splits}
    limited = replace(data, **subsets, notes=(*data.notes, limit_note(n, splits)))  # type: ignore[arg-type]
    selection = {"rows": {name: indices.tolist() for name, indices in rows.items()}}
    return replace(
        limited,
        fingerprint=fingerprint(limited.classes, limited.splits),
        source_fingerprint=derived_fingerprint(data.source_fingerprint, selection),
    )


def limit_note(n: int, splits: tuple[str, ...]) -> str:
    """Return the note of a dataset that is limited to ``n`` class-balanced images of each of ``splits``."""
    return f"limited to {n:,} class-balanced images of {'each split' if splits == SPLITS else ' and '.join(splits)}"


def round_robin(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order images so that the classes alternate: the first of each class, then the second of each class, and so on.

    Args:
        labels: Class indices, ``(N,)``.

    Returns:
        A permutation of ``0..N-1``, ``(N,) int64``.

    Example:
        >>> round_robin(np.array([0, 0, 0, 1, 1])).tolist()
        [0, 3, 1, 4, 2]
    """
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank[rows] = np.arange(len(rows))
    return np.lexsort((labels, rank))


def balanced_subset(labels: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the first ``n`` indices of `round_robin`, in ascending order.

    Args:
        labels: Class indices, ``(N,)``.
        n: Size of the subset.

    Returns:
        Indices, ``(min(n, N),) int64``.

    Example:
        >>> balanced_subset(np.array([0, 0, 0, 1, 1]), 3).tolist()
        [0, 1, 3]
    """
    return np.sort(round_robin(labels)[:n])


def hold_out(labels: NDArray[np.int64], fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    """Choose a random, stratified subset of the images, for example for validation.

    Each class contributes ``round(fraction * count)`` images. A class of two or more images contributes at least
    one image and keeps at least one image. The result depends on the labels and the seed only.

    Args:
        labels: Class indices, ``(N,)``.
        fraction: Fraction of each class to hold out, in 0..1.
        seed: Seed of the random choice.

    Returns:
        ``(N,) bool``, true for the images that are held out.

    Example:
        >>> int(hold_out(np.repeat([0, 1], 50), 0.1).sum())
        10
    """
    held_out = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        order = np.random.default_rng([seed, int(label)]).random(len(rows)).argsort(kind="stable")
        held_out[rows[order[:count]]] = True
    return held_out


def max_rows(max_bytes: int, images: NDArray[np.uint8]) -> int:
    """Compute the number of images that fit into ``max_bytes``, at least 1.

    Args:
        max_bytes: Available memory in bytes.
        images: Array ``(N, ...) uint8``; only its shape is used.

    Returns:
        The number of images.

    Example:
        >>> max_rows(1_000_000, np.zeros((5, 224, 224, 3), np.uint8))
        6
    """
    return max(1, max_bytes // max(1, math.prod(images.shape[1:])))


def image_checksums(images: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Compute the CRC-32 of each image, which detects any single flipped bit.

    Args:
        images: ``(N, H, W, 3) uint8``.

    Returns:
        ``(N,) uint32``.
    """
    return np.fromiter((zlib.crc32(image) for image in np.ascontiguousarray(images)), np.uint32, len(images))


def fingerprint(classes: tuple[str, ...], splits: dict[str, Split]) -> str:
    """Compute the SHA-256 of the class names, and of the array shape, labels and pixels of each split."""
    return fingerprint_and_checksums(classes, splits)[0]


def fingerprint_and_checksums(
    classes: tuple[str, ...], splits: dict[str, Split]
) -> tuple[str, dict[str, NDArray[np.uint32]]]:
    """Compute the `fingerprint` and the `image_checksums` of each split in one pass over the pixels."""
    shapes = {name: split.images.shape for name, split in splits.items()}
    digest = hashlib.sha256(json.dumps([classes, shapes]).encode())
    checksums = {name: np.empty(len(split), np.uint32) for name, split in splits.items()}
    for name, split in splits.items():
        digest.update(split.labels.astype("<i8").tobytes())
        rows = max_rows(CHUNK_BYTES, split.images)
        for start in range(0, len(split), rows):
            pixels = np.ascontiguousarray(split.images[start : start + rows])
            digest.update(pixels.data)
            checksums[name][start : start + rows] = image_checksums(pixels)
    return digest.hexdigest(), checksums


def fingerprint_of_files(
    classes: tuple[str, ...], files: Mapping[str, Sequence[tuple[int, str]]], value_range: ValueRange | None
) -> str:
    """Compute the `Dataset.source_fingerprint` of image files.

    Args:
        classes: Class names.
        files: Label and SHA-256 of each file of each split.
        value_range: The value range of the dataset.

    Returns:
        SHA-256, hexadecimal.
    """
    values = [classes, {name: list(files[name]) for name in SPLITS}, value_range]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def weights_digest(split: Split) -> str | None:
    """Compute the SHA-256 of the weights of a split, hexadecimal. None without weights.

    Args:
        split: The split.
    """
    return None if split.weights is None else hashlib.sha256(split.weights.astype("<f4").tobytes()).hexdigest()


def derived_fingerprint(source_fingerprint: str, change: Mapping[str, Any]) -> str:
    """Compute the `Dataset.source_fingerprint` of a dataset that is made from another dataset.

    Args:
        source_fingerprint: Source fingerprint of the other dataset.
        change: Description of the change that does not depend on the size of the images, such as the rows that were
            taken, as JSON values.

    Returns:
        SHA-256, hexadecimal.

    Example:
        >>> derived_fingerprint("0" * 64, {"rows": {"train": [0, 2]}})[:8]
        '9d6bb048'
    """
    values = [source_fingerprint, change]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def cache_folder(cache: Path | None = None) -> Path:
    """Return the root folder of the cache.

    Args:
        cache: The folder. None: ``$CAMKD_CACHE``, or ``~/.cache/camkd`` if the variable is not set.

    Returns:
        The folder, which may not exist yet.

    Raises:
        InputError: If the home folder is needed and there is none.
    """
    if cache is not None:
        return cache
    folder = os.environ.get("CAMKD_CACHE") or "~/.cache/camkd"
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"the cache folder must be in an existing home folder, got '{folder}'. Set CAMKD_CACHE to a full path."
        ) from error
