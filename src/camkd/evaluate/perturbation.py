"""Perturbation metrics: change of the class probability when an image is masked according to its map.

All metrics take the same arguments and return tensors ``(N,)``, one value per image:

- ``score``: function from images ``(N, 3, H, W)`` to the probability ``(N,)`` of each image's explained class.
- ``x``: images ``(N, 3, H, W)``, RGB in 0..1.
- ``maps``: one map per image, ``(N, h, w)``, resized bilinearly to ``(H, W)`` by `camkd.cams.resize`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from camkd.cams import resize
from camkd.evaluate.metrics.map_similarity import flatten_maps

ScoreFunction = Callable[[Tensor], Tensor]
"""Function from images ``(N, 3, H, W)`` to the probability ``(N,)`` of each image's explained class."""

STEPS = 10
"""Number of steps of the insertion and deletion curves."""

BLUR_SIGMA = 1 / 16
"""Standard deviation of the blur, as a fraction of the image's side: 2 pixels of 32, 14 pixels of 224."""


def deletion(score: ScoreFunction, x: Tensor, maps: Tensor) -> Tensor:
    """Deletion: area under the class probability as top-ranked pixels are removed.

    At fraction ``t / 10``, for ``t = 0..10``, the ``t * H * W / 10`` pixels (rounded half up) with the largest map
    values are replaced by the mean color of their image. The area is computed by the trapezoidal rule. Petsiuk et al.
    2018 (RISE), arXiv 1806.07421.

    Args:
        score: Function from images ``(N, 3, H, W)`` to probabilities ``(N,)``.
        x: Images ``(N, 3, H, W)``.
        maps: ``(N, h, w)``.

    Returns:
        One area per image ``(N,)``, 0 to 1; lower is better.

    Example:
        >>> def score(x):  # the probability is the red of the upper left pixel
        ...     return x[:, 0, 0, 0]
        >>> x = torch.zeros(1, 3, 2, 5)
        >>> x[0, 0, 0, 0] = 1
        >>> maps = torch.arange(10.0).view(1, 2, 5)
        >>> round(deletion(score, x, -maps).item(), 3), round(deletion(score, x, maps).item(), 3)
        (0.145, 0.955)
    """
    removed = x.mean((2, 3), keepdim=True).expand_as(x)
    return _area_under_curve(score, x, removed, pixel_ranks(maps, x))


def insertion(score: ScoreFunction, x: Tensor, maps: Tensor) -> Tensor:
    """Insertion: area under the class probability as top-ranked pixels are inserted into the blurred image.

    The fractions and the area are defined as in `deletion`. The curve starts at the blurred image, see `blur`. Petsiuk
    et al. 2018 (RISE), arXiv 1806.07421.

    Args:
        score: Function from images ``(N, 3, H, W)`` to probabilities ``(N,)``.
        x: Images ``(N, 3, H, W)``.
        maps: ``(N, h, w)``.

    Returns:
        One area per image ``(N,)``, 0 to 1; higher is better.

    Example:
        >>> x = torch.zeros(1, 3, 8, 8)
        >>> x[0, 0, 0, 0] = 1
        >>> maps = torch.arange(64.0).view(1, 8, 8)
        >>> def score(x):  # the probability is the red of the upper left pixel
        ...     return x[:, 0, 0, 0]
        >>> bool(insertion(score, x, -maps) > insertion(score, x, maps))
        True
    """
    return _area_under_curve(score, blur(x), x, pixel_ranks(maps, x))


def average_drop(score: ScoreFunction, x: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Average drop and increase in confidence when the image is multiplied by its map.

    With ``p = score(x)`` and ``q = score(x * L)``, the drop is ``max(0, p - q) / p``. The increase is 1 if ``p < q``
    and 0 otherwise. ``L`` is the positive part of the map, scaled so that its minimum is 0 and its maximum is 1, then
    resized. A map whose positive part is constant, for example zero, hides the whole image. Chattopadhay et al. 2018
    (Grad-CAM++), arXiv 1710.11063.

    Args:
        score: Function from images ``(N, 3, H, W)`` to probabilities ``(N,)``.
        x: Images ``(N, 3, H, W)``.
        maps: ``(N, h, w)``.

    Returns:
        The relative drop per image ``(N,)``, 0 to 1, lower is better; and the increase per image ``(N,)``, 0 or 1,
        higher is better.

    Example:
        >>> x = torch.ones(1, 3, 1, 2)
        >>> drop, increase = average_drop(lambda x: x[:, 0, 0, 0], x, torch.tensor([[[0.0, 1.0]]]))
        >>> drop.tolist(), increase.tolist()
        ([1.0], [0.0])
    """
    positive = flatten_maps(maps).relu()
    positive = positive - positive.amin(1, keepdim=True)
    mask = positive / positive.amax(1, keepdim=True).clamp_min(torch.finfo(positive.dtype).tiny)
    p = score(x)
    q = score(x * resize(mask.view_as(maps), _image_size(x))[:, None])
    return (p - q).relu() / p, (q > p).float()


def pixel_ranks(maps: Tensor, x: Tensor) -> Tensor:
    """Rank the pixels of each image by their map value, largest value first.

    Args:
        maps: ``(N, h, w)``; they are resized to the size of the images.
        x: Images ``(N, C, H, W)``; only their size is used.

    Returns:
        The rank of each pixel, from 0, int64 ``(N, H, W)``. Pixels with equal values keep row-major order.

    Example:
        >>> pixel_ranks(torch.tensor([[[1.0, 3.0, 2.0]]]), torch.zeros(1, 3, 1, 3)).tolist()
        [[[2, 0, 1]]]
    """
    values = resize(maps.float(), _image_size(x)).flatten(1)
    order = values.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks).view(len(x), *_image_size(x))


def blur(x: Tensor) -> Tensor:
    """Blur images with a Gaussian of standard deviation ``BLUR_SIGMA * side``, per axis.

    Near an edge, the weights of the pixels inside the image are normalized to sum to 1.

    Args:
        x: Images, ``(N, C, H, W)``.

    Returns:
        Blurred images, ``(N, C, H, W)``.
    """
    height, width = _image_size(x)
    return _gaussian_matrix(height).to(x) @ x @ _gaussian_matrix(width).to(x).T


def pixel_counts(fractions: Iterable[float], x: Tensor) -> list[int]:
    """Convert fractions of an image to numbers of pixels.

    Args:
        fractions: Fractions in 0..1.
        x: Images, ``(N, C, H, W)``. Only the shape is used.

    Returns:
        The number of pixels for each fraction, rounded half up.

    Example:
        >>> pixel_counts([0.0, 0.25, 1.0], torch.zeros(1, 3, 2, 5))
        [0, 3, 10]
    """
    height, width = _image_size(x)
    return [int(fraction * height * width + 0.5) for fraction in fractions]


def _gaussian_matrix(side: int) -> Tensor:
    position = torch.arange(side)
    return (-((position[:, None] - position) ** 2) / (2 * (BLUR_SIGMA * side) ** 2)).softmax(1)


def _area_under_curve(score: ScoreFunction, start: Tensor, end: Tensor, ranks: Tensor) -> Tensor:
    """Return the area under ``score`` as pixels change from ``start`` to ``end`` in the order of ``ranks``."""
    counts = pixel_counts((step / STEPS for step in range(STEPS + 1)), start)
    curve = [score(torch.where(ranks[:, None] < count, end, start)) for count in counts]
    return torch.trapezoid(torch.stack(curve, 1), torch.tensor(counts).to(start) / counts[-1], dim=1)


def _image_size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]
