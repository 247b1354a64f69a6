"""Writing files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well it takes ``path``'s place.

    The content is flushed to disk before the rename. On an exception the temporary file is removed and
    ``path`` is as it was. The file's mode follows the umask.

    >>> with replacing(Path("notes.txt")) as temporary:      # doctest: +SKIP
    ...     temporary.write_text("all of it, or nothing")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``; when the block ends well each file of it takes its place in ``folder``.

    On an exception ``folder`` is as it was. Other files in it stay.

    >>> with filling(Path("export")) as temporary:           # doctest: +SKIP
    ...     (temporary / "model.onnx").write_bytes(b"...")
    """
    temporary = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.part"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in (path for path in sorted(temporary.rglob("*")) if path.is_file()):
            place = folder / path.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a full disk, a quota or a limit that is reached."""


def reserve(path: Path, size: int) -> None:
    """Make ``path`` a file of at least ``size`` bytes, new ones zero, with its space taken where the system can do so.

    Raises ``OSError`` with one of ``NO_SPACE`` where there is no room.
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
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, whole or not at all. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
