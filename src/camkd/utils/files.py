"""Writing so that a reader sees the old content or the new, never half of it; one process at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a full disk, a quota or a limit that is reached."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well it takes ``path``'s place.

    Content and name are flushed to disk before the block is left. On an exception the temporary file is removed and
    ``path`` is as it was; where the disk is full the ``OSError`` says for which file and how far it came. The file's
    mode follows the umask.

    >>> with atomic_write(Path("notes.txt")) as temporary:      # doctest: +SKIP
    ...     temporary.write_text("all of it, or nothing")
    """
    with _beside(path, lambda temporary: temporary.touch(exist_ok=False)) as temporary:
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            fsync(temporary)
            temporary.replace(path)
            fsync(path.parent)
        except OSError as error:
            if error.errno not in NO_SPACE_ERRNOS:
                raise
            room = f"{error.strerror} after {temporary.stat().st_size:,} bytes; what was there before is untouched"
            raise OSError(error.errno, room, str(path)) from error


@contextmanager
def staged_dir(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``, to be renamed to it; what is left of it at the end goes."""
    with _beside(folder, Path.mkdir) as temporary:
        yield temporary


TEMP_SUFFIX = ".part"
"""How the name of a file or folder ends that is not whole yet; it begins with a dot."""


@contextmanager
def _beside(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new temporary place beside ``path``; it goes at the end, as do those that killed processes left for ``path``.

    The system lets go of its lock when its process ends: one without a lock is nobody's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temp(path.parent, f".{glob.escape(path.name)}.*{TEMP_SUFFIX}")
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}"
    while (handle := _held(temporary, make)) is None:
        pass
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def _held(temporary: Path, make: Callable[[Path], None]) -> int | None:
    """Make a temporary place and lock it; None where another process swept it away before it was locked."""
    make(temporary)
    try:
        handle = os.open(temporary, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # not every file system has locks; nothing is swept there
        fcntl.flock(handle, fcntl.LOCK_EX)
    if temporary.exists():
        return handle
    os.close(handle)
    return None


def remove_stale_temp(folder: Path, pattern: str = f".*{TEMP_SUFFIX}") -> None:
    """Take away the temporary places in ``folder`` that belong to no process any more."""
    for left in folder.glob(pattern):
        with suppress(OSError):  # it is gone, cannot be opened, or somebody has it
            handle = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left)
            finally:
                os.close(handle)


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def commit_dir(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``; when the block ends well each file of it takes its place in ``folder``.

    On an exception ``folder`` is as it was. Other files in it stay.

    >>> with filling(Path("export")) as temporary:           # doctest: +SKIP
    ...     (temporary / "model.onnx").write_bytes(b"...")
    """
    with staged_dir(folder) as temporary:
        yield temporary
        for path in (path for path in sorted(temporary.rglob("*")) if path.is_file()):
            place = folder / path.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Be the only process that works in ``folder`` while the block runs.

    The system lets go of the lock when its process ends, however it ends, so none is ever stale. Raises
    ``BlockingIOError`` that names the other process where there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    handle = _lock(path)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    """Open and lock the file ``path``, made anew if its last owner took it away meanwhile."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        except BlockingIOError:
            owner = os.read(handle, 200).decode(errors="replace") or "another process"
            os.close(handle)
            raise BlockingIOError(errno.EWOULDBLOCK, f"{owner} is working in it", str(path.parent)) from None
        os.close(handle)


def reserve(path: Path, size: int) -> None:
    """Make ``path`` a file of at least ``size`` bytes, new ones zero, with its space taken where the system can do so.

    Raises ``OSError`` with one of ``NO_SPACE_ERRNOS`` where there is no room.
    """
    with path.open("ab") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except AttributeError:  # not on every system
            pass
        except OSError as error:  # nor on every file system
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
        if os.fstat(stream.fileno()).st_size < size:
            os.ftruncate(stream.fileno(), size)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, whole or not at all. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def load_json(text: str) -> Any:
    """What ``text`` says in JSON. Raises ``ValueError`` where it is none, and where it is nested too deeply to read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def dump_checksummed(values: Mapping[str, Any]) -> str:
    """``values`` as indented JSON with a checksum of all of them; see `load_checksummed`."""
    return json.dumps({**values, "sha256": _digest(values)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def load_checksummed(path: Path) -> dict[str, Any]:
    """What was `dump_checksummed` in the file ``path``. Raises ``ValueError`` where it is not what was written."""
    values = load_json(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.pop("sha256", None) != _digest(values):
        raise ValueError("its checksum differs")
    return values


def sha256_of(path: Path) -> str:
    """The sha256 (hex) of a file's content, read in parts."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
