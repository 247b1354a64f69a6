"""Operations of TrivialAugment and random resized crops, compared with torchvision for every magnitude and sign."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomErasing, RandomResizedCrop, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import InterpolationMode, resized_crop

from camkd.data.affine import GRAY, render_affine
from camkd.data.regions import ERASED_AREA, MAX_ERASED_RATIO
from camkd.data.trivial_augment import (
    NUM_BINS,
    OPERATIONS,
    affine_matrices,
    apply_color,
    signed_magnitude,
)

SIDE = 224
"""A translation of torchvision is a number of pixels at this size."""

SPACE = TrivialAugmentWide()._augmentation_space(NUM_BINS)
TOLERANCE = {"Posterize": 0, "Equalize": 0, "Solarize": 0, "Identity": 0, "Brightness": 1, "AutoContrast": 1}
"""Maximum difference in levels; 2 for the others, of which torchvision truncates intermediate values."""


def photograph() -> Tensor:
    """Return a smooth image with noise, ``(3, 224, 224) uint8``."""
    axis = torch.linspace(0, 1, SIDE)
    smooth = torch.stack([(axis[:, None] + axis) / 2, axis[:, None] * axis, (axis[:, None] - axis).square()])
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))
    return (30 + 170 * smooth + 12 * noise).clamp(0, 255).byte()


def test_operations_are_those_of_torchvision_in_its_order() -> None:
    assert tuple(SPACE) == OPERATIONS
    assert TrivialAugmentWide().num_magnitude_bins == NUM_BINS


def bins_and_signs(name: str) -> tuple[Tensor, Tensor]:
    magnitudes, is_signed = SPACE[name]
    bins = torch.arange(NUM_BINS if magnitudes.ndim else 1)
    if not is_signed:
        return bins, torch.ones_like(bins)
    return bins.repeat(2), torch.tensor([1, -1]).repeat_interleave(len(bins))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_matches_torchvision_in_every_bin(name: str) -> None:
    image = photograph()
    bins, signs = bins_and_signs(name)
    magnitudes, _ = SPACE[name]
    operation = torch.full((1,), OPERATIONS.index(name))
    for number, sign in zip(bins.split(1), signs.split(1), strict=True):
        magnitude = float(magnitudes[number]) * sign.item() if magnitudes.ndim else 0.0
        matrix = affine_matrices(operation, signed_magnitude(number, sign))
        x = apply_color(render_affine(image.permute(1, 2, 0)[None], matrix), operation, number, sign)[0]
        expected = _apply_op(image, name, magnitude, InterpolationMode.BILINEAR, [GRAY] * 3).float()
        difference = (x - expected).abs()
        if name.startswith("Translate"):  # torchvision moves by whole pixels
            whole = affine_matrices(operation, torch.tensor([int(magnitude) / 32], dtype=torch.float64))
            difference = (render_affine(image.permute(1, 2, 0)[None], whole)[0] - expected).abs()
            assert abs(magnitude - int(magnitude)) < 1
        if name.startswith("Shear") or name == "Rotate":  # torchvision blends the outermost pixels with another border
            assert difference.gt(1.01).float().mean() < 0.02, number
        else:
            assert difference.max() <= TOLERANCE.get(name, 2) + 0.01, (number, sign)


def test_resized_crop_matches_torchvision() -> None:
    image = photograph()
    top, left, height, width = 20, 31, 150, 180
    matrix = torch.tensor([[[width, 0, left], [0, height, top]]], dtype=torch.float64) / SIDE
    x = render_affine(image.permute(1, 2, 0)[None], matrix)[0]
    crop = resized_crop(image, top, left, height, width, [SIDE, SIDE], antialias=False).float()
    assert (x - crop)[:, 2:-2, 2:-2].abs().max() < 0.51  # torchvision does not read outside the crop


def test_ranges_are_those_of_torchvision() -> None:
    assert RandomErasing().scale == ERASED_AREA
    assert RandomErasing().ratio[1] == MAX_ERASED_RATIO
    assert RandomErasing().ratio[0] == pytest.approx(1 / MAX_ERASED_RATIO, abs=0.01)
    assert RandomResizedCrop(64).ratio == (3 / 4, 4 / 3)
