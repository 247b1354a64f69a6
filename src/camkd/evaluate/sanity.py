"""Sanity check for maps: dependence on the model's parameters (Adebayo et al. 2018, arXiv 1810.03292)."""

from __future__ import annotations

import copy

import torch
from torch import nn

from camkd.data.batches import sequential_batches
from camkd.data.dataset import Split
from camkd.data.views import Views
from camkd.evaluate.inference import SplitPredictions, predict_split
from camkd.evaluate.metrics import spearman
from camkd.models.eval_mode import eval_mode

DRAWS = 10
"""Default number of randomized copies."""


def randomize_parameters(model: nn.Module, seed: int = 0) -> nn.Module:
    """Copy a model and permute the values within each parameter at random.

    The learned parameters are destroyed, but each parameter keeps its distribution of values. Buffers, such as running
    statistics, stay unchanged.

    Args:
        model: A model, which is left unchanged.
        seed: Seed of the permutations.

    Returns:
        The randomized copy, on the device of ``model``. Equal models and seeds give equal copies.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> sorted(randomize_parameters(layer).weight.flatten().tolist()) == sorted(layer.weight.flatten().tolist())
        True
    """
    randomized = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in randomized.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return randomized


def sanity(
    model: nn.Module, split: Split, predictions: SplitPredictions, draws: int = DRAWS, seed: int = 0
) -> float | None:
    """Model parameter randomization test: similarity of a model's maps to those of randomized copies.

    The similarity is the mean `camkd.evaluate.metrics.spearman` correlation of the model's maps and the maps of its
    `randomize_parameters` copies, of the same classes. All layers are randomized at once. Adebayo et al. 2018, arXiv
    1810.03292.

    Args:
        model: A classifier.
        split: The images.
        predictions: Predictions of ``model`` for ``split``.
        draws: Number of randomized copies. The result of a single copy varies, see docs/metrics.md.
        seed: Seed of the first copy. The following copies have the following seeds.

    Returns:
        The mean correlation, -1 to 1; near 0 is good. At 1, randomizing the parameters does not change the order of the
        map cells. A copy whose logits or maps are not finite is left out. None if no copy is left.

    Example:
        >>> model = camkd.load("cam-net-cifar10")  # doctest: +SKIP
        >>> abs(sanity(model, split, predict_split(model, split))) < 0.5  # doctest: +SKIP
        True
    """
    correlations = [
        correlation
        for draw in range(draws)
        if (correlation := _correlation(randomize_parameters(model, seed + draw), split, predictions)) is not None
    ]
    return sum(correlations) / len(correlations) if correlations else None


def _correlation(randomized: nn.Module, split: Split, predictions: SplitPredictions) -> float | None:
    """Return the mean rank correlation with the maps of a randomized copy, or None if its outputs are not finite."""
    if not _has_finite_logits(randomized, split):  # the search for the head needs finite logits
        return None
    maps = predict_split(randomized, split, predictions.class_ids).maps
    return spearman(predictions.maps, maps).double().mean().item() if maps.isfinite().all() else None


def _has_finite_logits(model: nn.Module, split: Split) -> bool:
    views = Views(split, 0, "none", 0, next(model.parameters()).device)
    with eval_mode(model), torch.no_grad():
        return all(bool(model(views[0, rows].x).isfinite().all()) for rows in sequential_batches(split))
