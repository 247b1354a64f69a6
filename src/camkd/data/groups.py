"""Groups of images, such as those of one patient, scene or day, that stay together in one split."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from camkd.data.file_names import escape_name, join_first, quote_names
from camkd.data.listing import HELD_OUT_FRACTION, ClassFiles, ImageFile
from camkd.types import InputError

MAX_FOLDS = 10
"""Number of folds into which the groups are divided, one for each tenth of the images."""


def compile_group_regex(pattern: str) -> re.Pattern[str]:
    r"""Compile the regular expression of ``--group-regex``.

    Args:
        pattern: Regular expression with a capturing group.

    Raises:
        InputError: If the expression is invalid or has no capturing group.

    Example:
        >>> compile_group_regex(r"patient(\d+)").groups
        1
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"--group-regex must be a regular expression, got {pattern!r} ({error}). Correct the expression."
        ) from error
    if not compiled.groups:
        raise InputError(
            f"--group-regex must have a capturing group, got {pattern!r}. Put parentheses around the part of the path "
            "that names the group."
        )
    return compiled


def add_groups(splits: Mapping[str, ClassFiles], path: Path, pattern: str) -> dict[str, ClassFiles]:
    """Set the group of each image file to the part of its path that a regular expression captures.

    Args:
        splits: Image files of each split.
        path: The folder or table, for messages.
        pattern: Regular expression. Its first capturing group is the group. It is searched in the path of the image as
            the folder or table has it, with ``/`` between folders.

    Returns:
        The image files with their groups.

    Raises:
        InputError: If the expression is invalid, or does not match a path.
    """
    compiled = compile_group_regex(pattern)
    unmatched = []

    def add_group(file: ImageFile) -> ImageFile:
        match = compiled.search(Path(file.name).as_posix())
        if match is None or not match[1]:
            unmatched.append(escape_name(file.name))
            return file
        return file._replace(group=match[1])

    grouped: dict[str, ClassFiles] = {
        split: {name: [add_group(file) for file in files] for name, files in classes.items()}
        for split, classes in splits.items()
    }
    if unmatched:
        raise InputError(
            f"the path of every image of '{path}' must match --group-regex {pattern!r}, got {len(unmatched):,} paths "
            f"without a group: {quote_names(unmatched)}. Correct the expression."
        )
    return grouped


def check_groups(splits: Mapping[str, ClassFiles], path: Path) -> int:
    """Check that no group is in two splits.

    Args:
        splits: Image files of each split, with groups.
        path: The folder or table, for messages.

    Returns:
        The number of groups.

    Raises:
        InputError: If a group is in two splits. The message names it.
    """
    counts: dict[str, Counter[str]] = {}
    for split, classes in splits.items():
        for files in classes.values():
            for file in files:
                assert file.group is not None
                counts.setdefault(file.group, Counter())[split] += 1
    straddling = [
        f"'{escape_name(group)}' ({', '.join(f'{number:,} {split}' for split, number in counts[group].items())})"
        for group in sorted(counts)
        if len(counts[group]) > 1
    ]
    if straddling:
        raise InputError(
            f"every group of '{path}' must be in one split, got {len(straddling):,} in several: "
            f"{join_first(straddling)}. Move the images of a group to one split."
        )
    return len(counts)


def hold_out_groups(train: ClassFiles, missing: Sequence[str], path: Path) -> dict[str, ClassFiles]:
    """Divide the groups of train into train and the ``missing`` splits, each with about a tenth of each class.

    scikit-learn's ``StratifiedGroupKFold`` divides the groups into ten folds. Each missing split gets one fold: those
    whose class counts are nearest to a tenth, among the choices that leave images of each class in train.

    Args:
        train: Image files of each class, with groups.
        missing: Names of the missing splits.
        path: The folder or table, for messages.

    Returns:
        Image files of train and of the missing splits.

    Raises:
        InputError: If scikit-learn is not installed, or there are too few groups.
    """
    classes = sorted(train)
    samples = sorted(((file, label) for label, name in enumerate(classes) for file in train[name]))
    labels = np.array([label for _, label in samples], np.int64)
    groups = np.unique([str(file.group) for file, _ in samples], return_inverse=True)[1]
    folds = _assign_folds(labels, groups)
    chosen = _choose_folds(labels, folds, len(classes), len(missing))
    if chosen is None:
        few = min(range(len(classes)), key=lambda label: len(np.unique(groups[labels == label])))
        raise InputError(
            f"'{path}' must have enough groups to hold some out for {' and '.join(missing)} and keep images of every "
            f"class in train, got {groups.max() + 1:,} groups, {len(np.unique(groups[labels == few])):,} of them with "
            f"images of '{classes[few]}'. Add images of other groups, or choose smaller groups."
        )
    split_of_fold = dict(zip(chosen, missing, strict=True))
    splits: dict[str, dict[str, list[ImageFile]]] = {
        split: {name: [] for name in classes} for split in ("train", *missing)
    }
    for (file, label), fold in zip(samples, folds.tolist(), strict=True):
        splits[split_of_fold.get(fold, "train")][classes[label]].append(file)
    return {**splits}


def _assign_folds(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divide samples into at most `MAX_FOLDS` folds, without a group in two folds and with similar class counts."""
    try:
        from sklearn.model_selection import StratifiedGroupKFold  # takes a second to import
    except ImportError as error:
        raise InputError(
            "groups need scikit-learn, which is not installed. Run pip install 'camkd[data]', or put the images into "
            "train, val and test."
        ) from error
    folds = np.zeros(len(labels), np.int64)
    count = min(MAX_FOLDS, int(groups.max()) + 1, int(np.bincount(labels).max()))
    if count < 2:
        return folds
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        divide = StratifiedGroupKFold(count, shuffle=True, random_state=0)
        for fold, (_, rows) in enumerate(divide.split(labels, labels, groups)):
            folds[rows] = fold
    return folds


def _choose_folds(
    labels: NDArray[np.int64], folds: NDArray[np.int64], num_classes: int, num_splits: int
) -> tuple[int, ...] | None:
    """Return a fold for each missing split, or None if no choice leaves images of each class in train."""
    counts = np.zeros((int(folds.max()) + 1, num_classes), np.int64)  # images by fold and class
    np.add.at(counts, (folds, labels), 1)
    totals = counts.sum(0)
    deviations = np.abs(counts - HELD_OUT_FRACTION * totals).sum(1)
    filled = np.flatnonzero(counts.any(1)).tolist()
    candidates = [
        choice for choice in permutations(filled, num_splits) if (totals - counts[list(choice)].sum(0) > 0).all()
    ]
    return min(candidates, key=lambda choice: float(deviations[list(choice)].sum()), default=None)
