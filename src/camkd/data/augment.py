"""Augmentation policies, and random numbers as a pure function of (seed, epoch, sample).

An *augmented view* is the image of one sample after augmentation in one epoch (`camkd.data.views`). Every random number
of a view is a counter-based hash of the augmentation seed, the epoch, the sample and a stream number. A view is
therefore independent of the batch order, the batch size, the number of processes and interruptions of the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camkd.config import AUTO
from camkd.data.dataset import Dataset
from camkd.types import InputError
from camkd.utils.hashing import GOLDEN_GAMMA, derive_seed, mix64

VERSION = 2
"""Version of the augmented views, a part of `Policy.key`. Increment when the same policy computes other images."""

LARGEST_LIGHT_SIZE = 32
"""Side in pixels up to which ``auto`` is ``light`` for folders of images."""

PHOTO_VERSION = 1
"""Version of the augmented views of a `PhotoPolicy`."""

_NUM_STREAMS = 16
"""Number of random numbers per sample and epoch."""

CROP_Y, CROP_X, FLIP, ANGLE, BRIGHTNESS, CONTRAST, SATURATION, CUTOUT_Y, CUTOUT_X = range(9)
MIX, PARTNER, WEIGHT, BOX_Y, BOX_X, PARTNER_LOW = range(9, 15)
"""Streams: the column of `random_uniform` that each augmentation uses. Other columns give other augmented views."""

CROP_AREA, CROP_RATIO, CROP_TOP, CROP_LEFT, CROP_FLIP, OPERATION, MAGNITUDE, SIGN = range(8)
ERASE, ERASE_AREA, ERASE_RATIO, ERASE_TOP, ERASE_LEFT, OPERATE = range(8, 14)
"""Streams of `random_photo`."""

_PHOTO_SEED = -1
"""Stream of `derive_seed` of the second block of random numbers. Epochs are the streams from 0."""


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

    @property
    def uses_frame(self) -> bool:
        """True if views contain offsets or regions of whole pixels of the frame, see `camkd.data.views.Views`."""
        return self.crop or self.cutout > 0 or self.mix > 0


@dataclass(frozen=True)
class PhotoPolicy:
    """Augmentation policy of photographs. Its views are independent of any size in pixels.

    A view is a random resized crop (Szegedy et al. 2014, arXiv 1409.4842), a horizontal flip with probability 0.5, with
    probability ``operate`` one operation of TrivialAugment (`camkd.data.trivial_augment`), and with probability
    ``erase`` an erased rectangle.

    Args:
        min_area: Minimum area of the crop relative to the image. The area is uniform between it and 1.
        operate: Probability of an operation of TrivialAugment.
        erase: Probability of an erased rectangle (Zhong et al. 2017, arXiv 1708.04896).
        mix: Probability of mixing an image with another one, half by mixup and half by CutMix.
    """

    min_area: float = 0.35
    operate: float = 0.25
    erase: float = 0.25
    mix: float = 0.0

    def key(self) -> str:
        """Return a string that identifies the augmented views, for use in cache keys.

        Example:
            >>> PhotoPolicy().key()
            'photo version=1 min_area=0.35 operate=0.25 erase=0.25 mix=0.0'
        """
        return (
            f"photo version={PHOTO_VERSION} min_area={float(self.min_area)!r} operate={float(self.operate)!r} "
            f"erase={float(self.erase)!r} mix={float(self.mix)!r}"
        )

    @property
    def uses_frame(self) -> bool:
        """False: the views do not depend on the frame."""
        return False


POLICIES: dict[str, Policy | PhotoPolicy] = {
    "none": Policy(),
    "light": Policy(crop=True, flip=True),
    "strong": Policy(crop=True, flip=True, rotation=15.0, color=0.3, cutout=0.25, mix=0.5),
    "photo": PhotoPolicy(),
    "photo-mix": PhotoPolicy(mix=0.5),
}
"""Augmentation policies by name."""


def check_augment(name: str) -> None:
    """Check the name of an augmentation policy.

    Args:
        name: Must be ``auto`` or a name in `POLICIES`.

    Raises:
        InputError: If ``name`` is neither.
    """
    if name != AUTO and name not in POLICIES:
        choices = ", ".join((AUTO, *POLICIES))
        raise InputError(f"augment must be one of {choices}, got {name!r}. Choose a policy from the list.")


def pick_augment(name: str, data: Dataset) -> str:
    """Return the name of the augmentation policy of a dataset.

    Args:
        name: A name in `POLICIES`, which is returned, or ``auto``.
        data: The dataset at the size of the student.

    Returns:
        For ``auto``, ``photo`` if the images are files of a folder and are larger than `LARGEST_LIGHT_SIZE`, else
        ``light``.
    """
    if name != AUTO:
        return name
    return "photo" if data.train.names is not None and data.size > LARGEST_LIGHT_SIZE else "light"


def get_policy(name: str) -> Policy | PhotoPolicy:
    """Return an augmentation policy by name.

    Args:
        name: A name in `POLICIES`.

    Returns:
        The policy.

    Raises:
        InputError: If there is no policy of this name.

    Example:
        >>> get_policy("light").flip
        True
    """
    if name not in POLICIES:
        raise InputError(f"augment must be one of {', '.join(POLICIES)}, got {name!r}. Choose a policy from the list.")
    return POLICIES[name]


def random_uniform(seed: int, epoch: int | Tensor, indices: Tensor) -> Tensor:
    """Compute uniform random numbers as a pure function of (seed, epoch, sample, stream).

    The numbers are the upper 24 bits of SplitMix64 in counter mode (Steele, Lea and Flood 2014), divided by 2^24.

    Args:
        seed: Augmentation seed, 64 bits.
        epoch: Epoch number, or the epoch of each sample, ``(B,) int64``.
        indices: Sample indices, ``(B,) int64``.

    Returns:
        Numbers in [0, 1), ``(B, 16) float32``, one column per stream.

    Example:
        >>> random_uniform(seed=0, epoch=3, indices=torch.arange(8)).shape
        torch.Size([8, 16])
    """
    first_counters = indices.cpu().numpy()[:, None] * _NUM_STREAMS
    counters: NDArray[np.uint64] = (first_counters + np.arange(1, _NUM_STREAMS + 1)).astype(np.uint64)
    bits = mix64(counters * np.uint64(GOLDEN_GAMMA) + _epoch_seeds(seed, epoch))
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))


def _epoch_seeds(seed: int, epoch: int | Tensor) -> NDArray[np.uint64]:
    """Return the seed of an epoch ``()``, or of the epoch of each sample ``(B, 1)``."""
    if isinstance(epoch, int):
        return np.array(derive_seed(seed, epoch), np.uint64)
    epochs, inverse = np.unique(epoch.numpy(), return_inverse=True)
    return np.array([derive_seed(seed, number) for number in epochs.tolist()], np.uint64)[inverse, None]


def random_photo(seed: int, epoch: int | Tensor, indices: Tensor) -> Tensor:
    """Compute the random numbers of a `PhotoPolicy`, which are independent of those of `random_uniform`.

    Args:
        seed: Augmentation seed, 64 bits.
        epoch: Epoch number, or the epoch of each sample, ``(B,) int64``.
        indices: Sample indices, ``(B,) int64``.

    Returns:
        Numbers in [0, 1), ``(B, 16) float32``, one column per stream. The streams of mixing are those of
        `random_uniform`.
    """
    return random_uniform(derive_seed(seed, _PHOTO_SEED), epoch, indices)
