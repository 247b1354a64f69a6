"""Augmentation of training images as a pure function of (seed, epoch, sample).

An *augmented view* is the image of one sample after augmentation in one epoch. Every random number of a view is a
counter-based hash of the augmentation seed, the epoch, the sample and a stream number. A view is therefore independent
of the batch order, the batch size, the number of processes and interruptions of the run.
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
from camkd.utils.hashing import GOLDEN_GAMMA, derive_seed, mix64

VERSION = 2
"""Version of the augmented views, a part of `Policy.key`. Increment when the same policy computes other images."""

DEFAULT_MAX_IMAGES = 250
"""Default maximum number of images per batch of `sequential_batches`."""

MAX_BATCH_BYTES = 1 << 22
"""Maximum number of pixel bytes per batch of `sequential_batches`: 27 images of 224x224 pixels."""

_NUM_STREAMS = 16
"""Number of random numbers per sample and epoch."""


@dataclass(frozen=True)
class Policy:
    """Augmentation policy. The defaults leave images as they are.

    Args:
        crop: Whether to shift the image by up to an eighth of the side, with reflection padding.
        flip: Whether to flip the image horizontally with probability 0.5.
        rotation: Maximum angle in degrees, in both directions.
        color: Range of the factors of brightness, contrast and saturation, ``1 - color .. 1 + color``.
        cutout: Side of the gray square relative to the side of the image; 0 for no square.
        mix: Probability of mixing an image with another one, half by mixup and half by CutMix.
    """

    crop: bool = False
    flip: bool = False
    rotation: float = 0.0
    color: float = 0.0
    cutout: float = 0.0
    mix: float = 0.0

    def key(self) -> str:
        """Return a string that identifies the augmented views, for use in cache keys.

        It contains the `VERSION` of the views and the value of each setting, and is independent of the names of
        classes and fields.

        Example:
            >>> Policy(crop=True, rotation=15.0).key()
            'version=2 crop=1 flip=0 rotation=15.0 color=0.0 cutout=0.0 mix=0.0'
        """
        return (
            f"version={VERSION} crop={int(self.crop)} flip={int(self.flip)} rotation={float(self.rotation)!r} "
            f"color={float(self.color)!r} cutout={float(self.cutout)!r} mix={float(self.mix)!r}"
        )


POLICIES: dict[str, Policy] = {
    "none": Policy(),
    "light": Policy(crop=True, flip=True),
    "strong": Policy(crop=True, flip=True, rotation=15.0, color=0.3, cutout=0.25, mix=0.5),
}
"""Augmentation policies by name."""


def get_policy(name: str) -> Policy:
    """Return an augmentation policy by name.

    Args:
        name: A name in `POLICIES`.

    Raises:
        InputError: If there is no such policy.

    Example:
        >>> get_policy("light").flip
        True
    """
    if name not in POLICIES:
        raise InputError(f"augment must be one of {', '.join(POLICIES)}, got {name!r}. Choose a policy from the list.")
    return POLICIES[name]


class Batch(NamedTuple):
    """Batch of augmented views.

    Attributes:
        x: Images ``(B, 3, H, W)`` float32 in 0..1, in channels-last memory format.
        labels: Class indices ``(B,)`` int64. If the policy mixes images, class probabilities ``(B, K)`` float32.
    """

    x: Tensor
    labels: Tensor


def random_uniform(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Compute uniform random numbers as a pure function of (seed, epoch, sample, stream).

    The numbers are the upper 24 bits of SplitMix64 in counter mode (Steele, Lea and Flood 2014), divided by 2^24.

    Args:
        seed: Augmentation seed, 64 bits.
        epoch: Epoch number.
        indices: Sample indices, ``(B,) int64``.

    Returns:
        Numbers in [0, 1), ``(B, 16) float32``, one column per stream.

    Example:
        >>> random_uniform(seed=0, epoch=3, indices=torch.arange(8)).shape
        torch.Size([8, 16])
    """
    first_counters = indices.cpu().numpy()[:, None] * _NUM_STREAMS
    counters: NDArray[np.uint64] = (first_counters + np.arange(1, _NUM_STREAMS + 1)).astype(np.uint64)
    bits = mix64(counters * np.uint64(GOLDEN_GAMMA) + np.uint64(derive_seed(seed, epoch)))
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))


