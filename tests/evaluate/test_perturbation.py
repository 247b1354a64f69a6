"""Insertion, deletion and average drop against explicit loops, SciPy and torchcam."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn
from torchcam.methods import CAM, GradCAM
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from camkd.evaluate.perturbation import (
    ScoreFunction,
    average_drop,
    blur,
    deletion,
    insertion,
    pixel_ranks,
)
from support.evaluation_inputs import corner_red, explain_predicted, random_maps, sensitive_network, smooth_images
from support.reference_formulas import reference_resize


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    return sensitive_network()


# --- insertion and deletion


def reference_area(score: ScoreFunction, start: Tensor, end: Tensor, plane: np.ndarray) -> float:
    """Area for one image ``(3, H, W)``: replace pixel after pixel, sum the trapezoids."""
    order = sorted(range(plane.size), key=lambda i: (-plane.flat[i], i))
    image = start.clone()
    scores = []
    fractions = []
    for step in range(11):
        count = int(step * plane.size / 10 + 0.5)
        for pixel in order[:count]:
            i, j = divmod(pixel, plane.shape[1])
            image[:, i, j] = end[:, i, j]
        scores.append(float(score(image[None])))
        fractions.append(count / plane.size)
    return sum((fractions[i + 1] - fractions[i]) * (scores[i] + scores[i + 1]) / 2 for i in range(10))


@pytest.mark.parametrize("size", [(8, 8), (9, 6)])
def test_insertion_and_deletion_match_reference(size: tuple[int, int]) -> None:
    x = smooth_images(0, 3, *size)
    maps = random_maps(1, 3, 3, 2)
    inserted = insertion(corner_red, x, maps)
    deleted = deletion(corner_red, x, maps)
    for i in range(3):
        plane = reference_resize(maps[i].double().numpy(), size)
        mean_color = x[i].mean((1, 2), keepdim=True).expand_as(x[i])
        assert deleted[i].item() == pytest.approx(reference_area(corner_red, x[i], mean_color, plane), abs=1e-6)
        assert inserted[i].item() == pytest.approx(reference_area(corner_red, blur(x)[i], x[i], plane), abs=1e-6)


def test_insertion_and_deletion_match_torchcam(model: nn.Sequential) -> None:
    """torchcam rounds the number of pixels per step. For 20 x 20 pixels and 10 steps the number is an integer."""
    x = smooth_images(2, 6, 20, 20)
    score, maps, _ = explain_predicted(model, x)
    baselines = {"deletion_auc": lambda x: x.mean((2, 3), keepdim=True), "insertion_auc": blur}
    for name, baseline in baselines.items():
        with CAM(model, "3", "6") as extractor:
            reference = DeletionInsertionMetric(extractor, partial(torch.softmax, dim=-1), steps=10, baseline=baseline)
            reference.update(x)
        metric = {"deletion_auc": deletion, "insertion_auc": insertion}[name]
        assert metric(score, x, maps).mean().item() == pytest.approx(reference.summary()[name], abs=1e-5)


def test_map_of_the_decisive_pixels_beats_its_negative() -> None:
    x = smooth_images(0, 4, 8, 8)
    x[:, 0, :4, :4] = 1
    maps = torch.zeros(4, 4, 4)
    maps[:, :2, :2] = 1
    assert (insertion(corner_red, x, maps) > insertion(corner_red, x, -maps) + 0.01).all()
    assert (deletion(corner_red, x, maps) < deletion(corner_red, x, -maps) - 0.05).all()


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_areas_depend_only_on_the_order_of_the_cells(seed: int, scale: float, offset: float) -> None:
    x = smooth_images(seed, 2, 6, 6)
    maps = random_maps(seed, 2, 6, 6)
    for metric in (insertion, deletion):
        transformed = metric(corner_red, x, scale * maps.exp() + offset)
        torch.testing.assert_close(transformed, metric(corner_red, x, maps))


def test_equal_pixels_are_ranked_in_row_major_order() -> None:
    ranks = pixel_ranks(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.zeros(1, 3, 2, 2))
    assert ranks.tolist() == [[[2, 0], [1, 3]]]
    assert pixel_ranks(torch.zeros(1, 4, 4), torch.zeros(1, 3, 40, 40)).flatten().tolist() == list(range(1600))


@pytest.mark.parametrize("size", [(32, 32), (48, 16)])
def test_blur_is_a_gaussian_normalized_at_the_edges(size: tuple[int, int]) -> None:
    x = smooth_images(0, 1, *size)[0].double()
    options = {"sigma": [side / 16 for side in size], "mode": "constant", "truncate": 20}
    weights = ndimage.gaussian_filter(np.ones(size), **options)
    expected = np.stack([ndimage.gaussian_filter(channel.numpy(), **options) / weights for channel in x])
    np.testing.assert_allclose(blur(x[None])[0], expected, atol=1e-6)


# --- average drop and increase in confidence


@pytest.mark.parametrize("method", ["exact", "gradient"])
def test_average_drop_and_increase_match_torchcam(model: nn.Sequential, method: str) -> None:
    if method == "gradient":
        model = nn.Sequential(*model[:6], nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    offset = torch.tensor([0.25, 0.75]).repeat(12)  # images with a drop and images with an increase
    x = smooth_images(3, 24, 20, 20) - offset[:, None, None, None]
    score, maps, class_ids = explain_predicted(model, x)
    extractor = GradCAM(model, "3")  # explains the probability instead of the logit, so it is given camkd's maps
    extractor.compute_cams = lambda *_, **__: [extractor._normalize(maps.relu())]
    with extractor:
        reference = ClassificationMetric(extractor, partial(torch.softmax, dim=-1))
        reference.update(x, class_ids.tolist())
    expected = reference.summary()
    assert 0 < expected["avg_drop"] < 1
    assert 0 < expected["conf_increase"] < 1
    drop, increase = average_drop(score, x, maps)
    assert drop.mean().item() == pytest.approx(expected["avg_drop"], abs=1e-5)
    assert increase.mean().item() == pytest.approx(expected["conf_increase"])


def test_average_drop_by_hand() -> None:
    x = torch.full((4, 3, 2, 2), 0.8)
    maps = torch.tensor(
        [
            [[1.0, -9], [-9, -9]],  # the scored pixel is visible
            [[-1.0, -1], [-1, 2]],  # the scored pixel is hidden
            [[-1.0, -1], [-1, -3]],  # without positive evidence the whole image is hidden
            [[4.0, 2], [2, 2]],  # the minimum is scaled to zero
        ]
    )
    drop, increase = average_drop(corner_red, x, maps)  # the score is the red of the first pixel
    torch.testing.assert_close(drop, torch.tensor([0.0, 1, 1, 0]))
    assert increase.tolist() == [0, 0, 0, 0]
    assert average_drop(lambda x: 1 - corner_red(x), x, maps)[1].tolist() == [0, 1, 1, 0]
