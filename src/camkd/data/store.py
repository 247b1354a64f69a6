"""Store of datasets on disk: memory-mapped arrays with checksums, written once and verified when they are opened."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from camkd.data.dataset import CHUNK_BYTES, SPLITS, Dataset, Split, fingerprint_and_checksums, max_rows
from camkd.data.value_range import ValueRange
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

VERSION = 4
"""Version of the on-disk format. Increment when the same source is stored differently."""

MANIFEST = "dataset.json"


class SplitArrays(NamedTuple):
    """Images and labels that a source passes to `build_or_open`: a `Dataset` without name and fingerprint.

    A source whose images have one size may leave out ``source_fingerprint``. It is then the fingerprint of the arrays.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...] = ()
    value_range: ValueRange | None = None
    source_fingerprint: str | None = None


def encode_key(values: Mapping[str, Any]) -> str:
    """Encode the inputs of a dataset as canonical JSON, the ``key`` of `build_or_open`.

    List every value explicitly and add a ``"version"``. A key made of ``repr()`` or ``vars()`` of an object changes
    when a class or a field is renamed, and the cached dataset is then no longer found.

    Args:
        values: Every value that the arrays of the dataset depend on, by name.

    Returns:
        JSON with sorted names and without spaces.

    Example:
        >>> encode_key({"version": 1, "source": "cifar10", "md5": "c32a1d4ab5d03f1284b67883e8d87530"})
        '{"md5":"c32a1d4ab5d03f1284b67883e8d87530","source":"cifar10","version":1}'
    """
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def build_or_open(name: str, key: str, cache: Path, build: Callable[[Path], SplitArrays]) -> Dataset:
    """Open the cached dataset of ``name`` and ``key``; build it first if it is missing.

    The dataset is built in a temporary folder. The folder gets its final name when it is complete, and is removed
    on an exception or Ctrl-C.

    Args:
        name: Name of the dataset.
        key: All inputs that the stored arrays depend on, encoded by `encode_key`.
        cache: Root of the cache; the dataset is stored below ``cache / "data"``.
        build: Function ``build(folder) -> SplitArrays``. It may write the images of a split to
            ``folder / "<split>_images.npy"`` with `create_image_file`, and its masks to
            ``folder / "<split>_masks.npy"`` with `create_mask_file`. All other arrays are written afterwards.

    Returns:
        The dataset, with memory-mapped images and masks.

    Raises:
        InputError: If the cache cannot be written, the disk is full, or the cached dataset is corrupt.
    """
    safe_name = re.sub(r"[^\w.-]+", "_", name)[:60]
    digest = hashlib.sha256(f"{VERSION} {key}".encode()).hexdigest()
    folder = cache / "data" / f"{safe_name}-{digest[:16]}"
    if not folder.exists():
        with staged_folder(folder) as temporary:
            _write(temporary, name, build(temporary))
    return _open(folder)


def create_image_file(path: Path, count: int, size: int) -> NDArray[np.uint8]:
    """Create a ``.npy`` file as a writable memory-mapped array of images.

    The disk space is reserved immediately, so that a full disk raises an error before any image is written.

    Args:
        path: Path of the new file.
        count: Number of images.
        size: Side of the images in pixels.

    Returns:
        The memory-mapped array, ``(count, size, size, 3) uint8``.

    Raises:
        InputError: If the disk is full.
    """
    images: NDArray[np.uint8] = _create_array(path, (count, size, size, 3), np.uint8)
    return images


def create_mask_file(path: Path, count: int, size: int) -> NDArray[np.bool_]:
    """Create a ``.npy`` file as a writable memory-mapped array of empty masks, as `create_image_file` does.

    Args:
        path: Path of the new file.
        count: Number of masks.
        size: Side of the masks in pixels.

    Returns:
        The memory-mapped array, ``(count, size, size) bool``.

    Raises:
        InputError: If the disk is full.
    """
    masks: NDArray[np.bool_] = _create_array(path, (count, size, size), np.bool_)
    return masks


def _create_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        reserve(path, path.stat().st_size)
    except OSError as error:
        if error.errno not in NO_SPACE_ERRNOS:
            raise
        raise InputError(
            f"'{path.parent.parent}' must have space for {format_quantity(math.prod(shape))} of decoded images, got a "
            "full disk. Free some space, choose a smaller size, or set CAMKD_CACHE to another folder."
        ) from error
    return array


