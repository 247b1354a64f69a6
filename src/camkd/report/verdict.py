"""Interpretation of a run's metrics: verdict on distillation, accuracy gap, model size and attention."""

from __future__ import annotations

import math
from typing import NamedTuple

from camkd.report.run_summary import RunSummary
from camkd.types import CHANCE_LEVELS
from camkd.utils.units import format_count, format_percent, format_points

COSINE_TOLERANCE = 0.01
"""Largest difference of two mean CAM cosines that counts as equal."""


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
