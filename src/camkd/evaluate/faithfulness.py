"""Is a model's map faithful to the model? Asked of a stated sample, beside what another picture's map scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from camkd.data.augment import Views, sequential_batches
from camkd.data.dataset import Split, balanced_subset
from camkd.evaluate.inference import predict_split
from camkd.evaluate.metrics import derangement
from camkd.evaluate.perturbation import Score, average_drop, deletion, insertion
from camkd.evaluate.road import road
from camkd.evaluate.sanity import sanity
from camkd.models.eval_mode import eval_mode

SAMPLE = 256
"""How many pictures are asked about: the first of each class in turn."""


def faithfulness(model: nn.Module, split: Split, count: int = SAMPLE) -> dict[str, float]:
    """Mean figures of ``model`` on the first ``count`` pictures of ``split``, the classes taking turns.

    Each map is of the class that the model itself predicts, each score that class's softmax probability. ``insertion``,
    ``deletion``, ``road``, ``average_drop``, ``confidence_increase``; each ``*_shuffled`` (the map of another picture,
    `camkd.evaluate.metrics.derangement`, which a single picture has not); ``randomised_spearman`` (`sanity`) and
    ``faithfulness_pictures``, how many these were. Computed on the model's device in fp32; the model is left as it was.
    """
    sample = split.take(balanced_subset(split.labels, count))
    own, device = predict_split(model, sample), next(model.parameters()).device
    views = Views(sample, 0, "none", 0, device)
    maps = {"": own.maps}
    if len(sample) > 1:
        maps["_shuffled"] = own.maps[derangement(len(sample))]
    sums: dict[str, float] = {}
    with eval_mode(model), torch.no_grad():
        for rows in sequential_batches(sample):
            x, score = views[0, rows].x, _score(model, own.class_ids[rows].to(device))
            for suffix, some in maps.items():
                for name, values in _perturbed(score, x, some[rows].to(device)).items():
                    sums[name + suffix] = sums.get(name + suffix, 0.0) + values.double().sum().item()
    figures = {name: total / len(sample) for name, total in sums.items()}
    similarity = sanity(model, sample, own)
    return {
        **figures,
        **({} if similarity is None else {"randomised_spearman": similarity}),
        "faithfulness_pictures": len(sample),
    }


def _score(model: nn.Module, shown: Tensor) -> Score:
    """The probability ``model`` gives to the classes ``shown (N,)``."""

    def score(x: Tensor) -> Tensor:
        chances: Tensor = model(x).float().softmax(1)
        return chances.gather(1, shown[:, None]).squeeze(1)

    return score


def _perturbed(score: Score, x: Tensor, maps: Tensor) -> dict[str, Tensor]:
    drop, increase = average_drop(score, x, maps)
    return {
        "insertion": insertion(score, x, maps),
        "deletion": deletion(score, x, maps),
        "road": road(score, x, maps),
        "average_drop": drop,
        "confidence_increase": increase,
    }
