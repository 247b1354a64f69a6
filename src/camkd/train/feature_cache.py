"""Features of frozen networks on disk: the inputs of the head, one vector per image and view.

A store is a folder ``<CAMKD_CACHE>/features/<key>/`` with ``features.json`` and a file of fixed-size records per view:
``train-0000.bin``, ``train-0001.bin`` and so on, and ``val-0000.bin``. A record is a 64-bit checksum, the features as
float16, and the label probabilities as float32 if the augmentation mixes images. A record with a wrong checksum, such
as a record of zeros, counts as not computed. An interruption therefore loses at most one batch.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camkd.data.dataset import cache_folder
from camkd.distill.cache.records import checksums
from camkd.types import InputError
from camkd.utils.files import reserve, write_text
from camkd.utils.units import format_quantity

DESCRIPTION = "features.json"

FORMAT = 1
"""Version of the records. Increment it when the byte layout of a record changes."""

LARGEST_FLOAT16 = 65504.0
"""Largest finite float16 number. Larger features are clamped."""


@dataclass
class FeatureStore:
    """Features of one network, dataset and augmentation.

    Args:
        folder: Folder of the store. It is created by the first write.
        description: Content of ``features.json``: everything that the features depend on.
        width: Number of features per view.
        num_targets: Number of label probabilities per view; 0 without mixing, when the labels are those of the images.
    """

    folder: Path
    description: dict[str, Any]
    width: int
    num_targets: int = 0
    _open: dict[str, NDArray[np.void]] = field(default_factory=dict, repr=False)

    @property
    def dtype(self) -> np.dtype[np.void]:
        """Structured NumPy type of a record: ``checksum``, ``features``, and ``targets`` if stored."""
        fields: list[tuple[Any, ...]] = [("checksum", "<u8"), ("features", "<f2", (self.width,))]
        if self.num_targets:
            fields.append(("targets", "<f4", (self.num_targets,)))
        padding = -np.dtype(fields).itemsize % 8
        return np.dtype([*fields, ("", f"V{padding}")]) if padding else np.dtype(fields)

    def missing(self, split: str, view: int, indices: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
        """Return a mask of the samples without a valid record.

        Args:
            split: Name of the split.
            view: Index of the view, from 0.
            indices: Sample indices, ``(N,)``.
            count: Number of samples in the split.
        """
        if not self._path(split, view).exists():
            return np.ones(len(indices), np.bool_)
        records = self._map(split, view, count)[indices]
        missing: NDArray[np.bool_] = records["checksum"] != self._checksums(records, split, view, indices)
        return missing

    def write(
        self,
        split: str,
        view: int,
        indices: NDArray[np.int64],
        count: int,
        features: Tensor,
        targets: Tensor | None = None,
    ) -> None:
        """Write the features of a batch.

        Args:
            split: Name of the split.
            view: Index of the view, from 0.
            indices: Sample indices, ``(N,)``.
            count: Number of samples in the split.
            features: Features ``(N, width)``, finite.
            targets: Label probabilities ``(N, num_targets)``; None if ``num_targets`` is 0.

        Raises:
            InputError: If the disk has no space for the view.
        """
        records: NDArray[np.void] = np.zeros(len(indices), self.dtype)
        records["features"] = features.clamp(-LARGEST_FLOAT16, LARGEST_FLOAT16).half().cpu().numpy()
        if self.num_targets:
            assert targets is not None
            records["targets"] = targets.float().cpu().numpy()
        records["checksum"] = self._checksums(records, split, view, indices)
        self._map(split, view, count)[indices] = records

    def read(self, split: str, view: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Read all records of a view, without comparing checksums.

        Args:
            split: Name of the split.
            view: Index of the view, from 0.
            count: Number of samples in the split.

        Returns:
            Features ``(count, width)`` as float32, and label probabilities ``(count, num_targets)``; None if
            ``num_targets`` is 0.
        """
        records = self._map(split, view, count)
        features = torch.from_numpy(records["features"].astype(np.float32))
        return features, torch.from_numpy(records["targets"].copy()) if self.num_targets else None

    def mark_used(self) -> None:
        """Write ``features.json``, or update its modification time, which is the time of last use."""
        path = self.folder / DESCRIPTION
        text = json.dumps(self.description, indent=2, sort_keys=True) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            os.utime(path)
        else:
            write_text(path, text)

    def _checksums(
        self, records: NDArray[np.void], split: str, view: int, indices: NDArray[np.int64]
    ) -> NDArray[np.uint64]:
        return checksums(records, 2 * view + (split == "val"), indices)

    def _path(self, split: str, view: int) -> Path:
        return self.folder / f"{split}-{view:04d}.bin"

    def _map(self, split: str, view: int, count: int) -> NDArray[np.void]:
        """Memory-map the file of a view. The file is created if there is none."""
        path = self._path(split, view)
        if path.name not in self._open:
            size = count * self.dtype.itemsize
            is_new = not path.exists()
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.mark_used()
                reserve(path, size)
            except OSError as error:
                if is_new:
                    path.unlink(missing_ok=True)
                raise InputError(
                    f"{self.folder} must have {format_quantity(size)} of free space for features, got: "
                    f"{error.strerror}. Free space, or set CAMKD_CACHE to another folder."
                ) from error
            self._open[path.name] = np.memmap(path, self.dtype, "r+", shape=(count,))
        return self._open[path.name]


def feature_folder(key: str) -> Path:
    """Return the folder of the store with this key, ``$CAMKD_CACHE/features/<key>``."""
    return cache_folder() / "features" / key


def list_feature_stores() -> list[Path]:
    """List the folders of all stores that have a description, least recently used first."""
    descriptions = feature_folder("").glob(f"*/{DESCRIPTION}")
    return [path.parent for path in sorted(descriptions, key=lambda path: path.stat().st_mtime)]
