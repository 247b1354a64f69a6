"""A model's answers to all pictures of a split."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from camkd.cams import form, predict
from camkd.data.augment import Views, sequential_batches
from camkd.data.dataset import Split
from camkd.models.eval_mode import eval_mode
from camkd.utils.devices import keep_freed_memory


class SplitPredictions(NamedTuple):
    """A model's answers to every picture: ``logits (N, K)``, and the maps ``(N, h, w)`` of the classes ``shown``."""

    logits: Tensor
    maps: Tensor
    class_ids: Tensor
    form: str


def predict_split(model: nn.Module, split: Split, shown: Tensor | None = None) -> SplitPredictions:
    """Ask ``model`` about all pictures of ``split``, in fp32, as they are.

    ``shown`` says of which class each map is (default: the one the model itself predicts).
    """
    keep_freed_memory()
    device = next(model.parameters()).device
    views = Views(split, 0, "none", 0, device)
    logits, maps, classes = [], [], []
    with eval_mode(model), torch.no_grad():
        for samples in sequential_batches(split):
            x = views[0, samples].x
            answer = predict(model, x, classes=1 if shown is None else shown[samples, None].to(device))
            assert answer.cams is not None and answer.class_ids is not None
            logits.append(answer.logits.cpu())
            maps.append(answer.cams[:, 0].cpu())
            classes.append(answer.class_ids[:, 0].cpu())
        how = form(model, x)
    return SplitPredictions(torch.cat(logits), torch.cat(maps), torch.cat(classes), how)
