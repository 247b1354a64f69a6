"""Maps on a grid of cells."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps ``(..., h, w)`` to ``size`` cells: average-pooled where they shrink, bilinear where they grow.

    Where one side shrinks and the other grows they are pooled first. Cells are areas (``align_corners=False``). No maps
    become no maps of that size.
    """
    height, width = maps.shape[-2:]
    if not maps.numel():
        return maps.new_zeros((*maps.shape[:-2], *size))
    if (height, width) == size:
        return maps
    fewer = min(height, size[0]), min(width, size[1])
    if fewer != (height, width):
        planes = maps if maps.ndim in (3, 4) else maps.reshape(1, -1, height, width)
        maps = F.adaptive_avg_pool2d(planes, fewer).view(*maps.shape[:-2], *fewer)
    if fewer == size:
        return maps
    flat = maps.reshape(1, -1, *fewer)
    return F.interpolate(flat, size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)


def centre_prior(h: int, w: int) -> Tensor:
    """The map ``(h,w)`` of one who looks at the middle: a Gaussian, sigma a quarter of each side, peak 1.

    >>> centre_prior(3, 3)[1, 1].item()
    1.0
    """
    y, x = (((torch.arange(n) + 0.5) / n - 0.5) / 0.25 for n in (h, w))
    return torch.exp(-(y[:, None] ** 2 + x**2) / 2)
