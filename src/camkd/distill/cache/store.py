"""Teacher outputs on disk: one memory-mapped file per epoch, which several processes may read and write."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from camkd.data.dataset import cache_folder
from camkd.distill.cache.records import RecordFormat, checksums
from camkd.types import InputError, Prediction
from camkd.utils.files import NO_SPACE_ERRNOS, dump_checksummed, load_checksummed, reserve, write_text
from camkd.utils.units import format_quantity

MANIFEST = "store.json"
MANIFEST_VERSION = 1
"""Version of ``store.json``. Increment it when a key changes its name or meaning, not for a new optional key."""

MAX_EPOCH_BYTES = 1 << 50
"""Bound of the size of an epoch. A manifest with epochs of this size or more is rejected as corrupt."""

VERIFY_CHUNK = 4096
"""Number of records that are verified at once."""


class CorruptCacheWarning(UserWarning):
    """Cached teacher outputs failed their checksum and are recomputed."""


class CacheFullError(InputError):
    """The disk has no space for an epoch of teacher outputs."""


@dataclass(frozen=True)
class Manifest:
    """Description of a store, saved as ``store.json`` in its folder.

    Args:
        teacher: Path of the teacher's run folder.
        architecture: Name of the teacher's network.
        data: Name of the dataset.
        augment: Name of the augmentation policy.
        augment_seed: Seed of the augmentation.
        precision: Number format of the teacher's forward pass, ``fp32`` or ``bf16``.
        num_samples: Number of training samples, which is the number of records per epoch.
        record_format: Binary format of a record.
    """

    teacher: str
    architecture: str
    data: str
    augment: str
    augment_seed: int
    precision: str
    num_samples: int
    record_format: RecordFormat

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of the store in ``folder``.

        Args:
            folder: The folder of the store.

        Returns:
            The manifest.

        Raises:
            InputError: If ``store.json`` is missing, corrupt, incomplete or of another version.
        """
        try:
            values = load_checksummed(folder / MANIFEST)
            version = values.get("version", MANIFEST_VERSION)
            if version != MANIFEST_VERSION:
                raise ValueError(f"version must be {MANIFEST_VERSION}, got {version!r}")
            bias = values["record_format"]["bias"]
            manifest = cls(
                teacher=values["teacher"],
                architecture=values["architecture"],
                data=values["data"],
                augment=values["augment"],
                augment_seed=values["augment_seed"],
                precision=values["precision"],
                num_samples=values["num_samples"],
                record_format=RecordFormat(
                    **{**values["record_format"], "bias": None if bias is None else tuple(bias)}
                ),
            )
            num_classes = manifest.record_format.classes
            if num_classes < 2:
                raise ValueError(f"classes must be 2 or more, got {num_classes}")
            epoch_bytes = manifest.num_samples * manifest.record_format.dtype.itemsize
            if not 0 < epoch_bytes < MAX_EPOCH_BYTES:
                raise ValueError(f"an epoch must have 1 to {MAX_EPOCH_BYTES - 1} bytes, got {epoch_bytes}")
            return manifest
        except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
            reason = f"key {error} is missing" if isinstance(error, KeyError) else error
            raise InputError(
                f"{folder} must be a complete teacher cache, got an incomplete one ({reason}). The next use repairs "
                "the cache."
            ) from error

    def write(self, folder: Path) -> None:
        """Write ``store.json`` if it is missing or differs; otherwise update its modification time.

        The modification time is the time of last use. ``camkd cache prune --keep`` removes the least recently used
        stores.

        Args:
            folder: The folder of the store.
        """
        path = folder / MANIFEST
        record_format = self.record_format
        values = {
            "version": MANIFEST_VERSION,
            "teacher": self.teacher,
            "architecture": self.architecture,
            "data": self.data,
            "augment": self.augment,
            "augment_seed": self.augment_seed,
            "precision": self.precision,
            "num_samples": self.num_samples,
            "record_format": {
                "classes": record_format.classes,
                "height": record_format.height,
                "width": record_format.width,
                "bias": record_format.bias,
            },
        }
        text = dump_checksummed(values)
        if path.exists() and path.read_bytes() == text.encode():
            os.utime(path)
        else:
            write_text(path, text)


