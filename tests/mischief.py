"""What a system or a stranger may do to files: another umask, and a pickle that runs code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Another umask while the block runs."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)
