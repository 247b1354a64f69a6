"""Color operations of augmented views."""

from __future__ import annotations

import torch
from torch import Tensor


def color_jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation of ``x (B, 3, H, W)`` by ``factors (B, 3)``.

    Contrast is relative to the mean luma of the image, saturation to the luma of each pixel (ITU-R 601).
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    x = x * brightness
    mean = image_mean(grayscale(x))[:, :, None, None]
    x = torch.lerp(mean.expand_as(x), x, contrast.expand_as(x))
    return torch.lerp(grayscale(x).expand_as(x), x, saturation.expand_as(x)).clamp_(0, 1)


def grayscale(x: Tensor) -> Tensor:
    """Return the luma of ``x (B, 3, H, W)`` by ITU-R 601, ``(B, 1, H, W)``."""
    red, green, blue = x.split(1, 1)
    gray: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R 601
    return gray


def image_mean(values: Tensor) -> Tensor:
    """Return the mean of ``values (B, C, H, W)`` over each image, ``(B, C)``, the same bits for any batch.

    PyTorch sums all values of a single result in another order, depending on the number of threads. So a batch of one
    image is summed as a batch of two.
    """
    if len(values) == 1:
        values = torch.cat([values, values])
        return values.mean((2, 3))[:1]
    mean: Tensor = values.mean((2, 3))
    return mean