class Store:
    """Teacher outputs of one teacher, dataset and augmentation, by epoch and sample.

    Epoch ``e`` is the file ``epoch-<e>.bin``, an array of ``num_samples`` records that is memory-mapped. Its disk space
    is reserved before the first write. The folder is created by the first write.

    Several processes may read and write one folder at the same time: a record is valid only if its checksum matches.
    A record of zeros has not been written. Any other record whose checksum differs is corrupt, from an interrupted
    write or a flipped bit. Unwritten and corrupt records are never returned.

    Args:
        folder: Folder of the store.
        manifest: Description of the store, with the number and the format of the records.

    Example:
        >>> store = Store(store_folder(key), manifest)                           # doctest: +SKIP
        >>> indices = np.array([3, 7])                                           # doctest: +SKIP
        >>> store.write(0, indices, store.record_format.encode(prediction))      # doctest: +SKIP
        >>> store.read(0, indices).logits.shape                                  # doctest: +SKIP
        torch.Size([2, 10])
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.num_samples = manifest.num_samples
        self.record_format = manifest.record_format
        self._open: tuple[int, NDArray[np.void]] | None = None

    def mark_used(self) -> None:
        """Set the time of last use to now, and repair the manifest. Does nothing if the folder does not exist."""
        if self.folder.is_dir():
            self.manifest.write(self.folder)

    @property
    def epoch_bytes(self) -> int:
        """Size of an epoch on disk in bytes."""
        return self.num_samples * self.record_format.dtype.itemsize

    def epochs(self) -> list[int]:
        """List the epochs that have a file, in ascending order."""
        matches = (re.fullmatch(r"epoch-(\d+)\.bin", path.name) for path in self.folder.glob("epoch-*"))
        return sorted(int(match[1]) for match in matches if match)

    def read(self, epoch: int, indices: NDArray[np.int64]) -> Prediction | None:
        """Read the teacher outputs of a batch.

        Args:
            epoch: Epoch of the augmented views.
            indices: Sample indices, ``(N,)``.

        Returns:
            The prediction of `RecordFormat.decode`, or None if a record is missing or corrupt.

        Raises:
            CacheFullError: If the file is truncated, and the disk has no space to extend it.

        Warns:
            CorruptCacheWarning: If a record is corrupt.
        """
        records, valid = self._read_records(epoch, indices)
        return self.record_format.decode(records) if self._all_valid(epoch, records, valid) else None

    def contains(self, epoch: int, indices: NDArray[np.int64]) -> bool:
        """Check whether samples have valid records.

        Args:
            epoch: Augmented epoch.
            indices: Sample indices, ``(N,)``.

        Returns:
            True if every sample has a valid record.

        Raises:
            CacheFullError: If the file is truncated, and the disk has no space to extend it.

        Warns:
            CorruptCacheWarning: If a record is corrupt.
        """
        return self._all_valid(epoch, *self._read_records(epoch, indices))

    def _all_valid(self, epoch: int, records: NDArray[np.void], valid: NDArray[np.bool_]) -> bool:
        """Return whether all records are valid, and warn about corrupt records."""
        num_corrupt = int(_corrupt(records, valid).sum())
        if num_corrupt:
            warnings.warn(
                f"{num_corrupt} of the cached teacher outputs in {self.path(epoch)} failed the checksum and will be "
                "recomputed.",
                CorruptCacheWarning,
                stacklevel=3,
            )
        return bool(valid.all())

    def write(self, epoch: int, indices: NDArray[np.int64], records: NDArray[np.void]) -> None:
        """Write encoded teacher outputs of a batch.

        Args:
            epoch: Epoch of the augmented views.
            indices: Sample indices, ``(N,)``.
            records: ``N`` records from `RecordFormat.encode`. Their checksums are filled in.

        Raises:
            CacheFullError: If the disk has no space for the epoch.
        """
        records["checksum"] = checksums(records, epoch, indices)
        mapped = self._map_epoch(epoch, create=True)
        assert mapped is not None
        mapped[indices] = records

    def read_samples(self, epochs: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Read the records of samples of several epochs.

        Args:
            epochs: Epoch of the augmented view of each sample, ``(N,)``.
            indices: Sample indices, ``(N,)``.

        Returns:
            The records ``(N,)``. The checksum of a record that is missing or corrupt is 0.

        Warns:
            CorruptCacheWarning: If a record is corrupt.
        """
        all_records = np.zeros(len(indices), self.record_format.dtype)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            try:
                records, valid = self._read_records(epoch, indices[rows])
            except CacheFullError:  # no space to extend a truncated file; `write_samples` raises the error again
                continue
            self._all_valid(epoch, records, valid)
            records["checksum"][~valid] = 0
            all_records[rows] = records
        return all_records

    def write_samples(self, epochs: NDArray[np.int64], indices: NDArray[np.int64], records: NDArray[np.void]) -> None:
        """Write the records of samples of several epochs. See `write`.

        Args:
            epochs: Epoch of the augmented view of each sample, ``(N,)``.
            indices: Sample indices, ``(N,)``.
            records: ``N`` records from `RecordFormat.encode`.

        Raises:
            CacheFullError: If the disk has no space for an epoch.
        """
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            self.write(epoch, indices[rows], records[rows])

    def verify_epoch(self, epoch: int, *, repair: bool = False) -> tuple[int, int]:
        """Verify the checksum of every record of an epoch.

        Args:
            epoch: Epoch of the augmented views.
            repair: Overwrite corrupt records with zeros, so that they count as not written.

        Returns:
            The number of valid and the number of corrupt records, before repair.

        Raises:
            CacheFullError: If the file is truncated, and the disk has no space to extend it.
        """
        num_valid = 0
        num_corrupt = 0
        for start in range(0, self.num_samples, VERIFY_CHUNK):
            indices = np.arange(start, min(start + VERIFY_CHUNK, self.num_samples))
            records, valid = self._read_records(epoch, indices)
            corrupt = _corrupt(records, valid)
            num_valid += int(valid.sum())
            num_corrupt += int(corrupt.sum())
            mapped = self._map_epoch(epoch)
            if repair and corrupt.any() and mapped is not None:
                mapped[indices[corrupt]] = np.zeros(1, self.record_format.dtype)
        return num_valid, num_corrupt

    def path(self, epoch: int) -> Path:
        """Return the path of an epoch's file."""
        return self.folder / f"epoch-{epoch:04d}.bin"

    def _read_records(self, epoch: int, indices: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Return a copy of the records of ``indices``, and a mask of the valid records."""
        mapped = self._map_epoch(epoch)
        if mapped is None:
            return np.zeros(len(indices), self.record_format.dtype), np.zeros(len(indices), np.bool_)
        records = mapped[indices]
        return records, records["checksum"] == checksums(records, epoch, indices)

    def _map_epoch(self, epoch: int, *, create: bool = False) -> NDArray[np.void] | None:
        """Memory-map the file of an epoch until another epoch is mapped. Return None if there is no file to map."""
        if self._open is not None and self._open[0] == epoch:
            return self._open[1]
        path = self.path(epoch)
        is_new = not path.exists()
        if is_new and not create:
            return None
        try:
            if is_new:
                self.manifest.write(self.folder)
            reserve(path, self.epoch_bytes)
        except OSError as error:
            if is_new:
                path.unlink(missing_ok=True)
            if error.errno not in NO_SPACE_ERRNOS:
                raise
            raise CacheFullError(
                f"{self.folder} must have space for {format_quantity(self.epoch_bytes)} of teacher outputs, got a full "
                "disk. Free space with 'camkd cache prune', lower --cache-budget, or set CAMKD_CACHE to another folder."
            ) from error
        mapped: NDArray[np.void] = np.memmap(path, self.record_format.dtype, "r+", shape=(self.num_samples,))
        self._open = epoch, mapped
        return mapped


def _corrupt(records: NDArray[np.void], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask of the records that were written but are not valid."""
    corrupt: NDArray[np.bool_] = ~valid & (records["checksum"] != 0)
    return corrupt


def store_folder(key: str) -> Path:
    """Return the folder of the store with this key, ``$CAMKD_CACHE/teacher/<key>``."""
    return cache_folder() / "teacher" / key


def list_stores() -> list[Path]:
    """List the folders of all stores that have a manifest, least recently used first."""
    manifests = store_folder("").glob(f"*/{MANIFEST}")
    return [path.parent for path in sorted(manifests, key=lambda path: path.stat().st_mtime)]
