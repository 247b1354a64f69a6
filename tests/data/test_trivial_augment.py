"""Operations of TrivialAugment, compared with Pillow for every magnitude and sign."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from torch import Tensor

from camkd.data.affine import render_affine
from camkd.data.augment import random_photo
from camkd.data.trivial_augment import (
    NUM_BINS,
    OPERATIONS,
    affine_matrices,
    apply_color,
    draw_operation,
    signed_magnitude,
)

GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
SIDE = 28
BINS = torch.arange(NUM_BINS).repeat(2)
SIGNS = torch.tensor([1, -1]).repeat_interleave(NUM_BINS)


def photograph(side: int = SIDE) -> np.ndarray:
    """Return a smooth image with noise, of other ranges in each channel."""
    rng = np.random.default_rng(4)
    axis = np.linspace(0, 1, side)
    smooth = np.stack(
        [np.add.outer(axis, axis) / 2, np.multiply.outer(axis, axis), np.subtract.outer(axis, axis) ** 2], 2
    )
    return (30 + 170 * smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)


def to_batch(image: np.ndarray, count: int = len(BINS)) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float().repeat(count, 1, 1, 1)


def to_array(view: Tensor) -> np.ndarray:
    return view.permute(1, 2, 0).numpy()


def operations(name: str, count: int = len(BINS)) -> Tensor:
    return torch.full((count,), OPERATIONS.index(name))


# --- color


def enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image, int, int], Image.Image]:
    return lambda image, number, sign: enhancer(image).enhance(1 + sign * 0.99 * number / 30)


PILLOW: dict[str, tuple[Callable[[Image.Image, int, int], Image.Image], float]] = {
    "Identity": (lambda image, number, sign: image, 0),
    "Brightness": (enhance(ImageEnhance.Brightness), 1),
    "Color": (enhance(ImageEnhance.Color), 2),
    "Contrast": (enhance(ImageEnhance.Contrast), 2),
    "Sharpness": (enhance(ImageEnhance.Sharpness), 2),
    "Posterize": (lambda image, number, sign: ImageOps.posterize(image, 8 - round(number / 5)), 0),
    "Solarize": (lambda image, number, sign: ImageOps.solarize(image, 255 - 8.5 * number), 0),
    "AutoContrast": (lambda image, number, sign: ImageOps.autocontrast(image), 1),
    "Equalize": (lambda image, number, sign: ImageOps.equalize(image), 0),
}
"""Reference of each operation, and the maximum difference in levels: Pillow rounds intermediate values."""


@pytest.mark.parametrize("name", PILLOW)
def test_color_operation_matches_pillow_in_every_bin(name: str) -> None:
    image = photograph()
    x = apply_color(to_batch(image), operations(name), BINS, SIGNS)
    reference, tolerance = PILLOW[name]
    for view, number, sign in zip(x, BINS.tolist(), SIGNS.tolist(), strict=True):
        expected = np.asarray(reference(Image.fromarray(image), number, sign), np.float32)
        assert abs(to_array(view) - expected).max() <= tolerance + 1e-3, (number, sign)


def test_all_operations_are_tested() -> None:
    assert set(OPERATIONS) == {*PILLOW, *GEOMETRY}
    assert len(OPERATIONS) == 14


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_color_operation_on_constant_images_matches_pillow(name: str, value: int) -> None:
    image = np.full((8, 8, 3), value, np.uint8)
    image[..., 1] = 255 - value
    sampled = to_batch(image) + 2e-5 * torch.rand(len(BINS), 3, 8, 8)  # as the weights of a sampling do not sum to 1
    x = apply_color(sampled, operations(name), BINS, SIGNS)
    reference, tolerance = PILLOW[name]
    for view, number, sign in zip(x, BINS.tolist(), SIGNS.tolist(), strict=True):
        expected = np.asarray(reference(Image.fromarray(image), number, sign), np.float32)
        assert abs(to_array(view) - expected).max() <= tolerance + 1e-3, (number, sign)


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 3), (40, 9)])
def test_color_operations_of_any_shape_match_pillow(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    for name, (reference, tolerance) in PILLOW.items():
        if name == "Sharpness" and min(shape) < 3:  # no pixel has 8 neighbors
            reference = PILLOW["Identity"][0]
        x = apply_color(to_batch(image, 1), operations(name, 1), torch.tensor([20]), torch.tensor([1]))
        expected = np.asarray(reference(Image.fromarray(image), 20, 1), np.float32)
        assert abs(to_array(x[0]) - expected).max() <= tolerance + 1e-3, name


def test_color_operations_are_independent_of_the_batch() -> None:
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.uniform(0, 255, (60, 3, 224, 224)).astype(np.float32))
    operation = torch.arange(60) % len(OPERATIONS)
    bins = torch.arange(60) % NUM_BINS
    sign = torch.where(torch.arange(60) % 4 < 2, 1, -1)
    expected = apply_color(x.clone(), operation, bins, sign)
    for rows in (torch.tensor([8]), torch.arange(40, 60), torch.tensor([22, 8, 50])):
        assert torch.equal(apply_color(x[rows], operation[rows], bins[rows], sign[rows]), expected[rows])


# --- geometry


def affine(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def reference_geometry(name: str, image: Image.Image, magnitude: float) -> Image.Image:
    shift = magnitude * 32 / 224 * image.width
    match name:
        case "ShearX":
            return affine(image, (1, 0.99 * magnitude, 0, 0, 1, 0))
        case "ShearY":
            return affine(image, (1, 0, 0, 0.99 * magnitude, 1, 0))
        case "TranslateX":
            return affine(image, (1, 0, -shift, 0, 1, 0))
        case "TranslateY":
            return affine(image, (1, 0, 0, 0, 1, -shift))
    return image.rotate(135 * magnitude, Image.Resampling.BILINEAR)


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_matches_pillow_in_every_bin(name: str) -> None:
    image = photograph()
    magnitude = signed_magnitude(BINS, SIGNS)
    matrix = affine_matrices(operations(name), magnitude)
    x = render_affine(torch.from_numpy(image).repeat(len(BINS), 1, 1, 1), matrix)
    white = render_affine(torch.full((len(BINS), SIDE, SIDE, 3), 255, dtype=torch.uint8), matrix)
    for view, inside, value in zip(x, white, magnitude.tolist(), strict=True):
        expected = np.asarray(reference_geometry(name, Image.fromarray(image), value), np.float32)
        is_inside = to_array(inside) > 254.9
        assert is_inside.mean() > 0.3
        assert abs(to_array(view) - expected)[is_inside].max() < 1.01, value
        is_filled = to_array(inside) < 127.6
        assert (abs(to_array(view)[is_filled] - 127.5) < 1e-3).all(), "outside of the image is gray"
        assert (expected[is_filled] == 0).all()


def test_other_operations_keep_the_geometry() -> None:
    for name in PILLOW:
        assert torch.equal(
            affine_matrices(operations(name), signed_magnitude(BINS, SIGNS)),
            torch.eye(2, 3, dtype=torch.float64).repeat(len(BINS), 1, 1),
        )


# --- random numbers


def test_operations_bins_and_signs_are_equally_likely() -> None:
    operation, bins, sign = draw_operation(random_photo(0, 0, torch.arange(20_000)))
    for values, count in ((operation, len(OPERATIONS)), (bins, NUM_BINS), ((sign + 1) // 2, 2)):
        counts = torch.bincount(values, minlength=count)
        assert len(counts) == count
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    pairs = torch.bincount((operation * NUM_BINS + bins) * 2 + (sign + 1) // 2)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_probability_of_an_operation(probability: float) -> None:
    u = random_photo(0, 0, torch.arange(20_000))
    certain = draw_operation(u)[0]
    operation = draw_operation(u, probability)[0]
    identity = OPERATIONS.index("Identity")
    changed = operation != certain
    assert (operation[changed] == identity).all()
    kept = (~changed & (certain != identity)).sum().item() / (certain != identity).sum().item()
    assert kept == pytest.approx(probability, abs=0.01)
