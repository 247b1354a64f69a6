"""Findings: a verdict claims what the numbers carry and no more; numbers are printed to be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from camkd.report import verdict as findings
from camkd.report.verdict import RunSummary


def run(right: float, n: int = 1000, **more: Any) -> RunSummary:
    """A run that gets the share ``right`` of ``n`` pictures of each of three classes."""
    hits = round(right * n)
    table = [[hits if r == c else (n - hits if c == (r + 1) % 3 else 0) for c in range(3)] for r in range(3)]
    return RunSummary("student", "student", {"accuracy": hits / n, "confusion": table} | more)


@pytest.mark.parametrize(
    ("mine", "outcome", "words"),
    [
        (0.90, "helped", "Distillation helped: 90.0 % against 85.0 %"),
        (0.80, "hurt", "Distillation hurt: 80.0 % against 85.0 %"),
        (0.855, "noise", "no measurable difference: 85.5 % against 85.0 %"),
        (0.845, "noise", "within noise"),
        (0.865, "hint", "may have helped a little"),
        (0.835, "hint", "may have hurt a little"),
        (0.85, "noise", "within noise"),
    ],
)
def test_verdict_says_what_the_numbers_carry(mine: float, outcome: str, words: str) -> None:
    found = findings.verdict(run(mine), run(0.85))
    assert found.outcome == outcome
    assert words in found.sentence.replace("\N{NO-BREAK SPACE}", " ")
    assert f"is {100 * np.sqrt((mine * (1 - mine) + 0.85 * 0.15) / 3000):.2f} points" in found.grounds
    assert "3,000 test pictures" in found.grounds
    assert "seed" in found.grounds


def test_the_same_difference_is_proof_on_more_pictures() -> None:
    assert [findings.verdict(run(0.87, n), run(0.85, n)).outcome for n in (100, 500, 5000)] == [
        "noise",
        "hint",
        "helped",
    ]


def test_many_classes_are_judged_without_a_confusion_matrix() -> None:
    """Above 1,000 classes a run has none, but it says how many pictures it was tested on."""
    mine, base = (RunSummary("s", metrics={"accuracy": share, "test_images": 20_000}) for share in (0.9, 0.5))
    found = findings.verdict(mine, base)
    assert found.outcome == "helped"
    assert f"on 20,000 test pictures is {100 * np.sqrt((0.9 * 0.1 + 0.5 * 0.5) / 20_000):.2f} points" in found.grounds
    assert [RunSummary("s", metrics={"test_images": count}).tested for count in (0, -3, "many")] == [None] * 3


def test_standard_error_is_the_formula() -> None:
    error = findings.standard_error(run(0.9), run(0.8))
    assert error == pytest.approx(np.sqrt(0.9 * 0.1 / 3000 + 0.8 * 0.2 / 3000))
    assert findings.standard_error(run(0.9), RunSummary("control", metrics={"accuracy": 0.8})) is None


@pytest.mark.parametrize(
    ("student", "control", "words"),
    [
        (RunSummary("s"), run(0.8), "no test accuracy"),
        (run(0.9), None, "Without a control"),
        (run(0.9), RunSummary("c"), "Without a control"),
        (RunSummary("s", metrics={"accuracy": 0.9}), RunSummary("c", metrics={"accuracy": 0.5}), "not known"),
        (RunSummary("s", metrics={"accuracy": float("nan")}), run(0.8), "no test accuracy"),
        (RunSummary("s", metrics={"accuracy": "high"}), run(0.8), "no test accuracy"),
        (RunSummary("s", metrics={"accuracy": 10**400}), run(0.8), "no test accuracy"),
    ],
)
def test_verdict_claims_nothing_without_the_numbers(
    student: RunSummary, control: RunSummary | None, words: str
) -> None:
    found = findings.verdict(student, control)
    assert found.outcome == "unknown"
    assert words in f"{found.sentence} {found.grounds}"


@pytest.mark.parametrize(
    ("mine", "shuffled", "centre", "base", "claim"),
    [
        (0.83, 0.41, 0.52, 0.62, "Yes, closer than the control."),
        (0.83, 0.41, 0.52, 0.825, "Yes, no closer than the control."),
        (0.60, 0.41, 0.52, 0.70, "Partly, less than the control."),
        (0.525, 0.41, 0.52, None, "No more than chance."),
        (0.30, 0.41, None, None, "No more than chance."),
        (0.83, None, None, None, "No chance level was measured."),
    ],
)
def test_looks_weighs_likeness_against_chance_and_control(
    mine: float, shuffled: float | None, centre: float | None, base: float | None, claim: str
) -> None:
    student = RunSummary(
        "s", metrics={"cam_cosine": mine, "cam_cosine_shuffled": shuffled, "cam_cosine_centre": centre}
    )
    found = findings.attention_verdict(student, RunSummary("c", metrics={"cam_cosine": base}))
    assert found is not None
    assert found[0] == claim
    assert f"{mine:.2f}" in found[1]


def test_times_and_gap() -> None:
    small, big = run(0.9, params=1000), run(0.95, params=23_500)
    assert findings.times(small, big, "params", "parameters") == (
        "24× fewer parameters",
        "1\xa0k against 23.5\xa0k",
    )
    assert (findings.times(big, run(0.9, params=10_000), "params", "parameters") or "")[0] == "2.4× more parameters"
    assert findings.times(small, big, "macs", "MACs") is None
    assert findings.gap(small, big) == "5.0 points below its teacher"
    assert findings.gap(run(0.9, teacher_accuracy=0.88), None) == "2.0 points above its teacher"


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0"), (999, "999"), (999.6, "1 k"), (271_098, "271 k"), (999_999, "1 M"), (1.3e9, "1.3 G")],
)
def test_counts_are_short(number: float, words: str) -> None:
    assert findings.count(number).replace("\N{NO-BREAK SPACE}", " ") == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(0.52, "0.5 s"), (59.7, "1 min"), (75, "1 min 15 s"), (3725, "1 h 2 min"), (3600, "1 h")],
)
def test_seconds_are_read_easily(number: float, words: str) -> None:
    assert findings.seconds(number).replace("\N{NO-BREAK SPACE}", " ") == words
