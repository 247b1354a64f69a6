"""Interpretation of a run's metrics: verdict on distillation, model size, attention, and rows of the result table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from camkd.types import CHANCE_LEVELS
from camkd.utils.units import finite_number, format_count, format_duration, format_percent, format_points

DASH = "–"
"""Text of a missing value."""

COSINE_TOLERANCE = 0.01
"""Largest difference of two mean CAM cosines that counts as equal."""


@dataclass(frozen=True)
class RunSummary:
    """Contents of one run folder. Everything except the name may be missing."""

    name: str
    role: str | None = None  # teacher, control or student
    metrics: dict[str, Any] = field(default_factory=dict)  # metrics.json
    history: list[dict[str, Any]] = field(default_factory=list)  # metrics.jsonl, one entry per epoch
    model_info: dict[str, Any] = field(default_factory=dict)  # model.json
    config: str = ""  # config.yaml
    environment: dict[str, Any] = field(default_factory=dict)  # environment.json
    heatmap: str | None = None  # heatmap figure of the finished model: a PNG as data URI
    epoch_heatmaps: list[tuple[int, str]] = field(default_factory=list)  # heatmap figures by epoch during training
    gallery: dict[str, Any] = field(default_factory=dict)  # gallery.json, see `camkd.report.gallery`

    def number(self, key: str) -> float | None:
        """Return a number from ``metrics.json``, or from ``model.json`` if ``metrics.json`` lacks the key.

        Args:
            key: Key of the number.

        Returns:
            The number, or None if it is missing or not a finite number.
        """
        return finite_number(self.metrics.get(key, self.model_info.get(key)))

    @cached_property
    def confusion(self) -> list[list[float]] | None:
        """Confusion matrix of counts, rows are true classes; None if it is missing, not square or not numeric."""
        table = self.metrics.get("confusion")
        if not isinstance(table, list) or not table:
            return None
        square = all(isinstance(row, list) and len(row) == len(table) for row in table)
        return table if square and all(finite_number(value) is not None for row in table for value in row) else None

    @property
    def num_test_images(self) -> int | None:
        """Number of test images: ``test_images`` of the metrics, else the sum of the confusion matrix, else None."""
        count = self.number("test_images") or sum(map(sum, self.confusion or []))
        return int(count) if count >= 1 else None

    @cached_property
    def classes(self) -> list[str]:
        """Class names; ``0``, ``1``, ... if ``model.json`` has no list that fits the confusion matrix."""
        stored = self.model_info.get("classes")
        names = [str(name) for name in stored] if isinstance(stored, list) else []
        size = len(self.confusion or names)
        return names if len(names) == size else [str(index) for index in range(size)]

    def class_accuracy(self, index: int) -> float | None:
        """Return the accuracy on a class from the confusion matrix, or None if the matrix has no image of the class."""
        if not self.confusion or index >= len(self.confusion) or not sum(self.confusion[index]):
            return None
        return self.confusion[index][index] / sum(self.confusion[index])


class Verdict(NamedTuple):
    """Verdict on the effect of distillation.

    Attributes:
        outcome: ``helped``, ``hurt``, ``hint``, ``noise`` or ``unknown``.
        sentence: The verdict as a sentence.
        grounds: The numbers behind the verdict, or the reason why it is unknown; may be empty.
    """

    outcome: str
    sentence: str
    grounds: str = ""


def verdict(student: RunSummary, control: RunSummary | None) -> Verdict:
    """Judge whether distillation changed the test accuracy by more than noise.

    The accuracy difference of student and control is compared with its `standard_error`.

    Args:
        student: The distilled run.
        control: The run of the same network trained without a teacher, or None.

    Returns:
        The verdict. Its outcome is ``noise`` for a difference of at most one standard error, ``hint`` for at most two,
        and ``helped`` or ``hurt`` for more. It is ``unknown`` without a control run, or if an accuracy or a number of
        test images is missing.

    >>> verdict(RunSummary("student", metrics={"accuracy": 0.5}), None).outcome
    'unknown'
    """
    accuracy = student.number("accuracy")
    control_accuracy = control.number("accuracy") if control else None
    if accuracy is None:
        return Verdict("unknown", f"{student.name} has no test accuracy yet.")
    if control is None or control_accuracy is None:
        sentence = f"{student.name} has a test accuracy of {format_percent(accuracy)}."
        return Verdict("unknown", sentence, "Without a control run, the effect of distillation is unknown.")
    numbers = (
        f"{format_percent(accuracy)} test accuracy versus {format_percent(control_accuracy)} "
        "for the same network without a teacher"
    )
    error = standard_error(student, control)
    if error is None:
        grounds = "The standard error is unknown because the number of test images is unknown."
        return Verdict("unknown", f"{student.name} has {numbers}.", grounds)
    grounds = (
        f"The difference is {format_points(accuracy - control_accuracy)} points. Its binomial standard error on "
        f"{student.num_test_images or 0:,} test images is {100 * error:.2f} points. Student and "
        "control are single runs, so the standard error excludes the variation between seeds."
    )
    difference = abs(accuracy - control_accuracy)
    direction = "helped" if accuracy > control_accuracy else "hurt"
    if difference <= error:
        return Verdict("noise", f"Distillation made no measurable difference: {numbers}, within noise.", grounds)
    if difference <= 2 * error:
        sentence = f"Distillation may have {direction} slightly: {numbers}, weak evidence only."
        return Verdict("hint", sentence, grounds)
    return Verdict(direction, f"Distillation {direction}: {numbers}.", grounds)


def standard_error(first: RunSummary, second: RunSummary) -> float | None:
    """Compute the binomial standard error of the difference in test accuracy of two runs.

    The standard error is ``sqrt(p * (1 - p) / n + q * (1 - q) / m)`` for accuracies ``p`` on ``n`` images and ``q`` on
    ``m`` images. The formula assumes independent test sets. If both runs share one test set, the true standard error is
    likely smaller.

    Args:
        first: A run.
        second: Another run.

    Returns:
        The standard error, or None if an accuracy or a number of test images is missing.
    """
    variance = 0.0
    for run in (first, second):
        accuracy = run.number("accuracy")
        num_images = run.num_test_images
        if accuracy is None or not num_images:
            return None
        variance += accuracy * (1 - accuracy) / num_images
    return math.sqrt(variance)


def accuracy_gap(student: RunSummary, teacher: RunSummary | None) -> str | None:
    """Describe the student's accuracy relative to its teacher's.

    Args:
        student: The distilled run.
        teacher: The teacher's run. If it is None or lacks an accuracy, ``teacher_accuracy`` of the student's metrics is
            used.

    Returns:
        For example ``5.0 points below its teacher``, or None if an accuracy is missing.
    """
    student_accuracy = student.number("accuracy")
    teacher_accuracy = teacher.number("accuracy") if teacher else None
    if teacher_accuracy is None:
        teacher_accuracy = student.number("teacher_accuracy")
    if student_accuracy is None or teacher_accuracy is None:
        return None
    if student_accuracy == teacher_accuracy:
        return "as accurate as its teacher"
    direction = "below" if student_accuracy < teacher_accuracy else "above"
    return f"{100 * abs(student_accuracy - teacher_accuracy):.1f} points {direction} its teacher"


def cost_ratio(student: RunSummary, teacher: RunSummary | None, key: str, noun: str) -> tuple[str, str] | None:
    """Describe the student's cost relative to its teacher's.

    Args:
        student: The distilled run.
        teacher: The teacher's run, or None.
        key: Metric to compare, ``params`` or ``macs``.
        noun: Plural noun of the metric in the text.

    Returns:
        The ratio and the costs of student and teacher, for example ``23× fewer parameters`` and ``1 M versus 23 M``.
        None if a cost is missing or zero.
    """
    student_cost = student.number(key)
    teacher_cost = teacher.number(key) if teacher else None
    if not student_cost or not teacher_cost:
        return None
    fewer = teacher_cost >= student_cost
    ratio = teacher_cost / student_cost if fewer else student_cost / teacher_cost
    claim = f"{ratio:.{0 if ratio >= 10 else 1}f}× {'fewer' if fewer else 'more'} {noun}"
    return claim, f"{format_count(student_cost)} versus {format_count(teacher_cost)}"


def attention_verdict(student: RunSummary, control: RunSummary | None) -> tuple[str, str] | None:
    """Judge whether the student's maps match the teacher's, by CAM cosine.

    The chance level is the highest of the student's `CHANCE_LEVELS`. The claim is ``No more than chance`` if the cosine
    is at most `COSINE_TOLERANCE` above the chance level, ``Yes`` if it covers more than half of the distance from the
    chance level to 1, and ``Partly`` otherwise. If the control has a CAM cosine, it is compared with the student's.

    Args:
        student: The distilled run.
        control: The run of the same network trained without a teacher, or None.

    Returns:
        The claim and the numbers behind the claim, or None if the student has no CAM cosine.
    """
    cosine = student.number("cam_cosine")
    if cosine is None:
        return None
    levels = [student.number(level.key("cam_cosine")) for level in CHANCE_LEVELS]
    chance = max((level for level in levels if level is not None), default=None)
    if chance is None:
        return "No chance level was measured.", f"CAM cosine {cosine:.2f}."
    if cosine <= chance + COSINE_TOLERANCE:
        claim = "No more than chance"
    else:
        claim = "Yes" if cosine - chance > 0.5 * (1 - chance) else "Partly"
    numbers = f"CAM cosine {cosine:.2f}, chance {chance:.2f}"
    control_cosine = control.number("cam_cosine") if control else None
    if control_cosine is None:
        return f"{claim}.", f"{numbers}."
    if abs(cosine - control_cosine) <= COSINE_TOLERANCE:
        relation = "no closer than"
    else:
        relation = "closer than" if cosine > control_cosine else "less close than"
    return f"{claim}, {relation} the control.", f"{numbers}, control {control_cosine:.2f}."


class MetricSpec(NamedTuple):
    """Row of the result table.

    Attributes:
        key: Key in ``metrics.json`` or ``model.json``. The chance levels of the metric are shown in small print.
        label: Name of the row.
        format: Function that formats a value.
        note: Definition of the metric, shown as a footnote.
        optional: Whether the row is left out if no run has a value.
    """

    key: str
    label: str
    format: Callable[[float], str]
    note: str
    optional: bool = False


def _format_decimal(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")


def _format_integer(number: float) -> str:
    return f"{number:,.0f}"


METRICS = (
    MetricSpec(
        "accuracy",
        "Accuracy",
        format_percent,
        "Top-1 accuracy on the test images. Higher is better.",
    ),
    MetricSpec(
        "val_accuracy",
        "Validation accuracy",
        format_percent,
        "Top-1 accuracy on the validation images, which are held out of training.",
    ),
    MetricSpec(
        "ece",
        "Calibration error",
        _format_decimal,
        "Expected calibration error (15 bins, Guo et al. 2017). Lower is better.",
    ),
    MetricSpec(
        "nll",
        "Log-loss",
        _format_decimal,
        "Mean negative log-likelihood of the true class, in nats. Lower is better.",
    ),
    MetricSpec(
        "teacher_agreement",
        "Agreement with teacher",
        format_percent,
        "Share of test images with the teacher's predicted class, right or wrong.",
    ),
    MetricSpec(
        "cam_cosine",
        "CAM cosine",
        _format_decimal,
        "Cosine similarity of the model's and the teacher's class activation map. Both maps are of the class that the "
        "teacher predicts, positive evidence only. 1 means the same map up to scale. Small print: chance levels, "
        "the teacher's map of another image and a Gaussian in the centre of the image.",
    ),
    MetricSpec(
        "cam_pearson",
        "CAM Pearson",
        _format_decimal,
        "Pearson correlation of the two maps, evidence against the class included. 1 means the same map up to scale "
        "and offset.",
    ),
    MetricSpec(
        "cam_iou",
        "CAM overlap",
        _format_decimal,
        "Intersection over union of the strongest 20 % of cells of the two maps. 1 means the same locations.",
    ),
    MetricSpec(
        "cam_disagreement",
        "CAM disagreement",
        format_percent,
        "Share of images with a CAM cosine no higher than chance, among the images with the teacher's predicted class. "
        "Lower is better. 'camkd evaluate RUN --list-disagreements 20' lists the images.",
        optional=True,
    ),
    MetricSpec(
        "cam_inside",
        "CAM energy on the object",
        format_percent,
        "Share of the map's positive evidence inside the object mask (energy-based pointing game, Wang et al. 2020). "
        "Needs a dataset with object masks. Small print: a Gaussian in the centre of the image, and a uniform map, "
        "which scores the object's share of the image.",
        optional=True,
    ),
    MetricSpec(
        "cam_pointing_game",
        "Pointing game",
        format_percent,
        "Share of images with the centre of the map's strongest cell inside the object mask (Zhang et al. 2016, "
        "without tolerance).",
        optional=True,
    ),
    MetricSpec(
        "insertion",
        "Insertion",
        _format_decimal,
        "Mean probability of the predicted class while the pixels of a blurred image are restored, the map's strongest "
        "first (RISE, Petsiuk et al. 2018). Higher means a more faithful map. Small print: the pixel order of "
        "another image's map.",
        optional=True,
    ),
    MetricSpec(
        "deletion",
        "Deletion",
        _format_decimal,
        "Mean probability of the predicted class while pixels are replaced by the mean color, the map's strongest "
        "first (RISE). Lower means a more faithful map.",
        optional=True,
    ),
    MetricSpec(
        "road",
        "ROAD",
        _format_decimal,
        "Probability of the predicted class after removing the map's weakest pixels minus the probability after "
        "removing its strongest, divided by 2. Removed pixels are imputed from their neighbors (Rong et al. 2022). "
        "Higher means a more faithful map.",
        optional=True,
    ),
    MetricSpec(
        "randomised_spearman",
        "Weight randomization",
        _format_decimal,
        "Rank correlation of the model's map with the map of a copy with shuffled weights (Adebayo et al. 2018). Near "
        "0 means that the map depends on the learned weights.",
        optional=True,
    ),
    MetricSpec("params", "Parameters", format_count, "Number of learned parameters."),
    MetricSpec("macs", "MACs", format_count, "Multiply-accumulate operations per image."),
    MetricSpec("epochs", "Epochs", _format_integer, "Passes over the training images."),
    MetricSpec(
        "augment_epochs",
        "Augmented epochs",
        _format_integer,
        "Number of epochs with different augmented views. It is below the number of epochs if views are repeated, "
        "because the cache budget is full or --augment-epochs is set.",
    ),
    MetricSpec(
        "seconds",
        "Training time",
        format_duration,
        "Wall-clock time of training on the machine listed under Configuration.",
    ),
    MetricSpec(
        "images_per_second",
        "Images per second",
        _format_integer,
        "Training throughput on the machine listed under Configuration.",
    ),
)
"""Rows of the result table, in order."""
