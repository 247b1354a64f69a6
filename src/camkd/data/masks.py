"""Decode the object masks of a listing into the store."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from camkd.data.dataset import Progress
from camkd.data.decode import available_cores
from camkd.data.file_names import escape_name, join_first
from camkd.data.images import decode_mask
from camkd.data.listing import ImageFile, Listing
from camkd.data.store import create_mask_file
from camkd.types import InputError, Preprocessing


@dataclass
class MaskDecoder:
    """Decoder of the masks of a listing, in threads.

    Args:
        listing: The listing.
        preprocessing: Size and fit of the images.
        workers: Number of threads. None is one per core.
        bad_images: ``fail`` raises an error for masks that cannot be used, ``skip`` leaves them out.
        progress: Progress callback.
    """

    listing: Listing
    preprocessing: Preprocessing
    workers: int | None
    bad_images: Literal["fail", "skip"]
    progress: Progress
    count: int = 0
    empty: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def decode(self, file: Path, images: Sequence[ImageFile], description: str) -> NDArray[np.bool_] | None:
        """Decode the masks of a split into a new array file.

        Args:
            file: Path of the file.
            images: Image files of the split.
            description: Third argument of the progress callback.

        Returns:
            The memory-mapped masks ``(N, size, size)``, False for images without mask. None if no image has a mask.

        Raises:
            InputError: If a mask cannot be used and ``bad_images`` is ``fail``, or if the disk is full.
        """
        rows = [row for row, image in enumerate(images) if image.mask is not None]
        if not rows:
            return None
        masks = create_mask_file(file, len(images), self.preprocessing.size)

        def decode_row(row: int) -> str | None:
            image = images[row]
            assert image.mask is not None
            root = self.listing.root
            paths = os.path.join(root, image.mask.name), os.path.join(root, image.name)
            try:
                masks[row] = decode_mask(*paths, self.preprocessing)
            except ValueError as error:
                return str(error)
            return None

        errors = []
        with warnings.catch_warnings(), ThreadPoolExecutor(self.workers or available_cores()) as threads:
            warnings.simplefilter("ignore")
            try:
                for done, (row, error) in enumerate(zip(rows, threads.map(decode_row, rows), strict=True), 1):
                    mask = images[row].mask
                    assert mask is not None
                    if error is not None:
                        errors.append(f"{escape_name(mask.name)}: {error}")
                    elif not masks[row].any():
                        self.empty.append(escape_name(mask.name))
                    self.progress(done, len(rows), description)
            except BaseException:  # Ctrl-C: do not wait for masks that have not started
                threads.shutdown(cancel_futures=True)
                raise
        if errors and self.bad_images == "fail":
            raise InputError(
                f"all masks of '{self.listing.path}' must be images with the proportions of their images, got "
                f"{len(errors):,} others ({join_first(errors, '; ')}). Replace or delete them, or leave them out with "
                "--bad-images skip."
            )
        self.errors += errors
        self.count += len(rows) - len(errors)
        return masks

    def notes(self) -> list[str]:
        """Return the notes for the user about all masks."""
        notes = []
        if self.count:
            total = sum(len(files) for classes in self.listing.splits.values() for files in classes.values())
            notes.append(f"{self.count:,} of {total:,} images have a mask of the object")
        if self.errors:
            notes.append(f"{len(self.errors):,} masks were left out: {join_first(self.errors, '; ')}")
        if self.empty:
            notes.append(
                f"{len(self.empty):,} masks have no object in the used part of the image, and count as no mask: "
                f"{join_first(self.empty)}"
            )
        return notes
