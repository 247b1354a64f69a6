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

from camkd.data.dataset import Dataset, Progress, Split, SplitArrays, build_or_open, encode_key, hold_out
from camkd.types import InputError
from camkd.utils.files import atomic_write

VERSION = 1
"""Version of `cache_key`. Increment it when the same archive is stored as other arrays."""

SIZE = 32
PIXEL_BYTES = 3 * SIZE * SIZE
VAL_FRACTION = 0.1
CHUNK_BYTES = 1 << 20
MAX_MEMBER_BYTES = 1 << 28
"""Largest file in an archive that is read; the largest file of CIFAR-100 has 154 MB."""
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class CifarArchive:
    """Archive of binary records.

    A record has ``label_bytes`` bytes, the last of which is the label, and the 3072 bytes of an image, ``(3, 32, 32)``.

    Args:
        name: name of the dataset.
        url: address of the archive.
        md5: md5 (hex) of the archive.
        label_bytes: number of label bytes per record.
        train: file names of the training records.
        test: file names of the test records.
        classes: file name of the class names, one per line.
    """

    name: str
    url: str
    md5: str
    label_bytes: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: str

    @property
    def file(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]


CIFAR10 = CifarArchive(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    label_bytes=1,
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    classes="batches.meta.txt",
)
CIFAR100 = CifarArchive(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    label_bytes=2,
    train=("train.bin",),
    test=("test.bin",),
    classes="fine_label_names.txt",
)


def open_cifar(archive: CifarArchive, size: int | None, cache: Path, progress: Progress) -> Dataset:
    """Open CIFAR-10 or CIFAR-100; download and decode the archive the first time.

    A tenth of the training images of each class is held out for validation.

    Args:
        archive: `CIFAR10` or `CIFAR100`.
        size: side of the images in pixels, 32 or None.
        cache: root of the cache; the archive is stored below ``cache / "downloads"``.
        progress: progress callback.

    Returns:
        The dataset, with images ``(N, 32, 32, 3)``.

    Raises:
        InputError: if ``size`` is not 32, the archive cannot be downloaded, or its contents differ.

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
    """Return the key of the stored dataset: the md5 of the archive, and how its records are read and split."""
    return encode_key(
        {
            "version": VERSION,
            "source": archive.name,
            "md5": archive.md5,
            "label_bytes": archive.label_bytes,
            "train": list(archive.train),
            "test": list(archive.test),
            "classes": archive.classes,
            "val_fraction": VAL_FRACTION,
        }
    )


def read_archive(path: Path, archive: CifarArchive) -> SplitArrays:
    """Read the splits of an archive without unpacking it to disk.

    Args:
        path: the ``tar.gz`` file.
        archive: description of its contents.

    Returns:
        Classes and splits.

    Raises:
        InputError: if the file is not readable, lacks a member, or has an incomplete record or an invalid label.
    """
    members = _read_members(path, {archive.classes, *archive.train, *archive.test})
    classes = tuple(members[archive.classes].decode("utf-8", "replace").split())
    train = _parse_records(path, archive, [members[name] for name in archive.train], len(classes))
    test = _parse_records(path, archive, [members[name] for name in archive.test], len(classes))
    is_val = hold_out(train.labels, VAL_FRACTION)
    return SplitArrays(classes, train.take(np.flatnonzero(~is_val)), train.take(np.flatnonzero(is_val)), test)


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
    """Download an archive unless it exists, and verify its md5.

    The archive is downloaded to a temporary file, which is renamed to ``path`` once its md5 is verified.

    Args:
        archive: the archive.
        path: path of the downloaded file. An existing file is used; it may have been placed there by hand.
        progress: progress callback, in bytes.

    Returns:
        ``path``.

    Raises:
        InputError: if the download fails, or the md5 of the existing or the downloaded file is wrong.
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
