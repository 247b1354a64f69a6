"""Whether maps lie on the object, where masks say where that is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from camkd.evaluate.metrics.map_similarity import flat, peaks


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of a map's positive evidence that lies on the object, 0 to 1: ``(N,h,w), (N,H,W) bool -> (N,)``.

    ``sum relu(map) mask / sum relu(map)``, each cell with the share of it that the object covers. The energy-based
    pointing game of Wang et al. 2020, arXiv 1910.01279. Chance is the object's share of the picture. A map without
    positive evidence scores 0.

    >>> energy_inside(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]])).tolist()
    [0.75]
    """
    evidence = flat(maps).relu()
    covered = F.adaptive_avg_pool2d(masks.float()[:, None], (maps.shape[1], maps.shape[2]))
    return (evidence * flat(covered.squeeze(1))).sum(1) / evidence.sum(1).clamp_min(torch.finfo(torch.float32).tiny)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether a map is strongest on the object, 0 or 1: ``(N,h,w), (N,H,W) bool -> (N,)``.

    1 where the pixel in the middle of the largest cell, row ``floor((i + 1/2) H / h)`` and its column alike, is the
    object's: the pointing game of Zhang et al. 2016, arXiv 1608.00507, without their tolerance of 15 pixels. Of equal
    cells the first in reading order counts. A map that is constant up to rounding misses. Chance is the object's share
    of the picture for one who points anywhere, and the share of pictures with the object in the middle for one who
    always points there.

    >>> pointing_game(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]])).tolist()
    [1.0]
    """
    place, found = peaks(maps)
    sides = torch.tensor(masks.shape[1:], device=maps.device)
    cells = torch.tensor(maps.shape[1:], device=maps.device)
    row, column = ((2 * place + 1) * sides // (2 * cells)).unbind(1)
    return (masks[torch.arange(len(masks), device=maps.device), row, column] & found).float()
