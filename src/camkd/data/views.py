"""Augmented views of the images of a split.

The geometry of a view is a pure function of (seed, epoch, sample) and can be rendered at several image sizes. Some
policies shift and erase whole pixels. These are the pixels of the *frame*, the image at the size of the student, so a
teacher and a student of different sizes get the same views.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from camkd.data.augment import (
    BRIGHTNESS,
    CUTOUT_X,
    CUTOUT_Y,
    MIX,
    PARTNER,
    PARTNER_LOW,
    SATURATION,
    WEIGHT,
    PhotoPolicy,
    Policy,
    get_policy,
    random_photo,
    random_uniform,
)
from camkd.data.color import color_jitter, image_mean
from camkd.data.dataset import UNLABELED, Split
from camkd.data.geometry import crop_and_flip, render_frame, rotate, rotation_angle
from camkd.data.photo import render_photo
from camkd.data.regions import at_size, cutmix_area, cutmix_box, cutout
from camkd.types import InputError, to_device


class Batch(NamedTuple):
    """Batch of augmented views.

    Attributes:
        x: Images ``(B, 3, H, W)`` float32 in 0..1, in channels-last memory format.
        labels: Class indices ``(B,)`` int64, `UNLABELED` for an image without a label. If the policy mixes images,
            class probabilities ``(B, K)`` float32: those of an unlabeled image are 0, so those of its mixture with a
            labeled image add up to the share of the labeled image.
        weights: Weights of the images in the cross-entropy ``(B,)`` float32, 0 for unlabeled images; None if all count
            equally. If the policy mixes images, the class probabilities with each image's part multiplied by its
            weight, ``(B, K)``.
    """

    x: Tensor
    labels: Tensor
    weights: Tensor | None = None


def _check_split(split: Split, classes: int) -> None:
    """Check the images of a split, and its labels unless ``classes`` is 0. Raise `InputError`."""
    shape = split.images.shape
    if split.images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise InputError(
            f"the images of a split must be RGB in 0..255, (N, H, W, 3) uint8, got {split.images.dtype} of shape "
            f"{shape}. Convert them first."
        )
    if classes and len(split) and not (split.labels.min() >= UNLABELED and split.labels.max() < classes):
        raise InputError(
            f"the labels of a split must be 0 to {classes - 1} for {classes} classes, got {split.labels.min()} to "
            f"{split.labels.max()}. Number the classes from 0."
        )


def _cross_entropy_weights(split: Split) -> NDArray[np.float32] | None:
    """Return the weights of the images in the cross-entropy, 0 without a label; None if all count equally."""
    is_labeled = split.labels != UNLABELED
    if is_labeled.all():
        return None if split.weights is None else np.array(split.weights)
    weights = np.ones(len(split), np.float32) if split.weights is None else split.weights
    return np.where(is_labeled, weights, np.float32(0))


def _check_frame(frame: int, height: int, width: int) -> None:
    if frame < 1:
        raise InputError(f"frame must be 1 or more, got {frame}. Give the side of the student's images in pixels.")
    if height != width:
        raise InputError(f"images of views with a frame must be square, got {height}x{width}. Resize them first.")


class Views:
    """Augmented views of a split: ``views[epoch, indices]`` is a `Batch`.

    If the split has checksums, they are compared with those of the images: on access, or when images are copied to a
    GPU.

    Args:
        split: Images and labels.
        classes: Number of classes.
        policy: Name of the augmentation policy.
        seed: Augmentation seed.
        device: Device of the batches. All images are copied to a GPU if they take less than half of its free memory.
        frame: Side of the frame in pixels: the side of the student's images, if ``split`` has the teacher's images at
            another size. Crop offsets, reflected borders, cutout squares and CutMix boxes are whole pixels of the
            frame. Default: the size of the images of ``split``.

    Raises:
        InputError: If the policy does not exist, the frame is below 1, ``frame`` is given for images that are not
            square, or the checksum of an image differs.

    Example:
        >>> split = Split(np.zeros((8, 16, 16, 3), np.uint8), np.arange(8) % 2)
        >>> views = Views(split, classes=2, policy="light", seed=0, device=torch.device("cpu"))
        >>> x, labels, _ = views[3, torch.tensor([0, 5])]
        >>> x.shape, labels.tolist()
        (torch.Size([2, 3, 16, 16]), [0, 1])
    """

    def __init__(
        self, split: Split, classes: int, policy: str, seed: int, device: torch.device, *, frame: int | None = None
    ) -> None:
        self.policy = get_policy(policy)
        _check_split(split, classes)
        height, width = split.images.shape[1:3]
        if frame is not None:
            _check_frame(frame, height, width)
            if self.policy.uses_frame:
                height = width = frame
        self.frame = (height, width)
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
        weights = _cross_entropy_weights(split)
        self.weights = None if weights is None else torch.from_numpy(weights).to(device)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, key: tuple[int | Tensor, Tensor]) -> Batch:
        """Return the augmented views of ``(epoch, indices)``, with ``indices (B,) int64`` on the CPU.

        ``epoch`` is one number, or the epoch of each sample, ``(B,) int64`` on the CPU.
        """
        epoch, indices = key
        u = random_uniform(self.seed, epoch, indices)
        x = self._augment(epoch, indices)
        rows = to_device(indices, self.device)
        labels = self.labels[rows]
        weights = None if self.weights is None else self.weights[rows]
        if self.policy.mix:
            x, labels, weights = self._mix(epoch, u, Batch(x, labels, weights))
        x = x.contiguous(memory_format=torch.channels_last)  # rotation changes the memory format
        return Batch(x, labels, weights)

    def _augment(self, epoch: int | Tensor, indices: Tensor) -> Tensor:
        """Compute the augmented views of ``indices`` without mixup and CutMix, ``(B, 3, H, W)`` in 0..1."""
        pixels = self.pixels.index_select(0, indices.to(self.pixels.device, non_blocking=True))
        if not pixels.is_cuda:
            self.split.verify(indices.numpy(), pixels.numpy())
        pixels = to_device(pixels, self.device)
        if isinstance(self.policy, PhotoPolicy):
            return render_photo(pixels, random_photo(self.seed, epoch, indices), self.policy)
        u = to_device(random_uniform(self.seed, epoch, indices), self.device)
        return self._render(pixels, u, self.policy)

    def _render(self, pixels: Tensor, u: Tensor, policy: Policy) -> Tensor:
        """Render the views of ``pixels (B, H, W, 3) uint8`` by a policy that uses pixels of the frame."""
        if policy.crop and self.frame != pixels.shape[1:3]:
            x = render_frame(torch.div(pixels, 255).permute(0, 3, 1, 2), u, policy, self.frame[0])
        else:
            if policy.crop or policy.flip:
                pixels = crop_and_flip(pixels, u, policy)
            x = torch.div(pixels, 255).permute(0, 3, 1, 2)
            if policy.rotation:
                x = rotate(x, rotation_angle(u, policy))
        if policy.color:
            x = color_jitter(x, 1 + policy.color * (2 * u[:, BRIGHTNESS : SATURATION + 1] - 1))
        if policy.cutout:
            x = cutout(x, u[:, CUTOUT_Y], u[:, CUTOUT_X], policy.cutout, self.frame)
        return x

    def _mix(self, epoch: int | Tensor, u: Tensor, batch: Batch) -> Batch:
        """Apply mixup (Zhang et al. 2017, arXiv 1710.09412) or CutMix (Yun et al. 2019, arXiv 1905.04899), alpha = 1.

        The partner is drawn from the whole split and has its own augmented view of the same epoch.
        """
        x, labels, weights = batch
        rows = (u[:, MIX] < self.policy.mix).nonzero().squeeze(1)  # on the CPU, to avoid a synchronization of the GPU
        fraction = (u[rows, PARTNER].double() + u[rows, PARTNER_LOW].double() / (1 << 24)) * len(self)
        partners = fraction.long().clamp_max(len(self) - 1)
        partner_x = self._augment(epoch if isinstance(epoch, int) else epoch[rows], partners)
        u = to_device(u[rows], self.device)
        rows = to_device(rows, self.device)
        partners = to_device(partners, self.device)
        use_mixup = u[:, MIX] < self.policy.mix / 2
        in_box = cutmix_box(u, self.frame) & ~use_mixup[:, None, None]
        weight = torch.where(use_mixup[:, None, None], u[:, WEIGHT, None, None], in_box.float())
        pixel_weight = at_size(weight, x)[:, None].expand_as(partner_x)
        x = x.index_copy(0, rows, torch.lerp(x[rows], partner_x, pixel_weight))
        own_labels = self._probabilities(labels)
        if self.policy.uses_frame:
            label_weight = image_mean(weight[:, None])
        else:  # independent of the size of the images
            label_weight = torch.where(use_mixup, u[:, WEIGHT], cutmix_area(u))[:, None]
        partner_labels = self._probabilities(self.labels[partners])
        mixed = own_labels.index_copy(0, rows, torch.lerp(own_labels[rows], partner_labels, label_weight))
        if weights is None or self.weights is None:
            return Batch(x, mixed)
        own = weights[:, None] * own_labels
        partner = self.weights[partners, None] * partner_labels
        return Batch(x, mixed, own.index_copy(0, rows, torch.lerp(own[rows], partner, label_weight)))

    def _probabilities(self, labels: Tensor) -> Tensor:
        """Return one-hot class probabilities ``(B, K)``, zeros for unlabeled images."""
        return F.one_hot(labels.clamp_min(0), self.classes) * (labels != UNLABELED)[:, None].float()
