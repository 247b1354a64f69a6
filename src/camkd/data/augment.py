"""Views: the augmented pictures a network is trained on, as a pure function of (view seed, epoch, sample).

Every random number comes from a counter-based hash of those three and a stream number, never from a generator with a
state. So a picture gets the same view whatever the batch order, the batch size, the number of processes, or the point
at which a run was interrupted.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from camkd.data.dataset import Split, max_rows
from camkd.types import InputError, to_device
from camkd.utils.hashing import GOLDEN_GAMMA, derive_seed, splitmix64

VERSION = 2
"""Goes up when the same policy would give other pictures: what was said of the older ones does not hold for them."""

IN_ORDER = 250
IN_ORDER_BYTES = 1 << 22
"""Largest batch of `sequential_batches`, in images and in bytes (27 images of 224 pixels)."""

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


def get_policy(name: str) -> Policy:
    """The policy called ``name``. Raises ``InputError`` that lists the names where there is none."""
    if name not in POLICIES:
        raise InputError(f"there is no view policy {name!r}: choose one of {', '.join(POLICIES)}.")
    return POLICIES[name]


class Batch(NamedTuple):
    """``x (B, 3, H, W)`` float32 in 0..1, channels last; labels ``(B,)`` int64, or ``(B, K)`` where pictures mix."""

    x: Tensor
    labels: Tensor


def uniform(seed: int, epoch: int, samples: Tensor) -> Tensor:
    """Numbers in [0, 1) that depend on nothing but (seed, epoch, sample, stream): ``(B,)`` to ``(B, 16 streams)``.

    SplitMix64 (Steele, Lea and Flood 2014) in counter mode, its upper 24 bits.
    """
    places = samples.cpu().numpy()[:, None] * _STREAMS + np.arange(1, _STREAMS + 1)
    counters: NDArray[np.uint64] = places.astype(np.uint64)
    bits = splitmix64(counters * np.uint64(GOLDEN_GAMMA) + np.uint64(derive_seed(seed, epoch)))
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))


def epoch_order(count: int, seed: int, epoch: int, batch_size: int) -> tuple[Tensor, ...]:
    """An epoch's batches: all ``count`` samples once, in an order that depends on (view seed, epoch) alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).tensor_split(batch_count(count, batch_size))


def batch_count(count: int, batch_size: int) -> int:
    """How many batches an epoch is split into, evenly."""
    return max(1, round(count / batch_size))


_CROP_Y, _CROP_X, _FLIP, _ANGLE, _BRIGHT, _CONTRAST, _SATURATE, _CUT_Y, _CUT_X = range(9)
_MIX, _PARTNER, _WEIGHT, _BOX_Y, _BOX_X, _PARTNER_LOW = range(9, 15)


def sequential_batches(split: Split, most: int | None = None) -> tuple[Tensor, ...]:
    """All rows of ``split`` in order, at most ``most`` (``IN_ORDER``) at a time, and ``IN_ORDER_BYTES`` of pixels."""
    size = min(most or IN_ORDER, max_rows(IN_ORDER_BYTES, split.images))
    rows: tuple[Tensor, ...] = torch.arange(len(split)).split(size)
    return rows


