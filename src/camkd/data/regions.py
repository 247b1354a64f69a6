"""Regions of augmented views: the gray square of cutout and the box of CutMix.

A region consists of whole pixels of a frame. At another size it has the same outline: a pixel belongs to the region if
its center lies in a pixel of the frame that does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camkd.data.augment import BOX_X, BOX_Y, WEIGHT


def cutout(x: Tensor, u_y: Tensor, u_x: Tensor, fraction: float, frame: tuple[int, int]) -> Tensor:
    """Fill a square, centered anywhere in the image, with gray (DeVries and Taylor 2017, arXiv 1708.04552).

    Args:
        x: Images ``(B, 3, H, W)``.
        u_y: Vertical center of the square in 0..1, ``(B,)``.
        u_x: Horizontal center of the square in 0..1, ``(B,)``.
        fraction: Side of the square relative to the width of the frame.
        frame: Height and width of the frame in pixels.
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
