"""Map similarities against values by hand, SciPy and NumPy, and their mathematical properties."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import spatial, stats
from torch import Tensor

from camkd.evaluate import metrics
from support.evaluation_inputs import random_maps

SIMILARITIES = [metrics.cosine, metrics.pearson, metrics.spearman, metrics.iou_top]
Similarity = Callable[[Tensor, Tensor], Tensor]

seeds = st.integers(0, 10_000)


def one_hot_map(h: int, w: int, row: int, column: int) -> Tensor:
    """A map ``(1, h, w)`` with a single cell of 1."""
    cam = torch.zeros(1, h, w)
    cam[0, row, column] = 1
    return cam


# --- cosine, Pearson, Spearman


def test_cosine_ignores_negative_evidence() -> None:
    a = torch.tensor([[[3.0, 4.0], [-100.0, 0.0]]])
    b = torch.tensor([[[4.0, 3.0], [-1.0, -7.0]]])
    assert metrics.cosine(a, b).item() == pytest.approx(24 / 25)
    assert metrics.pearson(a, b).item() == pytest.approx(stats.pearsonr(a.flatten(), b.flatten())[0], abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 7), st.integers(2, 7))
def test_cosine_and_pearson_match_scipy(seed: int, h: int, w: int) -> None:
    a = random_maps(seed, 3, h, w).double()
    b = random_maps(seed + 1, 3, h, w).double()
    a[:, 0, 0] = b[:, 0, 0] = 1.0  # some positive evidence in both
    for i in range(3):
        pair = a[i].flatten().numpy(), b[i].flatten().numpy()
        positive = [np.maximum(values, 0) for values in pair]
        assert metrics.cosine(a, b)[i].item() == pytest.approx(1 - spatial.distance.cosine(*positive), abs=1e-9)
        assert metrics.pearson(a, b)[i].item() == pytest.approx(stats.pearsonr(*pair)[0], abs=1e-9)


def test_spearman_by_hand() -> None:
    a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    b = torch.tensor([[[10.0, 30.0], [20.0, 1e9]]])  # ranks 0 2 1 3: 1 - 6 (1 + 1) / (4 * 15)
    assert metrics.spearman(a, b).item() == pytest.approx(0.8)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 7), st.integers(2, 7), st.booleans())
def test_spearman_matches_scipy_with_and_without_ties(seed: int, h: int, w: int, ties: bool) -> None:
    a = random_maps(seed, 3, h, w).double()
    b = random_maps(seed + 1, 3, h, w).double()
    if ties:
        a = a.round()
        b = b.round()
    a[:, 0, 0] = 9  # neither map is constant
    b[:, 0, 0] = -9
    for i in range(3):
        expected = stats.spearmanr(a[i].flatten(), b[i].flatten()).statistic
        assert metrics.spearman(a, b)[i].item() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(metrics.spearman(a**3, torch.exp(b)), metrics.spearman(a, b))


# --- pointing match


@pytest.mark.parametrize(
    ("grid", "position", "match"),
    [
        ((7, 7), (3, 3), 1),
        ((7, 7), (3, 4), 0),  # on grids under 8 cells only the same cell matches
        ((8, 8), (3, 4), 1),
        ((8, 8), (2, 2), 1),
        ((8, 8), (3, 5), 0),
        ((8, 8), (5, 3), 0),
        ((16, 8), (5, 4), 1),  # rows and columns have separate tolerances
        ((16, 8), (3, 5), 0),
    ],
)
def test_pointing_match_tolerates_an_eighth_of_each_side(
    grid: tuple[int, int], position: tuple[int, int], match: int
) -> None:
    a = one_hot_map(*grid, 3, 3)
    b = one_hot_map(*grid, *position)
    assert metrics.pointing_match(a, b).tolist() == metrics.pointing_match(b, a).tolist() == [match]


def test_pointing_match_uses_first_of_equal_cells() -> None:
    two_peaks = one_hot_map(7, 7, 2, 5) + one_hot_map(7, 7, 5, 2)
    assert metrics.pointing_match(two_peaks, one_hot_map(7, 7, 2, 5)).item() == 1
    assert metrics.pointing_match(two_peaks, one_hot_map(7, 7, 5, 2)).item() == 0
    assert metrics.pointing_match(two_peaks * 1e-3 - 5, one_hot_map(7, 7, 2, 5)).item() == 1


def test_pointing_match_with_a_cell_at_the_mean() -> None:
    ramp = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert metrics.pointing_match(ramp, ramp).item() == 1


@pytest.mark.parametrize("level", [0.0, 0.1, -3.3, 1e30])
def test_constant_maps_never_match(level: float) -> None:
    constant = torch.full((1, 7, 7), level)
    assert metrics.pointing_match(constant, constant).item() == 0


# --- intersection over union


def test_iou_by_hand() -> None:
    a = torch.arange(10.0).reshape(1, 2, 5)  # the top fifth is cells 8 and 9
    assert metrics.iou_top(a, a).item() == 1
    assert metrics.iou_top(a, -a).item() == 0
    b = a.clone()
    b[0, 0, 0] = 99  # the top fifth is cells 9 and 0
    assert metrics.iou_top(a, b).item() == pytest.approx(1 / 3)


def test_iou_resolves_ties_in_row_major_order() -> None:
    constant = torch.zeros(1, 2, 5)
    first_cells = torch.tensor([[[1.0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]])
    last_cells = first_cells.flip(1, 2)
    assert metrics.iou_top(constant, first_cells).item() == 1
    assert metrics.iou_top(constant, last_cells).item() == 0


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 8), st.integers(1, 8), st.floats(0.01, 1))
def test_iou_matches_set_operations(seed: int, h: int, w: int, fraction: float) -> None:
    a = random_maps(seed, 2, h, w).round()  # rounding creates many ties
    b = random_maps(seed + 1, 2, h, w).round()
    k = max(1, int(np.floor(fraction * h * w + 0.5)))
    for i in range(2):
        top_a, top_b = (set(np.argsort(-m[i].flatten().numpy(), kind="stable")[:k].tolist()) for m in (a, b))
        assert metrics.iou_top(a, b, fraction)[i].item() == pytest.approx(len(top_a & top_b) / len(top_a | top_b))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01])
def test_iou_rejects_invalid_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fraction .*got {fraction}"):
        metrics.iou_top(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), fraction)


# --- properties of all similarities


@pytest.mark.parametrize("similarity", SIMILARITIES)
@settings(deadline=None, max_examples=25)
@given(seed=seeds, h=st.integers(2, 6), w=st.integers(2, 6), power=st.integers(-25, 25))
def test_similarity_is_symmetric_bounded_scale_free_and_per_sample(
    similarity: Similarity, seed: int, h: int, w: int, power: int
) -> None:
    a = random_maps(seed, 5, h, w)
    b = random_maps(seed + 1, 5, h, w)
    value = similarity(a, b)
    assert value.shape == (5,)
    assert (value.abs() <= 1).all()
    torch.testing.assert_close(similarity(b, a), value)
    torch.testing.assert_close(similarity(a * 2.0**power, b), value)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(similarity(a[order], b[order]), value[order])
    cell_order = torch.randperm(h * w, generator=torch.Generator().manual_seed(seed))
    permuted_a, permuted_b = (m.flatten(1)[:, cell_order].reshape(m.shape) for m in (a, b))
    torch.testing.assert_close(similarity(permuted_a, permuted_b), value)  # without ties, cell positions have no effect


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_similarity_of_a_map_with_itself_is_one(similarity: Similarity) -> None:
    maps = random_maps(0, 1000, 5, 6)
    values = similarity(maps, maps)
    torch.testing.assert_close(values, torch.ones(1000))
    assert values.max() <= 1
    if similarity in (metrics.pearson, metrics.spearman):
        assert similarity(maps, -maps).min() == -1


@pytest.mark.parametrize("similarity", [*SIMILARITIES, metrics.pointing_match])
def test_different_grids_are_rejected(similarity: Similarity) -> None:
    with pytest.raises(ValueError, match=r"got \(1, 2, 2\) and \(1, 4, 4\)"):
        similarity(torch.zeros(1, 2, 2), torch.zeros(1, 4, 4))


@pytest.mark.parametrize("level", [0.0, 0.1, -3.3, 1e30, 1e-30])
def test_constant_maps_score_zero(level: float) -> None:
    constant = torch.full((1, 7, 7), level)
    other = random_maps(3, 1, 7, 7)
    assert metrics.pearson(constant, other).item() == 0
    assert metrics.spearman(constant, other).item() == 0
    if level <= 0:
        assert metrics.cosine(constant, other).item() == 0
        assert metrics.cosine(constant, constant).item() == 0


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_extreme_scales_neither_overflow_nor_underflow(scale: float) -> None:
    a = random_maps(1, 2, 8, 8)
    b = random_maps(2, 2, 8, 8)
    torch.testing.assert_close(metrics.cosine(a * scale, b), metrics.cosine(a, b))
    torch.testing.assert_close(metrics.pearson(a * scale, b), metrics.pearson(a, b))


def test_half_precision_is_computed_in_single_precision() -> None:
    a = random_maps(1, 2, 8, 8).bfloat16()
    b = random_maps(2, 2, 8, 8).bfloat16()
    torch.testing.assert_close(metrics.pearson(a, b), metrics.pearson(a.float(), b.float()))
