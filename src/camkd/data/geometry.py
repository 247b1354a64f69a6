"""Geometry of augmented views: crop, flip and rotation.

A view is rendered from the whole image in one of two ways. `crop_and_flip` and `rotate` render it at the size of its
frame, in whole pixels. `render_frame` renders the same view at any other size: positions are relative to the side of
the image, in 0..1, and whole pixels are those of the frame. Photographs have another geometry (`camkd.data.affine`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from camkd.data.augment import ANGLE, CROP_X, CROP_Y, FLIP, Policy


def crop_and_flip(pixels: Tensor, u: Tensor, policy: Policy) -> Tensor:
    """Crop and flip images in one gather, with reflection padding.

    Args:
        pixels: Images ``(B, H, W, 3)``.
        u: Random numbers of `camkd.data.augment.random_uniform`, ``(B, 16)``.
        policy: Augmentation policy.

    Returns:
        The images, ``(B, H, W, 3)``.
    """
    batch, height, width, _ = pixels.shape
    rows, columns = (torch.arange(n, device=pixels.device).expand(batch, n) for n in (height, width))
    if policy.flip:
        columns = torch.where(u[:, FLIP, None] < 0.5, columns, width - 1 - columns)
    if policy.crop:
        rows = _reflect(rows + _crop_offset(u[:, CROP_Y], height)[:, None], height)
        columns = _reflect(columns + _crop_offset(u[:, CROP_X], width)[:, None], width)
    rows = rows + torch.arange(0, batch * height, height, device=pixels.device)[:, None]
    indices = rows[:, :, None] * width + columns[:, None, :]
    return pixels.view(-1, 3).index_select(0, indices.view(-1)).view_as(pixels)


def _crop_offset(u: Tensor, side: int) -> Tensor:
    padding = side // 8
    return (u * (2 * padding + 1)).long() - padding


def _reflect(index: Tensor, side: int) -> Tensor:
    """Map indices in ``-side < index < 2 * side - 1`` to ``0..side-1`` by reflection."""
    return side - 1 - (side - 1 - index.abs()).abs()


def rotation_angle(u: Tensor, policy: Policy) -> Tensor:
    """Return the angle of each view in radians, ``(B,)``, for random numbers ``u (B, 16)``."""
    return (2 * u[:, ANGLE] - 1) * math.radians(policy.rotation)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate ``x (B, 3, H, W)`` about its center by ``angle (B,)`` radians, with reflection padding."""
    grid = torch.stack(_rotation_grid(x, angle), 3)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _rotation_grid(x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return the source of each pixel in -1..1 along the width and the height, each ``(B, H, W)``."""
    height, width = x.shape[-2:]
    y_axis, x_axis = (torch.linspace(1 / n - 1, 1 - 1 / n, n, device=x.device) for n in (height, width))
    cos = angle.cos()[:, None, None]
    sin = angle.sin()[:, None, None]
    aspect = height / width
    return cos * x_axis - sin * aspect * y_axis[:, None], sin / aspect * x_axis + cos * y_axis[:, None]


def render_frame(x: Tensor, u: Tensor, policy: Policy, frame: int) -> Tensor:
    """Crop, flip and rotate images by the geometry of a frame of another size, in one bilinear sampling.

    Args:
        x: Square images ``(B, 3, S, S)``.
        u: Random numbers of `camkd.data.augment.random_uniform`, ``(B, 16)``.
        policy: Augmentation policy with crop.
        frame: Side of the frame in pixels, the unit of crop offsets and of the reflected border.

    Returns:
        The views, ``(B, 3, S, S)``.
    """
    side = x.shape[-1]
    if policy.rotation:  # at most one reflection at the border: a corner moves to -0.21 or 1.21
        columns, rows = (
            _reflect_position((grid + 1) / 2, 0.0) for grid in _rotation_grid(x, rotation_angle(u, policy))
        )
    else:
        axis = (torch.arange(side, device=x.device) + 0.5) / side
        columns = axis.expand(len(x), side, side)
        rows = axis[:, None].expand_as(columns)
    if policy.flip:
        columns = torch.where(u[:, FLIP, None, None] < 0.5, columns, 1 - columns)
    rows = _reflect_position(rows + (_crop_offset(u[:, CROP_Y], frame) / frame)[:, None, None], 1 / frame)
    columns = _reflect_position(columns + (_crop_offset(u[:, CROP_X], frame) / frame)[:, None, None], 1 / frame)
    grid = torch.stack([columns, rows], 3) * 2 - 1
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _reflect_position(position: Tensor, pixel: float) -> Tensor:
    """Reflect relative positions at the centers of the outer pixels of relative side ``pixel``, at the border for 0.

    The outer pixels themselves keep their positions, so for the centers of pixels this is `_reflect`.
    """
    position = torch.where(position < 0, pixel - position, position)
    return torch.where(position > 1, 2 - pixel - position, position)
