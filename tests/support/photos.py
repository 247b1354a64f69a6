"""Drawn images that are as different from each other as photographs."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter


@cache
def make_photos(count: int, side: int = 128, seed: int = 0) -> list[Image.Image]:
    """Return images with the spectrum of photographs: noise at five scales, the coarsest the strongest."""
    rng = np.random.default_rng(seed)
    photos = []
    for _ in range(count):
        values = sum(
            scale * gaussian_filter(rng.standard_normal((side, side, 3)), (scale, scale, 0))
            for scale in (1, 3, 8, 16, 32)
        )
        values = (values - values.min()) / (values.max() - values.min())
        photos.append(Image.fromarray((30 + 195 * values).astype(np.uint8)))
    return photos
