"""Augmented views of photographs: crop, flip, TrivialAugment, erased rectangle."""

from __future__ import annotations

from torch import Tensor

from camkd.data.affine import GRAY, compose, crop_matrices, render_affine
from camkd.data.augment import PhotoPolicy
from camkd.data.regions import erased_edges, fill
from camkd.data.trivial_augment import affine_matrices, apply_color, draw_operation, signed_magnitude
from camkd.types import to_device


def render_photo(pixels: Tensor, u: Tensor, policy: PhotoPolicy) -> Tensor:
    """Render augmented views of photographs, without mixup and CutMix.

    Crop, flip and a geometric operation of TrivialAugment are applied in one bilinear sampling.

    Args:
        pixels: Images ``(B, H, W, 3) uint8``.
        u: Random numbers of `camkd.data.augment.random_photo`, ``(B, 16)`` on the CPU.
        policy: Augmentation policy.

    Returns:
        The views, ``(B, 3, H, W)`` in 0..1.
    """
    operation, bins, sign = draw_operation(u, policy.operate)
    matrix = compose(crop_matrices(u, policy.min_area), affine_matrices(operation, signed_magnitude(bins, sign)))
    x = render_affine(pixels, to_device(matrix.float(), pixels.device))
    x = apply_color(x, operation, bins, sign)
    x = fill(x, to_device(erased_edges(u, policy.erase), x.device), GRAY)
    return x.div_(255)