class Views:
    """The views of ``split``: ``views[epoch, samples]`` is a ``Batch`` on ``device``; ``samples`` is ``(B,)`` int64.

    Pixels that come from a store are compared with their checksums as they are read. Raises ``InputError`` where they
    differ, and for an unknown policy.
    """

    def __init__(self, split: Split, classes: int, policy: str, seed: int, device: torch.device) -> None:
        self.policy = get_policy(policy)
        self.split, self.classes, self.seed, self.device = split, classes, seed, device
        with warnings.catch_warnings():  # a read-only array is what we want: nothing here writes into it
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self.pixels = torch.from_numpy(split.images)
        if device.type == "cuda" and split.images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            split.check(np.arange(len(split)), split.images)
            self.pixels = self.pixels.to(device)
        self.labels = torch.from_numpy(np.array(split.labels, dtype=np.int64)).to(device)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, key: tuple[int, Tensor]) -> Batch:
        epoch, samples = key
        u = uniform(self.seed, epoch, samples)
        x = self._alone(samples, to_device(u, self.device))
        labels = self.labels[to_device(samples, self.device)]
        if self.policy.mix:
            x, labels = self._mixed(epoch, u, x, labels)
        return Batch(x.contiguous(memory_format=torch.channels_last), labels)  # rotation loses it

    def _alone(self, samples: Tensor, u: Tensor) -> Tensor:
        """The views before mixing, ``(B, 3, H, W)`` in 0..1."""
        policy = self.policy
        pixels = self.pixels.index_select(0, samples.to(self.pixels.device, non_blocking=True))
        if not pixels.is_cuda:
            self.split.check(samples.numpy(), pixels.numpy())
        pixels = to_device(pixels, self.device)
        if policy.crop or policy.flip:
            pixels = _shifted(pixels, u, policy)
        x = torch.div(pixels, 255).permute(0, 3, 1, 2)
        if policy.rotation:
            x = _rotated(x, (2 * u[:, _ANGLE] - 1) * math.radians(policy.rotation))
        if policy.colour:
            x = _recoloured(x, 1 + policy.colour * (2 * u[:, _BRIGHT : _SATURATE + 1] - 1))
        if policy.cutout:
            x = _cut_out(x, u[:, _CUT_Y], u[:, _CUT_X], policy.cutout)
        return x

    def _mixed(self, epoch: int, u: Tensor, x: Tensor, labels: Tensor) -> Batch:
        """Mixup (Zhang et al. 2017, arXiv 1710.09412) or CutMix (Yun et al. 2019, arXiv 1905.04899), alpha = 1.

        The partner is drawn from the whole split, and is seen in its own view of the same epoch.
        """
        rows = (u[:, _MIX] < self.policy.mix).nonzero().squeeze(1)  # on the host, so that nothing waits for a device
        fraction = (u[rows, _PARTNER].double() + u[rows, _PARTNER_LOW].double() / (1 << 24)) * len(self)
        partners = fraction.long().clamp_max(len(self) - 1)
        theirs = self._alone(partners, to_device(uniform(self.seed, epoch, partners), self.device))
        rows, partners, u = (
            to_device(rows, self.device),
            to_device(partners, self.device),
            to_device(u[rows], self.device),
        )
        blend = u[:, _MIX] < self.policy.mix / 2
        down, across = _box(u, x.shape[-2], x.shape[-1])
        inside = down[:, :, None] & across[:, None, :] & ~blend[:, None, None]
        share = torch.where(blend[:, None, None], u[:, _WEIGHT, None, None], inside.float())
        x = x.index_copy(0, rows, torch.lerp(x[rows], theirs, share[:, None].expand_as(theirs)))
        mixed = F.one_hot(labels, self.classes).float()
        weight = share.mean((1, 2))[:, None]
        partner_labels = F.one_hot(self.labels[partners], self.classes).float()
        return Batch(x, mixed.index_copy(0, rows, torch.lerp(mixed[rows], partner_labels, weight)))


def _shifted(pixels: Tensor, u: Tensor, policy: Policy) -> Tensor:
    """Crop and flip in one gather; the border is reflected."""
    batch, height, width, _ = pixels.shape
    rows, columns = (torch.arange(n, device=pixels.device).expand(batch, n) for n in (height, width))
    if policy.flip:
        columns = torch.where(u[:, _FLIP, None] < 0.5, columns, width - 1 - columns)
    if policy.crop:
        rows = _reflected(rows + _offset(u[:, _CROP_Y], height)[:, None], height)
        columns = _reflected(columns + _offset(u[:, _CROP_X], width)[:, None], width)
    rows = rows + torch.arange(0, batch * height, height, device=pixels.device)[:, None]
    places = rows[:, :, None] * width + columns[:, None, :]
    return pixels.view(-1, 3).index_select(0, places.view(-1)).view_as(pixels)


def _offset(u: Tensor, side: int) -> Tensor:
    pad = side // 8
    return (u * (2 * pad + 1)).long() - pad


def _reflected(index: Tensor, side: int) -> Tensor:
    return side - 1 - (side - 1 - index.abs()).abs()


def _rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Turn about the centre; the border is reflected."""
    height, width = x.shape[-2:]
    down, across = (torch.linspace(1 / n - 1, 1 - 1 / n, n, device=x.device) for n in (height, width))
    cos, sin, aspect = angle.cos()[:, None, None], angle.sin()[:, None, None], height / width
    columns = cos * across - sin * aspect * down[:, None]
    rows = sin / aspect * across + cos * down[:, None]
    return F.grid_sample(x, torch.stack([columns, rows], 3), padding_mode="reflection", align_corners=False)


def _recoloured(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast about the picture's mean grey, saturation about each pixel's grey (ITU-R 601)."""
    bright, contrast, saturate = factors[:, :, None, None, None].unbind(1)
    x = x * bright
    mean = _grey(x).mean((2, 3), keepdim=True)
    x = torch.lerp(mean.expand_as(x), x, contrast.expand_as(x))
    return torch.lerp(_grey(x).expand_as(x), x, saturate.expand_as(x)).clamp_(0, 1)


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.split(1, 1)
    grey: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R 601
    return grey


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
