"""Unlabeled images: files of a folder at any depth, added to the training images of a student.

The joint training split has the labeled images first, with their labels, and then the unlabeled ones with the label
`UNLABELED`. Near duplicates of validation and test images are left out, since a student trained on the outputs of its
teacher for these images would be measured on images that it has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.data.dataset import (
    CHUNK_BYTES,
    UNLABELED,
    Dataset,
    Progress,
    Split,
    cache_folder,
    derived_fingerprint,
    max_rows,
    no_progress,
)
from camkd.data.file_names import join_first
from camkd.data.files import BadImages, open_listing
from camkd.data.listing import ClassFiles, Listing
from camkd.data.near_duplicates import find_near_duplicates, hash_images, pixel_digests
from camkd.data.scan import image_file
from camkd.data.store import SplitArrays, build_or_open, create_image_file, encode_key
from camkd.data.walker import IMAGE_TYPES, Walker
from camkd.types import InputError

VERSION = 1
"""Version of the joint split. Increment it when other images are left out."""


def add_unlabeled(
    data: Dataset,
    folder: Path,
    *,
    workers: int | None = None,
    bad_images: BadImages = "fail",
    cache: Path | None = None,
    progress: Progress = no_progress,
) -> Dataset:
    """Add the images of a folder to the training images of a dataset, without labels.

    Args:
        data: The labeled dataset.
        folder: Folder of images at any depth. Names of subfolders have no meaning.
        workers: Number of processes that decode images. None is one per core.
        bad_images: ``fail`` raises an error for unreadable images, ``skip`` leaves them out and adds a note.
        cache: Root of the cache (default: ``$CAMKD_CACHE``, else ``~/.cache/camkd``).
        progress: Progress callback.

    Returns:
        The dataset with the joint training split. Its `Dataset.labeled` is ``data``.

    Raises:
        InputError: If the folder does not exist, holds no image, or holds only near duplicates of validation and test
            images.

    Example:
        >>> data = add_unlabeled(open_data("pets"), Path("more_pets"))    # doctest: +SKIP
        >>> (data.train.labels == UNLABELED).sum()                        # doctest: +SKIP
        5210
    """
    listing = _list_images(folder)
    options: dict[str, Any] = {"workers": workers, "bad_images": bad_images, "cache": cache_folder(cache)}
    options["progress"] = progress
    unlabeled = _open_unlabeled(listing, data, options)
    left_out = _duplicates_of_held_out(unlabeled.train, data, progress)
    if left_out.all():
        raise InputError(
            f"'{folder}' must hold images that are not in the validation and test images, got {len(left_out):,} near "
            "duplicates of these. Choose another folder."
        )
    names = unlabeled.train.names
    assert names is not None
    kept = frozenset(name for name, is_left_out in zip(names, left_out, strict=True) if not is_left_out)
    joint = data.changed(partial(_join, listing=listing, kept=kept, options=options))
    notes = [*unlabeled.notes, f"unlabeled images: {len(kept):,} of '{folder}'"]
    if left_out.any():
        examples = join_first([repr(name) for name in names if name not in kept])
        notes[-1] += f"; {int(left_out.sum()):,} near duplicates of validation and test images are left out: {examples}"
    return replace(joint, notes=(*data.notes, *notes))


def _list_images(folder: Path) -> Listing:
    """List all images below a folder as one class."""
    root = folder.expanduser()
    if not root.is_dir():
        found = "a file" if root.exists() else "a folder that does not exist"
        raise InputError(f"unlabeled must be a folder of images, got {found}: '{folder}'. Check the name.")
    walker = Walker(root)
    try:
        files = sorted(image_file(root, entry) for entry in walker.images(root))
    except PermissionError as error:
        raise InputError(
            f"'{error.filename}' must be readable, got a permission error. Change its permissions."
        ) from error
    if not files:
        raise InputError(f"'{folder}' must contain images ({IMAGE_TYPES}), got none. Choose another folder.")
    splits: dict[str, ClassFiles] = {"train": {"": files}, "val": {"": ()}, "test": {"": ()}}
    return Listing(root, splits, tuple(walker.notes()))


def _open_unlabeled(listing: Listing, data: Dataset, options: Mapping[str, Any]) -> Dataset:
    """Decode the unlabeled images as those of a dataset."""
    return open_listing(
        listing,
        size=data.size,
        fit=data.fit or "crop",
        interpolation=data.interpolation or "bicubic",
        value_range=data.value_range,
        limit=None,
        **options,
    )


def _duplicates_of_held_out(split: Split, data: Dataset, progress: Progress) -> NDArray[np.bool_]:
    """Return a mask of the images that are equal to or near duplicates of validation or test images."""
    held_out = (data.val.images, data.test.images)
    is_duplicate = np.zeros(len(split), np.bool_)
    pairs = find_near_duplicates(
        hash_images(split.images, progress=progress), hash_images(*held_out, progress=progress), progress=progress
    )
    is_duplicate[pairs.first] = True
    digests = set(pixel_digests(*held_out))  # blank images have no perceptual hash
    is_duplicate |= np.array([digest in digests for digest in pixel_digests(split.images)], np.bool_)
    return is_duplicate


def _join(data: Dataset, *, listing: Listing, kept: frozenset[str], options: Mapping[str, Any]) -> Dataset:
    """Store the training images and the unlabeled images as one array."""
    unlabeled = _open_unlabeled(listing, data, options)
    names = unlabeled.train.names
    assert names is not None
    rows = np.array([row for row, name in enumerate(names) if name in kept], np.int64)
    change = {"unlabeled": unlabeled.source_fingerprint, "rows": rows.tolist(), "version": VERSION}
    key = {"version": VERSION, "source": "unlabeled", "data": data.fingerprint, "unlabeled": unlabeled.fingerprint}

    def build(folder: Path) -> SplitArrays:
        count = len(data.train)
        images = create_image_file(folder / "train_images.npy", count + len(rows), data.size)
        step = max_rows(CHUNK_BYTES, images)
        for start in range(0, count, step):
            images[start : min(start + step, count)] = data.train.images[start : start + step]
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            images[count + start : count + start + len(chunk)] = unlabeled.train.images[chunk]
        labels = np.concatenate([data.train.labels, np.full(len(rows), UNLABELED, np.int64)])
        empty = data.train.take(np.empty(0, np.int64))
        joint = Split(images, labels, None, _joint_names(data.train, [names[row] for row in rows]))
        return SplitArrays(data.classes, joint, empty, empty)

    joint = build_or_open(f"{data.name}-unlabeled", encode_key({**key, "rows": rows.tolist()}), options["cache"], build)
    weights = data.train.weights
    if weights is not None:
        weights = np.concatenate([weights, np.zeros(len(rows), np.float32)])
    return replace(
        data,
        train=replace(joint.train, weights=weights),
        fingerprint=joint.fingerprint,
        source_fingerprint=derived_fingerprint(data.source_fingerprint, change),
        labeled_part=data,
    )


def _joint_names(train: Split, unlabeled: list[str]) -> tuple[str, ...] | None:
    """Return the names of the joint split; None if the labeled images are no files."""
    return None if train.names is None else (*train.names, *unlabeled)
