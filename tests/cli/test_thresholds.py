"""Bounds on figures: what is read from the command line, and what is said of a figure beyond its bound."""

from __future__ import annotations

import pytest

from camkd.cli.thresholds import parse_thresholds, violations
from camkd.types import InputError


def test_bounds_are_names_with_numbers() -> None:
    assert parse_thresholds(" cam_cosine = 0.8,ece=-1e-3 ", "--fail-under") == {"cam_cosine": 0.8, "ece": -0.001}


@pytest.mark.parametrize("text", ["cam_cosine", "cam_cosine=", "=0.8", "ece=high", "a=1,", "a=nan", "a=inf", ","])
def test_what_is_no_bound_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--fail-over has '.*', but needs figures with numbers like cam_cosine=0\.8"):
        parse_thresholds(text, "--fail-over")


FIGURES = {"accuracy": 0.7, "ece": 0.02, "params": 78_042, "cam_form": "exact", "per_class": {"cat": 0.1}}


def test_figures_at_their_bound_keep_it() -> None:
    assert violations(FIGURES, {"accuracy": 0.7}, {"ece": 0.02, "params": 78_042}) is None
    assert violations(FIGURES, {}, {}) is None


def test_every_figure_beyond_its_bound_is_named_with_value_and_bound() -> None:
    said = violations(FIGURES, {"accuracy": 0.8, "ece": 0.01}, {"params": 50_000, "accuracy": 0.9})
    assert said == "accuracy is 0.7, below 0.8; params is 78042, above 50000."


@pytest.mark.parametrize("name", ["cam_cosine", "cam_form", "per_class"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_figure_without_a_number_is_refused_with_what_there_is(name: str, side: int) -> None:
    given: list[dict[str, float]] = [{}, {}]
    given[side] = {"accuracy": 0.5, name: 0.5}
    with pytest.raises(InputError, match=rf"no figure '{name}'.*: give one of accuracy, ece, params\."):
        violations(FIGURES, *given)
