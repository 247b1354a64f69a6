"""Does the network use what its map says? Pictures without the marked places, and with these alone.

Each figure takes ``score``, which gives for pictures ``(N, 3, H, W)`` the probability ``(N,)`` of the class that is
explained, the pictures ``x (N, 3, H, W)`` and a map of each, ``maps (N, h, w)``; it returns one number a picture. Maps
are brought to the size of the pictures by `camkd.cams.resize` (bilinear).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from camkd.cams import resize
from camkd.evaluate.metrics.map_similarity import flat

Score = Callable[[Tensor], Tensor]

STEPS = 10
"""Into how many parts insertion and deletion divide a picture's pixels."""

BLUR = 1 / 16
"""Standard deviation of the blurred picture that insertion starts from, in sides: 2 pixels of 32, 14 of 224."""


def deletion(score: Score, x: Tensor, maps: Tensor) -> Tensor:
    """How fast the class goes when its places go: the area under ``score``, 0 to 1; ``(N,)``, lower is better.

    At ``t / 10`` for t = 0..10 the ``round(t H W / 10)`` pixels of the largest values have the mean colour of their
    picture; the area is that under the straight lines between. Petsiuk et al. 2018 (RISE), arXiv 1806.07421.
    """
    return _area(score, x, x.mean((2, 3), keepdim=True).expand_as(x), ranks(maps, x))


def insertion(score: Score, x: Tensor, maps: Tensor) -> Tensor:
    """How fast the class comes when its places come: the area under ``score``, 0 to 1; ``(N,)``, higher is better.

    As `deletion`, but pixels of the picture take the place of those of the blurred one (`blurred`).
    """
    return _area(score, blurred(x), x, ranks(maps, x))


def average_drop(score: Score, x: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """By what share the class falls when only its places are seen, 0 to 1, and whether it rises, 0 or 1; ``(N,)`` each.

    ``max(0, p - q) / p`` and ``p < q`` for ``p = score(x)`` and ``q = score(x L)``, L the positive part of the map, its
    least value brought to 0 and its largest to 1, then resized; a map without positive evidence shows nothing. EMA
    drop and increase in confidence of Chattopadhay et al. 2018 (Grad-CAM++), arXiv 1710.11063.
    """
    positive = flat(maps).relu()
    positive = positive - positive.amin(1, keepdim=True)
    shares = positive / positive.amax(1, keepdim=True).clamp_min(torch.finfo(positive.dtype).tiny)
    whole, part = score(x), score(x * resize(shares.view_as(maps), _size(x))[:, None])
    return (whole - part).relu() / whole, (part > whole).float()


def ranks(maps: Tensor, x: Tensor) -> Tensor:
    """The place of each pixel when a picture's are ordered by their map, largest first: ``(N, H, W)``, from 0.

    Of equal pixels the first in reading order comes first.
    """
    values = resize(maps.float(), _size(x)).flatten(1)
    order = values.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(len(x), *_size(x))


def blurred(x: Tensor) -> Tensor:
    """Pictures ``(N, 3, H, W)`` under a Gaussian of `BLUR` sides; near an edge the weights inside sum to 1."""
    rows, columns = (_gaussian(side).to(x) for side in _size(x))
    return rows @ x @ columns.T


def counts_of(shares: Iterable[float], x: Tensor) -> list[int]:
    """How many pixels these shares of a picture are, rounded half up."""
    height, width = _size(x)
    return [int(share * height * width + 0.5) for share in shares]


def _gaussian(side: int) -> Tensor:
    places = torch.arange(side)
    return (-((places[:, None] - places) ** 2) / (2 * (BLUR * side) ** 2)).softmax(1)


def _area(score: Score, before: Tensor, after: Tensor, order: Tensor) -> Tensor:
    """The area under ``score`` as ``after`` takes the place of ``before`` in ``order``, over the share of pixels."""
    counts = counts_of((step / STEPS for step in range(STEPS + 1)), before)
    heights = [score(torch.where(order[:, None] < count, after, before)) for count in counts]
    return torch.trapezoid(torch.stack(heights, 1), torch.tensor(counts).to(before) / counts[-1], dim=1)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]
