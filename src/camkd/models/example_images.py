"""Images for a trial forward pass."""

from __future__ import annotations

import torch
from torch import Tensor


def example_images(size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return two random images, the same images in every call.

    Args:
        size: Side of the images in pixels.
        device: Device of the images.

    Returns:
        Images ``(2, 3, size, size)``, RGB in 0..1. The global random state is unchanged.

    Example:
        >>> example_images(32).shape
        torch.Size([2, 3, 32, 32])
    """
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
