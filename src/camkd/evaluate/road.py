"""ROAD (Rong et al. 2022, arXiv 2202.00449): remove pixels so that what is left does not show which were removed.

*Noisy linear imputation.* A removed pixel is the weighted mean of its eight neighbours, 1/6 for each beside it and 1/12
for each across, where neighbours may be removed too; neighbours outside the picture have no weight. Written with the
removed pixels as unknowns, ``S_i x_i - sum_j w_ij x_j = sum_k w_ik x_k`` (j removed, k known, ``S_i`` the sum of all
weights of pixel i), that system is symmetric and positive definite, so conjugate gradients solve it for all pictures at
once, each step a few additions of shifted pictures. Noise is added to what was imputed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from camkd.evaluate.perturbation import Score, counts_of, ranks

FRACTIONS = (0.2, 0.4, 0.6, 0.8)
"""The shares of the pixels that are removed."""

NOISE = 0.01
"""Standard deviation of the noise on imputed pixels, for colours in 0..1."""

RESIDUAL = 1e-5
"""How far an imputed pixel may be from its neighbours' mean."""


def road(score: Score, x: Tensor, maps: Tensor, seed: int = 0) -> Tensor:
    """How much more the class suffers from losing its best places than its worst, -1/2 to 1/2: ``(N,)``.

    The mean over `FRACTIONS` of ``(least - most) / 2``: ``score`` after that share of the pixels is imputed, least
    relevant first and most relevant first. A random order scores 0; higher is better. ``score``, ``x (N, 3, H, W)`` and
    ``maps (N, h, w)`` are those of `camkd.evaluate.perturbation`; the noise is one field, the same in every picture.
    """
    order, gaps = ranks(maps, x), []
    noise = NOISE * torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)).to(x)
    for count in counts_of(FRACTIONS, x):
        removed = [order >= order[0].numel() - count, order < count]
        least, most = (score(imputed(x, gone) + noise * gone[:, None]) for gone in removed)
        gaps.append((least - most) / 2)
    return torch.stack(gaps).mean(0)


def imputed(x: Tensor, removed: Tensor) -> Tensor:
    """Pictures ``x (N, C, H, W)`` with the pixels ``removed (N, H, W) bool`` imputed linearly, without noise.

    Solved until every residual is at most `RESIDUAL`: colours within 1/1000 of a direct solver's up to 224 pixels and
    the largest of `FRACTIONS`. Raises ValueError for a picture that is removed altogether.

    >>> imputed(torch.tensor([[[[0.5, 9.0]]]]), torch.tensor([[[False, True]]])).tolist()
    [[[[0.5, 0.5]]]]
    """
    if removed.flatten(1).all(1).any():
        raise ValueError("a picture without a single known pixel cannot be imputed")
    return _solved(x, removed[:, None])


def _solved(x: Tensor, hole: Tensor) -> Tensor:
    """Conjugate gradients from a guess that the same picture at half the size gives: a few steps a size are enough."""
    if not hole.any():
        return x
    x = torch.where(hole, _guess(x, hole), x)
    weights = _around(torch.ones_like(x[:1, :1]))
    residual = hole * (_around(x) - weights * x)
    direction, square = residual, _inner(residual, residual)
    for _ in range(4 * max(x.shape[2:])):
        if residual.abs().max() <= RESIDUAL:
            break
        image = hole * (weights * direction - _around(direction))
        step = square / _inner(direction, image).clamp_min(torch.finfo(x.dtype).tiny)
        x, residual = x + step * direction, residual - step * image
        before, square = square, _inner(residual, residual)
        direction = residual + square / before.clamp_min(torch.finfo(x.dtype).tiny) * direction
    return x


def _guess(x: Tensor, hole: Tensor) -> Tensor:
    """What is known, averaged two by two and imputed, then brought back to the size of ``x``."""
    known = F.avg_pool2d((~hole).to(x), 2, ceil_mode=True)
    coarse = F.avg_pool2d(x * ~hole, 2, ceil_mode=True) / known.clamp_min(torch.finfo(x.dtype).tiny)
    return F.interpolate(_solved(coarse, known == 0), x.shape[2:], mode="bilinear", align_corners=False)


def _around(x: Tensor) -> Tensor:
    """The sum over each pixel's neighbours, 1/6 of each beside it and 1/12 of each across; 0 outside the picture."""
    rows = F.pad(x, (0, 0, 1, 1))
    rows = rows[:, :, :-2] + rows[:, :, 2:] + 2 * x
    both = F.pad(rows, (1, 1))
    return (both[..., :-2] + both[..., 2:] + 2 * rows - 4 * x) / 12


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2, 3), keepdim=True)
