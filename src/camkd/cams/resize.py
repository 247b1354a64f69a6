"""Resizing of maps, and the center prior."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps: average pooling along a side that shrinks, bilinear interpolation along a side that grows.

    If one side shrinks and the other grows, the maps are pooled first. The elements of a
    map are areas, not points (``align_corners=False``).

    Args:
        maps: Maps ``(..., h, w)`` with any number of leading dimensions. The tensor may be empty.
        size: Height and width of the result, in cells.

    Returns:
        The maps ``(..., *size)``. This is ``maps`` itself if it already has this size and is not empty.

    Example:
        >>> resize(torch.tensor([[[0.0, 2.0], [4.0, 6.0]]]), (1, 1))
        tensor([[[3.]]])
    """
    height, width = maps.shape[-2:]
    if not maps.numel():
        return maps.new_zeros((*maps.shape[:-2], *size))
    if (height, width) == size:
        return maps
    pooled_size = min(height, size[0]), min(width, size[1])
    if pooled_size != (height, width):
        maps_4d = maps if maps.ndim in (3, 4) else maps.reshape(1, -1, height, width)
        maps = F.adaptive_avg_pool2d(maps_4d, pooled_size).view(*maps.shape[:-2], *pooled_size)
    if pooled_size == size:
        return maps
    maps_4d = maps.reshape(1, -1, *pooled_size)
    return F.interpolate(maps_4d, size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)


def center_prior(h: int, w: int) -> Tensor:
    """Compute a Gaussian in the center of the map, a baseline that is independent of the image.

    The standard deviation is a quarter of each side: ``exp(-(((x - 0.5) / 0.25)^2 + ((y - 0.5) / 0.25)^2) / 2)`` for
    the cell centers ``x, y`` in 0..1.

    Args:
        h: Height in cells.
        w: Width in cells.

    Returns:
        The map ``(h, w)``, with values in 0..1.

    Example:
        >>> center_prior(3, 3)[1, 1].item()
        1.0
    """
    y_scaled, x_scaled = (((torch.arange(n) + 0.5) / n - 0.5) / 0.25 for n in (h, w))
    return torch.exp(-(y_scaled[:, None] ** 2 + x_scaled**2) / 2)
