"""Affine geometry of the augmented views of photographs.

A matrix maps a position in the view to a position in the image. Positions are relative to the sides: (0, 0) is the
upper left corner and (1, 1) the lower right corner. A matrix is therefore independent of any size in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from camkd.data.augment import CROP_AREA, CROP_FLIP, CROP_LEFT, CROP_RATIO, CROP_TOP

GRAY = 127.5
"""Value of positions outside the image, in 0..255."""


def crop_matrices(u: Tensor, min_area: float) -> Tensor:
    """Return the matrices of random resized crops with flips.

    The area is uniform between ``min_area`` and 1, relative to the image. The ratio of width to height is log-uniform
    between 3/4 and 4/3, or in the part of this range in which the crop fits into the image. The position is uniform.

    Args:
        u: Random numbers of `camkd.data.augment.random_photo`, ``(B, 16)``.
        min_area: Minimum area relative to the image.

    Returns:
        Rows ``(source_x, source_y)`` of the coefficients of ``(x, y, 1)``, ``(B, 2, 3) float64``.
    """
    u = u.double()
    width, height = box_sides(min_area + (1 - min_area) * u[:, CROP_AREA], u[:, CROP_RATIO], 4 / 3)
    is_flipped = u[:, CROP_FLIP] < 0.5
    left = u[:, CROP_LEFT] * (1 - width)
    matrix = torch.zeros(len(u), 2, 3, dtype=torch.float64)
    matrix[:, 0, 0] = torch.where(is_flipped, -width, width)
    matrix[:, 0, 2] = torch.where(is_flipped, left + width, left)
    matrix[:, 1, 1] = height
    matrix[:, 1, 2] = u[:, CROP_TOP] * (1 - height)
    return matrix


def box_sides(area: Tensor, u: Tensor, max_ratio: float) -> tuple[Tensor, Tensor]:
    """Return width and height of boxes that fit into the unit square.

    The ratio of width to height is log-uniform between ``1 / max_ratio`` and ``max_ratio``, or in the part of this
    range in which the box fits.

    Args:
        area: Area of each box, ``(B,)`` in 0..1.
        u: Random numbers in 0..1, ``(B,)``.
        max_ratio: Maximum ratio of width to height, and of height to width.
    """
    limit = area.reciprocal().clamp_max(max_ratio).log()  # a box of ratio 1 / area has width 1
    half_ratio = ((2 * u - 1) * limit / 2).exp()
    side = area.sqrt()
    return (side * half_ratio).clamp_max(1), (side / half_ratio).clamp_max(1)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the affine maps ``p -> outer(inner(p))``, all ``(B, 2, 3)``."""
    result = outer[:, :, 0:1] * inner[:, 0:1] + outer[:, :, 1:2] * inner[:, 1:2]
    result[:, :, 2] += outer[:, :, 2]
    return result


def render_affine(pixels: Tensor, matrix: Tensor) -> Tensor:
    """Sample images bilinearly at affine positions. Positions outside the image are gray.

    Args:
        pixels: Images ``(B, H, W, 3) uint8``.
        matrix: Matrices from positions in the view to positions in the image, ``(B, 2, 3)``.

    Returns:
        The views, ``(B, 3, H, W)`` in 0..255.
    """
    height, width = pixels.shape[1:3]
    matrix = 2 * matrix.float()[:, :, :, None, None]
    x_axis = (torch.arange(width, device=pixels.device) + 0.5) / width
    y_axis = ((torch.arange(height, device=pixels.device) + 0.5) / height)[:, None]
    grid = torch.stack([(m[:, 0] * x_axis + m[:, 1] * y_axis) + (m[:, 2] - 1) for m in matrix.unbind(1)], 3)
    centered = pixels.permute(0, 3, 1, 2).float().sub_(GRAY)  # zeros outside the image are gray
    return F.grid_sample(centered, grid, align_corners=False).add_(GRAY)
