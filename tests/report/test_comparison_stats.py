"""Means, intervals and paired differences against scipy and manual sums; the sentences about them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from camkd.config import CRITERIA, Select
from camkd.report.comparison_stats import (
    Arm,
    Comparison,
    Estimate,
    PairedDifference,
    estimate,
    format_estimate,
    format_p_value,
    holm_adjust,
    paired_difference,
)

numbers = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=8)


def arm(method: str, *accuracies: float, first: int = 0) -> Arm:
    """Return a method with these accuracies on validation and test images, at the seeds from ``first`` on."""
    runs = {seed: {"accuracy": share, "val_accuracy": share} for seed, share in enumerate(accuracies, first)}
    return Arm(method, runs)


def difference(p: float | None) -> PairedDifference:
    return PairedDifference("a", "b", (0, 1), (0.1, 0.2), p)


# --- numbers


@given(numbers)
def test_interval_equals_scipy(values: list[float]) -> None:
    result = estimate(values)
    if max(values) > min(values):
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    else:
        low, high = values[0], values[0]
    assert result.mean == pytest.approx(sum(values) / len(values))
    assert result.half_width is not None
    interval = (result.mean - result.half_width, result.mean + result.half_width)
    assert interval == pytest.approx((low, high), abs=1e-9)
    assert result.runs == len(values)


def test_single_run_has_no_interval() -> None:
    assert estimate([0.25]) == Estimate(0.25, None, 1)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
@pytest.mark.slow
def test_paired_difference_equals_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    first = arm("a", *(a for a, _ in pairs))
    second = arm("b", *(b for _, b in pairs))
    result = paired_difference(first, second)
    assert result.differences == tuple(a - b for a, b in pairs)
    if max(result.differences) > min(result.differences) + 1e-6:
        expected = stats.ttest_rel([a for a, _ in pairs], [b for _, b in pairs])
        assert result.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
        assert (result.outcome == "noise") == (result.p > 0.05)
        assert result.estimate.half_width is not None
        assert (result.outcome == "noise") == (abs(result.estimate.mean) < result.estimate.half_width)
    assert paired_difference(second, first).estimate.mean == pytest.approx(-result.estimate.mean)


@pytest.mark.parametrize("shift", [0.0, 0.25, -0.25])
def test_equal_differences_have_no_p_value(shift: float) -> None:
    """The difference of two methods may be the same number of images at both seeds by chance."""
    result = paired_difference(arm("a", 0.5 + shift, 0.25 + shift), arm("b", 0.5, 0.25))
    assert (result.p, result.outcome) == (None, "unknown")
    assert "2 seeds" in result.sentence
    assert "significance unknown" in result.sentence


def test_outcome_depends_on_the_adjusted_p_value() -> None:
    result = PairedDifference("a", "b", (0, 1, 2), (0.01, 0.012, 0.011), 0.003)
    assert result.outcome == "ahead"
    assert replace(result, p_holm=0.04).outcome == "ahead"
    assert replace(result, p_holm=0.06).outcome == "noise"
    assert "(p = 0.003, adjusted p = 0.060)" in replace(result, p_holm=0.06).sentence
    assert replace(result, differences=(-0.01, -0.012, -0.011), p_holm=0.04).outcome == "behind"


@pytest.mark.slow
def test_equal_methods_are_rarely_called_ahead_or_behind() -> None:
    """Of 100 comparisons of 9 equal methods with 3 seeds each, about 5 call a method ahead or behind.

    Without adjustment of the p-values, about 50 do.
    """
    rng = np.random.default_rng(0)
    names = ("plain", "kd", *"abcdefg")
    claims = 0
    for _ in range(100):
        differences = Comparison(tuple(arm(name, *rng.normal(0.8, 0.01, 3)) for name in names)).differences()
        claims += any(difference.outcome in ("ahead", "behind") for difference in differences)
    assert claims <= 12


def test_only_common_seeds_are_paired() -> None:
    first = arm("a", 0.5, 0.6, 0.7, first=1)
    second = arm("b", 0.1, 0.2, 0.3)
    result = paired_difference(first, second)
    assert result.seeds == (1, 2)
    assert result.differences == pytest.approx((0.3, 0.3))
    assert paired_difference(first, arm("c", 0.5)).differences == ()
    assert paired_difference(first, Arm("d", {1: {"val_accuracy": 0.5}})).differences == ()


def test_holm_adjustment_by_hand() -> None:
    adjusted = holm_adjust([difference(p) for p in (0.04, 0.01, None, 0.03, 0.9)])
    assert [result.p_holm for result in adjusted] == [
        pytest.approx(0.09),  # third smallest of four: 2 x 0.04 = 0.08, less than the second's 3 x 0.03, so 0.09
        pytest.approx(0.04),
        None,
        pytest.approx(0.09),
        pytest.approx(0.9),
    ]
    assert [result.p for result in adjusted] == [0.04, 0.01, None, 0.03, 0.9]
    assert [result.p_holm for result in holm_adjust([difference(0.6), difference(0.7)])] == [1.0, 1.0]


# --- text


def test_sentence_text() -> None:
    noise = paired_difference(arm("a", 0.51, 0.62, 0.73), arm("b", 0.50, 0.60, 0.70))
    assert noise.sentence == "a versus b: +2.00 ± 2.48 points over 3 paired seeds, within noise (p = 0.074)."
    ahead = paired_difference(arm("a", 0.520, 0.621, 0.719), arm("b", 0.50, 0.60, 0.70))
    assert ahead.sentence == "a is ahead of b: +2.00 ± 0.25 points over 3 paired seeds (p < 0.001)."
    behind = paired_difference(arm("b", 0.50, 0.60, 0.70), arm("a", 0.520, 0.621, 0.719))
    assert behind.sentence == "b is behind a: −2.00 ± 0.25 points over 3 paired seeds (p < 0.001)."
    one_seed = paired_difference(arm("a", 0.5), arm("b", 0.6))
    assert (one_seed.outcome, one_seed.p) == ("unknown", None)
    assert one_seed.sentence == "a versus b: −10.00 points with one seed; significance unknown."


def test_format_p_value() -> None:
    assert [format_p_value(p) for p in (0.00049, 0.001, 0.049)] == ["p < 0.001", "p = 0.001", "p = 0.049"]


def test_format_estimate() -> None:
    assert format_estimate(None) == "–"
    assert format_estimate(Estimate(0.5, None, 1)) == "50.00"
    assert format_estimate(Estimate(0.5, 0.001, 2)) == "50.00 ± 0.10"


# --- comparisons


def test_every_method_is_compared_with_plain_and_kd() -> None:
    arms = tuple(arm(name, 0.5, 0.6) for name in ("x", "kd", "y", "plain"))
    differences = Comparison(arms).differences()
    assert [(result.method, result.reference) for result in differences] == [
        ("x", "plain"),
        ("kd", "plain"),
        ("y", "plain"),
        ("x", "kd"),
        ("y", "kd"),
    ]
    assert Comparison(arms[:1]).differences() == ()
    assert [result.p_holm for result in differences] == [None] * 5, "differences without spread have no p-value"


def test_validation_accuracy_ranks_the_methods() -> None:
    strong = Arm("strong", {s: {"accuracy": 0.9, "val_accuracy": v} for s, v in enumerate((0.50, 0.51, 0.50))})
    weak = Arm("weak", {s: {"accuracy": 0.1, "val_accuracy": v} for s, v in enumerate((0.60, 0.61, 0.61))})
    comparison = Comparison((strong, weak, Arm("unfinished", {})))
    assert [entry.method for entry in comparison.ranked] == ["weak", "strong"]
    assert comparison.choice == "Best on the validation images: weak, ahead of strong (significant)."


@pytest.mark.parametrize(
    ("select", "best", "by"),
    [
        ("accuracy", "a", ""),
        ("balanced_accuracy", "b", " by balanced validation accuracy"),
        ("nll", "c", " by validation loss"),
    ],
)
def test_selection_criterion_ranks_the_methods(select: Select, best: str, by: str) -> None:
    """Of losses, the lowest is the best; its lead over the second is significant, as their difference is constant."""
    values = {"a": (0.9, 0.6, 0.5), "b": (0.8, 0.7, 0.6), "c": (0.7, 0.5, 0.4)}
    keys = [criterion.key for criterion in CRITERIA.values()]
    arms = [
        Arm(name, {s: {key: v + 0.001 * s * v for key, v in zip(keys, numbers, strict=True)} for s in range(5)})
        for name, numbers in values.items()
    ]
    comparison = Comparison(tuple(arms), select)
    assert comparison.ranked[0].method == best
    assert comparison.choice.startswith(f"Best on the validation images{by}: {best}, ahead of ")
    assert comparison.choice.endswith("(significant).")


def test_recall_of_classes_is_a_column() -> None:
    runs = {s: {"accuracy": 0.5, "per_class": {"cat": {"recall": 0.25 + s}}} for s in (0, 1)}
    comparison = Comparison((Arm("plain", runs), Arm("kd", {0: {"accuracy": 0.5}})))
    assert comparison.recall_keys == ["recall:cat"]
    assert "recall:cat" in comparison.columns
    assert comparison.arms[0].values("recall:cat") == [0.25, 1.25]
    assert comparison.arms[1].estimate("recall:cat") is None
    assert comparison.summary()["methods"]["plain"]["recall:cat"]["mean"] == 0.75


@pytest.mark.parametrize(
    ("arms", "parts"),
    [
        ((arm("a", 0.5, 0.7), arm("b", 0.6, 0.5)), ("images: a, ahead of b", "within noise")),
        ((arm("a", 0.5), arm("b", 0.6)), ("images: b, ahead of a", "unknown significance")),
        ((arm("a", 0.5, 0.5, 0.5), arm("b", 0.6)), ("images: b, ahead of a",)),  # more runs are no advantage
        ((arm("a", 0.5, 0.6), arm("b", 0.6, 0.5)), ("a and b are equally good",)),
        ((arm("a", 0.5, 0.6),), ("a is the only method",)),
        ((Arm("unfinished", {}),), ("No run is finished",)),
    ],
)
def test_choice_names_the_best_method_and_its_significance(arms: tuple[Arm, ...], parts: tuple[str, ...]) -> None:
    assert all(part in Comparison(arms).choice for part in parts)


def test_ranking_uses_only_common_seeds() -> None:
    """A method without a run at the most difficult seed is not ranked higher for that."""

    def seeded(name: str, **values: float) -> Arm:
        return Arm(name, {int(seed[1:]): {"accuracy": value, "val_accuracy": value} for seed, value in values.items()})

    robust = seeded("robust", s0=0.3, s1=0.8, s2=0.9)
    lucky = seeded("lucky", s1=0.79, s2=0.88)
    comparison = Comparison((lucky, robust, Arm("unfinished", {})))
    assert [entry.method for entry in comparison.ranked] == ["robust", "lucky"]
    assert "robust, ahead of lucky (within noise)" in comparison.choice
    with_one_common_seed = Comparison((robust, seeded("plain", s0=0.1, s1=0.9), seeded("kd", s1=0.7)))
    assert "plain, ahead of robust" in with_one_common_seed.choice, "only seed 1 counts"


def test_ranking_is_empty_without_a_common_seed() -> None:
    runs = {seed: {"accuracy": 0.5, "val_accuracy": 0.5} for seed in (0, 1)}
    comparison = Comparison((Arm("kd", {0: runs[0]}), Arm("plain", {1: runs[1]})))
    assert comparison.ranked == []
    assert "No seed is finished for every method" in comparison.choice
    assert comparison.summary()["ranked_on_validation"] == []
    assert comparison.differences() == ()


def test_columns_list_each_metric_before_its_chance_levels() -> None:
    runs = {0: {"cam_cosine": 0.8, "cam_cosine_mean_map": 0.4, "cam_cosine_center": 0.5, "cam_cosine_other": 0.1}}
    entry = Arm("kd", runs)
    assert {suffix: level.mean for suffix, level in entry.chance_levels("cam_cosine").items()} == {
        "mean_map": 0.4,
        "center": 0.5,
    }
    columns = Comparison((entry, Arm("unfinished", {}))).columns
    start = columns.index("cam_cosine")
    assert columns[start : start + 4] == ["cam_cosine", "cam_cosine_center", "cam_cosine_mean_map", "cam_pearson"]


def test_summary_is_json_serializable_data() -> None:
    summary = Comparison((arm("plain", 0.5, 0.6), arm("kd", 0.55, 0.66), Arm("unfinished", {}))).summary()
    assert summary["methods"]["plain"]["accuracy"]["mean"] == pytest.approx(0.55)
    assert summary["methods"]["unfinished"] == {}
    (row,) = summary["differences"]["accuracy"]
    assert (row["method"], row["reference"], row["outcome"]) == ("kd", "plain", "noise")
    assert row["by_seed"] == {"0": pytest.approx(0.05), "1": pytest.approx(0.06)}
    assert summary["differences"]["cam_cosine"] == []
    assert math.isfinite(row["p"])
