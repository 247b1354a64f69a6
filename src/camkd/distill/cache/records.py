"""One answer of a teacher in bytes, and the checksum that says whether it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camkd.cams import resize
from camkd.types import Prediction
from camkd.utils.hashing import GOLDEN_GAMMA, derive_seed, splitmix64

VERSION = 2
"""Goes up when the same answers would be stored differently."""

ALL_CLASSES, TOP_CLASSES = 100, 10
"""Of more than 100 classes the maps of the 10 likeliest are kept."""


@dataclass(frozen=True)
class RecordFormat:
    """One answer in bytes, for ``classes`` classes and maps of ``height`` x ``width`` cells.

    Maps are float16 and in logit units. Above 100 classes those of the 10 likeliest are kept, with their indices.
    Where ``bias`` is given the logits follow from the maps (``mean + bias``) and are not kept; else they are float16.
    """

    classes: int
    height: int
    width: int
    bias: tuple[float, ...] | None = None

    @property
    def kept(self) -> int:
        """How many classes' maps are kept."""
        return self.classes if self.classes <= ALL_CLASSES else TOP_CLASSES

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The record: ``sum`` (the checksum), then the answer, filled up to whole 64-bit words."""
        parts: list[tuple[Any, ...]] = [("sum", "<u8"), ("cams", "<f2", (self.kept, self.height, self.width))]
        if self.bias is None:
            parts.append(("logits", "<f2", (self.classes,)))
        if self.kept < self.classes:
            parts.append(("shown", "<i4", (self.kept,)))
        bare = np.dtype(parts)
        return np.dtype([*parts, ("", f"V{-bare.itemsize % 8}")]) if bare.itemsize % 8 else bare

    def encode(self, answer: Prediction) -> NDArray[np.void]:
        """Answers to ``N`` views as ``N`` records, their checksums still missing."""
        assert answer.cams is not None
        cams, logits = resize(answer.cams.float(), (self.height, self.width)), answer.logits.float()
        records: NDArray[np.void] = np.zeros(len(logits), self.dtype)
        if self.kept < self.classes:
            shown = logits.topk(self.kept).indices
            cams = cams[torch.arange(len(cams), device=cams.device)[:, None], shown]
            records["shown"] = shown.cpu().numpy()
        if self.bias is None:
            records["logits"] = _half(logits)
        records["cams"] = _half(cams)
        return records

    def decode(self, records: NDArray[np.void]) -> Prediction:
        """The answers in ``records``, in fp32: a pure function of their bytes."""
        cams = torch.from_numpy(records["cams"]).float()
        if self.bias is None:
            logits = torch.from_numpy(records["logits"]).float()
        else:
            logits = cams.mean((2, 3)) + torch.tensor(self.bias)
        shown = torch.from_numpy(records["shown"]).long() if self.kept < self.classes else None
        return Prediction(logits, cams, None, shown)


def _half(x: Tensor) -> NDArray[np.float16]:
    """As float16; what is larger than it can hold becomes its largest number."""
    largest = torch.finfo(torch.float16).max
    half: NDArray[np.float16] = x.clamp(-largest, largest).half().cpu().numpy()
    return half


def checksums(records: NDArray[np.void], epoch: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One 64-bit word a record that any changed bit changes, and another epoch or sample too; never 0.

    Each word of the answer is scrambled together with its place, by a bijection; their sum is scrambled once more.
    """
    words = np.ascontiguousarray(records).view(np.uint64).reshape(len(records), -1)[:, 1:]
    places = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
    own = rows.astype(np.uint64) * np.uint64(GOLDEN_GAMMA) + np.uint64(derive_seed(VERSION, epoch))
    return splitmix64(splitmix64(words + places).sum(1, dtype=np.uint64) + splitmix64(own)) | np.uint64(1)
