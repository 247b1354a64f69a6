"""What a run's numbers mean, in words: the verdict on a distillation, its size, where it looks, the table.

Plain numbers and strings; whatever a run does not say comes out as None or a dash.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from camkd.utils.units import count, percent, points, seconds

DASH = "–"
EQUAL_MAPS = 0.01  # map likenesses closer than this are called equal


@dataclass(frozen=True)
class RunSummary:
    """What one run folder says about itself; everything but the name may be missing."""

    name: str
    role: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    heatmap: str | None = None  # a PNG as data URI
    epochs: list[tuple[int, str]] = field(default_factory=list)  # heatmaps on the way
    gallery: dict[str, Any] = field(default_factory=dict)  # pictures with answers and maps: see `camkd.report.gallery`

    def number(self, key: str) -> float | None:
        """A finite number of ``metrics.json``, or else of ``model.json``, or None."""
        return _number(self.metrics.get(key, self.model.get(key)))

    @cached_property
    def confusion(self) -> list[list[float]] | None:
        """The square table of counts, None where there is none or it is none."""
        table = self.metrics.get("confusion")
        if not isinstance(table, list) or not table:
            return None
        square = all(isinstance(row, list) and len(row) == len(table) for row in table)
        return table if square and all(_number(v) is not None for row in table for v in row) else None

    @property
    def tested(self) -> int | None:
        """How many test pictures the numbers come from, by their number or else by the confusion counts."""
        counted = self.number("test_images") or sum(map(sum, self.confusion or []))
        return int(counted) if counted >= 1 else None

    @cached_property
    def classes(self) -> list[str]:
        """Class names, ``0``, ``1``, ... where the folder has none that fit."""
        names = self.model.get("classes")
        known = [str(name) for name in names] if isinstance(names, list) else []
        size = len(self.confusion or known)
        return known if len(known) == size else [str(i) for i in range(size)]

    def class_accuracy(self, place: int) -> float | None:
        """Accuracy on the class at ``place``, from the confusion counts."""
        if not self.confusion or place >= len(self.confusion) or not sum(self.confusion[place]):
            return None
        return self.confusion[place][place] / sum(self.confusion[place])


class Verdict(NamedTuple):
    """``outcome`` is helped, hurt, hint, noise or unknown; ``sentence`` says it, ``grounds`` says why."""

    outcome: str
    sentence: str
    grounds: str = ""


def verdict(student: RunSummary, control: RunSummary | None) -> Verdict:
    """Did distillation help, by how much, and is the difference more than noise?

    The yardstick is `standard_error`: within one the difference is called noise, within two a hint.

    >>> verdict(Run("student", metrics={"accuracy": 0.5}), None).outcome
    'unknown'
    """
    mine = student.number("accuracy")
    base = control.number("accuracy") if control else None
    if mine is None:
        return Verdict("unknown", f"{student.name} has no test accuracy yet.")
    if control is None or base is None:
        alone = f"The student answers {percent(mine)} of the test pictures correctly."
        return Verdict("unknown", alone, "Without a control run nobody can say whether distillation helped.")
    against = f"{percent(mine)} against {percent(base)} for the same network without a teacher"
    error = standard_error(student, control)
    if error is None:
        return Verdict("unknown", f"The student scores {against}.", "The number of test pictures is not known.")
    grounds = (
        f"The difference is {points(mine - base)}; its binomial standard error on {student.tested or 0:,} "
        f"test pictures is {100 * error:.2f} points. This is one run a side: what another seed would change "
        "is not in it."
    )
    better = mine > base
    if abs(mine - base) <= error:
        sentence = f"Distillation made no measurable difference: {against}, within noise."
        return Verdict("noise", sentence, grounds)
    if abs(mine - base) <= 2 * error:
        sentence = f"Distillation may have {'helped' if better else 'hurt'} a little: {against}, a hint, no proof."
        return Verdict("hint", sentence, grounds)
    return Verdict(
        "helped" if better else "hurt", f"Distillation {'helped' if better else 'hurt'}: {against}.", grounds
    )


def standard_error(one: RunSummary, other: RunSummary) -> float | None:
    """Binomial standard error of two runs' difference in test accuracy, None where the counts are missing.

    ``sqrt(p(1-p)/n + q(1-q)/m)`` for shares ``p`` of ``n`` and ``q`` of ``m`` pictures, as if the pictures
    were not the same ones; as they are, the true error of the difference is rather smaller.
    """
    variance = 0.0
    for run in (one, other):
        share, n = run.number("accuracy"), run.tested
        if share is None or not n:
            return None
        variance += share * (1 - share) / n
    return math.sqrt(variance)


def gap(student: RunSummary, teacher: RunSummary | None) -> str | None:
    """How the student's accuracy stands to its teacher's, in words."""
    mine, theirs = student.number("accuracy"), student.number("teacher_accuracy")
    if teacher and teacher.number("accuracy") is not None:
        theirs = teacher.number("accuracy")
    if mine is None or theirs is None:
        return None
    if mine == theirs:
        return "as often right as its teacher"
    where = "below" if mine < theirs else "above"
    return f"{100 * abs(mine - theirs):.1f} points {where} its teacher"


def times(student: RunSummary, teacher: RunSummary | None, key: str, word: str) -> tuple[str, str] | None:
    """``23× fewer parameters`` and ``1 M against 23 M``: the teacher's cost over the student's."""
    mine, theirs = student.number(key), teacher.number(key) if teacher else None
    if not mine or not theirs:
        return None
    ratio, direction = (theirs / mine, "fewer") if theirs >= mine else (mine / theirs, "more")
    claim = f"{ratio:.0f}× {direction} {word}" if ratio >= 10 else f"{ratio:.1f}× {direction} {word}"
    return claim, f"{count(mine)} against {count(theirs)}"


def attention_verdict(student: RunSummary, control: RunSummary | None) -> tuple[str, str] | None:
    """Does the student look where its teacher looks, in a claim and the numbers behind it.

    Chance is the better of ``cam_cosine_shuffled`` and ``cam_cosine_centre``; the student looks there
    when it covers more than half of the way from chance to 1, partly when it covers some.
    """
    mine = student.number("cam_cosine")
    levels = [student.number("cam_cosine_shuffled"), student.number("cam_cosine_centre")]
    chance = max((level for level in levels if level is not None), default=None)
    if mine is None:
        return None
    if chance is None:
        return "No chance level was measured.", f"Map likeness {mine:.2f}."
    if mine <= chance + EQUAL_MAPS:
        claim = "No more than chance"
    else:
        claim = "Yes" if mine - chance > 0.5 * (1 - chance) else "Partly"
    numbers = f"Map likeness {mine:.2f}, chance {chance:.2f}"
    base = control.number("cam_cosine") if control else None
    if base is None:
        return f"{claim}.", f"{numbers}."
    closer = "no closer than" if abs(mine - base) <= EQUAL_MAPS else "closer than" if mine > base else "less than"
    return f"{claim}, {closer} the control.", f"{numbers}, control {base:.2f}."


class MetricSpec(NamedTuple):
    """A row of the results: key in ``metrics.json``, label, how to print it, what it is.

    An optional row is left out where no run has a number for it. Figures of `LEVELS` stand in small print below.
    """

    key: str
    label: str
    show: Callable[[float], str]
    note: str
    optional: bool = False


LEVELS = (("other", "shuffled"), ("centre", "centre"), ("chance", "chance"))
"""Chance levels of a figure: the word for it, and the end of its key in ``metrics.json``."""


def _plain(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")


def _whole(number: float) -> str:
    return f"{number:,.0f}"


METRICS = (
    MetricSpec("accuracy", "Accuracy", percent, "Share of test pictures answered correctly. Higher is better."),
    MetricSpec(
        "val_accuracy",
        "Validation accuracy",
        percent,
        "The same on the validation pictures, held out of training.",
    ),
    MetricSpec(
        "ece",
        "Calibration error",
        _plain,
        "By how much confidence misses accuracy, in 15 bins (ECE, Guo et al. 2017). Lower is better.",
    ),
    MetricSpec("nll", "Log-loss", _plain, "Mean negative log-likelihood of the true class, in nats. Lower is better."),
    MetricSpec(
        "teacher_agreement",
        "Same answer as teacher",
        percent,
        "Share of test pictures on which it gives the teacher's answer, right or wrong.",
    ),
    MetricSpec(
        "cam_cosine",
        "CAM cosine",
        _plain,
        "Cosine of its map and the teacher's, both of the class the teacher answers, positive evidence only; "
        "1 is the same map. Small print: chance levels, the teacher's map of another picture ('other') and a "
        "blob in the middle ('centre').",
    ),
    MetricSpec(
        "cam_pearson",
        "CAM Pearson",
        _plain,
        "Correlation of the two whole maps, evidence against the class included; 1 is the same map.",
    ),
    MetricSpec(
        "cam_iou",
        "CAM overlap",
        _plain,
        "Intersection over union of the two maps' strongest 20 % of cells; 1 is the same places.",
    ),
    MetricSpec(
        "cam_disagreement",
        "Right label, other place",
        percent,
        "Of the pictures on which it gives the teacher's answer, the share whose map is no more like the teacher's "
        "than chance. Lower is better; 'camkd evaluate RUN --list-disagreements 20' lists them.",
        optional=True,
    ),
    MetricSpec(
        "cam_inside",
        "Map on the object",
        percent,
        "Share of its map's positive evidence that lies on the object, where the pictures say where that is "
        "(energy-based pointing game, Wang et al. 2020). Small print: the object's share of the picture.",
        optional=True,
    ),
    MetricSpec(
        "cam_pointing_game",
        "Peak on the object",
        percent,
        "Share of pictures whose map's strongest cell has its middle on the object (pointing game, Zhang et al. 2016, "
        "without its tolerance).",
        optional=True,
    ),
    MetricSpec(
        "insertion",
        "Insertion",
        _plain,
        "Mean probability of the answer while a blurred picture gets its pixels back, the map's strongest first "
        "(RISE, Petsiuk et al. 2018). Higher is a more faithful map. Small print: the same in the order of "
        "another picture's map.",
        optional=True,
    ),
    MetricSpec(
        "deletion",
        "Deletion",
        _plain,
        "Mean probability of the answer while pixels turn to the mean colour, the map's strongest first (RISE). "
        "Lower is a more faithful map.",
        optional=True,
    ),
    MetricSpec(
        "road",
        "ROAD",
        _plain,
        "By how much the answer suffers more from removing the map's strongest pixels than its weakest, removed "
        "ones filled from their neighbours (Rong et al. 2022). Higher is a more faithful map.",
        optional=True,
    ),
    MetricSpec(
        "randomised_spearman",
        "Map after shuffling the weights",
        _plain,
        "Rank correlation of its map with that of a copy whose weights were shuffled (Adebayo et al. 2018). Near "
        "0: the map shows what was learnt.",
        optional=True,
    ),
    MetricSpec("params", "Parameters", count, "Numbers that the network has learnt."),
    MetricSpec("macs", "MACs", count, "Multiply-accumulate operations for one picture."),
    MetricSpec("epochs", "Epochs", _whole, "Passes over the training pictures."),
    MetricSpec(
        "augment_epochs",
        "Views of a picture",
        _whole,
        "How many different views of each picture were seen: one an epoch, or fewer where they came again, because the "
        "knowledge budget was full or --augment-epochs says so.",
    ),
    MetricSpec("seconds", "Training time", seconds, "Wall-clock time of training on the machine named below."),
    MetricSpec("images_per_second", "Pictures a second", _whole, "Training throughput on the machine named below."),
)


def _number(value: Any) -> float | None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if real and abs(value) <= sys.float_info.max else None
