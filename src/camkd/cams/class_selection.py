"""Selection of the classes whose maps are computed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from camkd.types import InputError


class ClassSelection(NamedTuple):
    """The classes to compute maps of.

    Attributes:
        class_ids: Class indices ``(N, k)``, or None.
        top: Number ``k`` of most probable classes of each image, or None. Both None: all classes.
        against: Indices ``(N, m)`` of the classes whose mean map is subtracted from each map, or None.
        gamma: Factor of the subtracted map.
    """

    class_ids: Tensor | None = None
    top: int | None = None
    against: Tensor | None = None
    gamma: float = 1.0


def check_selection(
    classes: Tensor | None, top: int | None, against: Tensor | None = None, gamma: float = 1.0
) -> ClassSelection:
    """Check the types and values of a class selection.

    Args:
        classes: Class indices, or None.
        top: Number of most probable classes, or None.
        against: Class indices of a contrast, or None.
        gamma: Weight of the classes in ``against``.

    Returns:
        The selection.

    Raises:
        InputError: If ``classes`` or ``against`` is not a tensor, or ``top`` not a positive integer, or if both
            ``classes`` and ``top`` are given. If ``gamma`` is not a finite number.
    """
    for name, value in (("classes", classes), ("against", against)):
        if value is not None and not isinstance(value, Tensor):
            raise InputError(
                f"{name} must be a tensor of class indices (N, k), got {value!r}. Pass torch.tensor(...); top= selects "
                "a number of most probable classes."
            )
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise InputError(f"top must be a positive integer, got {top!r}. Pass classes= to select classes by index.")
    if classes is not None and top is not None:
        raise InputError(f"only one of classes and top must be given, got both, top={top}. Remove one.")
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not math.isfinite(gamma):
        raise InputError(f"gamma must be a finite number, got {gamma!r}. Pass, for example, gamma=1.0.")
    return ClassSelection(classes, top, against, gamma)


def select_classes(selection: ClassSelection, logits: Tensor) -> Tensor | None:
    """Resolve a class selection to class indices.

    Args:
        selection: The selection.
        logits: Logits ``(N, K)``.

    Returns:
        Class indices ``(N, k)`` on the device of ``logits``, or None for all classes.

    Raises:
        InputError: If the shape or the dtype of the class indices is invalid, or if a value is out of range.

    Example:
        >>> select_classes(ClassSelection(top=2), torch.tensor([[0.1, 0.7, 0.2]]))
        tensor([[1, 2]])
    """
    num_classes = logits.shape[1]
    if selection.top is not None:
        if selection.top > num_classes:
            raise InputError(
                f"top must be between 1 and the model's {num_classes} classes, got {selection.top}. Choose a smaller "
                "number."
            )
        return logits.topk(selection.top).indices
    return None if selection.class_ids is None else _check_class_ids("classes", selection.class_ids, logits)


def select_contrast(selection: ClassSelection, logits: Tensor) -> Tensor | None:
    """Return the class indices ``(N, m)`` that maps are contrasted with, or None.

    Args:
        selection: The selection.
        logits: Logits ``(N, K)``.

    Raises:
        InputError: If the shape or the dtype of the class indices is invalid, or if a value is out of range.
    """
    return None if selection.against is None else _check_class_ids("against", selection.against, logits)


def _check_class_ids(name: str, class_ids: Tensor, logits: Tensor) -> Tensor:
    """Return class indices as int64 on the device of the logits."""
    num_classes = logits.shape[1]
    if class_ids.ndim != 2 or len(class_ids) != len(logits) or not class_ids.shape[1]:
        raise InputError(
            f"{name} must have the shape (N, k) with N = {len(logits)} images and k of 1 or more, got "
            f"{tuple(class_ids.shape)}. Pass k classes for each image."
        )
    if class_ids.is_floating_point() or class_ids.is_complex() or class_ids.dtype == torch.bool:
        raise InputError(f"{name} must have an integer dtype, got {class_ids.dtype}. Pass int64.")
    if class_ids.numel():
        lowest = int(class_ids.min())
        highest = int(class_ids.max())
        if lowest < 0 or highest >= num_classes:
            raise InputError(
                f"{name} must be between 0 and {num_classes - 1}, got {lowest if lowest < 0 else highest}. "
                "Pass indices of the model's classes."
            )
    return class_ids.to(logits.device, torch.int64)
