"""Inference over all images of a split."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from camkd.cams import form, predict
from camkd.data.batches import sequential_batches
from camkd.data.dataset import Split
from camkd.data.views import Views
from camkd.models.eval_mode import eval_mode
from camkd.utils.devices import keep_freed_memory


class SplitPredictions(NamedTuple):
    """Predictions of a model for all ``N`` images of a split, on the CPU."""

    logits: Tensor
    """Logits of all classes, ``(N, K)``."""
    maps: Tensor
    """One class activation map per image, ``(N, h, w)``."""
    class_ids: Tensor
    """The class of each map, int64 ``(N,)``."""
    form: str
    """Form of the maps, ``exact``, ``gradient`` or ``partial``, see `camkd.cams`."""


def predict_split(model: nn.Module, split: Split, class_ids: Tensor | None = None) -> SplitPredictions:
    """Predict all images of a split, without augmentation.

    The model runs on its own device in eval mode. Its modes and parameter gradients stay unchanged.

    Args:
        model: A classifier.
        split: The images.
        class_ids: The class of each image's map, int64 ``(N,)``. Default: the class that ``model`` predicts.

    Returns:
        Logits and one map per image, and the class and form of the maps.

    Raises:
        InputError: If the model has no layer with a spatial output, or stored images fail their checksums.

    Example:
        >>> model = camkd.load("cam-net-cifar10")  # doctest: +SKIP
        >>> predictions = predict_split(model, open_data("cifar10").test)  # doctest: +SKIP
        >>> predictions.logits.shape, predictions.maps.shape  # doctest: +SKIP
        (torch.Size([10000, 10]), torch.Size([10000, 16, 16]))
    """
    keep_freed_memory()
    device = next(model.parameters()).device
    views = Views(split, classes=0, policy="none", seed=0, device=device)  # no augmentation: classes and seed unused
    logits = []
    maps = []
    map_classes = []
    with eval_mode(model), torch.no_grad():
        for rows in sequential_batches(split):
            x = views[0, rows].x
            if class_ids is None:
                prediction = predict(model, x, top=1)
            else:
                prediction = predict(model, x, classes=class_ids[rows, None].to(device))
            assert prediction.cams is not None and prediction.class_ids is not None
            logits.append(prediction.logits.cpu())
            maps.append(prediction.cams[:, 0].cpu())
            map_classes.append(prediction.class_ids[:, 0].cpu())
        map_form = form(model, x)
    return SplitPredictions(torch.cat(logits), torch.cat(maps), torch.cat(map_classes), map_form)
