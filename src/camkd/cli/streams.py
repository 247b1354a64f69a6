"""Standard streams of the command line: encodings, closed pipes and full disks."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

OUTPUT_ERRNOS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""Error numbers of a stream that cannot be written: a closed pipe, a full disk, a terminal that is gone."""


class StderrConsole(Console):
    """Console on stderr that stays silent once stderr cannot be written.

    Args:
        quiet: Whether to print nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(stderr=True, highlight=False, quiet=quiet)

    def on_broken_pipe(self) -> None:
        """Stay silent. `rich.console.Console` ends the process."""
        self.quiet = True

    def print_line(self, text: str) -> None:
        """Print one line without markup."""
        try:
            self.print(text, markup=False, soft_wrap=True)
        except OSError:
            self.quiet = True


@contextmanager
def checked_stdout() -> Iterator[None]:
    """Flush stdout on exit, and print characters as escapes that the encoding of stdout does not have.

    Python flushes stdout when the interpreter exits, where an error cannot be handled. On an error, the rest of the
    output is discarded.

    Raises:
        OSError: If stdout cannot be written, with an error number in `OUTPUT_ERRNOS` and no file name.
    """
    if sys.stderr is None:  # closed by the shell: 2>&-
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if is_output_error(error):
            _discard_stdout()
        raise


def is_output_error(error: OSError) -> bool:
    """Return whether an error comes from a standard stream, and not from a file."""
    return error.filename is None and error.errno in OUTPUT_ERRNOS


def print_message(text: str) -> None:
    """Print one line on stderr, if stderr can be written."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout. Characters outside of ASCII are escaped unless stdout is UTF-8."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    is_utf8 = encoding.lower().replace("-", "") in ("utf8", "utf8sig")
    print(json.dumps(value, ensure_ascii=not is_utf8, allow_nan=False))


def _discard_stdout() -> None:
    """Redirect stdout to the null device, so that the flush at the exit of the interpreter succeeds."""
    with suppress(OSError, ValueError):  # a stream without a file descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
