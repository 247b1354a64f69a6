"""Hold out images of train for the splits that a folder or table lacks."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from camkd.data.dataset import SPLITS
from camkd.data.file_names import quote_names
from camkd.data.groups import check_groups, hold_out_groups
from camkd.data.listing import HELD_OUT_FRACTION, ClassFiles, ImageFile
from camkd.types import InputError


def complete_splits(
    splits: Mapping[str, ClassFiles],
    path: Path,
    kind: Literal["folder", "table"],
    *,
    has_groups: bool = False,
) -> tuple[dict[str, ClassFiles], list[str]]:
    """Add the splits that are missing: hold out images of train, or leave train and val empty without train.

    Args:
        splits: Image files of each split that exists, with a class for each name.
        path: The folder or table, for messages.
        kind: Kind of the source, for messages.
        has_groups: Whether the files have groups, which must each be in one split.

    Returns:
        Image files of train, val and test, and notes for the user.

    Raises:
        InputError: If there are too few images or groups to hold some out, or if a group is in two splits.
    """
    missing = [split for split in SPLITS if split not in splits]
    complete = dict(splits)
    notes = []
    groups = check_groups(splits, path) if has_groups and "train" in splits else 0
    if "train" in missing:
        no_files: ClassFiles = dict.fromkeys(splits["test"], ())
        complete = {"train": no_files, "val": no_files, "test": splits["test"]}
    elif missing:
        if groups:
            complete |= hold_out_groups(splits["train"], missing, path)
        else:
            complete |= _hold_out_splits(splits["train"], missing, path, kind)
        counts = [f"{sum(map(len, complete[split].values())):,} {split}" for split in ("train", *missing)]
        names = " and no ".join(missing)
        absent = f"is no {names} folder" if kind == "folder" else f"are no {names} rows"
        notes.append(f"there {absent}, so images of train were held out: {', '.join(counts)}")
    if groups:
        notes.append(f"each of the {groups:,} groups is in one split")
    return complete, notes + _notes_of_absent_classes(complete)


def _notes_of_absent_classes(splits: Mapping[str, ClassFiles]) -> list[str]:
    """List the classes without images in val and test. Accuracy per class is undefined for these classes."""
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
