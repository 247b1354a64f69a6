"""A trained model's numbers on the test pictures, and how its maps compare with its teacher's."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from camkd.cams import form, predict
from camkd.data.store import Split, rows_within
from camkd.data.views import Views
from camkd.devices import keep_freed_memory
from camkd.metrics import accuracy, confusion, ece, energy_inside, map_agreement, nll
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
    batch = min(BATCH, rows_within(BATCH_BYTES, split.images))
    with evaluating(model), torch.no_grad():
        for samples in torch.arange(len(views)).split(batch):
            x = views[0, samples].x
            answer = predict(model, x)
            assert answer.cams is not None
            which = answer.logits.argmax(1) if shown is None else shown[samples].to(device)
            logits.append(answer.logits.cpu())
            maps.append(answer.cams[torch.arange(len(x), device=device), which].cpu())
            classes.append(which.cpu())
        how = form(model, x)
    return Examination(torch.cat(logits), torch.cat(maps), torch.cat(classes), how)


def masks_of(split: Split) -> Tensor | None:
    """Where the objects are, ``(N, H, W) bool``, if the source knows."""
    return None if split.masks is None else torch.from_numpy(np.array(split.masks))


def evaluate(
    own: Examination,
    labels: Tensor,
    names: tuple[str, ...],
    teacher: Examination | None,
    masks: Tensor | None = None,
) -> dict[str, Any]:
    """The figures of ``metrics.json`` that come from the test pictures; ``masks (N, H, W)`` say where the object is.

    ``own`` has to show the classes the teacher predicts where there is a teacher: maps are compared class by class.
    """
    counts = confusion(own.logits.argmax(1), labels, len(names))
    totals = counts.sum(1).clamp_min(1)
    figures: dict[str, Any] = {
        "accuracy": accuracy(own.logits, labels),
        "ece": ece(own.logits, labels),
        "nll": nll(own.logits, labels),
        "cam_form": own.form,
        "per_class": {name: float(counts[i, i] / totals[i]) for i, name in enumerate(names)},
        "confusion": counts.tolist(),
    }
    if masks is not None:
        figures["cam_inside"] = energy_inside(own.maps, masks).double().mean().item()
        figures["cam_inside_chance"] = masks.double().mean().item()
    if teacher is not None:
        assert torch.equal(own.shown, teacher.shown), "maps of different classes cannot be compared"
        figures["teacher_accuracy"] = accuracy(teacher.logits, labels)
        figures["teacher_agreement"] = accuracy(own.logits, teacher.logits.argmax(1))
        figures |= map_agreement(own.maps, teacher.maps)
    return figures
