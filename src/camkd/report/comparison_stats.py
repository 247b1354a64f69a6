"""Statistics of a comparison of methods over seeds: means, intervals, paired differences and their significance.

All runs share augmented views and batch order. Runs with the same seed also share initial weights, so differences are
paired by seed. Intervals are Student's t intervals. They account for the choice of the initial weights only, not for
that of the views, images or teacher. This module reads and returns plain numbers and strings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from camkd.config import CRITERIA, Select
from camkd.report.metric_table import DASH, RECALL, class_recalls
from camkd.types import CHANCE_LEVELS
from camkd.utils.units import format_points

METRIC_KEYS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "min_recall",
    "val_accuracy",
    "val_balanced_accuracy",
    "val_loss",
    "ece",
    "nll",
    "teacher_agreement",
    "cam_cosine",
    "cam_pearson",
    "cam_spearman",
    "cam_iou",
    "cam_pointing_match",
    "cam_disagreement",
    "cam_inside",
    "cam_pointing_game",
    "insertion",
    "deletion",
    "road",
    "average_drop",
    "confidence_increase",
    "randomized_spearman",
)
"""Keys of the metrics in the order of the columns of ``comparison.csv``."""

COST_KEYS = ("params", "macs", "epochs", "seconds", "images_per_second")
"""Keys of the costs, the last columns of ``comparison.csv``."""

TESTED_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "teacher_agreement", "cam_cosine", "cam_inside")
"""Metrics whose differences are tested for significance."""

BASELINES = ("plain", "kd")
"""Reference methods: every method except ``plain`` is compared with ``plain``, and all but these two with ``kd``."""

CONFIDENCE = 0.95
"""Confidence level of the intervals; ``1 - CONFIDENCE`` is the significance level of the tests."""

TOLERANCE = 1e-9
"""Differences up to this value count as rounding errors."""


class Estimate(NamedTuple):
    """Mean of a metric over runs, with its 95 % confidence interval by Student's t.

    Attributes:
        mean: The mean.
        half_width: Half the width of the interval, None for a single run.
        runs: Number of runs.
    """

    mean: float
    half_width: float | None
    runs: int


def estimate(values: Sequence[float]) -> Estimate:
    """Compute the mean and the half width ``t(0.975, n - 1) * s / sqrt(n)`` of its 95 % confidence interval.

    Args:
        values: The ``n`` values of the runs, at least one. ``s`` is their sample standard deviation.

    Returns:
        The mean, half the width of the interval (None for a single value), and ``n``.

    Example:
        >>> mean, half_width, runs = estimate([1.0, 2.0, 3.0])
        >>> mean, round(half_width, 3), runs
        (2.0, 2.484, 3)
    """
    count = len(values)
    if count < 2:
        return Estimate(float(np.mean(values)), None, count)
    half_width = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return Estimate(float(np.mean(values)), float(half_width), count)


@dataclass(frozen=True)
class PairedDifference:
    """Difference of a metric between a method and a reference method, paired by seed, with a paired t-test.

    Attributes:
        method: The method.
        reference: The reference method. Its values are subtracted.
        seeds: Seeds at which both methods have the metric.
        differences: Difference at each of ``seeds``.
        p: p-value of the paired t-test; None for a single seed or differences without spread.
        p_holm: ``p`` adjusted for all comparisons of a table (Holm 1979), if it is part of a table.
    """

    method: str
    reference: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    p: float | None
    p_holm: float | None = None

    @property
    def estimate(self) -> Estimate:
        """Mean difference with its 95 % interval."""
        return estimate(self.differences)

    @property
    def outcome(self) -> str:
        """``ahead`` or ``behind`` if the p-value, adjusted if available, is at most 0.05, else ``noise``.

        The outcome is ``unknown`` without a p-value, that is with a single seed or with equal differences at all seeds.
        With few seeds and few images, equal differences happen by chance.
        """
        p = self.p if self.p_holm is None else self.p_holm
        if p is None:
            return "unknown"
        if p > 1 - CONFIDENCE:
            return "noise"
        return "ahead" if self.estimate.mean > 0 else "behind"

    @property
    def sentence(self) -> str:
        """The outcome as a sentence.

        Example:
            >>> PairedDifference("cam-kd", "kd", (0, 1), (0.004, 0.006), 0.1257).sentence
            'cam-kd versus kd: +0.50 ± 1.27 points over 2 paired seeds, within noise (p = 0.126).'
        """
        mean, half_width, count = self.estimate
        if self.p is None or half_width is None:
            seeds = "one seed" if count == 1 else f"{count} seeds that all have the same difference"
            return (
                f"{self.method} versus {self.reference}: {format_points(mean, 2)} points with {seeds}; "
                "significance unknown."
            )
        numbers = f"{format_points(mean, 2)} ± {100 * half_width:.2f} points over {count} paired seeds"
        significance = format_p_value(self.p)
        if self.p_holm is not None and self.p_holm != self.p:
            significance += f", adjusted {format_p_value(self.p_holm)}"
        if self.outcome == "noise":
            return f"{self.method} versus {self.reference}: {numbers}, within noise ({significance})."
        relation = "ahead of" if self.outcome == "ahead" else "behind"
        return f"{self.method} is {relation} {self.reference}: {numbers} ({significance})."

    def summary(self) -> dict[str, Any]:
        """Return all numbers as JSON-serializable data."""
        return {
            "method": self.method,
            "reference": self.reference,
            **self.estimate._asdict(),
            "by_seed": dict(zip(map(str, self.seeds), self.differences, strict=True)),
            "p": self.p,
            "p_holm": self.p_holm,
            "outcome": self.outcome,
        }


@dataclass(frozen=True)
class Arm:
    """One method of a comparison.

    Attributes:
        method: Name of the method.
        runs: Metrics and costs of each run, by seed.
    """

    method: str
    runs: Mapping[int, Mapping[str, Any]]

    def values(self, key: str) -> list[float]:
        """Return a metric, or the recall of a class as ``recall:CLASS``, of every run that has it."""
        runs = ({**run, **class_recalls(run)} if key.startswith(RECALL) else run for run in self.runs.values())
        return [float(run[key]) for run in runs if run.get(key) is not None]

    def estimate(self, key: str) -> Estimate | None:
        """Return the mean of a metric with its interval, or None if no run has the metric."""
        values = self.values(key)
        return estimate(values) if values else None

    def chance_levels(self, key: str) -> dict[str, Estimate]:
        """Return the available chance levels of a metric by suffix: ``cam_cosine_shuffled`` under ``shuffled``."""
        estimates = {level.suffix: self.estimate(level.key(key)) for level in CHANCE_LEVELS}
        return {suffix: level for suffix, level in estimates.items() if level is not None}


@dataclass(frozen=True)
class Comparison:
    """Results of several methods, trained with the same data and settings.

    Args:
        arms: The methods with their runs.
        select: The criterion that ranks the methods on the validation images.
    """

    arms: tuple[Arm, ...]
    select: Select = "accuracy"

    @property
    def columns(self) -> list[str]:
        """Keys of all metrics, each followed by its chance levels, and of the costs."""
        columns: list[str] = []
        for key in METRIC_KEYS:
            suffixes = {suffix for arm in self.arms for suffix in arm.chance_levels(key)}
            columns += [key, *(f"{key}_{suffix}" for suffix in sorted(suffixes))]
        return [*columns, *self.recall_keys, *COST_KEYS]

    @property
    def recall_keys(self) -> list[str]:
        """Keys ``recall:CLASS`` of all classes with test images."""
        return list(dict.fromkeys(key for arm in self.arms for run in arm.runs.values() for key in class_recalls(run)))

    @property
    def ranked(self) -> list[Arm]:
        """Methods by their mean in the criterion ``select``, best first. The test images have no influence.

        Methods without a finished run are excluded. Each mean is over the seeds that the remaining methods have in
        common. The list is empty if there is no common seed.
        """
        key, _, sign = CRITERIA[self.select]
        finished = [arm for arm in self.arms if arm.values(key)]
        seeds = [{seed for seed, run in arm.runs.items() if run.get(key) is not None} for arm in finished]
        shared = set.intersection(*seeds) if seeds else set()
        if not shared:
            return []
        arms = [Arm(arm.method, {seed: arm.runs[seed] for seed in arm.runs if seed in shared}) for arm in finished]
        return sorted(arms, key=lambda arm: -sign * float(np.mean(arm.values(key))))

    @property
    def choice(self) -> str:
        """Sentence with the best method on the validation images and the significance of its lead."""
        key, label, _ = CRITERIA[self.select]
        if not any(arm.values(key) for arm in self.arms):
            return "No run is finished yet."
        if not self.ranked:
            return f"No seed is finished for every method, so the methods cannot be ranked by {label}."
        first, *others = self.ranked
        if not others:
            return f"{first.method} is the only method with a finished run."
        second = others[0]
        lead = paired_difference(first, second, key)
        if abs(lead.estimate.mean) < TOLERANCE:
            return f"On the validation images, {first.method} and {second.method} are equally good."
        outcomes = {"ahead": "significant", "behind": "significant", "noise": "within noise"}  # a lower loss is better
        significance = outcomes.get(lead.outcome, "unknown significance")
        by = "" if self.select == "accuracy" else f" by {label}"
        return f"Best on the validation images{by}: {first.method}, ahead of {second.method} ({significance})."

    def differences(self, key: str = "accuracy") -> tuple[PairedDifference, ...]:
        """Compare all methods except ``plain`` with ``plain``, and all except ``plain`` and ``kd`` with ``kd``.

        Args:
            key: Metric to compare.

        Returns:
            The differences with at least one common seed, with p-values adjusted by `holm_adjust`.
        """
        baselines = [arm for name in BASELINES for arm in self.arms if arm.method == name]
        pairs = [
            (arm, baseline) for baseline in baselines for arm in self.arms if _tier(arm.method) > _tier(baseline.method)
        ]
        differences = [paired_difference(arm, baseline, key) for arm, baseline in pairs]
        return holm_adjust([difference for difference in differences if difference.seeds])

    def summary(self) -> dict[str, Any]:
        """Return all numbers as JSON-serializable data."""
        estimates = {arm.method: {key: arm.estimate(key) for key in self.columns} for arm in self.arms}
        return {
            "methods": {
                method: {key: value._asdict() for key, value in by_key.items() if value is not None}
                for method, by_key in estimates.items()
            },
            "differences": {
                key: [difference.summary() for difference in self.differences(key)] for key in TESTED_METRICS
            },
            "ranked_on_validation": [arm.method for arm in self.ranked],
            "choice": self.choice,
        }


def paired_difference(arm: Arm, reference: Arm, key: str = "accuracy") -> PairedDifference:
    """Compare two methods at the seeds at which both have a metric.

    Args:
        arm: The method.
        reference: The reference method, whose values are subtracted.
        key: Key of the metric.

    Returns:
        The differences by seed, with the p-value of the paired t-test.
    """
    both = (arm.runs, reference.runs)
    seeds = [seed for seed in arm.runs if all(runs.get(seed, {}).get(key) is not None for runs in both)]
    differences = [float(arm.runs[seed][key]) - float(reference.runs[seed][key]) for seed in seeds]
    has_spread = bool(differences) and max(differences) - min(differences) > TOLERANCE  # else t is infinite or 0 / 0
    p = float(stats.ttest_1samp(differences, 0.0).pvalue) if has_spread else None
    return PairedDifference(arm.method, reference.method, tuple(seeds), tuple(differences), p)


def holm_adjust(differences: Sequence[PairedDifference]) -> tuple[PairedDifference, ...]:
    """Adjust the p-values for multiple comparisons (Holm 1979).

    The i-th smallest of m p-values is multiplied by ``m - i``, counting from 0. Adjusted values never decrease with i
    and are at most 1.

    Args:
        differences: The differences of one table.

    Returns:
        The differences in the same order, with adjusted p-values.
    """
    p_values = sorted((d.p, index) for index, d in enumerate(differences) if d.p is not None)
    adjusted: dict[int, float] = {}
    largest = 0.0
    for rank, (p, index) in enumerate(p_values):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[index] = largest
    return tuple(replace(difference, p_holm=adjusted.get(index)) for index, difference in enumerate(differences))


def format_p_value(p: float) -> str:
    """Format a p-value: ``p = 0.049``, or ``p < 0.001`` if it is smaller than 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def format_estimate(value: Estimate | None) -> str:
    """Format an estimate of a share in percent, without a percent sign; None becomes a dash.

    Example:
        >>> format_estimate(Estimate(0.8348, 0.0016, 3))
        '83.48 ± 0.16'
    """
    if value is None:
        return DASH
    interval = "" if value.half_width is None else f" ± {100 * value.half_width:.2f}"
    return f"{100 * value.mean:.2f}{interval}"


def _tier(method: str) -> int:
    """Return 0 for ``plain``, 1 for ``kd``, 2 for others. A method is compared with the baselines of lower tiers."""
    return BASELINES.index(method) if method in BASELINES else len(BASELINES)
