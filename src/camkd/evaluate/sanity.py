"""Do maps depend on what a network has learnt? (Adebayo et al. 2018, arXiv 1810.03292)."""

from __future__ import annotations

import copy

import torch
from torch import nn

from camkd.data.augment import Views, sequential_batches
from camkd.data.dataset import Split
from camkd.evaluate.inference import SplitPredictions, predict_split
from camkd.evaluate.metrics import spearman
from camkd.models.eval_mode import eval_mode


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of ``model`` with the values inside each parameter in random order; buffers stay as they are.

    What was learnt is gone, the distribution of every layer's weights is not. The same for the same ``seed``.

    >>> layer = nn.Linear(3, 2)
    >>> sorted(randomised(layer).weight.flatten().tolist()) == sorted(layer.weight.flatten().tolist())
    True
    """
    shuffled, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in shuffled.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return shuffled


def sanity(model: nn.Module, split: Split, own: SplitPredictions, seed: int = 0) -> float | None:
    """The mean `spearman` of a model's maps and those of its `randomised` copy, -1 to 1; near 0 is good.

    ``own`` are the model's answers to ``split``; both maps are of the classes it shows. 1 would say that maps show the
    picture and the architecture, and nothing that was learnt. The model parameter randomisation test with all layers
    randomised at once; None where the copy's answers are not finite.
    """
    other = randomised(model, seed)
    if not _finite(other, split):  # it has no head to be found
        return None
    maps = predict_split(other, split, own.class_ids).maps
    return spearman(own.maps, maps).double().mean().item() if maps.isfinite().all() else None


def _finite(model: nn.Module, split: Split) -> bool:
    views = Views(split, 0, "none", 0, next(model.parameters()).device)
    with eval_mode(model), torch.no_grad():
        return all(bool(model(views[0, rows].x).isfinite().all()) for rows in sequential_batches(split))
