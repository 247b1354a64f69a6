"""TrivialAugment: one random operation of random magnitude per view (Müller and Hutter 2021, arXiv 2103.10158).

The operations and their 31 magnitudes are those of torchvision's ``TrivialAugmentWide``: identity, 5 operations of
geometry and 8 of color. Operations of geometry are matrices, for one sampling together with the crop
(`camkd.data.affine`). An operation of color is computed for all its images of a batch at once. The result of an image
is independent of the other images: reductions are extrema or sums of integers, whose order does not matter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from camkd.data.augment import MAGNITUDE, OPERATE, OPERATION, SIGN
from camkd.data.color import grayscale
from camkd.types import to_device

NUM_BINS = 31
"""Number of magnitudes, from 0 to the maximum."""

MAX_SHEAR = 0.99
"""Maximum shift of the opposite side, relative to the side."""

MAX_TRANSLATION = 32 / 224
"""Maximum translation relative to the side: 32 pixels of 224."""

MAX_ROTATION = 135.0
"""Maximum angle in degrees."""

MAX_BLEND = 0.99
"""Maximum change of the factor of brightness, color, contrast and sharpness."""


def affine_matrices(operation: Tensor, magnitude: Tensor) -> Tensor:
    """Return the map from a position in the view to its source, for the operations of geometry.

    Positions are relative to the side, from the upper left corner. Shears are about that corner, rotations about the
    center. All other operations have the identity.

    Args:
        operation: Index into `OPERATIONS`, ``(B,) int64``.
        magnitude: Signed magnitude in -1..1, ``(B,) float64``.

    Returns:
        Rows ``(source_x, source_y)`` of the coefficients of ``(x, y, 1)``, ``(B, 2, 3) float64``.
    """
    matrix = torch.eye(2, 3, dtype=torch.float64).repeat(len(operation), 1, 1)
    zero = torch.zeros_like(magnitude)

    def magnitude_of(name: str, maximum: float) -> Tensor:
        return torch.where(operation == OPERATIONS.index(name), magnitude * maximum, zero)

    angle = torch.deg2rad(magnitude_of("Rotate", MAX_ROTATION))
    sin = angle.sin()
    cos = angle.cos()
    matrix[:, 0, 0] = matrix[:, 1, 1] = cos
    matrix[:, 0, 1] = magnitude_of("ShearX", MAX_SHEAR) - sin
    matrix[:, 1, 0] = magnitude_of("ShearY", MAX_SHEAR) + sin
    matrix[:, 0, 2] = (1 - cos + sin) / 2 - magnitude_of("TranslateX", MAX_TRANSLATION)
    matrix[:, 1, 2] = (1 - cos - sin) / 2 - magnitude_of("TranslateY", MAX_TRANSLATION)
    return matrix


def _brightness(x: Tensor, signed: Tensor, _: Tensor) -> Tensor:
    return x * _factor(signed)


def _color(x: Tensor, signed: Tensor, _: Tensor) -> Tensor:
    return _blend(grayscale(x), x, signed)


def _contrast(x: Tensor, signed: Tensor, _: Tensor) -> Tensor:
    """Blend with the mean luma of the image."""
    pixels = x.shape[2] * x.shape[3]
    mean = grayscale(x).round().int().sum((2, 3), keepdim=True).float() / pixels  # integers: any order of the sum
    return _blend(mean, x, signed)


def _sharpness(x: Tensor, signed: Tensor, _: Tensor) -> Tensor:
    """Blend with the image smoothed by the kernel (1 1 1, 1 5 1, 1 1 1) / 13, except at the border."""
    if min(x.shape[2:]) < 3:
        return x
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    inner = x[:, :, 1:-1, 1:-1]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner) / 13
    x = x.clone()
    x[:, :, 1:-1, 1:-1] = _blend(smooth, inner, signed)
    return x


def _posterize(x: Tensor, _: Tensor, bins: Tensor) -> Tensor:
    """Keep the upper 8 to 2 bits."""
    step = 2 ** (bins / 5).round()[:, None, None, None]
    return (x.round() / step).floor() * step


def _solarize(x: Tensor, _: Tensor, bins: Tensor) -> Tensor:
    """Invert values from a threshold of 255 to 0 on."""
    threshold = 255 - bins[:, None, None, None] * (255 / (NUM_BINS - 1))
    return torch.where(x.round() < threshold, x, 255 - x)


def _auto_contrast(x: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """Stretch the values of each channel to 0..255."""
    levels = x.round()  # a constant channel stays what it is, whatever the rounding errors of its sampling
    low = levels.amin((2, 3), keepdim=True)
    spread = levels.amax((2, 3), keepdim=True) - low
    return torch.where(spread > 0, (levels - low) * (255 / spread.clamp_min(1)), x)


def _equalize(x: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """Equalize the histogram of each channel, by the integer arithmetic of Pillow."""
    levels = x.round().long().flatten(2).flatten(0, 1)
    histogram = torch.zeros(len(levels), 256, dtype=torch.int64, device=x.device)
    histogram.scatter_add_(1, levels, torch.ones_like(levels))
    brightest = histogram.gather(1, levels.amax(1, keepdim=True))
    step = (levels.shape[1] - brightest) // 255
    table = (histogram.cumsum(1) - histogram + step // 2) // step.clamp_min(1)
    equalized = table.clamp_max(255).gather(1, levels).view_as(x).float()
    return torch.where(step.view(*x.shape[:2], 1, 1) > 0, equalized, x)


def _factor(signed: Tensor) -> Tensor:
    return (1 + MAX_BLEND * signed)[:, None, None, None]


def _blend(degenerate: Tensor, x: Tensor, signed: Tensor) -> Tensor:
    return degenerate + (x - degenerate) * _factor(signed)


_COLOR: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
}
"""Operations of color: ``operation(x in 0..255, signed magnitude in -1..1, bin)``."""

OPERATIONS = ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *_COLOR)
"""Names of the operations, those of torchvision. Each has the same probability."""


def draw_operation(u: Tensor, probability: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return the operation of each view, its bin of the magnitude and its sign, for numbers of `random_photo`.

    Args:
        u: Random numbers, ``(B, 16)``.
        probability: Probability of drawing an operation. All other views get ``Identity``.

    Returns:
        Index into `OPERATIONS`, bin ``0..30`` and sign -1 or 1, each ``(B,) int64``.
    """
    operation = (u[:, OPERATION] * len(OPERATIONS)).long()
    operation = torch.where(u[:, OPERATE] < probability, operation, OPERATIONS.index("Identity"))
    bins = (u[:, MAGNITUDE] * NUM_BINS).long()
    return operation, bins, torch.where(u[:, SIGN] < 0.5, 1, -1)


def signed_magnitude(bins: Tensor, sign: Tensor) -> Tensor:
    """Return the magnitude relative to the maximum, with its sign, ``(B,) float64`` in -1..1."""
    return bins.double() * sign / (NUM_BINS - 1)


def apply_color(x: Tensor, operation: Tensor, bins: Tensor, sign: Tensor) -> Tensor:
    """Apply the operations of color in place.

    Args:
        x: Images ``(B, 3, H, W)`` in 0..255.
        operation: Index into `OPERATIONS`, ``(B,) int64`` on the CPU.
        bins: Bin of the magnitude, ``(B,)`` on the CPU.
        sign: Sign of the magnitude, ``(B,)`` on the CPU.

    Returns:
        ``x``, clipped to 0..255.
    """
    signed = signed_magnitude(bins, sign).float()
    for name, function in _COLOR.items():
        rows = (operation == OPERATIONS.index(name)).nonzero().squeeze(1)
        if len(rows):
            numbers = to_device(torch.stack([signed[rows], bins[rows].float()]), x.device)
            rows = to_device(rows, x.device)
            x.index_copy_(0, rows, function(x.index_select(0, rows), *numbers))
    return x.clamp_(0, 255)
