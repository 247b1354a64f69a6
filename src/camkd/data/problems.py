"""Duplicates and blank images of a dataset, as faults of its splits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.data.near_duplicates import DuplicateGroup


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


def leaking_rows(groups: Sequence[DuplicateGroup], splits: NDArray[Any], split: str) -> list[int]:
    """Return the images of a split that have a duplicate in another split.

    Args:
        groups: Groups of duplicates with images of several splits.
        splits: Split of each image, ``(N,)``.
        split: Name of the split.

    Returns:
        The rows, sorted.
    """
    return sorted(row for group in groups for row in group.rows if splits[row] == split)
