"""Atomic writes of files and folders, JSON with checksums, and locks for folders."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from camkd.types import InputError

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exceeded quota and an exceeded file size limit."""

PROBE_BYTES = 4096
"""Size of the file that `check_writable` writes."""

TEMP_SUFFIX = ".part"
"""Suffix of temporary files and folders. Their names start with a dot."""

LOCK_SUFFIX = ".lock"
"""Suffix of lock files, and name of the lock file of a folder."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Replace a file atomically: other processes read either the old content or the complete new content.

    Content and name are flushed to disk before the context exits. The file mode follows the umask. On an exception
    the temporary file is removed and ``path`` is unchanged.

    Args:
        path: The file to replace. Missing parent folders are created.

    Yields:
        The path of an empty temporary file in the same folder. On exit it is renamed to ``path``.

    Raises:
        OSError: If writing fails. If the disk is full, the error names ``path`` and the number of bytes written.

    Example:
        >>> with atomic_write(Path("notes.txt")) as temporary:      # doctest: +SKIP
        ...     temporary.write_text("complete content")
    """
    with _temporary_sibling(path, lambda temporary: temporary.touch(exist_ok=False)) as temporary:
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
            message = f"{error.strerror} after {temporary.stat().st_size:,} bytes; the previous content is unchanged"
            raise OSError(error.errno, message, str(path)) from error


@contextmanager
def staged_dir(folder: Path) -> Iterator[Path]:
    """Create an empty temporary folder beside ``folder``. The caller fills it and renames it to ``folder``.

    The temporary folder is removed on exit if it was not renamed.

    Args:
        folder: Final path of the folder. Missing parent folders are created.

    Yields:
        The path of the temporary folder.

    Example:
        >>> with staged_dir(Path("data")) as temporary:             # doctest: +SKIP
        ...     (temporary / "labels.npy").write_bytes(b"...")
        ...     temporary.rename("data")
    """
    with _temporary_sibling(folder, Path.mkdir) as temporary:
        yield temporary


@contextmanager
def commit_dir(folder: Path) -> Iterator[Path]:
    """Add files to a folder once all of them are written.

    On an exception in the context ``folder`` is unchanged. Existing files of other names are kept.

    Args:
        folder: The folder to fill. It is created if it does not exist.

    Yields:
        The path of an empty temporary folder. On exit each file in it is moved to the same relative path in ``folder``.

    Example:
        >>> with commit_dir(Path("export")) as temporary:           # doctest: +SKIP
        ...     (temporary / "model.onnx").write_bytes(b"...")
    """
    with staged_dir(folder) as temporary:
        yield temporary
        for path in (path for path in sorted(temporary.rglob("*")) if path.is_file()):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


@contextmanager
def _temporary_sibling(path: Path, create: Callable[[Path], None]) -> Iterator[Path]:
    """Create a temporary file or folder beside ``path`` and a locked lock file beside it, and remove both on exit.

    Temporary files of killed processes for the same ``path`` are removed first. The operating system releases the lock
    of a process that ends, so a temporary file whose lock is free has no owner.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temp(path.parent, f".{glob.escape(path.name)}.*{TEMP_SUFFIX}")
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}"
    with _final_path_in_errors(temporary, path):
        with _final_path_in_errors(temporary, path.parent):
            while (lock := _try_lock(Path(f"{temporary}{LOCK_SUFFIX}"))) is None:
                pass  # another process is removing the lock file, which it took for that of a killed process
        try:
            create(temporary)
            yield temporary
        finally:
            _remove(temporary)
            _release(lock)


@contextmanager
def _final_path_in_errors(temporary: Path, path: Path) -> Iterator[None]:
    """Replace a temporary path by the final path in the file name of an error."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | os.PathLike) and os.fspath(error.filename).startswith(str(temporary)):
            inner = os.fspath(error.filename).removeprefix(str(temporary)).removesuffix(LOCK_SUFFIX)
            error.filename = f"{path}{inner}"
        raise


def _try_lock(path: Path) -> FileLock | None:
    """Create and lock a lock file. None if another process holds the lock."""
    path.touch()  # raises the error of a folder without write access, which some file systems report as a held lock
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _release(lock: FileLock) -> None:
    """Remove a lock file and release the lock."""
    path = Path(lock.lock_file)
    with suppress(OSError):  # Windows does not remove an open file
        path.unlink()
    lock.release()
    if sys.platform == "win32":  # elsewhere, another process may hold the lock file of this name by now
        with suppress(OSError):
            path.unlink()