def epoch_order(count: int, seed: int, epoch: int, batch_size: int) -> tuple[Tensor, ...]:
    """Shuffle the samples of an epoch and split them into batches whose sizes differ by at most one.

    Args:
        count: Number of samples.
        seed: Augmentation seed.
        epoch: Epoch number.
        batch_size: Approximate batch size; see `batch_count`.

    Returns:
        Sample indices of each batch, int64. Each sample occurs once.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).tensor_split(batch_count(count, batch_size))


def batch_count(count: int, batch_size: int) -> int:
    """Return the number of batches per epoch, ``round(count / batch_size)`` and at least 1.

    Example:
        >>> batch_count(1000, 128)
        8
    """
    return max(1, round(count / batch_size))


def _check_split(split: Split, classes: int) -> None:
    """Check the images of a split, and its labels if ``classes`` is above 0. Raise `InputError`."""
    shape = split.images.shape
    if split.images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise InputError(
            f"the images of a split must be RGB in 0..255, (N, H, W, 3) uint8, got {split.images.dtype} of shape "
            f"{shape}. Convert them first."
        )
    if classes and len(split) and not (split.labels.min() >= 0 and split.labels.max() < classes):
        raise InputError(
            f"the labels of a split must be 0 to {classes - 1} for {classes} classes, got {split.labels.min()} to "
            f"{split.labels.max()}. Number the classes from 0."
        )


def sequential_batches(split: Split, max_images: int | None = None) -> tuple[Tensor, ...]:
    """Split the sample indices into batches in the order of the split, for evaluation.

    Args:
        split: Split with the images.
        max_images: Maximum number of images per batch (default: `DEFAULT_MAX_IMAGES`). The pixels of a batch also take
            at most `MAX_BATCH_BYTES`.

    Returns:
        Sample indices of each batch, int64.
    """
    size = min(max_images or DEFAULT_MAX_IMAGES, max_rows(MAX_BATCH_BYTES, split.images))
    batches: tuple[Tensor, ...] = torch.arange(len(split)).split(size)
    return batches


_CROP_Y, _CROP_X, _FLIP, _ANGLE, _BRIGHTNESS, _CONTRAST, _SATURATION, _CUTOUT_Y, _CUTOUT_X = range(9)
_MIX, _PARTNER, _WEIGHT, _BOX_Y, _BOX_X, _PARTNER_LOW = range(9, 15)
"""Streams: the column of `random_uniform` that each augmentation uses. Other columns give other augmented views."""


class Views:
    """Augmented views of a split: ``views[epoch, indices]`` is a `Batch`.

    Images are compared with the checksums of the split, if the split has checksums: on access, or when they are copied
    to a GPU.

    Args:
        split: Images and labels.
        classes: Number of classes.
        policy: Name of the augmentation policy.
        seed: Augmentation seed.
        device: Device of the batches. All images are copied to a GPU if they take less than half of its free memory.

    Raises:
        InputError: If the policy does not exist, or if the checksum of an image differs.

    Example:
        >>> split = Split(np.zeros((8, 16, 16, 3), np.uint8), np.arange(8) % 2)
        >>> views = Views(split, classes=2, policy="light", seed=0, device=torch.device("cpu"))
        >>> x, labels = views[3, torch.tensor([0, 5])]
        >>> x.shape, labels.tolist()
        (torch.Size([2, 3, 16, 16]), [0, 1])
    """

    def __init__(self, split: Split, classes: int, policy: str, seed: int, device: torch.device) -> None:
        self.policy = get_policy(policy)
        _check_split(split, classes)
        self.split = split
        self.classes = classes
        self.seed = seed
        self.device = device
        with warnings.catch_warnings():  # the array is read-only on purpose; nothing writes to it
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self.pixels = torch.from_numpy(split.images)
        if device.type == "cuda" and split.images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            split.verify(np.arange(len(split)), split.images)
            self.pixels = self.pixels.to(device)
        self.labels = torch.from_numpy(np.array(split.labels, dtype=np.int64)).to(device)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, key: tuple[int, Tensor]) -> Batch:
        """Return the augmented views of ``(epoch, indices)``, with ``indices (B,) int64`` on the CPU."""
        epoch, indices = key
        u = random_uniform(self.seed, epoch, indices)
        x = self._augment(indices, to_device(u, self.device))
        labels = self.labels[to_device(indices, self.device)]
        if self.policy.mix:
            x, labels = self._mix(epoch, u, x, labels)
        return Batch(x.contiguous(memory_format=torch.channels_last), labels)  # rotation changes the memory format

    def _augment(self, indices: Tensor, u: Tensor) -> Tensor:
        """Compute the augmented views of ``indices`` without mixing, ``(B, 3, H, W)`` in 0..1."""
        policy = self.policy
        pixels = self.pixels.index_select(0, indices.to(self.pixels.device, non_blocking=True))
        if not pixels.is_cuda:
            self.split.verify(indices.numpy(), pixels.numpy())
        pixels = to_device(pixels, self.device)
        if policy.crop or policy.flip:
            pixels = _crop_and_flip(pixels, u, policy)
        x = torch.div(pixels, 255).permute(0, 3, 1, 2)
        if policy.rotation:
            x = _rotate(x, (2 * u[:, _ANGLE] - 1) * math.radians(policy.rotation))
        if policy.color:
            x = _color_jitter(x, 1 + policy.color * (2 * u[:, _BRIGHTNESS : _SATURATION + 1] - 1))
        if policy.cutout:
            x = _cutout(x, u[:, _CUTOUT_Y], u[:, _CUTOUT_X], policy.cutout)
        return x

    def _mix(self, epoch: int, u: Tensor, x: Tensor, labels: Tensor) -> Batch:
        """Apply mixup (Zhang et al. 2017, arXiv 1710.09412) or CutMix (Yun et al. 2019, arXiv 1905.04899), alpha = 1.

        The partner is drawn from the whole split and has its own augmented view of the same epoch.
        """
        rows = (u[:, _MIX] < self.policy.mix).nonzero().squeeze(1)  # on the CPU, to avoid a synchronization of the GPU
        fraction = (u[rows, _PARTNER].double() + u[rows, _PARTNER_LOW].double() / (1 << 24)) * len(self)
        partners = fraction.long().clamp_max(len(self) - 1)
        partner_x = self._augment(partners, to_device(random_uniform(self.seed, epoch, partners), self.device))
        u = to_device(u[rows], self.device)
        rows = to_device(rows, self.device)
        partners = to_device(partners, self.device)
        use_mixup = u[:, _MIX] < self.policy.mix / 2
        in_rows, in_columns = _cutmix_box(u, x.shape[-2], x.shape[-1])
        in_box = in_rows[:, :, None] & in_columns[:, None, :] & ~use_mixup[:, None, None]
        weight = torch.where(use_mixup[:, None, None], u[:, _WEIGHT, None, None], in_box.float())
        x = x.index_copy(0, rows, torch.lerp(x[rows], partner_x, weight[:, None].expand_as(partner_x)))
        mixed = F.one_hot(labels, self.classes).float()
        label_weight = weight.mean((1, 2))[:, None]
        partner_labels = F.one_hot(self.labels[partners], self.classes).float()
        return Batch(x, mixed.index_copy(0, rows, torch.lerp(mixed[rows], partner_labels, label_weight)))


def _crop_and_flip(pixels: Tensor, u: Tensor, policy: Policy) -> Tensor:
    """Crop and flip ``pixels (B, H, W, 3)`` in one gather, with reflection padding."""
    batch, height, width, _ = pixels.shape
    rows, columns = (torch.arange(n, device=pixels.device).expand(batch, n) for n in (height, width))
    if policy.flip:
        columns = torch.where(u[:, _FLIP, None] < 0.5, columns, width - 1 - columns)
    if policy.crop:
        rows = _reflect(rows + _crop_offset(u[:, _CROP_Y], height)[:, None], height)
        columns = _reflect(columns + _crop_offset(u[:, _CROP_X], width)[:, None], width)
    rows = rows + torch.arange(0, batch * height, height, device=pixels.device)[:, None]
    indices = rows[:, :, None] * width + columns[:, None, :]
    return pixels.view(-1, 3).index_select(0, indices.view(-1)).view_as(pixels)


def _crop_offset(u: Tensor, side: int) -> Tensor:
    padding = side // 8
    return (u * (2 * padding + 1)).long() - padding


def _reflect(index: Tensor, side: int) -> Tensor:
    """Map indices in ``-side < index < 2 * side - 1`` to ``0..side-1`` by reflection."""
    return side - 1 - (side - 1 - index.abs()).abs()


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate ``x (B, 3, H, W)`` about its center by ``angle (B,)`` radians, with reflection padding."""
    height, width = x.shape[-2:]
    y_axis, x_axis = (torch.linspace(1 / n - 1, 1 - 1 / n, n, device=x.device) for n in (height, width))
    cos = angle.cos()[:, None, None]
    sin = angle.sin()[:, None, None]
    aspect = height / width
    grid_x = cos * x_axis - sin * aspect * y_axis[:, None]
    grid_y = sin / aspect * x_axis + cos * y_axis[:, None]
    return F.grid_sample(x, torch.stack([grid_x, grid_y], 3), padding_mode="reflection", align_corners=False)


