"""References that several tests share: resizing written out cell by cell, and numbers to try it on."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch
from torch import Tensor


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pool_literally(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cell i of n averages rows floor(i h / n) .. ceil((i + 1) h / n)."""
    out = np.zeros(size)
    for i, j in product(*map(range, size)):
        rows = [i * plane.shape[0] // size[0], -(-(i + 1) * plane.shape[0] // size[0])]
        columns = [j * plane.shape[1] // size[1], -(-(j + 1) * plane.shape[1] // size[1])]
        out[i, j] = plane[slice(*rows), slice(*columns)].mean()
    return out


def grow_literally(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear between cell centres, constant beyond the outermost."""
    out = np.zeros(size)
    for i, j in product(*map(range, size)):
        spots = []
        for place, old, new in ((i, plane.shape[0], size[0]), (j, plane.shape[1], size[1])):
            at = min(max((place + 0.5) * old / new - 0.5, 0.0), old - 1.0)
            low = min(math.floor(at), old - 1)
            spots.append((low, min(low + 1, old - 1), at - low))
        (top, bottom, v), (left, right, u) = spots
        out[i, j] = (1 - v) * ((1 - u) * plane[top, left] + u * plane[top, right]) + v * (
            (1 - u) * plane[bottom, left] + u * plane[bottom, right]
        )
    return out


def resize_literally(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Averages of all cells wherever there are more, and only then between cells."""
    fewer = min(plane.shape[0], size[0]), min(plane.shape[1], size[1])
    return grow_literally(pool_literally(plane, fewer), size)
