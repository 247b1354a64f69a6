"""Localization metrics: overlap of maps with object masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from camkd.evaluate.metrics.map_similarity import flatten_maps, peak_positions


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Energy-based pointing game: share of a map's positive values that lies on the object.

    The share is ``sum(relu(map) * coverage) / sum(relu(map))``, where ``coverage`` is the share of each map cell that
    the object covers. Wang et al. 2020, arXiv 1910.01279. A uniform map scores the object's share of the image.

    Args:
        maps: ``(N, h, w)``.
        masks: Object masks ``(N, H, W)`` bool.

    Returns:
        One share per image ``(N,)``, 0 to 1; higher is better. A map without positive values scores 0.

    Example:
        >>> energy_inside(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]])).tolist()
        [0.75]
    """
    positive = flatten_maps(maps).relu()
    coverage = F.adaptive_avg_pool2d(masks.float()[:, None], (maps.shape[1], maps.shape[2])).squeeze(1)
    inside = (positive * flatten_maps(coverage)).sum(1)
    return inside / positive.sum(1).clamp_min(torch.finfo(torch.float32).tiny)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Pointing game: hit if a map's largest cell lies on the object.

    The tested pixel is at the center of the largest cell ``(i, j)``: row ``floor((i + 1/2) * H / h)`` and column
    ``floor((j + 1/2) * W / w)``. Zhang et al. 2016, arXiv 1608.00507, without the paper's tolerance of 15 pixels. Of
    equal cells, the first in row-major order counts.

    The chance level of a uniformly random location is the object's share of the image. The chance level of the image
    center is the share of images with the object at the center.

    Args:
        maps: ``(N, h, w)``.
        masks: Object masks ``(N, H, W)`` bool.

    Returns:
        1 for a hit and 0 for a miss, per image ``(N,)``. A map that is constant up to rounding is a miss.

    Example:
        >>> pointing_game(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]])).tolist()
        [1.0]
    """
    peak, has_peak = peak_positions(maps)
    image_size = torch.tensor(masks.shape[1:], device=maps.device)
    grid_size = torch.tensor(maps.shape[1:], device=maps.device)
    row, column = ((2 * peak + 1) * image_size // (2 * grid_size)).unbind(1)
    return (masks[torch.arange(len(masks), device=maps.device), row, column] & has_peak).float()