def select_rows(path: Path, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Rewrite a ``.npy`` file of images with a subset of its rows.

    Args:
        path: File of images, ``(N, size, size, 3) uint8``.
        rows: Indices of the images to keep.

    Returns:
        The memory-mapped array of the new file, ``(len(rows), size, size, 3) uint8``.
    """
    source = np.load(path, mmap_mode="r")
    temporary = path.with_suffix(".selected")
    selected = create_image_file(temporary, len(rows), source.shape[1])
    chunk = max_rows(CHUNK_BYTES, source)
    for start in range(0, len(rows), chunk):
        indices = rows[start : start + chunk]
        selected[start : start + len(indices)] = source[indices]
    temporary.replace(path)
    return selected


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that is renamed to ``folder`` when the block ends without an exception.

    Args:
        folder: The final folder in the cache.

    Raises:
        InputError: If the cache cannot be written, or the disk is full.
    """
    with ExitStack() as stack:
        try:
            remove_stale_temp(folder.parent)  # leftovers of killed processes, also of other datasets
            temporary = stack.enter_context(staged_dir(folder))
        except OSError as error:
            raise InputError(
                f"the cache folder '{folder.parent}' must be writable, got the error '{error.strerror}'. Set "
                "CAMKD_CACHE to a writable folder."
            ) from error
        try:
            yield temporary
        except OSError as error:  # NumPy's error of a full disk has no file name and sometimes no errno
            if error.filename is not None or error.errno not in (None, *NO_SPACE_ERRNOS):
                raise
            size = sum(path.stat().st_size for path in temporary.iterdir())
            raise InputError(
                f"'{folder.parent}' must have space for the dataset, got a full disk after {size:,} bytes ({error}). "
                "Free some space, or set CAMKD_CACHE to another folder."
            ) from error
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process has finished the same dataset first
                raise


def _write(folder: Path, name: str, arrays: SplitArrays) -> None:
    """Write the arrays that ``build`` did not write, and the manifest; flush all files to disk."""
    splits = {"train": arrays.train, "val": arrays.val, "test": arrays.test}
    digest, checksums = fingerprint_and_checksums(arrays.classes, splits)
    for split_name, split in splits.items():
        fields: dict[str, NDArray[Any] | None] = {
            "images": split.images,
            "labels": split.labels,
            "masks": split.masks,
            "sums": checksums[split_name],
        }
        for field, array in fields.items():
            path = folder / f"{split_name}_{field}.npy"
            if array is not None and not path.exists():
                np.save(path, array)
    manifest = {
        "version": VERSION,
        "name": name,
        "classes": list(arrays.classes),
        "fingerprint": digest,
        "source_fingerprint": arrays.source_fingerprint or digest,
        "notes": list(arrays.notes),
        "value_range": arrays.value_range,
        "names": {split_name: split.names for split_name, split in splits.items()},
        "sha256_of": {path.name: sha256_of(path) for path in sorted(folder.glob("*.npy")) if not _is_image_file(path)},
    }
    write_text(folder / MANIFEST, dump_checksummed(manifest))
    for path in folder.iterdir():
        fsync(path)
    fsync(folder)


def _is_image_file(path: Path) -> bool:
    """Return True for a file of images. Each image is verified when it is used, not when the file is opened."""
    return path.stem.endswith("_images")


def _open(folder: Path) -> Dataset:
    try:
        manifest = load_checksummed(folder / MANIFEST)
        for name, digest in manifest["sha256_of"].items():
            if sha256_of(folder / name) != digest:
                raise ValueError(f"the checksum of {name} differs")
        low_high = manifest["value_range"]
        value_range = None if low_high is None else (float(low_high[0]), float(low_high[1]))
        train, val, test = (_open_split(folder, split, manifest["names"][split]) for split in SPLITS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the cached dataset '{folder}' must be intact, got a corrupt file ({error}). Delete the folder to "
            "rebuild it."
        ) from error
    return Dataset(
        name=manifest["name"],
        classes=tuple(manifest["classes"]),
        train=train,
        val=val,
        test=test,
        fingerprint=manifest["fingerprint"],
        source_fingerprint=manifest["source_fingerprint"],
        notes=tuple(manifest["notes"]),
        value_range=value_range,
    )


def _open_split(folder: Path, split: str, names: list[str] | None) -> Split:
    def load(field: str, mode: Any = "r") -> NDArray[Any]:
        path = folder / f"{split}_{field}.npy"
        try:
            array: NDArray[Any] = np.load(path, mmap_mode=mode)
        except Exception as error:  # NumPy raises many exception types for a corrupt header
            raise ValueError(f"{path.name} cannot be read: {error}") from error
        return array

    images = load("images")
    labels = load("labels", None)
    masks = load("masks") if (folder / f"{split}_masks.npy").exists() else None
    checksums = load("sums", None)
    if images.dtype != np.uint8 or images.shape[:1] != labels.shape or images.shape[3:] != (3,):
        raise ValueError(
            f"{split}_images.npy must be uint8 of shape ({len(labels)}, H, W, 3), got {images.dtype} of shape "
            f"{images.shape}"
        )
    return Split(images, labels, masks, None if names is None else tuple(names), checksums)
