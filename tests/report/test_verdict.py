"""Verdicts: outcomes follow from the numbers and their standard error, and missing numbers give no claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from camkd.report.run_summary import RunSummary
from camkd.report.verdict import accuracy_gap, attention_verdict, cost_ratio, standard_error, verdict
from run_folders import metrics_content


def run(accuracy: float, per_class: int = 1000, **metrics: Any) -> RunSummary:
    """Return a run with this accuracy on ``per_class`` test images of each of three classes."""
    return RunSummary("student", "student", metrics_content(accuracy, per_class, **metrics))


# --- verdict on distillation


def test_verdict_text() -> None:
    result = verdict(run(0.9), run(0.85))
    assert result.sentence.replace("\N{NO-BREAK SPACE}", " ") == (
        "Distillation helped: 90.0 % test accuracy versus 85.0 % for the same network without a teacher."
    )
    assert result.grounds == (
        "The difference is +5.0 points. Its binomial standard error on 3,000 test images is 0.85 points. Student "
        "and control are single runs, so the standard error excludes the variation between seeds."
    )


@pytest.mark.parametrize(
    ("accuracy", "outcome"),
    [
        (0.90, "helped"),
        (0.80, "hurt"),
        (0.855, "noise"),
        (0.845, "noise"),
        (0.865, "hint"),
        (0.835, "hint"),
        (0.85, "noise"),
    ],
)
def test_verdict_outcome_depends_on_the_standard_error(accuracy: float, outcome: str) -> None:
    result = verdict(run(accuracy), run(0.85))
    assert result.outcome == outcome
    assert f"{100 * accuracy:.1f}" in result.sentence
    assert "85.0" in result.sentence
    assert ("within noise" in result.sentence) == (outcome == "noise")
    assert ("may have" in result.sentence) == (outcome == "hint")
    if outcome != "noise":
        assert ("helped" if accuracy > 0.85 else "hurt") in result.sentence
    assert f"{100 * np.sqrt((accuracy * (1 - accuracy) + 0.85 * 0.15) / 3000):.2f} points" in result.grounds
    assert "3,000" in result.grounds
    assert "seed" in result.grounds


def test_verdict_becomes_certain_with_more_images() -> None:
    outcomes = [verdict(run(0.87, n), run(0.85, n)).outcome for n in (100, 500, 5000)]
    assert outcomes == ["noise", "hint", "helped"]


def test_verdict_without_confusion_matrix_uses_the_number_of_test_images() -> None:
    """Above 1,000 classes a run has no confusion matrix."""
    student, control = (RunSummary("s", metrics={"accuracy": share, "test_images": 20_000}) for share in (0.9, 0.5))
    result = verdict(student, control)
    assert result.outcome == "helped"
    assert "20,000" in result.grounds
    assert f"{100 * np.sqrt((0.9 * 0.1 + 0.5 * 0.5) / 20_000):.2f} points" in result.grounds


def test_standard_error_formula() -> None:
    error = standard_error(run(0.9), run(0.8))
    assert error == pytest.approx(np.sqrt(0.9 * 0.1 / 3000 + 0.8 * 0.2 / 3000))
    assert standard_error(run(0.9), RunSummary("control", metrics={"accuracy": 0.8})) is None


@pytest.mark.parametrize(
    ("student", "control", "missing"),
    [
        (RunSummary("s"), run(0.8), "s has no test accuracy"),
        (run(0.9), None, "Without a control"),
        (run(0.9), RunSummary("c"), "Without a control"),
        (RunSummary("s", metrics={"accuracy": 0.9}), RunSummary("c", metrics={"accuracy": 0.5}), "number of test"),
        (RunSummary("s", metrics={"accuracy": float("nan")}), run(0.8), "s has no test accuracy"),
        (RunSummary("s", metrics={"accuracy": "high"}), run(0.8), "s has no test accuracy"),
        (RunSummary("s", metrics={"accuracy": 10**400}), run(0.8), "s has no test accuracy"),
    ],
)
def test_verdict_is_unknown_without_the_numbers(student: RunSummary, control: RunSummary | None, missing: str) -> None:
    result = verdict(student, control)
    assert result.outcome == "unknown"
    assert missing in f"{result.sentence} {result.grounds}"


# --- attention, accuracy gap and cost


@pytest.mark.parametrize(
    ("cosine", "shuffled", "centre", "control_cosine", "claim"),
    [
        (0.83, 0.41, 0.52, 0.62, "Yes, closer than the control."),
        (0.83, 0.41, 0.52, 0.825, "Yes, no closer than the control."),
        (0.60, 0.41, 0.52, 0.70, "Partly, less close than the control."),
        (0.525, 0.41, 0.52, None, "No more than chance."),
        (0.30, 0.41, None, None, "No more than chance."),
        (0.83, None, None, None, "No chance level was measured."),
    ],
)
def test_attention_verdict_weighs_the_cosine_against_chance_and_control(
    cosine: float, shuffled: float | None, centre: float | None, control_cosine: float | None, claim: str
) -> None:
    metrics = {"cam_cosine": cosine, "cam_cosine_shuffled": shuffled, "cam_cosine_centre": centre}
    control = RunSummary("c", metrics={"cam_cosine": control_cosine})
    result = attention_verdict(RunSummary("s", metrics=metrics), control)
    assert result is not None
    assert result[0] == claim
    for number in (cosine, control_cosine, max((shuffled or 0, centre or 0))):
        assert not number or f"{number:.2f}" in result[1]


def test_attention_verdict_needs_a_cosine() -> None:
    assert attention_verdict(run(0.9), None) is None


def test_cost_ratio() -> None:
    student = run(0.9, params=1000)
    teacher = run(0.95, params=23_500)
    assert cost_ratio(student, teacher, "params", "parameters") == (
        "24× fewer parameters",
        "1\xa0k versus 23.5\xa0k",
    )
    assert (cost_ratio(teacher, run(0.9, params=10_000), "params", "parameters") or "")[0] == "2.4× more parameters"
    assert cost_ratio(student, teacher, "macs", "MACs") is None
    assert cost_ratio(student, None, "params", "parameters") is None


def test_accuracy_gap() -> None:
    assert accuracy_gap(run(0.9), run(0.95)) == "5.0 points below its teacher"
    assert accuracy_gap(run(0.9, teacher_accuracy=0.88), None) == "2.0 points above its teacher"
    assert accuracy_gap(run(0.9), run(0.9)) == "as accurate as its teacher"
    assert accuracy_gap(run(0.9), None) is None
