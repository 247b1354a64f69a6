"""ROAD: remove and debias (Rong et al. 2022, arXiv 2202.00449).

Pixels are removed by *noisy linear imputation*, so that the remaining image does not reveal which pixels were removed.
A removed pixel becomes the weighted mean of its eight neighbors: weight 1/6 for each direct neighbor, 1/12 for each
diagonal neighbor. Neighbors may be removed too; neighbors outside the image have no weight. Noise is added to the
imputed pixels.

With the removed pixels as unknowns, imputation is the linear system

    S_i x_i - sum_j w_ij x_j = sum_k w_ik x_k

where j runs over removed neighbors of pixel i, k over known neighbors, and ``S_i`` is the sum of both kinds of weights.
The system is symmetric and positive definite, so it is solved by conjugate gradients, for all images at once. Each step
takes a few additions of shifted images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from camkd.evaluate.perturbation import ScoreFunction, pixel_counts, pixel_ranks

FRACTIONS = (0.2, 0.4, 0.6, 0.8)
"""Fractions of the pixels that are removed."""

NOISE = 0.01
"""Standard deviation of the noise on imputed pixels, for colors in 0..1."""

MAX_RESIDUAL = 1e-5
"""Largest residual at which the solver stops, for colors in 0..1."""

CPU_CHUNK_PIXELS = 1 << 18
"""Number of pixels that are solved at a time on a CPU, few enough for its caches: 5 images of 224x224 pixels."""

STEPS_PER_CHECK = 4
"""Number of steps of the solver between two checks of the residual."""


def road(score: ScoreFunction, x: Tensor, maps: Tensor, seed: int = 0) -> Tensor:
    """ROAD: gap between removing the least relevant and the most relevant pixels.

    The gap is the mean over `FRACTIONS` of ``(least - most) / 2``. ``least`` is the score after imputing that fraction
    of the pixels with the smallest map values. ``most`` is the score after imputing the same number of pixels with the
    largest map values. Rong et al. 2022, arXiv 2202.00449.

    Args:
        score: Function from images ``(N, 3, H, W)`` to probabilities ``(N,)``.
        x: Images ``(N, 3, H, W)``, RGB in 0..1.
        maps: ``(N, h, w)``, resized bilinearly to the images.
        seed: Seed of the noise. All images get the same noise.

    Returns:
        One gap per image ``(N,)``, -1/2 to 1/2; higher is better. A random order of the pixels scores 0 on average.

    Raises:
        ValueError: If the images have one or two pixels, so that the largest fraction removes all pixels.

    Example:
        >>> x = torch.zeros(1, 3, 8, 8)
        >>> x[:, 0, :4, :4] = 1
        >>> maps = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        >>> bool(road(lambda x: x[:, 0, :4, :4].mean((1, 2)), x, maps) > 0.05)
        True
    """
    ranks = pixel_ranks(maps, x)
    pixels = ranks[0].numel()
    noise = NOISE * torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)).to(x)
    gaps = []
    for count in pixel_counts(FRACTIONS, x):
        least = _score_without(score, x, ranks >= pixels - count, noise)
        most = _score_without(score, x, ranks < count, noise)
        gaps.append((least - most) / 2)
    return torch.stack(gaps).mean(0)


def impute(x: Tensor, removed: Tensor) -> Tensor:
    """Impute removed pixels linearly, without noise.

    The solver stops once every residual is at most `MAX_RESIDUAL`, or after ``4 * max(H, W)`` steps. Colors differ by
    less than 1/1000 from a direct solver's, for images of up to 224x224 pixels and the largest of `FRACTIONS`.

    Args:
        x: Images ``(N, C, H, W)``.
        removed: Mask of the removed pixels, ``(N, H, W)`` bool.

    Returns:
        The images with removed pixels replaced, ``(N, C, H, W)``.

    Raises:
        ValueError: If an image has no known pixel.

    Example:
        >>> impute(torch.tensor([[[[0.5, 9.0]]]]), torch.tensor([[[False, True]]])).tolist()
        [[[[0.5, 0.5]]]]
    """
    fully_removed = removed.flatten(1).all(1).nonzero().flatten().tolist()
    if fully_removed:
        raise ValueError(
            f"each image must keep at least one known pixel, got none in image {fully_removed[0]}. Remove fewer pixels."
        )
    size = max(1, CPU_CHUNK_PIXELS // removed[0].numel()) if x.is_cpu else len(x)
    chunks = zip(x.split(size), removed[:, None].split(size), strict=True)
    return torch.cat([_solve(images, mask) for images, mask in chunks])


def _score_without(score: ScoreFunction, x: Tensor, removed: Tensor, noise: Tensor) -> Tensor:
    return score(impute(x, removed) + noise * removed[:, None])


def _solve(x: Tensor, removed: Tensor) -> Tensor:
    """Solve by conjugate gradients, started from the solution at half the size, so that few steps suffice."""
    if not removed.any():
        return x
    tiny = torch.finfo(x.dtype).tiny
    x = torch.where(removed, _coarse_solution(x, removed), x)
    weights = _neighbor_sum(torch.ones_like(x[:1, :1]))
    mask = removed.to(x)
    residual = (_neighbor_sum(x) - weights * x).mul_(mask)
    direction = residual.clone()
    squared_norm = _dot(residual, residual)
    for step in range(4 * max(x.shape[2:])):
        if step % STEPS_PER_CHECK == 0 and residual.abs().max() <= MAX_RESIDUAL:
            break
        product = (weights * direction).sub_(_neighbor_sum(direction)).mul_(mask)  # the matrix times the direction
        step_size = squared_norm / _dot(direction, product).clamp_min(tiny)
        x.addcmul_(step_size, direction)
        residual.addcmul_(step_size, product, value=-1)
        previous = squared_norm
        squared_norm = _dot(residual, residual)
        direction.mul_(squared_norm / previous.clamp_min(tiny)).add_(residual)
    return x


def _coarse_solution(x: Tensor, removed: Tensor) -> Tensor:
    """Average the known pixels of 2x2 blocks, solve at half the size, and interpolate to the size of ``x``."""
    known_share = F.avg_pool2d((~removed).to(x), 2, ceil_mode=True)
    coarse = F.avg_pool2d(x * ~removed, 2, ceil_mode=True) / known_share.clamp_min(torch.finfo(x.dtype).tiny)
    return F.interpolate(_solve(coarse, known_share == 0), x.shape[2:], mode="bilinear", align_corners=False)


def _neighbor_sum(x: Tensor) -> Tensor:
    """Sum each pixel's neighbors with weight 1/6 if direct and 1/12 if diagonal; pixels outside the image are 0."""
    rows = 2 * x
    rows[:, :, 1:] += x[:, :, :-1]
    rows[:, :, :-1] += x[:, :, 1:]
    total = 2 * rows
    total[..., 1:] += rows[..., :-1]
    total[..., :-1] += rows[..., 1:]
    return total.sub_(x, alpha=4).div_(12)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2, 3), keepdim=True)
