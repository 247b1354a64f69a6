"""What several methods over several seeds amount to: means, intervals, paired differences, and a plain sentence.

Runs with the same seed share initial weights, views and order, so differences are taken seed by seed; their interval
is Student's. Between seeds the initial weights differ and nothing else: an interval is for other initial weights, not
for other views, pictures or teachers. Plain numbers in, plain numbers and strings out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

FIGURES = (
    "accuracy",
    "val_accuracy",
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
    "randomised_spearman",
)
COSTS = ("params", "macs", "epochs", "seconds", "images_per_second")

COMPARED = ("accuracy", "teacher_agreement", "cam_cosine", "cam_inside")
"""The figures of which differences are taken."""

BASELINES = ("plain", "kd")
"""The methods that every other one is compared with, where they take part."""

LEVEL = 0.95
ROUNDING = 1e-9


class Estimate(NamedTuple):
    """A mean over ``runs`` runs and half the width of its 95 % interval by Student's t (None for a single run)."""

    mean: float
    half: float | None
    runs: int


def estimate(values: Sequence[float]) -> Estimate:
    """``mean +- t(0.975, n - 1) s / sqrt(n)``.

    >>> estimate([1.0, 2.0, 3.0])
    Estimate(mean=2.0, half=2.484137711992749, runs=3)
    """
    count = len(values)
    if count < 2:
        return Estimate(float(np.mean(values)), None, count)
    half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return Estimate(float(np.mean(values)), float(half), count)


@dataclass(frozen=True)
class Difference:
    """How a figure of one method differs from another's, seed by seed, with the p-value of a paired t-test.

    ``p`` is None where there is no spread to judge by; ``p_holm`` is ``p`` adjusted for all the comparisons in the
    table (Holm 1979).
    """

    one: str
    other: str
    seeds: tuple[int, ...]
    each: tuple[float, ...]
    p: float | None
    p_holm: float | None = None

    @property
    def estimate(self) -> Estimate:
        return estimate(self.each)

    @property
    def outcome(self) -> str:
        """``ahead`` or ``behind`` where the (adjusted) p-value is below 0.05, else ``noise``.

        ``unknown`` where nothing can be said of noise: one seed, or seeds that all differ by the same amount, as a few
        seeds on few pictures may by chance.
        """
        p = self.p if self.p_holm is None else self.p_holm
        if p is None:
            return "unknown"
        return "noise" if p > 1 - LEVEL else "ahead" if self.estimate.mean > 0 else "behind"

    @property
    def sentence(self) -> str:
        """The outcome in words.

        >>> Difference("cam-kd", "kd", (0, 1), (0.004, 0.006), 0.1257).sentence
        'cam-kd and kd: +0.50 ± 1.27 points over 2 paired seeds, within noise (p = 0.126).'
        """
        mean, half, count = self.estimate
        if self.p is None or half is None:
            seeds = "one seed" if count == 1 else f"{count} seeds that all differ by the same"
            return f"{self.one} and {self.other}: {points(mean)} points with {seeds}; noise cannot be told from it."
        said = f"{points(mean)} ± {100 * half:.2f} points over {count} paired seeds"
        level = p_value(self.p) + ("" if self.p_holm in (None, self.p) else f", adjusted {p_value(self.p_holm)}")
        if self.outcome == "noise":
            return f"{self.one} and {self.other}: {said}, within noise ({level})."
        where = "ahead of" if self.outcome == "ahead" else "behind"
        return f"{self.one} is {where} {self.other}: {said} ({level})."

    def summary(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "one": self.one,
            "other": self.other,
            **self.estimate._asdict(),
            "each": dict(zip(map(str, self.seeds), self.each, strict=True)),
            "p": self.p,
            "p_holm": self.p_holm,
            "outcome": self.outcome,
        }


@dataclass(frozen=True)
class Arm:
    """One method: its metrics by seed."""

    method: str
    runs: Mapping[int, Mapping[str, Any]]

    def values(self, key: str) -> list[float]:
        """A figure of every run that has it."""
        return [float(run[key]) for run in self.runs.values() if run.get(key) is not None]

    def estimate(self, key: str) -> Estimate | None:
        values = self.values(key)
        return estimate(values) if values else None

    def levels(self, key: str) -> dict[str, Estimate]:
        """What chance scores in a figure, by the end of its key: ``cam_cosine_shuffled`` is ``shuffled``."""
        names = sorted({name for run in self.runs.values() for name in run if name.startswith(f"{key}_")})
        found = {name.removeprefix(f"{key}_"): self.estimate(name) for name in names}
        return {level: value for level, value in found.items() if value is not None}


