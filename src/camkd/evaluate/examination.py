"""A model's answers to all pictures of a split."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from camkd.cams import form, predict
from camkd.data.store import Split, rows_within
from camkd.data.views import Views
from camkd.devices import keep_freed_memory
from camkd.models.modes import evaluating

BATCH = 250
BATCH_BYTES = 1 << 22
"""The most pictures examined at once, and the most bytes of them: 27 pictures of 224 pixels."""


class Examination(NamedTuple):
    """A model's answers to every picture: ``logits (N, K)``, and the maps ``(N, h, w)`` of the classes ``shown``."""

    logits: Tensor
    maps: Tensor
    shown: Tensor
    form: str


def examine(model: nn.Module, split: Split, shown: Tensor | None = None) -> Examination:
    """Ask ``model`` about all pictures of ``split``, in fp32, as they are.

    ``shown`` says of which class each map is (default: the one the model itself predicts).
    """
    keep_freed_memory()
    device = next(model.parameters()).device
    views = Views(split, 0, "none", 0, device)
    logits, maps, classes = [], [], []
    with evaluating(model), torch.no_grad():
        for samples in batches(split):
            x = views[0, samples].x
            answer = predict(model, x)
            assert answer.cams is not None
            which = answer.logits.argmax(1) if shown is None else shown[samples].to(device)
            logits.append(answer.logits.cpu())
            maps.append(answer.cams[torch.arange(len(x), device=device), which].cpu())
            classes.append(which.cpu())
        how = form(model, x)
    return Examination(torch.cat(logits), torch.cat(maps), torch.cat(classes), how)


def batches(split: Split) -> tuple[Tensor, ...]:
    """The rows of ``split`` in order, as many at a time as are examined at once."""
    rows: tuple[Tensor, ...] = torch.arange(len(split)).split(min(BATCH, rows_within(BATCH_BYTES, split.images)))
    return rows
