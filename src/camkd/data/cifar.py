"""CIFAR-10 and CIFAR-100 from their official archives (Krizhevsky, 2009)."""

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

from camkd.data.dataset import Dataset, Progress, Split, SplitArrays, build_or_open, hold_out
from camkd.types import InputError

SIZE = 32
PIXELS = 3 * SIZE * SIZE
HELD_OUT = 0.1
CHUNK_BYTES = 1 << 20
LARGEST_MEMBER = 1 << 28  # that of CIFAR-100 has 154 MB
SECONDS_TO_ANSWER = 30


@dataclass(frozen=True)
class CifarArchive:
    """An archive of records: ``label_bytes`` bytes, the last of which is the label, and a 32x32 picture."""

    name: str
    url: str
    md5: str
    label_bytes: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: str  # the text file with a class name a line

    @property
    def file(self) -> str:
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
    """Open ``archive`` as a `Dataset` of 32x32 pictures; the first time, download it and decode it.

    A tenth of each class's training pictures is held out for validation. Raises `InputError` where ``size``
    is anything but 32 or None, and where the archive cannot be had or is not what it should be.
    """
    if size not in (None, SIZE):
        raise InputError(f"size is {size}, but {archive.name} has pictures of {SIZE} pixels: leave size out.")

    def build(_: Path) -> SplitArrays:
        return read(fetch(archive, cache / "downloads" / archive.file, progress), archive)

    return build_or_open(archive.name, f"{archive}", cache, build)


def read(path: Path, archive: CifarArchive) -> SplitArrays:
    """The splits in the archive file at ``path``, read without unpacking it to disk.

    Raises `InputError` where a member is missing or is no whole number of records.
    """
    members = _members(path, {archive.classes, *archive.train, *archive.test})
    classes = tuple(members[archive.classes].decode("utf-8", "replace").split())
    train = _records(path, archive, [members[name] for name in archive.train], len(classes))
    held = hold_out(train.labels, HELD_OUT)
    test = _records(path, archive, [members[name] for name in archive.test], len(classes))
    return SplitArrays(classes, train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held)), test)


def _members(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """The content of each member whose file name is in ``wanted``, whatever folder it lies in."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if name in wanted and member.isfile() and (stream := tar.extractfile(member)):
                    if member.size > LARGEST_MEMBER:
                        raise ValueError(f"{name} has {member.size:,} bytes")
                    found[name] = stream.read()
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"'{path}' is not a readable tar.gz archive ({error}): delete it.") from error
    if wanted - found.keys():
        missing = ", ".join(sorted(wanted - found.keys()))
        raise InputError(f"'{path}' has no {missing}, so it is another archive than expected: delete it.")
    return found


def _records(path: Path, archive: CifarArchive, parts: list[bytes], classes: int) -> Split:
    content, record = b"".join(parts), archive.label_bytes + PIXELS
    if not content or len(content) % record:
        raise InputError(
            f"'{path}' holds {len(content):,} bytes of records, which is no multiple of {record:,}: delete it."
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = rows[:, archive.label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise InputError(f"'{path}' has label {labels.max()}, but names {classes} classes: delete it.")
    pictures = rows[:, archive.label_bytes :].reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(pictures), labels)


def fetch(archive: CifarArchive, path: Path, progress: Progress) -> Path:
    """Download ``archive`` to ``path`` unless it is there, going on where an earlier download stopped.

    What has come so far lies in ``<path>.part``, and only a file with the right checksum gets the name
    ``path``. Raises `InputError` otherwise.
    """
    if path.exists():
        if _md5(path) != archive.md5:
            raise InputError(
                f"'{path}' has not the md5 {archive.md5} of {archive.url}: delete it to download it again."
            )
        return path
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _download(archive, part, progress)
    except urllib.error.HTTPError as error:
        raise InputError(_unavailable(archive, path, f"the server said {error.code} {error.reason}")) from error
    except (OSError, HTTPException) as error:
        raise InputError(_unavailable(archive, path, str(getattr(error, "reason", error)))) from error
    if _md5(part) != archive.md5:
        part.unlink()
        raise InputError(_unavailable(archive, path, f"what came has not the md5 {archive.md5}"))
    part.replace(path)
    return path


def _unavailable(archive: CifarArchive, path: Path, reason: str) -> str:
    return (
        f"{archive.name} could not be downloaded from {archive.url} ({reason}); run again, or download it "
        f"elsewhere and put it at '{path}', or use a folder of pictures with --data PATH, or --data shapes"
    )


def _download(archive: CifarArchive, part: Path, progress: Progress) -> None:
    """Bring ``part`` to its full length; what it has stays unless the server starts from the beginning."""
    have = part.stat().st_size if part.exists() else 0
    if have and _md5(part) == archive.md5:
        return
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416:  # "range not satisfiable": the part is no beginning of this file
                raise
        part.unlink()
        return _download(archive, part, progress)
    with answer:
        if answer.status != 206:
            have = 0
        total = have + int(answer.headers.get("Content-Length") or 0)
        with part.open("ab" if have else "wb") as stream:
            while block := answer.read(CHUNK_BYTES):
                stream.write(block)
                have += len(block)
                progress(have, max(total, have), f"downloading {archive.file}")
    if have < total:
        raise ConnectionError(f"the connection ended after {have:,} of {total:,} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
