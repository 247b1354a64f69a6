"""Duplicates and blank images of a dataset, as faults of its splits and labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.data.dataset import Dataset, Progress, no_progress
from camkd.data.near_duplicates import DuplicateGroup, find_duplicates
from camkd.utils.files import write_json

VERSION = 1
"""Version of the stored result. Increment it when the same images give another result."""

FILE = "problems.json"
"""Result of `check_dataset` beside the arrays of a dataset."""


@dataclass(frozen=True)
class DuplicateProblems:
    """Groups of duplicates by the fault that they are. A group may be in several lists.

    Args:
        leakage: Groups with images of several splits: what a network has seen in training is measured later.
        conflicts: Groups with several labels.
        repeated: Groups with several images of one split.
    """

    leakage: list[DuplicateGroup]
    conflicts: list[DuplicateGroup]
    repeated: list[DuplicateGroup]


def sort_groups(groups: Sequence[DuplicateGroup], splits: NDArray[Any], labels: NDArray[np.int64]) -> DuplicateProblems:
    """Sort groups of duplicates by fault.

    Args:
        groups: Groups of duplicates.
        splits: Split of each image, ``(N,)``.
        labels: Class index of each image, ``(N,)``.

    Returns:
        The groups by fault.

    Example:
        >>> group = DuplicateGroup((0, 1), True, 1.0)
        >>> problems = sort_groups([group], np.array(["train", "test"]), np.array([3, 3]))
        >>> len(problems.leakage), len(problems.conflicts), len(problems.repeated)
        (1, 0, 0)
    """
    result = DuplicateProblems([], [], [])
    for group in groups:
        rows = list(group.rows)
        num_splits = len(np.unique(splits[rows]))
        if num_splits > 1:
            result.leakage.append(group)
        if len(np.unique(labels[rows])) > 1:
            result.conflicts.append(group)
        if num_splits < len(rows):
            result.repeated.append(group)
    return result


def summarize_duplicates(problems: DuplicateProblems, splits: NDArray[Any]) -> dict[str, tuple[int, str]]:
    """Describe groups of duplicates.

    Args:
        problems: Groups of duplicates by fault.
        splits: Split of each image, ``(N,)``.

    Returns:
        Number of images and one line of text for each fault that exists: ``leakage``, ``conflicts``, ``duplicates``.

    Example:
        >>> group = DuplicateGroup((0, 1), True, 1.0)
        >>> splits = np.array(["train", "test"])
        >>> summarize_duplicates(sort_groups([group], splits, np.array([3, 3])), splits)
        {'leakage': (1, '1 test image has a duplicate in another split')}
    """
    result = {}
    if problems.leakage:
        counts = {split: _count_in_split(problems.leakage, splits, split) for split in ("val", "test")}
        total = sum(counts.values())
        parts = [f"{count:,} {split}" for split, count in counts.items() if count]
        noun = "image has" if total == 1 else "images have"
        result["leakage"] = total, f"{' and '.join(parts)} {noun} a duplicate in another split"
    if problems.conflicts:
        total = sum(len(group.rows) for group in problems.conflicts)
        result["conflicts"] = total, f"{total:,} duplicates have different labels"
    if problems.repeated:
        total = sum(len(group.rows) - len(np.unique(splits[list(group.rows)])) for group in problems.repeated)
        noun = "image repeats" if total == 1 else "images repeat"
        result["duplicates"] = total, f"{total:,} {noun} another image of the same split"
    return result


def summarize_blank(count: int) -> str:
    """Describe a number of blank images."""
    return f"{count:,} image{' is' if count == 1 else 's are'} nearly one color"


def check_dataset(data: Dataset, progress: Progress = no_progress) -> list[str]:
    """Look for duplicates and blank images of a dataset. The result is stored beside its arrays, and read if it exists.

    Args:
        data: The dataset. The result of a dataset in memory is not stored.
        progress: Progress callback.

    Returns:
        A line of text for each fault, the most severe first.

    Example:
        >>> check_dataset(open_data("shapes"))              # doctest: +SKIP
        []
    """
    images = data.train.images
    path = Path(images.filename).parent / FILE if isinstance(images, np.memmap) and images.filename else None
    if path is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == [VERSION, data.fingerprint]:
                return [str(line) for line in stored["lines"]]
    splits = np.repeat(list(data.splits), [len(split) for split in data.splits.values()])
    labels = np.concatenate([split.labels for split in data.splits.values()])
    groups, is_blank = find_duplicates(*(split.images for split in data.splits.values()), progress=progress)
    lines = [text for _, text in summarize_duplicates(sort_groups(groups, splits, labels), splits).values()]
    if is_blank.any():
        lines.append(summarize_blank(int(is_blank.sum())))
    if path is not None:
        with suppress(OSError):  # a cache that cannot be written, or a full disk
            write_json(path, {"key": [VERSION, data.fingerprint], "lines": lines})
    return lines


def _count_in_split(groups: Sequence[DuplicateGroup], splits: NDArray[Any], split: str) -> int:
    return sum(splits[row] == split for group in groups for row in group.rows)
