"""Smallest lengths that loss terms divide by, so that their gradients at zero maps, logits and features are bounded."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_LENGTH = 0.01
"""Smallest length that a vector of logits or features is divided by. Their components are of order 1."""

MIN_SHARE = 0.005
"""Smallest size of a student's map or logits that they are divided by, as a share of the teacher's size."""


def min_size(teacher_sizes: Tensor) -> Tensor:
    """Compute the smallest size that maps or logits of an image are divided by.

        min_size = max(0.005 * sqrt(mean_k size[k]^2), 0.01)

    A zero-initialized layer gives maps and logits of zero. The gradient of ``x / |x|`` grows without bound towards
    zero. The gradient of ``x / max(|x|, min_size)`` is at most ``1 / min_size``, and larger ``x`` are not affected.

    Args:
        teacher_sizes: Sizes of the teacher's maps or logits, in units of logits, ``(N, K, ...)``.

    Returns:
        Smallest size per image, ``(N, 1, ...)``.

    Example:
        >>> min_size(torch.tensor([[10.0], [0.0]]))
        tensor([[0.0500],
                [0.0100]])
    """
    return (MIN_SHARE * teacher_sizes.square().mean(1, keepdim=True).sqrt()).clamp(min=MIN_LENGTH)


def unit_vectors(vectors: Tensor, min_length: Tensor | float = MIN_LENGTH) -> Tensor:
    """Divide vectors by their Euclidean length, or by ``min_length`` if they are shorter.

    Args:
        vectors: Vectors along the last dimension.
        min_length: Smallest length that a vector is divided by.

    Returns:
        Vectors of length 1, or less for vectors shorter than ``min_length``.

    Example:
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.003, 0.004]]))
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.clamp(length, min=min_length)
