"""How alike two maps are, picture by picture. Five views of likeness, because each one alone can be fooled.

- `cosine` compares the *evidence for* the class, the maps after ReLU, which is what a heatmap shows;
- `pearson` compares the whole raw map, evidence against the class included, free of offset and scale;
- `spearman` compares the order of the cells alone, so that no single strong cell decides;
- `iou_top` compares where the strongest fifth lies and nothing else;
- `pointing_match` compares the one strongest place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between two maps' positive parts, 0 to 1: ``(N,h,w), (N,h,w) -> (N,)``.

    ``<relu(a), relu(b)> / (|relu(a)| |relu(b)|)``: the evidence for the class, as a heatmap shows it. It
    does not change with either map's scale. A map without positive evidence scores 0 against any map.
    Raises ValueError when the shapes differ.

    >>> cosine(torch.tensor([[[3.0, -9.0]]]), torch.tensor([[[4.0, 3.0]]])).tolist()
    [0.800000011920929]
    """
    check_maps(a, b)
    return (_unit(flat(a).relu()) * _unit(flat(b).relu())).sum(1).clamp(0, 1)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of two raw maps over their cells, -1 to 1: ``(N,h,w), (N,h,w) -> (N,)``.

    Evidence against the class counts too. It does not change with either map's offset or scale. A map
    that is constant up to rounding scores 0 against any map. Raises ValueError when the shapes differ.

    >>> pearson(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[6.0, 4.0, 2.0]]])).round().tolist()
    [-1.0]
    """
    check_maps(a, b)
    return (_unit(_centred(flat(a))) * _unit(_centred(flat(b)))).sum(1).clamp(-1, 1)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of two raw maps over their cells, -1 to 1: ``(N,h,w), (N,h,w) -> (N,)``.

    `pearson` of the cells' ranks, equal cells sharing the mean of theirs. It does not change with anything that keeps
    the order of a map's cells. A map that is constant up to rounding scores 0 against any map. Raises ValueError when
    the shapes differ.

    >>> spearman(torch.tensor([[[1.0, 2.0, 9.0]]]), torch.tensor([[[1.0, 50.0, 60.0]]])).round().tolist()
    [1.0]
    """
    check_maps(a, b)
    return (_unit(_centred(_ranks(flat(a)))) * _unit(_centred(_ranks(flat(b))))).sum(1).clamp(-1, 1)


def iou_top(a: Tensor, b: Tensor, fraction: float = 0.2) -> Tensor:
    """Intersection over union of two maps' strongest cells, 0 to 1: ``(N,h,w), (N,h,w) -> (N,)``.

    Exactly ``k = max(1, floor(fraction * h * w + 1/2))`` cells of each raw map count. Of equal cells the
    first in reading order (row by row) counts first, so ``k`` holds and the answer never depends on the
    machine. Raises ValueError when the shapes differ or ``fraction`` is outside ``(0, 1]``.

    >>> iou_top(torch.tensor([[[9.0, 8.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 7.0, 6.0, 0.0]]]), 0.5).tolist()
    [0.3333333432674408]
    """
    check_maps(a, b)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], not {fraction}")
    cells = a[0].numel() if len(a) else 1
    k = max(1, int(fraction * cells + 0.5))
    shared = (_top(flat(a), k) & _top(flat(b), k)).sum(1)
    return shared / (2 * k - shared)


def pointing_match(a: Tensor, b: Tensor) -> Tensor:
    """Whether two maps are strongest at the same place, 0 or 1: ``(N,h,w), (N,h,w) -> (N,)``.

    1 where the rows of the two largest cells differ by at most ``h // 8`` and their columns by at most ``w // 8``: the
    same cell on grids under 8, neighbours (diagonal ones too) on 8 to 15. Of equal cells the first in reading order
    counts. A map that is constant up to rounding points nowhere and matches none. Raises ValueError when the shapes
    differ.

    >>> pointing_match(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[5.0, 9.0]]])).tolist()
    [1.0]
    """
    check_maps(a, b)
    (here, one), (there, other) = peaks(a), peaks(b)
    tolerance = torch.tensor([side // 8 for side in a.shape[1:]], device=a.device)
    return (((here - there).abs() <= tolerance).all(1) & one & other).float()


def peaks(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column ``(N, 2)`` of each map's largest cell, the first of equal ones, and whether there is one ``(N,)``.

    A map ``(h, w)`` that is constant up to rounding has none.
    """
    cells = flat(maps)
    largest = (cells == cells.amax(1, keepdim=True)).float().argmax(1)
    place = torch.stack([largest // maps.shape[2], largest % maps.shape[2]], 1)
    return place, _centred(cells).any(1)


def check_maps(a: Tensor, b: Tensor) -> None:
    """Raise ValueError unless both are ``(N, h, w)``."""
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(f"maps {tuple(a.shape)} and {tuple(b.shape)} must both be (N, h, w); see resize")


def flat(maps: Tensor) -> Tensor:
    """``(N, h, w)`` as ``(N, h w)``, in fp32 at least."""
    return maps.flatten(1).to(torch.promote_types(maps.dtype, torch.float32))


def _unit(vectors: Tensor) -> Tensor:
    """Length 1, zero vectors left zero; divided by the maximum first, so that no square overflows."""
    largest = vectors.abs().amax(1, keepdim=True)
    scaled = vectors / largest.where(largest > 0, 1)
    return F.normalize(scaled, dim=1, eps=1)


def _centred(vectors: Tensor) -> Tensor:
    """Minus the mean; exactly zero where only rounding is left."""
    rest = vectors - vectors.mean(1, keepdim=True)
    rounding = 8 * torch.finfo(vectors.dtype).eps * vectors.abs().amax(1, keepdim=True)
    return rest.where(rest.abs().amax(1, keepdim=True) > rounding, 0)


def _top(vectors: Tensor, k: int) -> Tensor:
    """True on the ``k`` largest cells of each row, the earlier of equal ones."""
    best = vectors.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(vectors, dtype=torch.bool).scatter_(1, best, True)


def _ranks(vectors: Tensor) -> Tensor:
    """The place of each cell in its row, from 0, equal cells sharing their mean; zeros where only rounding differs."""
    vectors = vectors.contiguous()
    ordered = vectors.sort(dim=1).values
    below, upto = (torch.searchsorted(ordered, vectors, right=right) for right in (False, True))
    ranks = (below + upto - 1).to(vectors.dtype) / 2
    return ranks.where(_centred(vectors).any(1, keepdim=True), 0)
