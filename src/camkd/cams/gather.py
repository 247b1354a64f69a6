"""Select the maps of given classes."""

from __future__ import annotations

from torch import Tensor


def gather_classes(maps: Tensor, class_ids: Tensor) -> Tensor:
    """Gather the maps of the classes that are given for each image.

    Args:
        maps: Maps of all ``K`` classes, ``(N, K, h, w)``.
        class_ids: Class indices of each image, int64 ``(N, k)``, in the range ``0..K-1``.

    Returns:
        The maps ``out (N, k, h, w)`` with ``out[n, j] = maps[n, class_ids[n, j]]``. They are differentiable with
        respect to ``maps``.

    Example:
        >>> import torch
        >>> maps = torch.arange(6.0).view(1, 3, 1, 2)
        >>> gather_classes(maps, torch.tensor([[2, 0]])).tolist()
        [[[[4.0, 5.0]], [[0.0, 1.0]]]]
    """
    height, width = maps.shape[2:]
    return maps.gather(1, class_ids[:, :, None, None].expand(-1, -1, height, width))
