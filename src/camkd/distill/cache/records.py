"""Binary format of one cached teacher output, and its checksum."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camkd.cams import resize
from camkd.cams.gather import gather_classes
from camkd.types import Prediction
from camkd.utils.hashing import GOLDEN_GAMMA, derive_seed, mix64

VERSION = 2
"""Version of the binary format. Increment it when the same outputs would be stored as other bytes."""

MAX_CLASSES_WITH_ALL_MAPS = 100
"""Maximum number of classes for which the maps of all classes are stored."""

NUM_TOP_CLASSES = 10
"""Number of maps per record if there are more than ``MAX_CLASSES_WITH_ALL_MAPS`` classes."""


@dataclass(frozen=True)
class RecordFormat:
    """Binary format of the cached teacher output of one sample.

    A record is the cached output of one sample. It holds, in this order and little-endian:

    1. the checksum, uint64;
    2. class activation maps in logit units, float16 ``(num_maps, height, width)``;
    3. logits, float16 ``(classes,)``, only if ``bias`` is None;
    4. the class indices of the maps, int32 ``(num_maps,)``, only if not all maps are stored;
    5. zeros up to a multiple of 8 bytes.

    Up to `MAX_CLASSES_WITH_ALL_MAPS` classes, the maps of all classes are stored. With more classes, the maps of the
    `NUM_TOP_CLASSES` classes with the largest logits are stored.

    Args:
        classes: Number of classes ``K``.
        height: Height of a map in cells.
        width: Width of a map in cells.
        bias: Bias of a linear classification head, ``K`` values. Logits are not stored, but computed on decoding as
            ``mean_xy(map) + bias``. None: the logits are stored.

    Example:
        >>> record_format = RecordFormat(classes=10, height=8, width=8)
        >>> record_format.dtype.itemsize  # 8 + 2 * 10 * 8 * 8 + 2 * 10 = 1308 bytes, padded to 1312
        1312
    """

    classes: int
    height: int
    width: int
    bias: tuple[float, ...] | None = None

    @property
    def num_maps(self) -> int:
        """Number of class activation maps per record."""
        return self.classes if self.classes <= MAX_CLASSES_WITH_ALL_MAPS else NUM_TOP_CLASSES

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """Structured NumPy type of a record: ``checksum``, ``cams``, and ``logits`` and ``class_ids`` if stored."""
        fields: list[tuple[Any, ...]] = [("checksum", "<u8"), ("cams", "<f2", (self.num_maps, self.height, self.width))]
        if self.bias is None:
            fields.append(("logits", "<f2", (self.classes,)))
        if self.num_maps < self.classes:
            fields.append(("class_ids", "<i4", (self.num_maps,)))
        unpadded = np.dtype(fields)
        padding = -unpadded.itemsize % 8
        return np.dtype([*fields, ("", f"V{padding}")]) if padding else unpadded

    def encode(self, prediction: Prediction) -> NDArray[np.void]:
        """Encode a batch of ``N`` predictions as records.

        Args:
            prediction: Logits ``(N, K)`` and maps of all classes ``(N, K, h, w)``, on any device and in any float type.
                The maps are resized to ``height`` x ``width``. Values beyond the range of float16 are clamped to it.

        Returns:
            ``N`` records with checksum 0.
        """
        assert prediction.cams is not None
        cams = resize(prediction.cams.float(), (self.height, self.width))
        logits = prediction.logits.float()
        records: NDArray[np.void] = np.zeros(len(logits), self.dtype)
        if self.num_maps < self.classes:
            class_ids = logits.topk(self.num_maps).indices
            cams = gather_classes(cams, class_ids)
            records["class_ids"] = class_ids.cpu().numpy()
        if self.bias is None:
            records["logits"] = _to_float16(logits)
        records["cams"] = _to_float16(cams)
        return records

    def decode(self, records: NDArray[np.void]) -> Prediction:
        """Decode ``N`` records. The result depends only on their bytes.

        Args:
            records: Encoded records, ``(N,)``.

        Returns:
            A float32 prediction on the CPU: logits ``(N, K)`` and maps ``(N, num_maps, height, width)``. If maps are
            stored for some classes only, ``class_ids (N, num_maps)`` are their classes.
        """
        cams = torch.from_numpy(records["cams"]).float()
        if self.bias is None:
            logits = torch.from_numpy(records["logits"]).float()
        else:
            logits = cams.mean((2, 3)) + torch.tensor(self.bias)
        class_ids = torch.from_numpy(records["class_ids"]).long() if self.num_maps < self.classes else None
        return Prediction(logits, cams, class_ids=class_ids)


def _to_float16(values: Tensor) -> NDArray[np.float16]:
    """Convert to float16, and clamp to the finite range of float16."""
    largest = torch.finfo(torch.float16).max
    half: NDArray[np.float16] = values.clamp(-largest, largest).half().cpu().numpy()
    return half


def checksums(records: NDArray[np.void], epoch: int, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Compute the checksum of each record, bound to its epoch and sample.

        content = sum_i mix64(word[i] + i * g)
        identity = mix64(sample * g + derive_seed(VERSION, epoch))
        checksum = mix64(content + identity) | 1

    ``word[i]``, ``i = 1, 2, ...``, are the 64-bit words after the stored checksum. ``g`` is
    `camkd.utils.hashing.GOLDEN_GAMMA`, the increment of SplitMix64; ``i * g`` makes the sum depend on the order of the
    words. All arithmetic is modulo ``2^64``. ``mix64`` is a bijection, so any changed bit of a word changes the
    summand of this word. The last bit of a checksum is always set, because 0 marks a record that has not been written.

    Args:
        records: ``N`` records of a `RecordFormat`. The checksums in the records are ignored.
        epoch: Epoch of the augmented views.
        indices: Sample index of each record, ``(N,)``.

    Returns:
        The checksums, ``(N,)``.
    """
    words = np.ascontiguousarray(records).view(np.uint64).reshape(len(records), -1)[:, 1:]
    offsets = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
    identity = indices.astype(np.uint64) * np.uint64(GOLDEN_GAMMA) + np.uint64(derive_seed(VERSION, epoch))
    content = mix64(words + offsets).sum(1, dtype=np.uint64)
    return mix64(content + mix64(identity)) | np.uint64(1)
