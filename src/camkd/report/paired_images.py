"""Differences between two runs on the same test images. The images are paired, so the runs are not independent samples.

The errors and p-values are those of the sample of test images. They do not include the variation between seeds: other
runs of the same methods differ by more.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from camkd.report.run_summary import RunSummary


class DiscordantImages(NamedTuple):
    """Test images on which exactly one of two runs is correct, and McNemar's test of their difference in accuracy.

    McNemar 1947, Psychometrika 12, 153-157, with the exact binomial distribution.

    Attributes:
        first: Number of images that only the first run predicts correctly.
        second: Number of images that only the second run predicts correctly.
        images: Number of all test images.
    """

    first: int
    second: int
    images: int

    @property
    def difference(self) -> float:
        """Accuracy of the first run minus that of the second, ``(first - second) / images``."""
        return (self.first - self.second) / self.images

    @property
    def standard_error(self) -> float:
        """Standard error of the difference, ``sqrt(first + second - (first - second)^2 / images) / images``."""
        return math.sqrt(self.first + self.second - (self.first - self.second) ** 2 / self.images) / self.images

    @property
    def p(self) -> float:
        """Two-sided p-value of the exact test that ``first`` and ``second`` are equally probable; 1 if both are 0."""
        count = self.first + self.second
        return float(stats.binomtest(self.first, count).pvalue) if count else 1.0


class MeanDifference(NamedTuple):
    """Mean of the differences of paired images, with its standard error.

    Attributes:
        mean: The mean.
        standard_error: Sample standard deviation of the differences, divided by the root of their number.
    """

    mean: float
    standard_error: float


def discordant_images(first: RunSummary, second: RunSummary) -> DiscordantImages | None:
    """Count the test images on which exactly one of two runs is correct.

    Args:
        first: A run.
        second: A run.

    Returns:
        The counts. None if a run has no results of each image, or the runs have other test images.
    """
    if not have_same_images(first, second) or any(run.column("predicted") is None for run in (first, second)):
        return None
    first_correct, second_correct = (run.per_image["predicted"] == run.per_image["label"] for run in (first, second))
    return DiscordantImages(
        first=int((first_correct & ~second_correct).sum()),
        second=int((second_correct & ~first_correct).sum()),
        images=len(first_correct),
    )


def have_same_images(first: RunSummary, second: RunSummary) -> bool:
    """Return whether two runs have results of the same test images in the same order.

    The labels must be equal. The file names must be equal too; without file names, the source fingerprints.

    Args:
        first: Results of a run.
        second: Results of another run.
    """
    if not _equal_columns(first, second, "label"):
        return False
    names, other_names = first.per_image.get("name"), second.per_image.get("name")
    if names is not None and other_names is not None:
        return np.array_equal(names, other_names)
    fingerprints = {run.model_info.get("source_fingerprint") for run in (first, second)}
    return len(fingerprints) == 1


def have_same_maps(first: RunSummary, second: RunSummary) -> bool:
    """Return whether the maps of two runs are of the same test images and, image by image, of the same classes.

    The class is the one that the teacher predicts, so runs with different teachers have maps of different classes.

    Args:
        first: Results of a run.
        second: Results of another run.
    """
    return have_same_images(first, second) and _equal_columns(first, second, "teacher_predicted")


def mean_difference(first: NDArray[Any], second: NDArray[Any]) -> MeanDifference:
    """Average the differences of two columns of the same images.

    Args:
        first: Values ``(N,)``.
        second: Values ``(N,)``.

    Returns:
        The mean and its standard error, which is infinite for a single image.

    Example:
        >>> mean_difference(np.array([0.5, 0.9]), np.array([0.25, 0.25]))
        MeanDifference(mean=0.45, standard_error=0.2)
    """
    differences = first.astype(np.float64) - second
    count = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return MeanDifference(float(differences.mean()), error)


def _equal_columns(first: RunSummary, second: RunSummary, name: str) -> bool:
    """Return whether both runs have a column, with equal values."""
    values, other_values = first.column(name), second.column(name)
    return values is not None and other_values is not None and np.array_equal(values, other_values)