@dataclass(frozen=True)
class Comparison:
    """Several methods under one budget."""

    arms: tuple[Arm, ...]

    @property
    def columns(self) -> list[str]:
        """The keys of all figures, each before its chance levels, and of the costs."""
        levels = {key: sorted({level for arm in self.arms for level in arm.levels(key)}) for key in FIGURES}
        return [*(name for key in FIGURES for name in (key, *(f"{key}_{one}" for one in levels[key]))), *COSTS]

    @property
    def ranked(self) -> list[Arm]:
        """The methods as the validation pictures order them, best first; the test pictures have no say in it.

        Those that have a finished run, with their runs at the seeds that all of these have; none where there is no such
        seed.
        """
        judged = [arm for arm in self.arms if arm.values("val_accuracy")]
        runs = [{seed for seed, run in arm.runs.items() if run.get("val_accuracy") is not None} for arm in judged]
        seeds = set.intersection(*runs) if runs else set()
        shared = [Arm(arm.method, {seed: arm.runs[seed] for seed in arm.runs if seed in seeds}) for arm in judged]
        return sorted(shared, key=lambda arm: -float(np.mean(arm.values("val_accuracy")))) if seeds else []

    @property
    def choice(self) -> str:
        """Which method the validation pictures are for, and whether that is more than noise."""
        if not any(arm.values("val_accuracy") for arm in self.arms):
            return "No run is finished yet."
        if not self.ranked:
            return "No seed is finished with every method: the validation pictures cannot rank them."
        first, *others = self.ranked
        if not others:
            return f"{first.method} is the only method."
        second = others[0]
        lead = paired(first, second, "val_accuracy")
        if abs(lead.estimate.mean) < ROUNDING:
            return f"On the validation pictures {first.method} and {second.method} are equally good."
        certain = {"ahead": "beyond noise", "noise": "within noise"}.get(
            lead.outcome, "beyond or within noise, one cannot tell"
        )
        return f"Best on the validation pictures is {first.method}; it is ahead of {second.method} {certain}."

    def differences(self, key: str = "accuracy") -> tuple[Difference, ...]:
        """Every method against each of `BASELINES` that takes part, in one figure."""
        by_name = {arm.method: arm for arm in self.arms}
        pairs = [(arm, by_name[base]) for base in BASELINES if base in by_name for arm in self.arms]
        found = [paired(one, other, key) for one, other in pairs if _rank(one.method) > _rank(other.method)]
        return adjusted([difference for difference in found if difference.each])

    def summary(self) -> dict[str, Any]:
        """Everything as plain data."""
        columns = self.columns
        return {
            "methods": {
                arm.method: {key: found._asdict() for key in columns if (found := arm.estimate(key)) is not None}
                for arm in self.arms
            },
            "differences": {key: [difference.summary() for difference in self.differences(key)] for key in COMPARED},
            "ranked_on_validation": [arm.method for arm in self.ranked],
            "choice": self.choice,
        }


def paired(one: Arm, other: Arm, key: str = "accuracy") -> Difference:
    """The differences in a figure at the seeds at which both have it."""
    seeds = [seed for seed in one.runs if all(arm.runs.get(seed, {}).get(key) is not None for arm in (one, other))]
    each = [float(one.runs[seed][key]) - float(other.runs[seed][key]) for seed in seeds]
    spread = bool(each) and max(each) - min(each) > ROUNDING  # without one the t statistic is infinite, or 0 / 0
    p = float(stats.ttest_1samp(each, 0.0).pvalue) if spread else None
    return Difference(one.method, other.method, tuple(seeds), tuple(each), p)


def adjusted(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """With Holm's adjustment: the i-th smallest of m p-values times (m - i), never falling, at most 1."""
    order = sorted((d.p, place) for place, d in enumerate(differences) if d.p is not None)
    holm: dict[int, float] = {}
    level = 0.0
    for rank, (p, place) in enumerate(order):
        level = max(level, min(1.0, p * (len(order) - rank)))
        holm[place] = level
    return tuple(
        Difference(d.one, d.other, d.seeds, d.each, d.p, holm.get(place)) for place, d in enumerate(differences)
    )


def points(difference: float) -> str:
    """``0.005`` as ``+0.50``."""
    return f"{100 * difference:+.2f}".replace("-", "−")


def p_value(p: float) -> str:
    """A p-value as papers write it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def percent(found: Estimate | None) -> str:
    """An estimate of a share in per cent: ``83.48 ± 0.16``.

    >>> percent(Estimate(0.8348, 0.0016, 3))
    '83.48 ± 0.16'
    """
    if found is None:
        return "–"
    half = "" if found.half is None else f" ± {100 * found.half:.2f}"
    return f"{100 * found.mean:.2f}{half}"


def _rank(method: str) -> int:
    """plain, then kd, then all others: each is compared with those before it."""
    return BASELINES.index(method) if method in BASELINES else len(BASELINES)
