"""ROAD and noisy linear imputation against a direct solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse

from camkd.evaluate.perturbation import ScoreFunction, pixel_ranks
from camkd.evaluate.road import impute, road
from support.evaluation_inputs import corner_blue, corner_red, random_maps, smooth_images
from support.reference_formulas import reference_resize

# --- imputation


def reference_impute(x: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Impute one image ``(C, H, W)``: one equation per removed pixel, solved directly."""
    pixels = [tuple(pixel) for pixel in np.argwhere(removed)]
    matrix = sparse.lil_matrix((len(pixels), len(pixels)))
    right_side = np.zeros((len(pixels), len(x)))
    offsets = [(di, dj) for di in (-1, 0, 1) for dj in (-1, 0, 1) if (di, dj) != (0, 0)]
    for row, (i, j) in enumerate(pixels):
        for di, dj in offsets:
            neighbor = (i + di, j + dj)
            if not (0 <= neighbor[0] < x.shape[1] and 0 <= neighbor[1] < x.shape[2]):
                continue
            weight = 1 / 12 if di and dj else 1 / 6
            matrix[row, row] += weight
            if removed[neighbor]:
                matrix[row, pixels.index(neighbor)] -= weight
            else:
                right_side[row] += weight * x[:, neighbor[0], neighbor[1]]
    imputed = x.copy()
    imputed[:, removed] = sparse.linalg.spsolve(sparse.csc_matrix(matrix), right_side).reshape(len(pixels), -1).T
    return imputed


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 17), st.integers(1, 17), st.floats(0, 1), st.booleans())
@example(seed=105, h=12, w=5, fraction=0.96875, contiguous=True)  # slow convergence: 3e-4
def test_impute_matches_direct_solver(seed: int, h: int, w: int, fraction: float, contiguous: bool) -> None:
    x = smooth_images(seed, 2, h, w)
    maps = random_maps(seed, 2, 3, 3) if contiguous else random_maps(seed, 2, h, w)
    removed = pixel_ranks(maps, x) < min(h * w - 1, int(fraction * h * w))
    imputed = impute(x, removed)
    for i in range(2):
        if removed[i].any():
            expected = reference_impute(x[i].double().numpy(), removed[i].numpy())
            np.testing.assert_allclose(imputed[i], expected, rtol=0, atol=1e-3)
    kept = ~removed[:, None].expand_as(x)
    assert torch.equal(imputed[kept], x[kept])


def test_imputed_colors_stay_in_the_range_of_known_colors() -> None:
    x = smooth_images(0, 2, 40, 40)
    removed = pixel_ranks(random_maps(1, 2, 3, 3), x) < 1500
    for image, original, mask in zip(impute(x, removed), x, removed, strict=True):
        for channel in range(3):
            known_colors = original[channel][~mask]
            assert known_colors.min() - 1e-3 <= image[channel].min()
            assert image[channel].max() <= known_colors.max() + 1e-3


def test_impute_restores_a_linear_gradient() -> None:
    """The weighted mean of the neighbors is linear: away from the edges, linear gradients are exact."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 30), torch.linspace(0, 1, 30), indexing="ij")
    x = torch.stack([rows, columns, (rows + columns) / 2])[None]
    removed = torch.zeros(1, 30, 30, dtype=torch.bool)
    removed[:, 3:-3, 3:-3] = True
    torch.testing.assert_close(impute(x, removed), x, atol=1e-3, rtol=0)


def test_impute_rejects_an_image_without_known_pixels() -> None:
    removed = torch.tensor([False, True])[:, None, None].expand(2, 4, 4)
    with pytest.raises(ValueError, match="got none in image 1"):
        impute(torch.rand(2, 3, 4, 4), removed)


# --- ROAD


@pytest.mark.parametrize("score", [corner_red, corner_blue])
def test_road_matches_reference(score: ScoreFunction) -> None:
    x = smooth_images(4, 3, 10, 10)
    maps = random_maps(5, 3, 4, 4)
    noise = 0.01 * torch.randn(3, 10, 10, generator=torch.Generator().manual_seed(7)).double().numpy()

    def score_without(image: np.ndarray, pixels: np.ndarray) -> float:
        removed = np.zeros(100, bool)
        removed[pixels] = True
        removed = removed.reshape(10, 10)
        return float(score(torch.from_numpy(reference_impute(image, removed) + noise * removed)[None]))

    for i, value in enumerate(road(score, x, maps, seed=7)):
        plane = reference_resize(maps[i].double().numpy(), (10, 10))
        order = np.argsort(-plane, axis=None, kind="stable")
        image = x[i].double().numpy()
        gaps = [
            (score_without(image, order[100 - count :]) - score_without(image, order[:count])) / 2
            for count in (20, 40, 60, 80)
        ]
        assert value.item() == pytest.approx(np.mean(gaps), abs=1e-4)


def test_road_is_positive_for_a_map_of_the_decisive_pixels() -> None:
    x = smooth_images(0, 4, 8, 8)
    x[:, 0, :4, :4] = 1
    maps = torch.zeros(4, 4, 4)
    maps[:, :2, :2] = 1
    assert (road(corner_red, x, maps) > 0.05).all()


def test_road_changes_sign_with_the_map() -> None:
    x = smooth_images(1, 3, 9, 7)
    maps = random_maps(2, 3, 9, 7)  # without ties
    torch.testing.assert_close(road(corner_red, x, -maps), -road(corner_red, x, maps))
    assert (road(corner_red, x, maps) != 0).all()


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
@pytest.mark.slow
def test_road_depends_only_on_the_order_of_the_cells(seed: int, scale: float, offset: float) -> None:
    x = smooth_images(seed, 2, 6, 6)
    maps = random_maps(seed, 2, 6, 6)
    torch.testing.assert_close(road(corner_red, x, scale * maps.exp() + offset), road(corner_red, x, maps))
