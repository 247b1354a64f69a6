"""Thresholds on metrics: parsing and violations."""

from __future__ import annotations

import pytest

from camkd.cli.thresholds import parse_thresholds, violations
from camkd.types import InputError

METRICS = {
    "accuracy": 0.7,
    "ece": 0.02,
    "params": 78_042,
    "cam_form": "exact",
    "per_class": {"a cat": {"recall": 0.25}},
}


def test_parse_thresholds() -> None:
    assert parse_thresholds(" cam_cosine = 0.8,ece=-1e-3 ", "--fail-under") == {"cam_cosine": 0.8, "ece": -0.001}


@pytest.mark.parametrize("text", ["cam_cosine", "cam_cosine=", "=0.8", "ece=high", "a=1,", "a=nan", "a=inf", ","])
def test_malformed_thresholds_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--fail-over must be .*, got '"):
        parse_thresholds(text, "--fail-over")


def test_metrics_at_their_threshold_pass() -> None:
    assert violations(METRICS, {"accuracy": 0.7}, {"ece": 0.02, "params": 78_042}) is None
    assert violations(METRICS, {}, {}) is None


def test_threshold_on_the_recall_of_a_class() -> None:
    thresholds = parse_thresholds("recall:a cat=0.5", "--fail-under")
    assert violations(METRICS, thresholds, {}) == "recall:a cat is 0.25, below 0.5."
    assert violations(METRICS, {"recall:a cat": 0.25}, {}) is None
    with pytest.raises(InputError, match="params, recall:CLASS, got 'recall:dog'"):
        violations(METRICS, {"recall:dog": 0.5}, {})


def test_violations_have_value_and_threshold() -> None:
    message = violations(METRICS, {"accuracy": 0.8, "ece": 0.01}, {"params": 50_000, "accuracy": 0.9})
    assert message == "accuracy is 0.7, below 0.8; params is 78042, above 50000."


@pytest.mark.parametrize("name", ["cam_cosine", "cam_form", "per_class"])
@pytest.mark.parametrize("side", [0, 1])
def test_unknown_or_non_numeric_metric_is_refused(name: str, side: int) -> None:
    thresholds: list[dict[str, float]] = [{}, {}]
    thresholds[side] = {"accuracy": 0.5, name: 0.5}
    with pytest.raises(InputError, match=rf"accuracy, ece, params, recall:CLASS, got '{name}'"):
        violations(METRICS, *thresholds)
