"""Interpretation of a run's metrics: verdict on distillation, accuracy gap, model size and attention."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from camkd.report.comparison_stats import format_p_value
from camkd.report.paired_images import discordant_images, have_same_maps, mean_difference
from camkd.report.run_summary import RunSummary
from camkd.utils.units import format_count, format_percent, format_points

COSINE_TOLERANCE = 0.01
"""Difference of two mean CAM cosines that is too small to matter, however many images it was measured on."""

SIGNIFICANCE = 0.05
"""Largest p-value that counts as a difference."""

WEAK_SIGNIFICANCE = 0.32
"""Largest p-value that counts as weak evidence of a difference, that of one standard error."""


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
    """Judge whether distillation changed the test accuracy of one run by more than the choice of test images would.

    Student and control predict the same test images, so McNemar's test of the images on which exactly one of them is
    correct is used (`discordant_images`). Student and control are single runs: the variation between seeds is unknown,
    and the sentence states this.

    Args:
        student: The distilled run.
        control: The run of the same network trained without a teacher, or None.

    Returns:
        The verdict. Its outcome is ``helped`` or ``hurt`` for a p-value of at most `SIGNIFICANCE`, ``hint`` for one of
        at most `WEAK_SIGNIFICANCE`, and ``noise`` for a larger one. It is ``unknown`` without a control run, or if an
        accuracy or the results of the same test images are missing.

    Example:
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
    discordant = discordant_images(student, control)
    if discordant is None:
        grounds = (
            "The error of the difference is unknown, because per_image.npz of both runs does not hold the predictions "
            "for the same test images."
        )
        return Verdict("unknown", f"{student.name} has {numbers}, one run of each.", grounds)
    grounds = (
        f"The difference is {format_points(discordant.difference)} points. Of {discordant.images:,} test images, only "
        f"the student predicts {discordant.first:,} correctly and only the control {discordant.second:,} (McNemar's "
        f"test, {format_p_value(discordant.p)}). The standard error of the difference over these paired images is "
        f"{100 * discordant.standard_error:.2f} points. It excludes the variation between seeds, because there is one "
        "run of student and control each. 'camkd compare' trains several seeds."
    )
    direction = "helped" if discordant.difference > 0 else "hurt"
    if discordant.p > WEAK_SIGNIFICANCE:
        sentence = f"Distillation made no measurable difference in one run: {numbers}, within noise."
        return Verdict("noise", sentence, grounds)
    if discordant.p > SIGNIFICANCE:
        sentence = f"Distillation may have {direction} slightly in one run: {numbers}, weak evidence only."
        return Verdict("hint", sentence, grounds)
    return Verdict(direction, f"Distillation {direction} in one run: {numbers}.", grounds)


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
    """Judge whether the maps of one run match the teacher's, by CAM cosine.

    The chance level is the higher of the student's two. The claim is ``No more than chance`` if the cosine is not above
    the chance level, ``Yes`` if it covers more than half of the distance from the chance level to 1, and ``Partly``
    otherwise. If the control has maps of the same images and classes, its cosine is compared with the student's. Two
    cosines are equal if they differ by at most `COSINE_TOLERANCE`, or by at most two standard errors of the mean
    difference over the paired images.

    Args:
        student: The distilled run.
        control: The run of the same network trained without a teacher, or None.

    Returns:
        The claim and the numbers behind the claim, or None if the student has no CAM cosine.
    """
    cosine = student.number("cam_cosine")
    if cosine is None:
        return None
    if student.cosine_chance is None:
        return "No chance level was measured.", f"CAM cosine {cosine:.3f}."
    chance, level = student.cosine_chance
    cosines = student.column("cam_cosine")
    if cosine - chance <= _tolerance(cosines, student.column(level.key("cam_cosine"))):
        claim = "No more than chance"
    else:
        claim = "Yes" if cosine - chance > 0.5 * (1 - chance) else "Partly"
    numbers = f"CAM cosine {cosine:.3f}, chance {chance:.3f}"
    control_cosine = control.number("cam_cosine") if control else None
    if control is None or control_cosine is None:
        return f"{claim}, in one run.", f"{numbers}."
    numbers += f", control {control_cosine:.3f}."
    if not have_same_maps(student, control):
        return f"{claim}, in one run.", numbers
    if abs(cosine - control_cosine) <= _tolerance(cosines, control.column("cam_cosine")):
        relation = "no closer than"
    else:
        relation = "closer than" if cosine > control_cosine else "less close than"
    return f"{claim}, {relation} the control, in one run.", numbers


def _tolerance(first: NDArray[Any] | None, second: NDArray[Any] | None) -> float:
    """Return the largest difference of two mean CAM cosines that counts as equal.

    It is `COSINE_TOLERANCE`, or two standard errors of the mean difference over the paired images if they are known and
    larger.
    """
    if first is None or second is None:
        return COSINE_TOLERANCE
    return max(COSINE_TOLERANCE, 2 * mean_difference(first, second).standard_error)
