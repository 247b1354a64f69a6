"""Localization metrics against NumPy references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camkd.evaluate import metrics


@given(st.integers(0, 1000), st.tuples(st.integers(1, 5), st.integers(2, 5)), st.tuples(*[st.integers(1, 30)] * 2))
def test_pointing_game_tests_the_center_of_the_largest_cell(
    seed: int, grid: tuple[int, int], size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((4, *grid))
    masks = rng.random((4, *size)) < 0.5
    hits = metrics.pointing_game(torch.from_numpy(maps), torch.from_numpy(masks)).tolist()
    for i in range(4):
        row, column = np.unravel_index(maps[i].argmax(), grid)
        center = (int((row + 0.5) * size[0] / grid[0]), int((column + 0.5) * size[1] / grid[1]))
        assert hits[i] == masks[i][center]


def test_pointing_game_with_a_cell_at_the_mean() -> None:
    ramp = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert metrics.pointing_game(ramp, torch.tensor([[[False, False, True]]])).item() == 1


@pytest.mark.parametrize("level", [0.0, 0.1, -3.3, 1e30])
def test_constant_map_is_a_miss(level: float) -> None:
    constant = torch.full((1, 7, 7), level)
    assert metrics.pointing_game(constant, torch.ones(1, 14, 14, dtype=torch.bool)).item() == 0


@given(st.integers(0, 1000), st.integers(1, 3), st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(1, 4))
def test_energy_inside_matches_the_enlarged_map(seed: int, n: int, grid: tuple[int, int], factor: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((n, *grid))
    masks = rng.random((n, grid[0] * factor, grid[1] * factor)) < 0.4
    shares = metrics.energy_inside(torch.from_numpy(maps), torch.from_numpy(masks))
    enlarged = np.maximum(maps, 0).repeat(factor, 1).repeat(factor, 2)
    total = enlarged.sum((1, 2))
    expected = np.divide((enlarged * masks).sum((1, 2)), total, out=np.zeros(n), where=total > 0)
    np.testing.assert_allclose(shares.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_energy_inside_of_a_uniform_map_is_the_object_share() -> None:
    masks = torch.rand(3, 8, 8) < 0.5
    torch.testing.assert_close(metrics.energy_inside(torch.ones(3, 4, 4), masks), masks.float().mean((1, 2)))


def test_energy_inside_of_a_negative_map_is_zero() -> None:
    masks = torch.rand(3, 8, 8) < 0.5
    assert metrics.energy_inside(-torch.rand(3, 4, 4), masks).tolist() == [0, 0, 0]
