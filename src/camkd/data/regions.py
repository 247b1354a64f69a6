"""Regions of augmented views: the gray square of cutout and the box of CutMix.

A region consists of whole pixels of a frame. At another size it has the same outline: a pixel belongs to the region if
its center lies in a pixel of the frame that does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camkd.data.affine import box_sides
from camkd.data.augment import BOX_X, BOX_Y, ERASE, ERASE_AREA, ERASE_LEFT, ERASE_RATIO, ERASE_TOP, WEIGHT

ERASED_AREA = (0.02, 0.33)
"""Minimum and maximum area of an erased rectangle, relative to the image."""

MAX_ERASED_RATIO = 3.3
"""Maximum ratio of the sides of an erased rectangle."""


def cutout(x: Tensor, u_y: Tensor, u_x: Tensor, fraction: float, frame: tuple[int, int]) -> Tensor:
    """Fill a square, centered anywhere in the image, with gray (DeVries and Taylor 2017, arXiv 1708.04552).

    Args:
        x: Images ``(B, 3, H, W)``.
        u_y: Vertical center of the square in 0..1, ``(B,)``.
        u_x: Horizontal center of the square in 0..1, ``(B,)``.
        fraction: Side of the square relative to the width of the frame.
        frame: Height and width of the frame in pixels.

    Returns:
        Images ``(B, 3, H, W)``.
    """
    height, width = frame
    half = max(1, round(width * fraction)) / 2
    in_rows = (torch.arange(height, device=x.device) + 0.5 - u_y[:, None] * height).abs() < half
    in_columns = (torch.arange(width, device=x.device) + 0.5 - u_x[:, None] * width).abs() < half
    return x.masked_fill(at_size(in_rows[:, :, None] & in_columns[:, None, :], x)[:, None], 0.5)


def cutmix_box(u: Tensor, frame: tuple[int, int]) -> Tensor:
    """Return the pixels of the frame that are in the CutMix box, ``(B, height, width)`` bool.

    The area of the box is uniform between zero and the area of the image. The center of the box is anywhere in the
    image, and the box is clipped at the border.

    Args:
        u: Random numbers of `camkd.data.augment.random_uniform`, ``(B, 16)``.
        frame: Height and width of the frame in pixels.
    """
    height, width = frame
    half = u[:, WEIGHT].sqrt()[:, None] / 2
    rows = (torch.arange(height, device=u.device) + 0.5) / height
    columns = (torch.arange(width, device=u.device) + 0.5) / width
    in_rows = (rows - u[:, BOX_Y, None]).abs() < half
    in_columns = (columns - u[:, BOX_X, None]).abs() < half
    return in_rows[:, :, None] & in_columns[:, None, :]


def at_size(values: Tensor, x: Tensor) -> Tensor:
    """Return ``values (B, h, w)`` of the pixels of a frame for the pixels of ``x (B, 3, H, W)``, as ``(B, H, W)``."""
    if values.shape[1:] == x.shape[2:]:
        return values
    rows, columns = (
        torch.arange(1, 2 * size, 2, device=x.device) * frame // (2 * size)  # the frame pixel that holds the center
        for frame, size in zip(values.shape[1:], x.shape[2:], strict=True)
    )
    return values[:, rows[:, None], columns]


def erased_edges(u: Tensor, probability: float) -> Tensor:
    """Return the edges of the erased rectangle of each view (Zhong et al. 2017, arXiv 1708.04896).

    Args:
        u: Random numbers of `camkd.data.augment.random_photo`, ``(B, 16)``.
        probability: Probability of a rectangle.

    Returns:
        Left, top, right and bottom in relative coordinates, ``(4, B)``; all 0 for no rectangle.
    """
    u = u.double()
    low, high = ERASED_AREA
    width, height = box_sides(low + (high - low) * u[:, ERASE_AREA], u[:, ERASE_RATIO], MAX_ERASED_RATIO)
    left = u[:, ERASE_LEFT] * (1 - width)
    top = u[:, ERASE_TOP] * (1 - height)
    edges = torch.stack([left, top, left + width, top + height])
    return torch.where(u[:, ERASE] < probability, edges, 0).float()


def fill(x: Tensor, edges: Tensor, value: float) -> Tensor:
    """Fill the pixels of ``x (B, 3, H, W)`` whose centers are between ``edges (4, B)`` with a value, in place."""
    left, top, right, bottom = edges[:, :, None]
    rows = (torch.arange(x.shape[2], device=x.device) + 0.5) / x.shape[2]
    columns = (torch.arange(x.shape[3], device=x.device) + 0.5) / x.shape[3]
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return x.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], value)


def cutmix_area(u: Tensor) -> Tensor:
    """Return the area of the CutMix box inside the image, ``(B,)``, for random numbers of `random_uniform`."""
    half = u[:, WEIGHT].sqrt() / 2
    sides = [(u[:, n] + half).clamp_max(1) - (u[:, n] - half).clamp_min(0) for n in (BOX_Y, BOX_X)]
    return sides[0] * sides[1]
