"""Views: the augmented pictures a network is trained on, as a pure function of (view seed, epoch, sample).

Every random number comes from a counter-based hash of those three and a stream number, never from a generator with a
state. So a picture gets the same view whatever the batch order, the batch size, the number of processes, or the point
at which a run was interrupted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from camkd.types import InputError

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_STREAMS = 16


@dataclass(frozen=True)
class Policy:
    """What a view may do to a picture; probabilities and ranges of the published recipes."""

    crop: bool = False  # shift by up to an eighth of the side, reflecting at the border
    flip: bool = False  # left-right, one time in two
    rotation: float = 0.0  # largest angle, degrees
    colour: float = 0.0  # brightness, contrast and saturation change by a factor in 1 - c .. 1 + c
    cutout: float = 0.0  # side of the grey square, as a share of the picture's side
    mix: float = 0.0  # how often a picture is mixed with another: half mixup, half cutmix


POLICIES: dict[str, Policy] = {
    "none": Policy(),
    "light": Policy(crop=True, flip=True),
    "strong": Policy(crop=True, flip=True, rotation=15.0, colour=0.3, cutout=0.25, mix=0.5),
}


def policy_named(name: str) -> Policy:
    """The policy called ``name``. Raises ``InputError`` that lists the names where there is none."""
    if name not in POLICIES:
        raise InputError(f"there is no view policy {name!r}: choose one of {', '.join(POLICIES)}.")
    return POLICIES[name]


class Batch(NamedTuple):
    """``x (B, 3, H, W)`` float32 in 0..1, channels last; labels ``(B,)`` int64, or ``(B, K)`` where pictures mix."""

    x: Tensor
    labels: Tensor


def _mix64(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def uniform(seed: int, epoch: int, samples: Tensor) -> Tensor:
    """Numbers in [0, 1) that depend on nothing but (seed, epoch, sample, stream): ``(B,)`` to ``(B, 16 streams)``.

    SplitMix64 (Steele, Lea and Flood 2014) in counter mode, its upper 24 bits.
    """
    key = _mix64(_mix64(seed & _MASK) ^ (epoch * _GOLDEN & _MASK))
    base = samples.cpu().numpy().astype(np.uint64)[:, None] * np.uint64(_STREAMS)
    z = base + np.arange(_STREAMS, dtype=np.uint64)[None] + np.uint64(1)
    z = z * np.uint64(_GOLDEN) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))


_CROP_Y, _CROP_X, _FLIP, _ANGLE, _BRIGHT, _CONTRAST, _SATURATE, _CUT_Y, _CUT_X = range(9)
_MIX, _PARTNER, _WEIGHT, _BOX_Y, _BOX_X, _PARTNER_LOW = range(9, 15)


class Views:
    """The views of one split: ``views[epoch, samples]`` is a ``Batch`` on ``device``.

    ``images`` is ``(N, H, W, 3)`` uint8, memory-mapped or not; ``samples`` is ``(B,)`` int64. Raises ``InputError`` for
    an unknown policy.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        classes: int,
        policy: str,
        seed: int,
        device: torch.device,
    ) -> None:
        self.policy = policy_named(policy)
        self.images, self.classes, self.seed, self.device = images, classes, seed, device
        self.labels = torch.from_numpy(np.array(labels, dtype=np.int64)).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, Tensor]) -> Batch:
        epoch, samples = key
        x = self._alone(epoch, samples)
        labels = self.labels[samples.to(self.device)]
        return self._mixed(epoch, samples, x, labels) if self.policy.mix else Batch(x, labels)

    def _alone(self, epoch: int, samples: Tensor) -> Tensor:
        """The views before mixing, ``(B, 3, H, W)`` in 0..1."""
        policy = self.policy
        pixels = torch.from_numpy(self.images[samples.numpy()]).to(self.device)
        if policy == POLICIES["none"]:
            return _to_float(pixels)
        u = uniform(self.seed, epoch, samples).to(self.device)
        if policy.crop or policy.flip:
            pixels = _shifted(pixels, u, policy)
        x = _to_float(pixels)
        if policy.rotation:
            x = _rotated(x, (2 * u[:, _ANGLE] - 1) * math.radians(policy.rotation))
        if policy.colour:
            x = _recoloured(x, 1 + policy.colour * (2 * u[:, _BRIGHT : _SATURATE + 1] - 1))
        if policy.cutout:
            x = _cut_out(x, u[:, _CUT_Y], u[:, _CUT_X], policy.cutout)
        return x.contiguous(memory_format=torch.channels_last)  # rotation loses it

    def _mixed(self, epoch: int, samples: Tensor, x: Tensor, labels: Tensor) -> Batch:
        """Mixup (Zhang et al. 2017, arXiv 1710.09412) or CutMix (Yun et al. 2019, arXiv 1905.04899), alpha = 1.

        The partner is drawn from the whole split, and is seen in its own view of the same epoch.
        """
        u = uniform(self.seed, epoch, samples)
        fraction = (u[:, _PARTNER].double() + u[:, _PARTNER_LOW].double() / (1 << 24)) * len(self)
        partners = fraction.long().clamp_max(len(self) - 1)
        u = u.to(self.device)
        blend = u[:, _MIX] < self.policy.mix / 2
        paste = ~blend & (u[:, _MIX] < self.policy.mix)
        rows, columns = _box(u, x.shape[-2], x.shape[-1])
        inside = rows[:, :, None] & columns[:, None, :] & paste[:, None, None]
        share = torch.where(blend[:, None, None], u[:, _WEIGHT, None, None], 0.0) + inside
        mixed = torch.lerp(x, self._alone(epoch, partners), share[:, None].expand_as(x))
        weight = share.mean((1, 2))[:, None]
        ours = F.one_hot(labels, self.classes).float()
        theirs = F.one_hot(self.labels[partners.to(self.device)], self.classes).float()
        return Batch(mixed.contiguous(memory_format=torch.channels_last), torch.lerp(ours, theirs, weight))


