"""Adverse conditions for files: another umask, and a pickle that executes code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set the umask for the duration of the block."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


class TouchOnUnpickle:
    """Object that creates the file ``marker`` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)
