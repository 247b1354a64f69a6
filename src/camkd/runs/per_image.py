"""Read and write ``per_image.npz``, the results of each test image. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.types import InputError
from camkd.utils.files import atomic_write


def write_per_image(path: Path, per_image: Mapping[str, NDArray[Any]]) -> None:
    """Write the results of each test image to a compressed ``.npz`` file, atomically. Equal results give equal bytes.

    Args:
        path: The file to write.
        per_image: Arrays by column, from `camkd.evaluate.per_image_record`.

    Raises:
        ValueError: If an array holds Python objects, which would need pickle.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **per_image)


def read_per_image(path: Path) -> dict[str, NDArray[Any]]:
    """Read a file written by `write_per_image`, without unpickling.

    Args:
        path: The file to read.

    Returns:
        Arrays by column.

    Raises:
        InputError: If the file is missing or corrupt.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # zipfile, zlib and NumPy each raise their own exceptions for a corrupt file
        raise InputError(
            f"{path} must be a readable .npz file, got a corrupt file ({error}). Delete metrics.json beside it and "
            "start the run again with --resume; both files are then rewritten without training."
        ) from error
