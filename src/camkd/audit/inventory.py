"""All images of a dataset with the properties that the audit uses, unreadable images included."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.config import DataConfig
from camkd.data.dataset import SPLITS, Dataset, Progress, cache_folder
from camkd.data.file_names import escape_name
from camkd.data.files import DEFAULT_SIZE, MAX_HEADERS_READ, decode_splits
from camkd.data.images import common_size, decode_full, describe_remarks
from camkd.data.listing import Listing
from camkd.data.sources import MAX_SIZE, SOURCES, locate, open_dataset, read_listing
from camkd.data.value_range import ValueRange
from camkd.types import InputError, Preprocessing


@dataclass(frozen=True)
class Inventory:
    """Images of all splits, counted through from 0 in the order train, val, test.

    Args:
        name: Name of the dataset.
        classes: Class names.
        size: Side of the decoded images in pixels.
        parts: Decoded images of each split, ``(n, size, size, 3) uint8``. Unreadable images are zero.
        splits: Split of each image, ``(N,) str``.
        labels: Class index of each image, ``(N,) int64``.
        names: Name of each image.
        paths: Path of each image file; None for a built-in dataset.
        errors: Reason why an image is unreadable, by row.
        sizes: Width and height of each readable image file in pixels, by row. Empty for a built-in dataset.
        notes: Messages for the user.
        value_range: The gray values that became 0 and 255, for gray images of more than 8 bits.
        groups: Group of each image, such as the patient; None for an image without a group.
    """

    name: str
    classes: tuple[str, ...]
    size: int
    parts: tuple[NDArray[np.uint8], ...]
    splits: NDArray[np.str_]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    paths: tuple[str, ...] | None
    errors: dict[int, str]
    sizes: dict[int, tuple[int, int]]
    notes: tuple[str, ...]
    value_range: ValueRange | None = None
    groups: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_readable(self) -> NDArray[np.bool_]:
        """Whether each image is readable, ``(N,) bool``."""
        readable = np.ones(len(self), np.bool_)
        readable[list(self.errors)] = False
        return readable

    def read_full(self, row: int) -> NDArray[np.uint8]:
        """Return a readable image at its own resolution, ``(H, W, 3)``."""
        if self.paths:
            return decode_full(self.paths[row], self.value_range)
        for part in self.parts:
            if row < len(part):
                return np.asarray(part[row])
            row -= len(part)
        raise IndexError(row)


@contextmanager
def open_inventory(config: DataConfig, progress: Progress) -> Iterator[Inventory]:
    """Decode all images of a dataset into a temporary folder of the cache. Unreadable images are recorded.

    Args:
        config: The dataset, the size, fit and interpolation of its images, and its groups.
        progress: Progress callback.

    Yields:
        The inventory. Its images are removed at the end of the block.

    Raises:
        InputError: If the dataset does not exist, has no splits and classes, or the cache has no space.
    """
    name, size = config.data, config.size
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise InputError(f"size must be 1 to {MAX_SIZE:,}, got {size:,}. Choose another size, or leave it out.")
    if name in SOURCES:
        yield _built_in(open_dataset(config, progress))
        return
    path, _ = locate(name, cache_folder(), progress)
    listing = read_listing(path, bad_images="skip", group=config.group, group_regex=config.group_regex)
    if size is None:
        size = common_size(listing.sample_paths("train", MAX_HEADERS_READ)) or DEFAULT_SIZE
    root = cache_folder() / "data"
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=root, prefix="audit-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(
            f"the cache folder '{root}' must be writable, got the error '{error.strerror}'. Set CAMKD_CACHE to a "
            "writable folder."
        ) from error
    with folder:
        preprocessing = Preprocessing(size, config.fit, config.interpolation)
        yield _decode(Path(folder.name), listing, preprocessing, progress)


def _decode(folder: Path, listing: Listing, preprocessing: Preprocessing, progress: Progress) -> Inventory:
    decoded, value_range = decode_splits(folder, listing, preprocessing, None, progress)
    parts = []
    values: dict[str, list[Any]] = {"splits": [], "labels": [], "names": [], "paths": [], "groups": []}
    errors: dict[int, str] = {}
    sizes: dict[int, tuple[int, int]] = {}
    remarks: dict[str, list[str]] = {}
    for split in SPLITS:
        start = len(values["names"])
        samples = listing.samples(split)
        names = [escape_name(file.name) for _, file in samples]
        values["splits"] += [split] * len(samples)
        values["labels"] += [label for label, _ in samples]
        values["names"] += names
        values["paths"] += listing.paths(split)
        values["groups"] += [file.group for _, file in samples]
        errors |= {start + row: reason for row, reason in sorted(decoded[split].errors.items())}
        sizes |= {start + row: pair for row, pair in sorted(decoded[split].sizes.items())}
        remarks |= {names[row]: texts for row, texts in sorted(decoded[split].remarks.items())}
        if samples:
            parts.append(np.load(folder / f"{split}_images.npy", mmap_mode="r"))
    return Inventory(
        name=listing.name,
        classes=listing.classes,
        size=preprocessing.size,
        parts=tuple(parts),
        splits=np.array(values["splits"], np.str_),
        labels=np.array(values["labels"], np.int64),
        names=tuple(values["names"]),
        paths=tuple(values["paths"]),
        errors=errors,
        sizes=sizes,
        notes=(*listing.notes, *describe_remarks(remarks)),
        value_range=value_range,
        groups=tuple(values["groups"]),
    )


def _built_in(data: Dataset) -> Inventory:
    return Inventory(
        name=data.name,
        classes=data.classes,
        size=data.size,
        parts=tuple(split.images for split in data.splits.values()),
        splits=np.repeat(np.array(SPLITS, np.str_), [len(split) for split in data.splits.values()]),
        labels=np.concatenate([split.labels for split in data.splits.values()]),
        names=tuple(f"{name} {row}" for name, split in data.splits.items() for row in range(len(split))),
        paths=None,
        errors={},
        sizes={},
        notes=data.notes,
    )
