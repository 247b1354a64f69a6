"""Similarity of two maps, per image.

Each of the five metrics compares a different property, because any single metric can be high for dissimilar maps:

- `cosine` compares the positive values, the evidence for the class: the maps after ReLU, as a heatmap shows them.
- `pearson` compares the whole raw map, including evidence against the class, independent of offset and scale.
- `spearman` compares only the order of the cells, so that a single large cell does not dominate.
- `iou_top` compares only the locations of the largest fifth of the cells.
- `pointing_match` compares only the location of the largest cell.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of the positive parts of two maps, ``<relu(a), relu(b)> / (|relu(a)| |relu(b)|)``.

    The positive values are the evidence for the class, as a heatmap shows them. The scale of either map has no effect.

    Args:
        a: Maps ``(N, h, w)``.
        b: Maps ``(N, h, w)``.

    Returns:
        One similarity per image ``(N,)``, 0 to 1. A map without positive values scores 0 against every map.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> cosine(torch.tensor([[[3.0, -9.0]]]), torch.tensor([[[4.0, 3.0]]])).tolist()
        [0.800000011920929]
    """
    check_same_shape(a, b)
    return (_normalize(flatten_maps(a).relu()) * _normalize(flatten_maps(b).relu())).sum(1).clamp(0, 1)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of two raw maps over their cells.

    Negative values, the evidence against the class, count too. The offset and the positive scale of either map have no
    effect.

    Args:
        a: Maps ``(N, h, w)``.
        b: Maps ``(N, h, w)``.

    Returns:
        One correlation per image ``(N,)``, -1 to 1. A map that is constant up to rounding scores 0 against every map.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> pearson(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[6.0, 4.0, 2.0]]])).round().tolist()
        [-1.0]
    """
    check_same_shape(a, b)
    return _correlation(flatten_maps(a), flatten_maps(b))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman rank correlation of two raw maps over their cells.

    The result is the `pearson` correlation of the cells' ranks, where equal cells share their mean rank. It does not
    change when a strictly increasing function is applied to either map.

    Args:
        a: Maps ``(N, h, w)``.
        b: Maps ``(N, h, w)``.

    Returns:
        One correlation per image ``(N,)``, -1 to 1. A map that is constant up to rounding scores 0 against every map.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> spearman(torch.tensor([[[1.0, 2.0, 9.0]]]), torch.tensor([[[1.0, 50.0, 60.0]]])).round().tolist()
        [1.0]
    """
    check_same_shape(a, b)
    return _correlation(_mean_ranks(flatten_maps(a)), _mean_ranks(flatten_maps(b)))


def iou_top(a: Tensor, b: Tensor, fraction: float = 0.2) -> Tensor:
    """Intersection over union of the largest cells of two raw maps.

    Exactly ``k = max(1, floor(fraction * h * w + 1/2))`` cells of each map count. Of equal cells, the first in
    row-major order counts, so that ``k`` is exact and the result is the same on every device.

    Args:
        a: Maps ``(N, h, w)``.
        b: Maps ``(N, h, w)``.
        fraction: Share of the cells that count, in ``(0, 1]``.

    Returns:
        One ratio per image ``(N,)``, 0 to 1.

    Raises:
        ValueError: If the shapes differ, or ``fraction`` is outside ``(0, 1]``.

    Example:
        >>> iou_top(torch.tensor([[[9.0, 8.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 7.0, 6.0, 0.0]]]), 0.5).tolist()
        [0.3333333432674408]
    """
    check_same_shape(a, b)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}.")
    cells = a[0].numel() if len(a) else 1
    k = max(1, int(fraction * cells + 0.5))
    intersection = (_top_k_mask(flatten_maps(a), k) & _top_k_mask(flatten_maps(b), k)).sum(1)
    return intersection / (2 * k - intersection)


