"""Verdicts: outcomes follow from paired images, sentences name the single run, missing numbers give no claim."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from camkd.report.run_summary import RunSummary
from camkd.report.verdict import accuracy_gap, attention_verdict, cost_ratio, verdict
from run_folders import metrics_content, per_image_content


def run(accuracy: float, per_class: int = 1000, **metrics: Any) -> RunSummary:
    """Return a run with this accuracy on ``per_class`` test images of each of three classes.

    The first images of a class are correct, so of two runs only the better one has images that only it predicts.
    """
    content = metrics_content(accuracy, per_class, **metrics)
    return RunSummary("student", "student", content, per_image=per_image_content(accuracy, per_class))


def run_with(correct: NDArray[np.bool_]) -> RunSummary:
    """Return a run of one class with these correct predictions."""
    label = np.zeros(len(correct), np.int32)
    columns = {"label": label, "predicted": np.where(correct, label, 1)}
    return RunSummary("student", "student", {"accuracy": float(correct.mean())}, per_image=columns)


def discordant_pair(only_student: int, only_control: int, images: int) -> tuple[RunSummary, RunSummary]:
    """Return two runs with these numbers of images that only one of them predicts correctly; half of the rest is."""
    order = np.random.default_rng(0).permutation(images)
    student, control = np.zeros((2, images), bool)
    student[order[:only_student]] = True
    control[order[only_student : only_student + only_control]] = True
    both = order[only_student + only_control :][::2]
    student[both] = control[both] = True
    return run_with(student), run_with(control)


# --- verdict on distillation


def test_verdict_text() -> None:
    result = verdict(run(0.9), run(0.85))
    assert result.sentence.replace("\N{NO-BREAK SPACE}", " ") == (
        "Distillation helped in one run: 90.0 % test accuracy versus 85.0 % for the same network without a teacher."
    )
    assert result.grounds == (
        "The difference is +5.0 points. Of 3,000 test images, only the student predicts 150 correctly and only the "
        "control 0 (McNemar's test, p < 0.001). The standard error of the difference over these paired images is 0.40 "
        "points. It excludes the variation between seeds, because there is one run of student and control each. "
        "'camkd compare' trains several seeds."
    )


@pytest.mark.parametrize(
    ("only_student", "only_control", "outcome"),
    [
        (150, 100, "helped"),
        (100, 150, "hurt"),
        (120, 100, "hint"),
        (100, 120, "hint"),
        (105, 100, "noise"),
        (100, 100, "noise"),
        (0, 0, "noise"),
        (6, 0, "helped"),  # 2 / 2^6 = 0.031
        (5, 0, "hint"),  # 2 / 2^5 = 0.063
        (1, 0, "noise"),  # 1
        (1500, 1400, "hint"),
    ],
)
def test_verdict_follows_from_the_discordant_images(only_student: int, only_control: int, outcome: str) -> None:
    for images in (3000, 30_000):  # images on which both runs are right, or both wrong, carry no information
        result = verdict(*discordant_pair(only_student, only_control, images))
        assert result.outcome == outcome
        assert "one run" in result.sentence
        assert ("within noise" in result.sentence) == (outcome == "noise")
        assert ("may have" in result.sentence) == (outcome == "hint")
        if outcome != "noise":
            assert ("helped" if only_student > only_control else "hurt") in result.sentence
        assert f"only the student predicts {only_student:,} correctly and only the control {only_control:,} " in (
            result.grounds
        )


def test_verdict_error_is_that_of_the_paired_images() -> None:
    """Two independent binomial errors would be 1.8 points here, and the difference of 2 points no more than a hint."""
    student, control = discordant_pair(35, 15, 1000)
    result = verdict(student, control)
    differences = (student.per_image["predicted"] == 0).astype(float) - (control.per_image["predicted"] == 0)
    error = 100 * differences.std() / np.sqrt(1000)
    assert error == pytest.approx(0.70, abs=0.01)
    assert f"{error:.2f} points" in result.grounds
    assert result.outcome == "helped"


def test_verdict_of_two_runs_of_equal_method_is_called_at_its_own_level() -> None:
    """Of 400 pairs of equally good networks on 500 images, about one in twenty is called helped or hurt."""
    rng = np.random.default_rng(0)
    calls = 0
    for _ in range(400):
        probability = rng.beta(4, 1, 500)  # some images are hard for both networks
        outcome = verdict(*(run_with(rng.random(500) < probability) for _ in range(2))).outcome
        calls += outcome in ("helped", "hurt")
    assert calls <= 0.05 * 400 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_verdict_needs_the_same_test_images() -> None:
    student, control = run(0.9), run(0.85)
    other = control.per_image | {"label": np.roll(control.per_image["label"], 1)}
    for per_image in ({}, other, {"label": control.per_image["label"]}, {"label": np.zeros(3), "predicted": "abc"}):
        result = verdict(student, replace(control, per_image={k: np.asarray(v) for k, v in per_image.items()}))
        assert result.outcome == "unknown"
        assert "per_image.npz" in result.grounds
        assert "85.0" in result.sentence
        assert "one run" in result.sentence


def test_same_labels_of_other_files_or_another_dataset_are_other_images() -> None:
    student, control = (replace(run(accuracy), model_info={"source_fingerprint": "f"}) for accuracy in (0.9, 0.85))
    assert verdict(student, control).outcome == "helped"
    other_data = replace(control, model_info={"source_fingerprint": "g"})
    assert verdict(student, other_data).outcome == "unknown"
    names = np.array([f"{i}.png" for i in range(3000)])
    with_names = [replace(r, per_image=r.per_image | {"name": names}) for r in (student, other_data)]
    assert verdict(*with_names).outcome == "helped"
    other_names = replace(control, per_image=control.per_image | {"name": names[::-1]})
    assert verdict(with_names[0], other_names).outcome == "unknown"


@pytest.mark.parametrize(
    ("student", "control", "missing"),
    [
        (RunSummary("s"), run(0.8), "s has no test accuracy"),
        (run(0.9), None, "Without a control"),
        (run(0.9), RunSummary("c"), "Without a control"),
        (RunSummary("s", metrics={"accuracy": 0.9}), RunSummary("c", metrics={"accuracy": 0.5}), "per_image.npz"),
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


def map_run(cosine: float | None, images: int = 200, spread: float = 0.05, **levels: float) -> RunSummary:
    """Return a run with this mean CAM cosine and these chance levels; the values of the images are random around it."""
    rng = np.random.default_rng(0)
    values = {"cam_cosine": cosine} | {f"cam_cosine_{name}": level for name, level in levels.items()}
    columns = {}
    for name, mean in values.items():
        if mean is not None:
            noise = rng.normal(size=images) * spread
            columns[name] = mean + noise - noise.mean()
    label = np.zeros(images, np.int32)
    columns |= {"label": label, "predicted": label, "teacher_predicted": label}
    return RunSummary("student", "student", dict(values), per_image=columns)


@pytest.mark.parametrize(
    ("cosine", "mean_map", "center", "control_cosine", "claim"),
    [
        (0.83, 0.41, 0.52, 0.62, "Yes, closer than the control, in one run."),
        (0.83, 0.41, 0.52, 0.825, "Yes, no closer than the control, in one run."),
        (0.60, 0.52, 0.41, 0.70, "Partly, less close than the control, in one run."),
        (0.841, 0.813, 0.811, 0.805, "Partly, closer than the control, in one run."),
        (0.525, 0.41, 0.52, None, "No more than chance, in one run."),
        (0.30, 0.41, 0.1, None, "No more than chance, in one run."),
        (0.83, None, None, None, "No chance level was measured."),
        (0.83, None, 0.52, 0.62, "No chance level was measured."),
    ],
)
def test_attention_verdict_weighs_the_cosine_against_chance_and_control(
    cosine: float, mean_map: float | None, center: float | None, control_cosine: float | None, claim: str
) -> None:
    levels = {name: level for name, level in (("mean_map", mean_map), ("center", center)) if level is not None}
    result = attention_verdict(map_run(cosine, **levels), map_run(control_cosine))
    assert result is not None
    assert result[0] == claim
    assert f"CAM cosine {cosine:.3f}" in result[1]
    if len(levels) == 2:
        assert f"chance {max(levels.values()):.3f}" in result[1]
        assert control_cosine is None or f"control {control_cosine:.3f}" in result[1]


def test_attention_verdict_needs_more_images_for_a_small_difference() -> None:
    """A difference of 0.03 with a spread of 0.2 per image is beyond two standard errors of 2,000 images, not of 50."""
    for images, claim, relation in ((50, "No more than chance", "no closer"), (2000, "Partly", "closer")):
        student = map_run(0.84, images, 0.2, mean_map=0.81, center=0.5)
        values = np.random.default_rng(1).permutation(student.per_image["cam_cosine"]) - 0.03
        control = replace(student, metrics={"cam_cosine": 0.81}, per_image=student.per_image | {"cam_cosine": values})
        result = attention_verdict(student, control)
        assert result is not None
        assert result[0] == f"{claim}, {relation} than the control, in one run."


def test_attention_verdict_compares_only_maps_of_the_same_classes() -> None:
    student = map_run(0.84, mean_map=0.6, center=0.5)
    control = replace(student, per_image=student.per_image | {"teacher_predicted": np.ones(200, np.int32)})
    assert attention_verdict(student, control) == ("Yes, in one run.", "CAM cosine 0.840, chance 0.600, control 0.840.")


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
