"""Image files of a dataset by split and class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from camkd.data.dataset import SPLITS, balanced_subset, limit_note
from camkd.data.file_names import comparable_name, dataset_name, join_first, reveal

HELD_OUT_FRACTION = 0.1
"""Fraction of each class that is held out for a missing split."""

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of each split in folders and tables, compared without regard to case, invisible characters and full width."""


class MaskFile(NamedTuple):
    """Image file of an object mask.

    Attributes:
        name: Path relative to the root of the dataset, or an absolute path.
        bytes: Size of the file.
        modified_ns: Modification time in nanoseconds.
    """

    name: str
    bytes: int
    modified_ns: int


class ImageFile(NamedTuple):
    """Image file.

    Attributes:
        name: Path relative to the root of the dataset, or an absolute path.
        bytes: Size of the file.
        modified_ns: Modification time in nanoseconds.
        group: Name of the group that must stay in one split, such as a patient. None without groups.
        weight: Weight of the image in the cross-entropy. None without weights.
        mask: Mask of the object. None without a mask.
    """

    name: str
    bytes: int
    modified_ns: int
    group: str | None = None
    weight: float | None = None
    mask: MaskFile | None = None


ClassFiles = Mapping[str, Sequence[ImageFile]]
"""Image files of each class, by class name."""


@dataclass(frozen=True)
class Listing:
    """Image files of a dataset by split and class.

    Args:
        root: The folder that the names of the files are relative to.
        splits: Image files of each split and class, sorted by name.
        notes: Messages for the user, for example that a split was made.
        table: The table that lists the files; None for a folder.
    """

    root: Path
    splits: Mapping[str, ClassFiles]
    notes: tuple[str, ...]
    table: Path | None = None

    @property
    def path(self) -> Path:
        """The folder or the table that the user gave."""
        return self.table or self.root

    @property
    def name(self) -> str:
        """Name of the dataset: that of the folder, or that of the table without suffix."""
        return dataset_name(str(self.path))

    @property
    def source(self) -> Literal["folder", "table"]:
        """Kind of the source."""
        return "table" if self.table else "folder"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, sorted."""
        return tuple(sorted(self.splits["train"]))

    def samples(self, split: str) -> list[tuple[int, ImageFile]]:
        """Return the label and the file of each image of ``split``, sorted by class, then by file name."""
        files = self.splits[split]
        return [(label, file) for label, name in enumerate(self.classes) for file in files[name]]

    def paths(self, split: str) -> list[str]:
        """Return the path of each image of ``split``, in the order of `samples`."""
        return [os.path.join(self.root, file.name) for _, file in self.samples(split)]

    def sample_paths(self, split: str, n: int) -> list[str]:
        """Select a sample of the images of a split.

        Evenly spaced images of each class are selected; of more than ``n`` classes, evenly spaced classes. The classes
        share ``n`` equally, and a class with fewer images than its share contributes all of them.

        Args:
            split: Name of the split.
            n: Maximum number of images.

        Returns:
            Paths of the selected images.
        """
        all_classes = list(self.splits[split].values())
        classes = all_classes[:: _stride(all_classes, n)]
        chosen = [file for files in classes for file in files[:: _stride(files, n // len(classes))]]
        return [os.path.join(self.root, file.name) for file in chosen]

    def limited(self, n: int, splits: tuple[str, ...] = SPLITS) -> Listing:
        """Keep ``n`` images of each of ``splits``: the first images of each class, as `Dataset.limited` does."""
        if n >= max(len(self.samples(split)) for split in splits):
            return self
        classes = self.classes
        limited_splits = dict(self.splits)
        for split in splits:
            samples = self.samples(split)
            kept: dict[str, list[ImageFile]] = {name: [] for name in classes}
            for row in balanced_subset(np.array([label for label, _ in samples], np.int64), n):
                label, file = samples[row]
                kept[classes[label]].append(file)
            limited_splits[split] = kept
        return replace(self, splits=limited_splits, notes=(*self.notes, limit_note(n, splits)))


def notes_of_similar_names(names: Sequence[str], location: str) -> list[str]:
    """List the classes whose names look alike.

    Args:
        names: Class names.
        location: The folder or table in quotation marks.

    Returns:
        Notes for the user.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(comparable_name(name), []).append(name)
    return [
        f"the classes {join_first([reveal(name) for name in group])} in {location} differ only in upper and lower "
        "case, in spaces or in characters that look equal or are invisible"
        for group in groups.values()
        if len(group) > 1
    ]


def split_of(name: str) -> str | None:
    """Return the split that the name of a folder or a cell of a table stands for.

    Args:
        name: The name.

    Example:
        >>> split_of("Validation"), split_of("cat")
        ('val', None)
    """
    folded = comparable_name(name)
    return next((split for split, names in SPLIT_NAMES.items() if folded in names), None)


def _stride(items: Sequence[object], n: int) -> int:
    """Return the smallest step for which ``items[::step]`` has at most ``n`` items."""
    return max(1, -(-len(items) // n))