def remove_stale_temp(folder: Path, pattern: str = f".*{TEMP_SUFFIX}") -> None:
    """Remove temporary files and folders of killed processes, and their lock files.

    Args:
        folder: The folder to clean, without its subfolders.
        pattern: Glob pattern of the names to remove.
    """
    lock_files = {Path(f"{path}{LOCK_SUFFIX}") for path in folder.glob(pattern)}
    for path in lock_files.union(folder.glob(f"{pattern}{LOCK_SUFFIX}")):
        with suppress(OSError):  # a folder that is not writable
            lock = _try_lock(path)
            if lock is not None:
                _remove(Path(str(path).removesuffix(LOCK_SUFFIX)))
                _release(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_writable(folder: Path, advice: str) -> None:
    """Check that files can be written to a folder, which may not exist yet.

    A file of `PROBE_BYTES` is written and removed: into the folder, or into its nearest parent folder that exists. So a
    full disk and an exceeded quota are found too.

    Args:
        folder: The folder.
        advice: Last sentence of the error message.

    Raises:
        InputError: If the folder, or what would be its parent folder, is a file or cannot be written.

    Example:
        >>> check_writable(Path("runs/mine"), "Choose another --out.")               # doctest: +SKIP
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise InputError(f"{folder} must be a folder, got the file {existing}. {advice}")
    probe = existing / f".probe.{secrets.token_hex(4)}{TEMP_SUFFIX}"
    try:
        try:
            with probe.open("xb") as stream:
                stream.write(secrets.token_bytes(PROBE_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} must be writable, got an error for a file of {PROBE_BYTES:,} bytes: {error.strerror}. {advice}"
        ) from error


def fsync(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, to disk. Windows has no flush of names."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this process.

    The operating system releases the lock when the process ends, even if it is killed.

    Args:
        folder: The folder to lock. It is created if it does not exist.

    Raises:
        BlockingIOError: If another process holds the lock. The error names the id and the host of that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner_file = folder / ".owner"  # not in the lock file, which Windows does not let other processes read
    lock = _try_lock(folder / LOCK_SUFFIX)
    if lock is None:
        owner = owner_file.read_text(encoding="utf-8") if owner_file.exists() else "another process"
        raise BlockingIOError(errno.EWOULDBLOCK, f"locked by {owner}", str(folder))
    try:
        owner_file.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        _release(lock)


def reserve(path: Path, size: int) -> None:
    """Extend a file to at least ``size`` bytes, and allocate its disk space where the file system supports it.

    Args:
        path: The file. It is created if it does not exist. Added bytes are zero.
        size: Minimum size in bytes.

    Raises:
        OSError: If the disk is full, with an error number in `NO_SPACE_ERRNOS`, or if the file cannot be written.
    """
    with path.open("ab") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except AttributeError:  # missing on some operating systems
            pass
        except OSError as error:  # unsupported by some file systems
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
        if os.fstat(stream.fileno()).st_size < size:
            os.ftruncate(stream.fileno(), size)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file atomically. Raises ``ValueError`` for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def load_json(text: str) -> Any:
    """Parse JSON.

    Args:
        text: The JSON text.

    Returns:
        The value.

    Raises:
        ValueError: If ``text`` is invalid or nested too deeply.

    Example:
        >>> load_json('{"epochs": 3}')
        {'epochs': 3}
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def dump_checksummed(values: Mapping[str, Any]) -> str:
    """Format values as JSON with a checksum.

    Args:
        values: Values by name.

    Returns:
        Indented JSON, with the SHA-256 of the values under the key ``sha256``.

    Example:
        >>> print(dump_checksummed({"step": 3}), end="")
        {
          "step": 3,
          "sha256": "a76b25b15faff287c95e28b4a43ff88d437be30fcec77d072a333b6115427769"
        }
    """
    return json.dumps({**values, "sha256": _digest(values)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def load_checksummed(path: Path) -> dict[str, Any]:
    """Read a file that holds the text of `dump_checksummed`, and verify its checksum.

    Args:
        path: The file.

    Returns:
        The values without the checksum.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is not JSON or its checksum differs.
    """
    values = load_json(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.pop("sha256", None) != _digest(values):
        raise ValueError("its checksum differs")
    return values


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file as hexadecimal digits, without reading the whole file into memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
