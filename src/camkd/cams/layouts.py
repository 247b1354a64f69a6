"""Memory layouts of spatial outputs: channels first, channels last, tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

MAX_PREFIX_TOKENS = 8
"""Maximum number of tokens before the patches. A class token, a distillation token and four registers are six."""


@dataclass(frozen=True)
class FeatureLayout:
    """Memory layout of a layer's spatial output.

    Args:
        kind: ``channels_first`` for ``(N, C, h, w)``, ``channels_last`` for ``(N, h, w, C)``, ``tokens`` for
            ``(N, prefix + h * w, C)`` with the patches in row-major order.
        grid: Height ``h`` and width ``w`` in cells.
        prefix: Number of tokens before the patches.
    """

    kind: Literal["channels_first", "channels_last", "tokens"]
    grid: tuple[int, int]
    prefix: int = 0

    def spatial(self, x: Tensor) -> Tensor:
        """Return ``x`` as a view ``(N, C, h, w)``."""
        if self.kind == "channels_first":
            return x
        if self.kind == "channels_last":
            return x.permute(0, 3, 1, 2)
        return x[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-any-return]

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of ``x`` over all cells, ``(N, C)``."""
        return self.spatial(x).flatten(2).mean(2)

    def matches(self, image_size: tuple[int, int]) -> bool:
        """Return True if the grid has about the aspect ratio of the image; see `aspect_error`."""
        return self.aspect_error(image_size) < math.inf

    def aspect_error(self, image_size: tuple[int, int]) -> float:
        """Return the distance between the aspect ratios of grid and image.

        Args:
            image_size: Height and width in pixels.

        Returns:
            ``|log((h / w) * (width / height))|``. Infinity if ``h`` is one cell or more from ``w * height / width``
            (or ``w`` from ``h * width / height``, for wide images), and the two ratios also differ by a factor of 1.25
            or more.
        """
        h, w = self.grid
        height, width = image_size
        factor = h * width / (w * height)
        is_close = abs(h * width - w * height) < max(height, width) or 0.8 < factor < 1.25
        return abs(math.log(factor)) if is_close else math.inf


def candidate_layouts(
    x: Tensor, image_size: tuple[int, int], earlier_grids: Iterable[tuple[int, int]] = ()
) -> Iterator[FeatureLayout]:
    """Yield the possible layouts of a layer's output, the most likely first.

    Args:
        x: The output of the layer. Outputs without 3 or 4 dimensions have no layout.
        image_size: Height and width of the images in pixels.
        earlier_grids: Grids of earlier outputs. If the number of tokens fits one of these grids, no other is possible.

    Yields:
        Layouts of more than one cell.
    """
    layouts: list[FeatureLayout] = []
    if x.ndim == 4:
        channels_first = FeatureLayout("channels_first", (x.shape[2], x.shape[3]))
        channels_last = FeatureLayout("channels_last", (x.shape[1], x.shape[2]))
        # a stable sort: channels first in case of a tie
        layouts = sorted((channels_first, channels_last), key=lambda layout: layout.aspect_error(image_size))
    elif x.ndim == 3:
        num_tokens = x.shape[1]
        splits = [(num_tokens - prefix, prefix) for prefix in range(min(MAX_PREFIX_TOKENS + 1, num_tokens))]
        grid_of_cells = {h * w: (h, w) for h, w in earlier_grids}
        layouts = [
            FeatureLayout("tokens", grid_of_cells[cells], prefix) for cells, prefix in splits if cells in grid_of_cells
        ]
        if not layouts:
            layouts = [FeatureLayout("tokens", _token_grid(cells, image_size), prefix) for cells, prefix in splits]
    return (layout for layout in layouts if math.prod(layout.grid) > 1)


def _token_grid(cells: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the grid of ``cells`` cells with the aspect ratio of the image, or ``(0, 0)`` if there is none."""
    h = max(1, round(math.sqrt(cells * image_size[0] / image_size[1])))
    grid = h, cells // h
    return grid if math.prod(grid) == cells and FeatureLayout("tokens", grid).matches(image_size) else (0, 0)