def pointing_match(a: Tensor, b: Tensor) -> Tensor:
    """Match of the locations of the largest cells of two maps.

    A match allows a distance of ``h // 8`` rows and ``w // 8`` columns. With fewer than 8 cells per side, only the same
    cell matches; with 8 to 15 cells per side, direct and diagonal neighbors match too. Of equal cells, the first in
    row-major order counts.

    Args:
        a: Maps ``(N, h, w)``.
        b: Maps ``(N, h, w)``.

    Returns:
        1 for a match and 0 otherwise, per image ``(N,)``. A map that is constant up to rounding matches no map.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> pointing_match(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[5.0, 9.0]]])).tolist()
        [1.0]
    """
    check_same_shape(a, b)
    peak_a, has_peak_a = peak_positions(a)
    peak_b, has_peak_b = peak_positions(b)
    tolerance = torch.tensor([side // 8 for side in a.shape[1:]], device=a.device)
    return (((peak_a - peak_b).abs() <= tolerance).all(1) & has_peak_a & has_peak_b).float()


def peak_positions(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Locate the largest cell of each map.

    Args:
        maps: ``(N, h, w)``.

    Returns:
        Row and column of each map's largest cell, int64 ``(N, 2)``, and a mask ``(N,)`` bool of the maps with a peak.
        Of equal cells, the first in row-major order counts. A map that is constant up to rounding has no peak.
    """
    cells = flatten_maps(maps)
    largest = (cells == cells.amax(1, keepdim=True)).float().argmax(1)
    position = torch.stack([largest // maps.shape[2], largest % maps.shape[2]], 1)
    return position, _center(cells).any(1)


def check_same_shape(a: Tensor, b: Tensor) -> None:
    """Raise ``ValueError`` unless both tensors are maps ``(N, h, w)`` of the same shape."""
    if a.shape != b.shape or a.ndim != 3:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"maps must both be (N, h, w), got {shapes}. Resize the maps with camkd.cams.resize.")


def flatten_maps(maps: Tensor) -> Tensor:
    """Flatten maps ``(N, h, w)`` to ``(N, h * w)``, in fp32 or a wider type."""
    return maps.flatten(1).to(torch.promote_types(maps.dtype, torch.float32))


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of the rows of two matrices: ``(N, D), (N, D) -> (N,)``."""
    return (_normalize(_center(a)) * _normalize(_center(b))).sum(1).clamp(-1, 1)


def _normalize(vectors: Tensor) -> Tensor:
    """Scale rows to unit length; zero rows stay zero. Divides by the maximum first, so that no square overflows."""
    largest = vectors.abs().amax(1, keepdim=True)
    scaled = vectors / largest.where(largest > 0, 1)
    return F.normalize(scaled, dim=1, eps=1)


def _center(vectors: Tensor) -> Tensor:
    """Subtract the mean of each row; rows that are constant up to rounding become exactly zero."""
    centered = vectors - vectors.mean(1, keepdim=True)
    rounding = 8 * torch.finfo(vectors.dtype).eps * vectors.abs().amax(1, keepdim=True)
    return centered.where(centered.abs().amax(1, keepdim=True) > rounding, 0)


def _top_k_mask(vectors: Tensor, k: int) -> Tensor:
    """Return a mask of the ``k`` largest cells of each row; of equal cells, the first count."""
    indices = vectors.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(vectors, dtype=torch.bool).scatter_(1, indices, True)


def _mean_ranks(vectors: Tensor) -> Tensor:
    """Rank the cells of each row from 0, with the mean rank for ties; rows constant up to rounding get zeros."""
    vectors = vectors.contiguous()
    ordered = vectors.sort(dim=1).values
    below = torch.searchsorted(ordered, vectors, right=False)
    up_to = torch.searchsorted(ordered, vectors, right=True)
    ranks = (below + up_to - 1).to(vectors.dtype) / 2
    return ranks.where(_center(vectors).any(1, keepdim=True), 0)
