"""A folder of answers: a file an epoch, memory-mapped, written through, safe to read beside other writers."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from camkd.data.dataset import cache_folder
from camkd.distill.cache.records import RecordFormat, checksums
from camkd.types import InputError, Prediction
from camkd.utils.files import NO_SPACE, dump_checksummed, load_checksummed, reserve, write_text
from camkd.utils.units import format_quantity

MANIFEST = "store.json"
ROWS_AT_ONCE = 4096
LARGEST_EPOCH = 1 << 50


class CorruptCacheWarning(UserWarning):
    """Stored answers were not what had been written; they are asked again."""


class CacheFullError(InputError):
    """The disk has no space for an epoch of answers."""


@dataclass(frozen=True)
class Manifest:
    """What a person should know of a store; ``store.json``."""

    teacher: str
    architecture: str
    data: str
    views: str
    augment_seed: int
    precision: str
    count: int
    layout: RecordFormat

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        """Raises ``InputError`` where there is none, or where it is not what was written."""
        try:
            values = load_checksummed(folder / MANIFEST)
            known = {field.name: values[field.name] for field in fields(cls)}
            bias = known["layout"]["bias"]
            layout = RecordFormat(**{**known["layout"], "bias": None if bias is None else tuple(bias)})
            if not 0 < known["count"] * layout.dtype.itemsize < LARGEST_EPOCH or layout.classes < 2:
                raise ValueError("no epoch has such a size")
            return cls(**{**known, "layout": layout})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
            raise InputError(
                f"{folder} is not a whole knowledge store ({error}): the next run that uses it mends it."
            ) from error

    def write(self, folder: Path) -> None:
        """Write it where it is missing or differs, and note that the store is used now."""
        path, text = folder / MANIFEST, dump_checksummed(asdict(self))
        if path.exists() and path.read_bytes() == text.encode():
            os.utime(path)
        else:
            write_text(path, text)


class Store:
    """The answers of one teacher, as ``manifest`` describes them, in ``folder``; it is made with the first answer.

    Several processes may read and write it at once: a record is complete or it does not count.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.count, self.layout = manifest.count, manifest.layout
        self._open: tuple[int, NDArray[np.void]] | None = None

    def touch(self) -> None:
        """Note that it is used now, where there is something to use."""
        if self.folder.is_dir():
            self.manifest.write(self.folder)

    @property
    def epoch_bytes(self) -> int:
        """What an epoch takes on disk."""
        return self.count * self.layout.dtype.itemsize

    def epochs(self) -> list[int]:
        """The epochs of which something is known."""
        names = (re.fullmatch(r"epoch-(\d+)\.bin", path.name) for path in self.folder.glob("epoch-*"))
        return sorted(int(name[1]) for name in names if name)

    def read(self, epoch: int, rows: NDArray[np.int64]) -> Prediction | None:
        """The answers for samples ``rows``, or None where one of them is not known. Warns where one is damaged."""
        found, known = self._found(epoch, rows)
        return self.layout.decode(found) if self._all(epoch, found, known) else None

    def contains(self, epoch: int, rows: NDArray[np.int64]) -> bool:
        """Whether there is a sound answer for each of ``rows``. Warns where one is damaged."""
        return self._all(epoch, *self._found(epoch, rows))

    def _all(self, epoch: int, found: NDArray[np.void], known: NDArray[np.bool_]) -> bool:
        damaged = int((~known & (found["sum"] != 0)).sum())
        if damaged:
            warnings.warn(
                f"{damaged} of the teacher's answers in {self.path(epoch)} are damaged; they are asked again.",
                CorruptCacheWarning,
                stacklevel=3,
            )
        return bool(known.all())

    def write(self, epoch: int, rows: NDArray[np.int64], encoded: NDArray[np.void]) -> None:
        """Keep encoded answers for samples ``rows``. Raises ``CacheFullError`` where the disk is full."""
        encoded["sum"] = checksums(encoded, epoch, rows)
        records = self._records(epoch, create=True)
        assert records is not None
        records[rows] = encoded

    def verify_epoch(self, epoch: int, *, mend: bool = False) -> tuple[int, int]:
        """How many records of an epoch are known and how many are damaged; ``mend`` makes these unknown."""
        known = damaged = 0
        for start in range(0, self.count, ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, self.count))
            found, good = self._found(epoch, rows)
            bad = ~good & (found["sum"] != 0)
            known, damaged = known + int(good.sum()), damaged + int(bad.sum())
            records = self._records(epoch)
            if mend and bad.any() and records is not None:
                records[rows[bad]] = np.zeros(1, self.layout.dtype)
        return known, damaged

    def path(self, epoch: int) -> Path:
        """The file of an epoch."""
        return self.folder / f"epoch-{epoch:04d}.bin"

    def _found(self, epoch: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """A copy of the records of ``rows``, and which of them are whole."""
        records = self._records(epoch)
        if records is None:
            return np.zeros(len(rows), self.layout.dtype), np.zeros(len(rows), np.bool_)
        found = records[rows]
        return found, found["sum"] == checksums(found, epoch, rows)

    def _records(self, epoch: int, *, create: bool = False) -> NDArray[np.void] | None:
        opened = self._open
        if opened is not None and opened[0] == epoch:
            return opened[1]
        path = self.path(epoch)
        if not path.exists() and not create:
            return None
        new = not path.exists()
        try:
            if new:
                self.manifest.write(self.folder)
            reserve(path, self.epoch_bytes)
        except OSError as error:
            if new:
                path.unlink(missing_ok=True)
            if error.errno not in NO_SPACE:
                raise
            raise CacheFullError(
                f"there is no room for {format_quantity(self.epoch_bytes)} of the teacher's answers in {self.folder}: "
                "make room with 'camkd cache prune', lower --cache-budget, or set CAMKD_CACHE to another folder."
            ) from error
        records: NDArray[np.void] = np.memmap(path, self.layout.dtype, "r+", shape=(self.count,))
        self._open = epoch, records
        return records


def store_folder(key: str) -> Path:
    """The folder of the store called ``key``."""
    return cache_folder() / "teacher" / key


def list_stores() -> list[Path]:
    """The folders of all knowledge stores, least recently used first."""
    found = store_folder("").glob(f"*/{MANIFEST}")
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime)]
