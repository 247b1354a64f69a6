"""Color operations of augmented views."""

from __future__ import annotations

import torch
from torch import Tensor


def color_jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation of images.

    Contrast is relative to the mean luma of the image, saturation to the luma of each pixel (ITU-R 601).

    Args:
        x: RGB images in 0..1, ``(B, 3, H, W)``.
        factors: Factors of brightness, contrast and saturation, ``(B, 3)``. 1 leaves the image unchanged.

    Returns:
        Images in 0..1, ``(B, 3, H, W)``.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    x = x * brightness
    mean = image_mean(grayscale(x))[:, :, None, None]
    x = torch.lerp(mean.expand_as(x), x, contrast.expand_as(x))
    return torch.lerp(grayscale(x).expand_as(x), x, saturation.expand_as(x)).clamp_(0, 1)


def grayscale(x: Tensor) -> Tensor:
    """Return the luma of ``x (B, 3, H, W)`` by ITU-R 601, ``(B, 1, H, W)``."""
    red, green, blue = x.split(1, 1)
    gray: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
    return gray


def image_mean(values: Tensor) -> Tensor:
    """Return the mean of each channel of each image, bit-identical for every batch size.

    If a sum has a single result, PyTorch divides its values among threads, which changes the order of the additions.
    A batch of one image is therefore summed as a batch of two.

    Args:
        values: Images, ``(B, C, H, W)``.

    Returns:
        Means, ``(B, C)``.
    """
    if len(values) == 1:
        values = torch.cat([values, values])
        return values.mean((2, 3))[:1]
    mean: Tensor = values.mean((2, 3))
    return mean
