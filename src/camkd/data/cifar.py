"""CIFAR-10 and CIFAR-100 from their official binary archives (Krizhevsky, 2009)."""

from __future__ import annotations

import hashlib
import tarfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath

import numpy as np

from camkd.data.dataset import Dataset, Progress, Split, hold_out
from camkd.data.store import SplitArrays, build_or_open, encode_key
from camkd.types import InputError
from camkd.utils.files import atomic_write

VERSION = 1
"""Version of `cache_key`. Increment when the same archive is stored as other arrays."""

SIZE = 32
"""Side of the images in pixels."""

PIXEL_BYTES = 3 * SIZE * SIZE
"""Bytes of one image in the archive."""

VAL_FRACTION = 0.1
"""Fraction of the training images of each class that is held out for validation."""

CHUNK_BYTES = 1 << 20
"""Number of bytes that are downloaded at a time."""

MAX_MEMBER_BYTES = 1 << 28
"""Largest file that is read from an archive, in bytes. The largest file of CIFAR-100 has 154 MB."""

TIMEOUT_SECONDS = 30
"""Timeout of the download while the server sends nothing."""


@dataclass(frozen=True)
class CifarArchive:
    """Archive of binary records.

    A record starts with ``label_bytes`` bytes; the last of these bytes is the label. The 3072 bytes of an image
    ``(3, 32, 32)`` follow.

    Args:
        name: Name of the dataset.
        url: URL of the archive.
        md5: MD5 of the archive, hexadecimal.
        label_bytes: Number of bytes before the image in each record.
        train_files: Names of the files with the training records.
        test_files: Names of the files with the test records.
        classes_file: Name of the file with the class names, one per line.
    """

    name: str
    url: str
    md5: str
    label_bytes: int
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    classes_file: str

    @property
    def file(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]


CIFAR10 = CifarArchive(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    label_bytes=1,
    train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test_files=("test_batch.bin",),
    classes_file="batches.meta.txt",
)
CIFAR100 = CifarArchive(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    label_bytes=2,
    train_files=("train.bin",),
    test_files=("test.bin",),
    classes_file="fine_label_names.txt",
)


def open_cifar(archive: CifarArchive, size: int | None, cache: Path, progress: Progress) -> Dataset:
    """Open CIFAR-10 or CIFAR-100; download and decode the archive the first time.

    A tenth of the training images of each class is held out for validation.

    Args:
        archive: `CIFAR10` or `CIFAR100`.
        size: Side of the images in pixels: 32, or None for 32.
        cache: Root of the cache; the archive is stored below ``cache / "downloads"``.
        progress: Progress callback.

    Returns:
        The dataset, with images ``(N, 32, 32, 3)``.

    Raises:
        InputError: If ``size`` is another number, if the archive cannot be downloaded or read, or if the dataset cannot
            be stored.

    Example:
        >>> data = open_cifar(CIFAR10, None, cache_folder(), no_progress)      # doctest: +SKIP
        >>> len(data.train), len(data.val), len(data.test)                     # doctest: +SKIP
        (45000, 5000, 10000)
    """
    if size not in (None, SIZE):
        raise InputError(f"size must be {SIZE} for {archive.name}, got {size}. Leave size out.")

    def build(_: Path) -> SplitArrays:
        return read_archive(download(archive, cache / "downloads" / archive.file, progress), archive)

    return build_or_open(archive.name, cache_key(archive), cache, build)


def cache_key(archive: CifarArchive) -> str:
    """Return the key of the cached dataset: the md5 of the archive, and how its records are read and split."""
    return encode_key(
        {
            "version": VERSION,
            "source": archive.name,
            "md5": archive.md5,
            "label_bytes": archive.label_bytes,
            "train": list(archive.train_files),
            "test": list(archive.test_files),
            "classes": archive.classes_file,
            "val_fraction": VAL_FRACTION,
        }
    )


