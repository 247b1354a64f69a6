"""Paired images: counts and errors against loops, McNemar's test against exact sums and the chi-squared statistic."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from camkd.report.paired_images import DiscordantImages, discordant_images, mean_difference
from camkd.report.run_summary import RunSummary

counts = st.integers(0, 60)


def exact_p(first: int, second: int) -> float:
    """Sum the probabilities of all divisions of the discordant images that are at most as probable as this one."""
    n = first + second
    return float(sum(Fraction(comb(n, k), 2**n) for k in range(n + 1) if comb(n, k) <= comb(n, first)))


@given(counts, counts, st.integers(0, 500))
def test_mcnemar_against_exact_sums_and_paired_differences(first: int, second: int, concordant: int) -> None:
    if not first + second + concordant:
        return
    images = DiscordantImages(first, second, first + second + concordant)
    assert images.p == pytest.approx(exact_p(first, second), rel=1e-9)
    differences = [1] * first + [-1] * second + [0] * concordant
    assert images.difference == pytest.approx(sum(differences) / len(differences))
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / len(differences)
    assert images.standard_error == pytest.approx((variance / len(differences)) ** 0.5, abs=1e-9)


def test_mcnemar_of_many_images_approaches_the_chi_squared_statistic() -> None:
    images = DiscordantImages(5200, 5000, 100_000)
    statistic = (abs(5200 - 5000) - 1) ** 2 / (5200 + 5000)  # with continuity correction
    assert images.p == pytest.approx(stats.chi2.sf(statistic, 1), rel=0.01)


def test_error_of_runs_with_equal_predictions_is_zero() -> None:
    """Two binomial errors would be 1.3 points."""
    images = DiscordantImages(0, 0, 1000)
    assert (images.difference, images.standard_error, images.p) == (0, 0, 1)


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_discordant_images_against_a_loop(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    label, predicted, other_predicted = rng.integers(0, 3, (3, n))
    first, second = (
        RunSummary("run", per_image={"label": label, "predicted": column}) for column in (predicted, other_predicted)
    )
    only_first = sum(predicted[i] == label[i] != other_predicted[i] for i in range(n))
    only_second = sum(other_predicted[i] == label[i] != predicted[i] for i in range(n))
    assert discordant_images(first, second) == DiscordantImages(only_first, only_second, n)


@given(st.integers(0, 10_000), st.integers(2, 50))
def test_mean_difference_against_the_paired_t_test(seed: int, n: int) -> None:
    first, second = np.random.default_rng(seed).normal(size=(2, n))
    result = mean_difference(first.astype(np.float32), second.astype(np.float32))
    reference = stats.ttest_rel(first, second)
    assert result.mean / result.standard_error == pytest.approx(reference.statistic, rel=1e-3, abs=1e-3)


def test_mean_difference_of_one_image_has_no_error() -> None:
    assert mean_difference(np.array([0.5]), np.array([0.25])) == (0.25, np.inf)
