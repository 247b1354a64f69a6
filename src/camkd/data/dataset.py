"""Data sets as memory-mapped arrays on disk, built once, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from camkd.types import InputError
from camkd.utils.files import (
    NO_SPACE_ERRNOS,
    dump_checksummed,
    fsync,
    load_checksummed,
    remove_stale_temp,
    reserve,
    sha256_of,
    staged_dir,
    write_text,
)
from camkd.utils.units import format_quantity

VERSION = 2
"""Goes up when the same source would be stored differently, so that older stores are not opened."""

MANIFEST = "dataset.json"
SPLITS = ("train", "val", "test")
CHUNK_BYTES = 1 << 24


def limited_to(n: int, splits: tuple[str, ...]) -> str:
    """The note on a data set of which only the first pictures are used."""
    return f"limited to the first {n:,} pictures of {'each split' if splits == SPLITS else ' and '.join(splits)}"


Progress = Callable[[int, int, str], None]
"""``progress(done, total, what)``: called now and then while something long goes on."""


def no_progress(done: int, total: int, what: str) -> None:
    """The progress callback that says nothing."""


@dataclass(frozen=True)
class Split:
    """Pictures and labels: ``images (N, H, W, 3) uint8``, ``labels (N,) int64``.

    ``masks (N, H, W) bool`` is true on the object where the source knows it, ``names`` says which file a
    picture came from where there are files. ``images`` and ``masks`` are memory-mapped and read-only when
    they come from a store; ``sums (N,) uint32`` are then the `crc` of what was written.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None = None
    names: tuple[str, ...] | None = None
    sums: NDArray[np.uint32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def check(self, rows: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        """Raise ``InputError`` where ``pixels``, read for ``rows``, are not what was written."""
        if self.sums is None:
            return
        damaged = np.flatnonzero(image_checksums(pixels) != self.sums[rows])
        if len(damaged):
            stored = self.images.filename if isinstance(self.images, np.memmap) else None
            folder = Path(stored).parent if stored else cache_folder() / "data"
            raise InputError(
                f"the stored pixels of picture {rows[damaged[0]]} (one of {len(damaged)}) are not what was written: "
                f"delete the folder {folder}, it is made again."
            )

    def take(self, rows: NDArray[np.int64]) -> Split:
        """The pictures at ``rows``, in that order, copied into memory."""
        return Split(
            self.images[rows],
            self.labels[rows],
            None if self.masks is None else self.masks[rows],
            None if self.names is None else tuple(self.names[row] for row in rows),
            None if self.sums is None else self.sums[rows],
        )


@dataclass(frozen=True)
class Dataset:
    """Three splits of labelled pictures, and a fingerprint that changes when any of it does.

    ``fingerprint`` is a sha256 over sizes, pixels, labels, class names and split borders. ``notes`` are
    sentences a person should know: pictures skipped, a split made here.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    notes: tuple[str, ...]

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name, in the order train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def limited(self, n: int, splits: tuple[str, ...] = SPLITS) -> Dataset:
        """The first ``n`` pictures of each of ``splits``, taken class by class in turn, copied into memory.

        The classes stay balanced to within one picture as far as their pictures reach. A smaller data set
        is another data set, so its fingerprint differs. Raises `InputError` where ``n`` is not positive.
        """
        if n < 1:
            raise InputError(f"limit is {n}, but at least one picture is needed: give a positive number.")
        if n >= max(len(self.splits[name]) for name in splits):
            return self
        taken = {name: self.splits[name].take(balanced_subset(self.splits[name].labels, n)) for name in splits}
        small = replace(self, **taken, notes=(*self.notes, limited_to(n, splits)))  # type: ignore[arg-type]
        return replace(small, fingerprint=fingerprint(small.classes, small.splits))


class SplitArrays(NamedTuple):
    """What a source hands to `build_or_open`: everything of a `Dataset` that is not computed from it."""

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...] = ()


def round_robin(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of all labels where the classes take turns: the first of each class, then the second of each, ...

    >>> turns(np.array([0, 0, 0, 1, 1])).tolist()
    [0, 3, 1, 4, 2]
    """
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank[rows] = np.arange(len(rows))
    return np.lexsort((labels, rank))


def balanced_subset(labels: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Indices, ascending, of the first ``n`` labels when the classes take turns."""
    return np.sort(round_robin(labels)[:n])


def hold_out(labels: NDArray[np.int64], fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    """Choose ``fraction`` of every class at random, the same ones for the same labels and seed.

    Returns ``(N,) bool``, true where held out. Each class gives ``round(fraction * count)`` pictures, but
    at least one where it has two or more, and always keeps one.

    >>> int(hold_out(np.repeat([0, 1], 50), 0.1).sum())
    10
    """
    held = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        order = np.random.default_rng([seed, int(label)]).random(len(rows)).argsort(kind="stable")
        held[rows[order[:count]]] = True
    return held


def max_rows(size: int, images: NDArray[np.uint8]) -> int:
    """How many of ``images`` fit into ``size`` bytes, but at least one: what is read at once stays bounded.

    >>> max_rows(1_000_000, np.zeros((5, 224, 224, 3), np.uint8))
    6
    """
    return max(1, size // max(1, math.prod(images.shape[1:])))


def image_checksums(images: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The CRC-32 of each picture: any flipped bit changes it."""
    return np.fromiter((zlib.crc32(image) for image in np.ascontiguousarray(images)), np.uint32, len(images))


def fingerprint(classes: tuple[str, ...], splits: dict[str, Split]) -> str:
    """The sha256 (hex) over sizes, pixels, labels, class names and split borders."""
    return _surveyed(classes, splits)[0]


def _surveyed(classes: tuple[str, ...], splits: dict[str, Split]) -> tuple[str, dict[str, NDArray[np.uint32]]]:
    """The `fingerprint`, and the `crc` of each split's pictures, in one pass over the pixels."""
    shapes = {name: split.images.shape for name, split in splits.items()}
    digest = hashlib.sha256(json.dumps([classes, shapes]).encode())
    sums = {name: np.empty(len(split), np.uint32) for name, split in splits.items()}
    for name, split in splits.items():
        digest.update(split.labels.astype("<i8").tobytes())
        rows = max_rows(CHUNK_BYTES, split.images)
        for start in range(0, len(split), rows):
            pixels = np.ascontiguousarray(split.images[start : start + rows])
            digest.update(pixels.data)
            sums[name][start : start + rows] = image_checksums(pixels)
    return digest.hexdigest(), sums


def cache_folder(cache: Path | None = None) -> Path:
    """``cache`` itself, or else ``$CAMKD_CACHE``, or else ``~/.cache/camkd``."""
    return cache or Path(os.environ.get("CAMKD_CACHE") or "~/.cache/camkd").expanduser()


def new_images(path: Path, count: int, size: int) -> NDArray[np.uint8]:
    """Create the file ``path`` as a writable memory-mapped array ``(count, size, size, 3) uint8``.

    The space is reserved at once: a full disk is an `InputError` here rather than a crash in a later write.
    """
    shape = (count, size, size, 3)
    try:
        images: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        reserve(path, path.stat().st_size)
    except OSError as error:
        if error.errno not in NO_SPACE_ERRNOS:
            raise
        raise InputError(
            f"there is no room for {format_quantity(math.prod(shape))} of decoded pictures in '{path.parent.parent}': "
            "make room, choose a smaller size, or set CAMKD_CACHE to another folder."
        ) from error
    return images


def keep_rows(path: Path, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Rewrite the array file ``path`` with ``rows`` of it alone, and open it."""
    old = np.load(path, mmap_mode="r")
    kept = new_images(path.with_suffix(".kept"), len(rows), old.shape[1])
    many = max_rows(CHUNK_BYTES, old)
    for start in range(0, len(rows), many):
        chosen = rows[start : start + many]
        kept[start : start + len(chosen)] = old[chosen]
    path.with_suffix(".kept").replace(path)
    return kept


def build_or_open(name: str, key: str, cache: Path, build: Callable[[Path], SplitArrays]) -> Dataset:
    """Open the store of ``name`` and ``key`` under ``cache``; where there is none, ``build`` it first.

    ``build(folder)`` gets an empty temporary folder. It may write ``folder / "train_images.npy"`` (and
    ``val_``, ``test_``) itself with `new_images`; arrays it returns without having written them are saved.
    The folder takes its final name when it is complete, and goes away on an exception or Ctrl-C.
    """
    safe = re.sub(r"[^\w.-]+", "_", name)[:60]
    digest = hashlib.sha256(f"{VERSION} {key}".encode()).hexdigest()
    folder = cache / "data" / f"{safe}-{digest[:16]}"
    if not folder.exists():
        with _building(folder) as temporary:
            _save(temporary, name, build(temporary))
    return _open(folder)


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` that takes its place when the block ends well."""
    with ExitStack() as stack:
        try:
            remove_stale_temp(folder.parent)  # what killed processes left, of other stores too
            temporary = stack.enter_context(staged_dir(folder))
        except OSError as error:
            raise InputError(
                f"the cache folder '{folder.parent}' cannot be written ({error.strerror}): set CAMKD_CACHE to a "
                "folder that can."
            ) from error
        try:
            yield temporary
        except OSError as error:  # numpy's of a full disk say neither where nor, at times, what
            if error.filename is not None or error.errno not in (None, *NO_SPACE_ERRNOS):
                raise
            size = sum(path.stat().st_size for path in temporary.iterdir())
            raise InputError(
                f"there is no room in '{folder.parent}' after {size:,} bytes ({error}): make room, or set CAMKD_CACHE "
                "to another folder."
            ) from error
        try:
            temporary.rename(folder)
        except OSError:  # somebody else finished the same store first: theirs is as good
            if not folder.exists():
                raise


def _save(folder: Path, name: str, contents: SplitArrays) -> None:
    """Write the arrays that ``build`` did not write, and the manifest; flush all to disk."""
    splits = {split: getattr(contents, split) for split in SPLITS}
    mark, sums = _surveyed(contents.classes, splits)
    for split, content in splits.items():
        for field, array in {**vars(content), "sums": sums[split]}.items():
            path = folder / f"{split}_{field}.npy"
            if isinstance(array, np.ndarray) and not path.exists():
                np.save(path, array)
    manifest = {
        "version": VERSION,
        "name": name,
        "classes": list(contents.classes),
        "fingerprint": mark,
        "notes": list(contents.notes),
        "names": {split: content.names for split, content in splits.items()},
        "sha256_of": {path.name: sha256_of(path) for path in sorted(folder.glob("*.npy")) if _small(path)},
    }
    write_text(folder / MANIFEST, dump_checksummed(manifest))
    for path in folder.iterdir():
        fsync(path)
    fsync(folder)


def _small(path: Path) -> bool:
    """Whether a file is read whole when the store is opened: all but the pixels, which are checked as they are read."""
    return not path.stem.endswith("_images")


def _open(folder: Path) -> Dataset:
    try:
        manifest = load_checksummed(folder / MANIFEST)
        for name, digest in manifest["sha256_of"].items():
            if sha256_of(folder / name) != digest:
                raise ValueError(f"the checksum of {name} differs")
        train, val, test = (_open_split(folder, split, manifest["names"][split]) for split in SPLITS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the data store '{folder}' is damaged ({error}): delete it to rebuild it.") from error
    return Dataset(
        name=manifest["name"],
        classes=tuple(manifest["classes"]),
        train=train,
        val=val,
        test=test,
        fingerprint=manifest["fingerprint"],
        notes=tuple(manifest["notes"]),
    )


def _open_split(folder: Path, split: str, names: list[str] | None) -> Split:
    def load(field: str, mode: Any = "r") -> NDArray[Any]:
        path = folder / f"{split}_{field}.npy"
        try:
            array: NDArray[Any] = np.load(path, mmap_mode=mode)
        except Exception as error:  # numpy has one for each way in which a header may be damaged
            raise ValueError(f"{path.name} cannot be read: {error}") from error
        return array

    masks = load("masks") if (folder / f"{split}_masks.npy").exists() else None
    images, labels, sums = load("images"), load("labels", None), load("sums", None)
    if images.dtype != np.uint8 or images.shape[:1] != labels.shape or images.shape[3:] != (3,):
        raise ValueError(f"{split}_images.npy has the shape {images.shape}")
    return Split(images, labels, masks, None if names is None else tuple(names), sums)