def _to_float(pixels: Tensor) -> Tensor:
    """``(B, H, W, 3)`` uint8 to ``(B, 3, H, W)`` in 0..1; the memory stays channels-last."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def _shifted(pixels: Tensor, u: Tensor, policy: Policy) -> Tensor:
    """Crop and flip in one gather; the border is reflected."""
    batch, height, width, _ = pixels.shape
    rows, columns = (torch.arange(n, device=pixels.device).expand(batch, n) for n in (height, width))
    if policy.flip:
        columns = torch.where(u[:, _FLIP, None] < 0.5, columns, width - 1 - columns)
    if policy.crop:
        rows = _reflected(rows + _offset(u[:, _CROP_Y], height)[:, None], height)
        columns = _reflected(columns + _offset(u[:, _CROP_X], width)[:, None], width)
    return pixels[torch.arange(batch, device=pixels.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _offset(u: Tensor, side: int) -> Tensor:
    pad = side // 8
    return (u * (2 * pad + 1)).long() - pad


def _reflected(index: Tensor, side: int) -> Tensor:
    return side - 1 - (side - 1 - index.abs()).abs()


def _rotated(x: Tensor, angle: Tensor) -> Tensor:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    aspect = x.shape[-2] / x.shape[-1]
    theta = torch.stack([cos, -sin * aspect, zero, sin / aspect, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _recoloured(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast about the picture's mean grey, saturation about each pixel's grey (ITU-R 601)."""
    bright, contrast, saturate = factors[:, :, None, None, None].unbind(1)
    x = x * bright
    luma = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)
    grey = (x * luma).sum(1, keepdim=True)
    x = torch.lerp(grey.mean((2, 3), keepdim=True).expand_as(x), x, contrast.expand_as(x))
    grey = (x * luma).sum(1, keepdim=True)
    return torch.lerp(grey.expand_as(x), x, saturate.expand_as(x)).clamp_(0, 1)


def _cut_out(x: Tensor, u_y: Tensor, u_x: Tensor, share: float) -> Tensor:
    """Grey out a square whose centre lies anywhere in the picture (DeVries and Taylor 2017, arXiv 1708.04552)."""
    half = max(1, round(x.shape[-1] * share)) / 2
    rows = (torch.arange(x.shape[-2], device=x.device) + 0.5 - u_y[:, None] * x.shape[-2]).abs() < half
    columns = (torch.arange(x.shape[-1], device=x.device) + 0.5 - u_x[:, None] * x.shape[-1]).abs() < half
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.5)


def _box(u: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """CutMix's box: area share uniform in 0..1, centre anywhere, cut off at the border."""
    half = u[:, _WEIGHT].sqrt()[:, None] / 2
    rows = (torch.arange(height, device=u.device) + 0.5) / height
    columns = (torch.arange(width, device=u.device) + 0.5) / width
    return (rows - u[:, _BOX_Y, None]).abs() < half, (columns - u[:, _BOX_X, None]).abs() < half
