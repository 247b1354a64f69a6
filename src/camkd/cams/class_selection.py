"""Whose maps are asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from camkd.types import InputError

Choice = Tensor | int | None
"""Of each picture the classes ``(N, k)``, or so many of the likeliest; None: all."""


def select_classes(classes: Choice, logits: Tensor) -> Tensor | None:
    """The classes ``(N, k)`` whose maps are asked for; None: all. Raises ``InputError`` where that cannot be."""
    if classes is None:
        return None
    if isinstance(classes, Tensor):
        if classes.ndim != 2 or len(classes) != len(logits):
            raise InputError(
                f"classes has the shape {tuple(classes.shape)}, but has to be (N, k) with k classes for each of the "
                f"{len(logits)} pictures: give such a tensor."
            )
        if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
            raise InputError(f"classes is of {classes.dtype}, but has to hold whole numbers: give such a tensor.")
        if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < logits.shape[1]:
            raise InputError(f"classes names one that is not there: give numbers from 0 to {logits.shape[1] - 1}.")
        return classes.to(logits.device, torch.int64)
    if not 1 <= classes <= logits.shape[1]:
        raise InputError(f"classes is {classes}, but the network knows {logits.shape[1]}: give one from 1 to that.")
    return logits.topk(classes).indices