def _color_jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation of ``x`` by ``factors (B, 3)``.

    Contrast is relative to the mean luma of the image, saturation to the luma of each pixel (ITU-R 601).
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    x = x * brightness
    mean = _grayscale(x).mean((2, 3), keepdim=True)
    x = torch.lerp(mean.expand_as(x), x, contrast.expand_as(x))
    return torch.lerp(_grayscale(x).expand_as(x), x, saturation.expand_as(x)).clamp_(0, 1)


def _grayscale(x: Tensor) -> Tensor:
    red, green, blue = x.split(1, 1)
    gray: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R 601
    return gray


def _cutout(x: Tensor, u_y: Tensor, u_x: Tensor, fraction: float) -> Tensor:
    """Fill a square, centered anywhere in the image, with gray (DeVries and Taylor 2017, arXiv 1708.04552)."""
    half = max(1, round(x.shape[-1] * fraction)) / 2
    in_rows = (torch.arange(x.shape[-2], device=x.device) + 0.5 - u_y[:, None] * x.shape[-2]).abs() < half
    in_columns = (torch.arange(x.shape[-1], device=x.device) + 0.5 - u_x[:, None] * x.shape[-1]).abs() < half
    return x.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.5)


def _cutmix_box(u: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the rows ``(B, H)`` and columns ``(B, W)`` of the CutMix box as booleans.

    The area of the box is uniform between zero and the area of the image. The center of the box is anywhere in the
    image, and the box is clipped at the border.
    """
    half = u[:, _WEIGHT].sqrt()[:, None] / 2
    rows = (torch.arange(height, device=u.device) + 0.5) / height
    columns = (torch.arange(width, device=u.device) + 0.5) / width
    return (rows - u[:, _BOX_Y, None]).abs() < half, (columns - u[:, _BOX_X, None]).abs() < half
