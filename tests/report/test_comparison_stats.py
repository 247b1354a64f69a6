"""Means, intervals and paired differences against scipy's own tests and sums by hand; what is said of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from camkd.report.comparison_stats import (
    Arm,
    Comparison,
    Difference,
    Estimate,
    adjusted,
    estimate,
    p_value,
    paired,
    percent,
    points,
)

numbers = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=8)


def arm(method: str, *accuracies: float, val: float | None = None, first: int = 0) -> Arm:
    runs = {
        seed: {"accuracy": share, "val_accuracy": share if val is None else val}
        for seed, share in enumerate(accuracies, first)
    }
    return Arm(method, runs)


def difference(p: float | None) -> Difference:
    return Difference("a", "b", (0, 1), (0.1, 0.2), p)


# --- numbers


@given(numbers)
def test_the_interval_is_students(values: list[float]) -> None:
    found = estimate(values)
    low, high = (
        stats.ttest_1samp(values, 0).confidence_interval(0.95) if max(values) > min(values) else (values[0],) * 2
    )
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert found.half is not None
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high), abs=1e-9)
    assert found.runs == len(values)


def test_a_single_run_has_no_interval() -> None:
    assert estimate([0.25]) == Estimate(0.25, None, 1)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_a_paired_difference_is_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    one, other = arm("a", *(a for a, _ in pairs)), arm("b", *(b for _, b in pairs))
    found = paired(one, other)
    assert found.each == tuple(a - b for a, b in pairs)
    if max(found.each) > min(found.each) + 1e-6:
        expected = stats.ttest_rel([a for a, _ in pairs], [b for _, b in pairs])
        assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
        assert (found.outcome == "noise") == (found.p > 0.05)
        assert found.estimate.half is not None
        assert (found.outcome == "noise") == (abs(found.estimate.mean) < found.estimate.half)
    assert paired(other, one).estimate.mean == pytest.approx(-found.estimate.mean)


@pytest.mark.parametrize("shift", [0.0, 0.25, -0.25])
def test_of_differences_without_spread_nothing_is_claimed(shift: float) -> None:
    """Two seeds may differ by one picture each, by chance."""
    found = paired(arm("a", 0.5 + shift, 0.25 + shift), arm("b", 0.5, 0.25))
    assert (found.p, found.outcome) == (None, "unknown")
    assert "with 2 seeds that all differ by the same; noise cannot be told from it" in found.sentence


def test_the_adjusted_level_decides() -> None:
    sure = Difference("a", "b", (0, 1, 2), (0.01, 0.012, 0.011), 0.003)
    assert sure.outcome == "ahead"
    assert replace(sure, p_holm=0.04).outcome == "ahead"
    assert replace(sure, p_holm=0.06).outcome == "noise"
    assert replace(sure, p_holm=0.06).sentence.endswith("within noise (p = 0.003, adjusted p = 0.060).")
    assert replace(sure, each=(-0.01, -0.012, -0.011), p_holm=0.04).outcome == "behind"


def test_methods_that_do_nothing_are_seldom_called_ahead_or_behind() -> None:
    """Of 100 tables of 9 methods with 3 seeds each, of pure noise, about 5 may claim something; unadjusted, half do."""
    rng, claimed = np.random.default_rng(0), 0
    for _ in range(100):
        names = ("plain", "kd", *"abcdefg")
        found = Comparison(tuple(arm(name, *rng.normal(0.8, 0.01, 3)) for name in names)).differences()
        claimed += any(difference.outcome in ("ahead", "behind") for difference in found)
    assert claimed <= 12


def test_only_common_seeds_are_paired() -> None:
    one, other = arm("a", 0.5, 0.6, 0.7, first=1), arm("b", 0.1, 0.2, 0.3)
    found = paired(one, other)
    assert found.seeds == (1, 2)
    assert found.each == pytest.approx((0.3, 0.3))
    assert paired(one, arm("c", 0.5)).each == ()
    assert paired(one, Arm("d", {1: {"val_accuracy": 0.5}})).each == ()


def test_holm_by_hand() -> None:
    found = adjusted([difference(p) for p in (0.04, 0.01, None, 0.03, 0.9)])
    assert [d.p_holm for d in found] == [
        pytest.approx(0.09),  # the third of four: 2 x 0.04 = 0.08 may not fall below the second
        pytest.approx(0.04),
        None,
        pytest.approx(0.09),
        pytest.approx(0.9),
    ]
    assert [d.p for d in found] == [0.04, 0.01, None, 0.03, 0.9]
    assert [d.p_holm for d in adjusted([difference(0.6), difference(0.7)])] == [1.0, 1.0]


# --- what is said


def test_sentences() -> None:
    ahead = paired(arm("a", 0.51, 0.62, 0.73), arm("b", 0.50, 0.60, 0.70))
    assert ahead.sentence.startswith("a and b: +2.00 ± 2.48 points over 3 paired seeds, within noise (p = 0.074)")
    sure = paired(arm("a", 0.520, 0.621, 0.719), arm("b", 0.50, 0.60, 0.70))
    assert sure.sentence == "a is ahead of b: +2.00 ± 0.25 points over 3 paired seeds (p < 0.001)."
    assert paired(arm("b", 0.50, 0.60, 0.70), arm("a", 0.520, 0.621, 0.719)).sentence.startswith("b is behind a: −2.00")
    alone = paired(arm("a", 0.5), arm("b", 0.6))
    assert (alone.outcome, alone.p) == ("unknown", None)
    assert alone.sentence == "a and b: −10.00 points with one seed; noise cannot be told from it."


def test_numbers_for_people() -> None:
    assert (points(0.005), points(-0.005), points(0)) == ("+0.50", "−0.50", "+0.00")
    assert (p_value(0.00049), p_value(0.001), p_value(0.049)) == ("p < 0.001", "p = 0.001", "p = 0.049")
    assert percent(None) == "–"
    assert percent(Estimate(0.5, None, 1)) == "50.00"
    assert percent(Estimate(0.5, 0.001, 2)) == "50.00 ± 0.10"


# --- a comparison


def test_each_method_is_compared_with_plain_and_with_kd() -> None:
    arms = tuple(arm(name, 0.5, 0.6) for name in ("x", "kd", "y", "plain"))
    pairs = [(d.one, d.other) for d in Comparison(arms).differences()]
    assert pairs == [("x", "plain"), ("kd", "plain"), ("y", "plain"), ("x", "kd"), ("y", "kd")]
    assert Comparison(arms[:1]).differences() == ()
    assert [d.p_holm for d in Comparison(arms).differences()] == [None] * 5, "no spread"


def test_validation_chooses_and_the_test_pictures_have_no_say() -> None:
    strong = Arm("strong", {s: {"accuracy": 0.9, "val_accuracy": v} for s, v in enumerate((0.50, 0.51, 0.50))})
    weak = Arm("weak", {s: {"accuracy": 0.1, "val_accuracy": v} for s, v in enumerate((0.60, 0.61, 0.61))})
    found = Comparison((strong, weak, Arm("unfinished", {})))
    assert [one.method for one in found.ranked] == ["weak", "strong"]
    assert found.choice == "Best on the validation pictures is weak; it is ahead of strong beyond noise."
    noisy = Comparison((arm("a", 0.5, 0.7), arm("b", 0.6, 0.5)))
    assert noisy.choice == "Best on the validation pictures is a; it is ahead of b within noise."
    alone = Comparison((arm("a", 0.5), arm("b", 0.6)))
    assert (
        alone.choice
        == "Best on the validation pictures is b; it is ahead of a beyond or within noise, one cannot tell."
    )
    some = Comparison((arm("a", 0.5, 0.5, 0.5), arm("b", 0.6)))
    assert [one.method for one in some.ranked] == ["b", "a"], "more runs are no merit"
    even = Comparison((arm("a", 0.5, 0.6), arm("b", 0.6, 0.5)))
    assert even.choice == "On the validation pictures a and b are equally good."
    assert Comparison((strong,)).choice == "strong is the only method."
    assert Comparison((Arm("unfinished", {}),)).choice == "No run is finished yet."


def test_methods_are_ranked_over_the_seeds_that_all_have() -> None:
    """Whose bad seed diverged is not better for it."""

    def judged(name: str, **values: float) -> Arm:
        return Arm(name, {int(seed[1:]): {"accuracy": value, "val_accuracy": value} for seed, value in values.items()})

    robust, lucky = judged("robust", s0=0.3, s1=0.8, s2=0.9), judged("lucky", s1=0.79, s2=0.88)
    found = Comparison((lucky, robust, Arm("unfinished", {})))
    assert [one.method for one in found.ranked] == ["robust", "lucky"]
    assert found.choice == "Best on the validation pictures is robust; it is ahead of lucky within noise."
    apart = Comparison((judged("kd", s0=0.3), judged("plain", s1=0.8)))
    assert apart.ranked == []
    assert apart.choice == "No seed is finished with every method: the validation pictures cannot rank them."
    assert apart.summary()["ranked_on_validation"] == []
    assert apart.differences() == ()
    third = Comparison((robust, judged("plain", s0=0.1, s1=0.9), judged("kd", s1=0.7)))
    assert third.choice.startswith("Best on the validation pictures is plain; it is ahead of robust"), "at seed 1"


def test_a_summary_is_plain_data() -> None:
    found = Comparison((arm("plain", 0.5, 0.6), arm("kd", 0.55, 0.66), Arm("unfinished", {}))).summary()
    assert found["methods"]["plain"]["accuracy"]["mean"] == pytest.approx(0.55)
    assert found["methods"]["unfinished"] == {}
    (only,) = found["differences"]["accuracy"]
    assert (only["one"], only["other"], only["outcome"]) == ("kd", "plain", "noise")
    assert only["each"] == {"0": pytest.approx(0.05), "1": pytest.approx(0.06)}
    assert found["differences"]["cam_cosine"] == []
    assert math.isfinite(only["p"])
