"""Image files of a dataset by split and class, and the choice of images that are held out for a missing split."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from camkd.data.dataset import SPLITS, balanced_subset, limit_note
from camkd.data.file_names import comparable_name, dataset_name, join_first, quote_names, reveal
from camkd.types import InputError

HELD_OUT_FRACTION = 0.1
"""Fraction of each class that is held out for a missing split."""

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of each split in folders and tables, compared without regard to case, invisible characters and full width."""


class ImageFile(NamedTuple):
    """Image file.

    Attributes:
        name: Path relative to the root of the dataset, or an absolute path.
        bytes: Size of the file.
        modified_ns: Modification time in nanoseconds.
    """

    name: str
    bytes: int
    modified_ns: int


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
        """Return the paths of at most ``n`` evenly spaced images of at most ``n`` evenly spaced classes of ``split``.

        The classes share ``n`` equally; a class with fewer images than its share contributes all of them.
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


def complete_splits(
    splits: Mapping[str, ClassFiles], path: Path, kind: Literal["folder", "table"]
) -> tuple[dict[str, ClassFiles], list[str]]:
    """Add the splits that are missing: hold out images of train, or leave train and val empty without train.

    Args:
        splits: Image files of each split that exists, with a class for each name.
        path: The folder or table, for messages.
        kind: Kind of the source, for messages.

    Returns:
        Image files of train, val and test, and notes for the user.

    Raises:
        InputError: If there are too few images to hold some out.
    """
    missing = [split for split in SPLITS if split not in splits]
    complete = dict(splits)
    notes = []
    if "train" in missing:
        no_files: ClassFiles = dict.fromkeys(splits["test"], ())
        complete = {"train": no_files, "val": no_files, "test": splits["test"]}
    elif missing:
        complete |= _hold_out_splits(splits["train"], missing, path, kind)
        counts = [f"{sum(map(len, complete[split].values())):,} {split}" for split in ("train", *missing)]
        names = " and no ".join(missing)
        absent = f"is no {names} folder" if kind == "folder" else f"are no {names} rows"
        notes.append(f"there {absent}, so images of train were held out: {', '.join(counts)}")
    return complete, notes + _notes_of_absent_classes(complete)


def _notes_of_absent_classes(splits: Mapping[str, ClassFiles]) -> list[str]:
    """Name the classes without images in val and test. Accuracy per class is undefined for these classes."""
    splits_by_classes: dict[tuple[str, ...], list[str]] = {}
    for split in ("val", "test"):
        absent = tuple(name for name, files in splits[split].items() if not files)
        if 0 < len(absent) < len(splits[split]):
            splits_by_classes.setdefault(absent, []).append(split)
    return [
        f"there are no {' and no '.join(names)} images of {quote_names(absent)}"
        for absent, names in splits_by_classes.items()
    ]


def _hold_out_splits(
    train: ClassFiles, missing: Sequence[str], path: Path, kind: Literal["folder", "table"]
) -> dict[str, ClassFiles]:
    """Divide the images of train into train and the ``missing`` splits."""
    parts = {name: _assign_splits(files, missing) for name, files in train.items()}
    for split in missing:
        if not any(part[split] for part in parts.values()):
            other = f"add a '{split}' folder" if kind == "folder" else f"add rows with the split '{split}'"
            raise InputError(
                f"'{path}' must have enough images to hold some out for {split}, got too few. Add images, at least "
                f"three per class, or {other}."
            )
    return {split: {name: parts[name][split] for name in parts} for split in ("train", *missing)}


def notes_of_similar_names(names: Sequence[str], location: str) -> list[str]:
    """Name the classes whose names look alike.

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


def _path_hash(file: ImageFile) -> float:
    """Hash the path of an image to a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(os.fsencode(file.name)).digest()[:6], "big") / 2**48


def _assign_splits(files: Sequence[ImageFile], missing: Sequence[str]) -> dict[str, list[ImageFile]]:
    """Divide the images of a class into train and the ``missing`` splits, a tenth each, by a hash of their paths.

    Every split gets at least one image if there are enough images. Otherwise train has priority.
    """
    by_hash = sorted((_path_hash(file), file) for file in files)
    hashes = [value for value, _ in by_hash]
    ordered = [file for _, file in by_hash]
    starts = [bisect_left(hashes, 1 - HELD_OUT_FRACTION * count) for count in range(len(missing), 0, -1)]
    starts.append(len(ordered))
    for index in reversed(range(len(missing))):
        starts[index] = min(starts[index], starts[index + 1] - 1)
    for index in range(len(missing)):
        starts[index] = min(max(starts[index], index + 1), len(ordered))
    borders = zip(("train", *missing), [0, *starts], starts, strict=False)
    return {split: sorted(ordered[start:stop]) for split, start, stop in borders}
