"""Where the cells of a map lie in a layer's output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

MOST_PREFIX_TOKENS = 8
"""A class token, a distillation token and four registers are six."""


@dataclass(frozen=True)
class Layout:
    """Channels ``first (N, C, h, w)`` or ``last (N, h, w, C)``, or ``tokens (N, prefix + h w, C)``, row after row."""

    kind: Literal["first", "last", "tokens"]
    grid: tuple[int, int]
    prefix: int = 0

    def spatial(self, x: Tensor) -> Tensor:
        """The same as ``(N, C, h, w)``, without a copy."""
        if self.kind == "first":
            return x
        if self.kind == "last":
            return x.permute(0, 3, 1, 2)
        return x[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-any-return]

    def suits(self, picture: tuple[int, int]) -> bool:
        """Tell whether the cells have the picture's proportions, but for rounding."""
        return self.misfit(picture) < math.inf

    def misfit(self, picture: tuple[int, int]) -> float:
        """How far the cells' proportions are from the picture's: nought, or the factor's logarithm; or infinite."""
        (h, w), (height, width) = self.grid, picture
        factor = h * width / (w * height)
        near = abs(h * width - w * height) < max(height, width) or 0.8 < factor < 1.25
        return abs(math.log(factor)) if near else math.inf


def readings(x: Tensor, picture: tuple[int, int], grids: Iterable[tuple[int, int]] = ()) -> Iterator[Layout]:
    """Yield how a layer's output for pictures of ``(H, W)`` pixels can be read, likelier ones first.

    ``grids`` are cells of outputs before it, which tell the tokens of patches from those in front of them. What has one
    cell is not yielded.
    """
    if x.ndim == 4:
        both = Layout("first", (x.shape[2], x.shape[3])), Layout("last", (x.shape[1], x.shape[2]))
        found = sorted(both, key=lambda layout: layout.misfit(picture))  # of equal ones the usual one
    elif x.ndim == 3:
        rests = [(x.shape[1] - prefix, prefix) for prefix in range(min(MOST_PREFIX_TOKENS + 1, x.shape[1]))]
        known = {h * w: (h, w) for h, w in grids}
        found = [Layout("tokens", known[cells], prefix) for cells, prefix in rests if cells in known]
        found += [Layout("tokens", _rows(cells, picture), prefix) for cells, prefix in rests]
    else:
        found = []
    return (layout for layout in found if math.prod(layout.grid) > 1)


def _rows(cells: int, picture: tuple[int, int]) -> tuple[int, int]:
    """So many cells in the picture's proportions, or nought where they have no such grid."""
    h = max(1, round(math.sqrt(cells * picture[0] / picture[1])))
    grid = h, cells // h
    return grid if math.prod(grid) == cells and Layout("tokens", grid).suits(picture) else (0, 0)