def read_archive(path: Path, archive: CifarArchive) -> SplitArrays:
    """Read the splits of an archive without unpacking it to disk.

    Args:
        path: The ``tar.gz`` file.
        archive: Description of the contents of the file.

    Returns:
        Classes and splits. A tenth of the training images of each class is held out for validation.

    Raises:
        InputError: If the file is not readable, lacks a member, has a member of more than `MAX_MEMBER_BYTES`, or has an
            incomplete record or an invalid label.
    """
    members = _read_members(path, {archive.classes_file, *archive.train_files, *archive.test_files})
    classes = tuple(members[archive.classes_file].decode("utf-8", "replace").split())
    train = _parse_records(path, archive, [members[name] for name in archive.train_files], len(classes))
    test = _parse_records(path, archive, [members[name] for name in archive.test_files], len(classes))
    is_val = hold_out(train.labels, VAL_FRACTION)
    return SplitArrays(
        classes,
        train.take(np.flatnonzero(~is_val)),
        train.take(np.flatnonzero(is_val)),
        test,
        source_fingerprint=hashlib.sha256(cache_key(archive).encode()).hexdigest(),
    )


def _read_members(path: Path, names: set[str]) -> dict[str, bytes]:
    """Return the contents of the archive members with these file names, in any folder of the archive."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for info in tar:
                name = PurePosixPath(info.name).name
                if name in names and info.isfile() and (stream := tar.extractfile(info)):
                    if info.size > MAX_MEMBER_BYTES:
                        raise ValueError(f"{name} must have at most {MAX_MEMBER_BYTES:,} bytes, got {info.size:,}")
                    members[name] = stream.read()
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"'{path}' must be a readable tar.gz archive, got the error '{error}'. Delete the file."
        ) from error
    missing = names - members.keys()
    if missing:
        raise InputError(
            f"'{path}' must be a CIFAR archive with {', '.join(sorted(names))}, got an archive without "
            f"{', '.join(sorted(missing))}. Delete the file."
        )
    return members


def _parse_records(path: Path, archive: CifarArchive, parts: list[bytes], num_classes: int) -> Split:
    content = b"".join(parts)
    record_bytes = archive.label_bytes + PIXEL_BYTES
    if not content or len(content) % record_bytes:
        raise InputError(
            f"the records in '{path}' must be a multiple of {record_bytes:,} bytes, got {len(content):,} bytes. Delete "
            "the file."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record_bytes)
    labels = records[:, archive.label_bytes - 1].astype(np.int64)
    if labels.max() >= num_classes:
        raise InputError(
            f"labels in '{path}' must be less than {num_classes}, the number of class names, got {labels.max()}. "
            "Delete the file."
        )
    images = records[:, archive.label_bytes :].reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), labels)


def download(archive: CifarArchive, path: Path, progress: Progress) -> Path:
    """Download an archive unless ``path`` exists, and verify its MD5.

    The archive is downloaded to a temporary file, which is renamed to ``path`` once its MD5 is verified.

    Args:
        archive: The archive.
        path: Path of the archive. An existing file is used, for example a copy that the user has made.
        progress: Progress callback; ``done`` and ``total`` are bytes.

    Returns:
        ``path``.

    Raises:
        InputError: If the download fails, or if the MD5 of the existing or downloaded file is wrong.
    """
    if path.exists():
        md5 = _md5(path)
        if md5 != archive.md5:
            raise InputError(
                f"the md5 of '{path}' must be {archive.md5}, got {md5}. Delete the file to download it again from "
                f"{archive.url}."
            )
        return path
    try:
        with atomic_write(path) as temporary:
            _download_to(temporary, archive, progress)
            md5 = _md5(temporary)
            if md5 != archive.md5:
                raise InputError(_failure(archive, path, f"the md5 must be {archive.md5}, got {md5}"))
    except urllib.error.HTTPError as error:
        with error:
            reason = f"the server returned {error.code} {error.reason}"
        raise InputError(_failure(archive, path, reason)) from error
    except (OSError, HTTPException) as error:
        raise InputError(_failure(archive, path, str(getattr(error, "reason", error)))) from error
    return path


def _failure(archive: CifarArchive, path: Path, reason: str) -> str:
    return (
        f"cannot download {archive.name} from {archive.url} ({reason}). Run the command again, or download the file by "
        f"other means and save it as '{path}', or choose a folder of images with --data PATH, or --data shapes."
    )


def _download_to(file: Path, archive: CifarArchive, progress: Progress) -> None:
    done = 0
    with urllib.request.urlopen(archive.url, timeout=TIMEOUT_SECONDS) as response, file.open("wb") as stream:
        total = int(response.headers.get("Content-Length") or 0)
        while block := response.read(CHUNK_BYTES):
            stream.write(block)
            done += len(block)
            progress(done, max(total, done), f"downloading {archive.file}")
    if done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
