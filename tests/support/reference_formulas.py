"""Reference implementations shared by several tests: resizing of maps with explicit loops over the cells."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch
from torch import Tensor


def randn(seed: int, *shape: int) -> Tensor:
    """Draw float64 normal values from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference_pool(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average-pool: cell i of n averages rows floor(i h / n) to ceil((i + 1) h / n)."""
    out = np.zeros(size)
    for i, j in product(*map(range, size)):
        rows = [i * plane.shape[0] // size[0], -(-(i + 1) * plane.shape[0] // size[0])]
        columns = [j * plane.shape[1] // size[1], -(-(j + 1) * plane.shape[1] // size[1])]
        out[i, j] = plane[slice(*rows), slice(*columns)].mean()
    return out


def reference_upsample(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate bilinearly between cell centers, and constantly beyond the outermost ones."""
    out = np.zeros(size)
    for i, j in product(*map(range, size)):
        neighbors = []
        for index, old, new in ((i, plane.shape[0], size[0]), (j, plane.shape[1], size[1])):
            coordinate = min(max((index + 0.5) * old / new - 0.5, 0.0), old - 1.0)
            low = min(math.floor(coordinate), old - 1)
            neighbors.append((low, min(low + 1, old - 1), coordinate - low))
        (top, bottom, v), (left, right, u) = neighbors
        out[i, j] = (1 - v) * ((1 - u) * plane[top, left] + u * plane[top, right]) + v * (
            (1 - u) * plane[bottom, left] + u * plane[bottom, right]
        )
    return out


def reference_resize(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average-pool each side that shrinks, then interpolate each side that grows."""
    pooled_size = min(plane.shape[0], size[0]), min(plane.shape[1], size[1])
    return reference_upsample(reference_pool(plane, pooled_size), size)
