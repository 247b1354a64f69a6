"""Selection of the classes whose maps are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from camkd.types import InputError

ClassSelection = Tensor | int | None
"""Class indices ``(N, k)``, a number ``k`` for the ``k`` most probable classes of each image, or None for all."""


def select_classes(classes: ClassSelection, logits: Tensor) -> Tensor | None:
    """Resolve a class selection to class indices.

    Args:
        classes: Integer indices ``(N, k)``, a number ``k`` from 1 to ``K``, or None.
        logits: Logits ``(N, K)``.

    Returns:
        Class indices ``(N, k)`` on the device of ``logits``, or None for all classes.

    Raises:
        InputError: If the shape or the dtype of ``classes`` is wrong, or if a value is out of range.

    Example:
        >>> select_classes(2, torch.tensor([[0.1, 0.7, 0.2]]))
        tensor([[1, 2]])
    """
    num_classes = logits.shape[1]
    if classes is None:
        return None
    if isinstance(classes, Tensor):
        if classes.ndim != 2 or len(classes) != len(logits):
            raise InputError(
                f"classes must have the shape (N, k) with N = {len(logits)} images, got {tuple(classes.shape)}."
            )
        if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
            raise InputError(f"classes must have an integer dtype, got {classes.dtype}.")
        if classes.numel():
            lowest = int(classes.min())
            highest = int(classes.max())
            if lowest < 0 or highest >= num_classes:
                raise InputError(
                    f"classes must be between 0 and {num_classes - 1}, got {lowest if lowest < 0 else highest}."
                )
        return classes.to(logits.device, torch.int64)
    if not 1 <= classes <= num_classes:
        raise InputError(f"classes must be between 1 and the model's {num_classes} classes, got {classes}.")
    return logits.topk(classes).indices
