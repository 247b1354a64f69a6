"""Open the image files of a listing as a dataset: decode them once into the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from camkd.data.dataset import SPLITS, Dataset, Progress, Split, fingerprint_of_files
from camkd.data.decode import DecoderPool
from camkd.data.file_names import escape_name, join_first, quote_names
from camkd.data.images import DecodedRows, common_size, describe_remarks
from camkd.data.listing import ImageFile, Listing
from camkd.data.masks import MaskDecoder
from camkd.data.store import SplitArrays, build_or_open, create_image_file, encode_key, select_rows
from camkd.data.value_range import ValueRange, common_range
from camkd.types import Fit, InputError, Interpolation, Preprocessing

VERSION = 6
"""Version of `cache_key`. Increment it when a change of the code stores different arrays for the same files."""

BadImages = Literal["fail", "skip"]
"""Treatment of unreadable images: ``fail`` raises an error, ``skip`` leaves them out."""

DEFAULT_SIZE = 64
"""Side in pixels to which images are resized if the images have no common size; see `common_size`."""

MAX_HEADERS_READ = 300
"""Number of training images whose headers are read to find a common size."""


def open_listing(
    listing: Listing,
    *,
    size: int | None,
    fit: Fit = "crop",
    interpolation: Interpolation = "bicubic",
    limit: int | None,
    train_limit: int | None = None,
    workers: int | None,
    bad_images: BadImages,
    value_range: ValueRange | None = None,
    cache: Path,
    progress: Progress,
) -> Dataset:
    """Open the image files of a listing as a dataset.

    Images are decoded when the listing is opened for the first time. They are decoded again when the path, the size or
    the modification time of a file changes, or when the preprocessing, ``bad_images`` or the selection of images
    changes.

    Args:
        listing: The image files, from `camkd.data.scan.scan` or `camkd.data.table.read_table`.
        size: Side of the square images in pixels. None selects the common size of the training images if they are
            square and at most 64 pixels wide, else 64.
        fit: ``crop`` keeps the center square of images that are not square, ``pad`` fills up their shorter side.
        interpolation: Filter that resizes images, with antialiasing.
        limit: Maximum number of images per split, class-balanced. Only these images are decoded.
        train_limit: Maximum number of training images, class-balanced.
        workers: Number of processes that decode images. None is one per core.
        bad_images: ``fail`` raises an error for unreadable images, ``skip`` leaves them out and adds a note.
        value_range: The gray values that become 0 and 255, for gray images of more than 8 bits. None: the range of the
            training images, see `common_range`, or 0 to 65535 if there is no such training image.
        cache: Root of the cache.
        progress: Progress callback.

    Returns:
        The dataset, with the relative path of each image in `Split.names`.

    Raises:
        InputError: If an image cannot be read and ``bad_images`` is ``fail``. If a split or a class of train has no
            readable image. If the dataset cannot be stored.

    Example:
        >>> data = open_listing(                                         # doctest: +SKIP
        ...     scan(Path("pets")), size=32, limit=None, workers=None, bad_images="skip", cache=cache_folder(),
        ...     progress=no_progress,
        ... )
    """
    if size is None:
        size = common_size(listing.sample_paths("train", MAX_HEADERS_READ)) or DEFAULT_SIZE
    if limit is not None:
        listing = listing.limited(limit)
    if train_limit is not None:
        listing = listing.limited(train_limit, ("train",))
    preprocessing = Preprocessing(size, fit, interpolation, value_range)
    data = build_or_open(
        listing.name,
        cache_key(listing, preprocessing, bad_images),
        cache,
        lambda folder: _decode_listing(folder, listing, preprocessing, workers, bad_images, progress),
    )
    notes = (*listing.notes, *data.notes)  # files that are not part of the key may have changed
    train, val, test = (_add_weights(data.splits[split], listing.samples(split)) for split in SPLITS)
    return replace(data, train=train, val=val, test=test, notes=notes, fit=fit, interpolation=interpolation)


def _add_weights(split: Split, samples: Sequence[tuple[int, ImageFile]]) -> Split:
    """Set the weights of the images, which are not stored. A changed weight therefore needs no new decoding."""
    weights = {escape_name(file.name): file.weight for _, file in samples if file.weight is not None}
    if not weights:
        return split
    return replace(split, weights=np.array([weights[name] for name in split.names or ()], np.float32))


def cache_key(listing: Listing, preprocessing: Preprocessing, bad_images: BadImages) -> str:
    """Return the key of the cached dataset: the location, the options, and the size and time of each file."""
    splits = {
        split: {name: [_key_of_file(file) for file in files] for name, files in classes.items()}
        for split, classes in listing.splits.items()
    }
    return encode_key(
        {
            "version": VERSION,
            "source": listing.source,
            "root": str(listing.root.resolve()),
            "size": preprocessing.size,
            "fit": preprocessing.fit,
            "interpolation": preprocessing.interpolation,
            "bad_images": bad_images,
            "value_range": preprocessing.value_range,
            "splits": splits,
        }
    )


def _key_of_file(file: ImageFile) -> list[Any]:
    mask = file.mask
    own = [file.name, file.bytes, file.modified_ns]
    return own if mask is None else [*own, [mask.name, mask.bytes, mask.modified_ns]]


def decode_splits(
    folder: Path, listing: Listing, preprocessing: Preprocessing, workers: int | None, progress: Progress
) -> tuple[dict[str, DecodedRows], ValueRange | None]:
    """Decode all images of a listing into the files ``<split>_images.npy``. Rows of unreadable images are zero.

    Args:
        folder: Folder of the files.
        listing: The image files.
        preprocessing: Size, fit, interpolation and value range. Without a value range, that of the training images is
            computed and used for all splits.
        workers: Number of processes that decode images. None is one per core.
        progress: Progress callback.

    Returns:
        The results of each split, and the value range.

    Raises:
        InputError: If the disk is full, or a decoder process ends.
    """
    results = {}
    with DecoderPool(workers) as pool:
        for split in SPLITS:
            paths = dict(enumerate(listing.paths(split)))
            file = folder / f"{split}_images.npy"
            create_image_file(file, len(paths), preprocessing.size)
            description = f"reading {split} images"
            summarize_gray = split == "train" and preprocessing.value_range is None
            decoded = pool.decode_into(file, paths, preprocessing, progress, description, summarize_gray=summarize_gray)
            if decoded.summaries:
                preprocessing = replace(preprocessing, value_range=common_range(list(decoded.summaries.values())))
                waiting = {row: paths[row] for row in decoded.summaries}
                decoded.update(pool.decode_into(file, waiting, preprocessing, progress, description))
            results[split] = decoded
    return results, preprocessing.value_range


def _decode_listing(
    folder: Path,
    listing: Listing,
    preprocessing: Preprocessing,
    workers: int | None,
    bad_images: BadImages,
    progress: Progress,
) -> SplitArrays:
    """Decode all images of ``listing`` into ``folder``. Raise an error for unreadable images, or leave them out.

    Without a value range, that of the training images is computed and used for all splits.
    """
    decoded, value_range = decode_splits(folder, listing, preprocessing, workers, progress)
    errors = {split: rows.errors for split, rows in decoded.items()}
    remarks: dict[str, list[str]] = {}  # by name of the image
    for split, rows in decoded.items():
        samples = listing.samples(split)
        for row in sorted(rows.remarks):
            remarks[escape_name(samples[row][1].name)] = rows.remarks[row]
    unreadable: list[str] = []
    for split, reasons in errors.items():
        samples = listing.samples(split)
        unreadable += [f"{escape_name(samples[row][1].name)}: {reason}" for row, reason in reasons.items()]
    if unreadable and bad_images == "fail":
        raise InputError(
            f"all images in '{listing.path}' must be readable, got {len(unreadable):,} unreadable "
            f"({join_first(unreadable, '; ')}). Replace or delete them, or skip them with --bad-images skip."
        )
    notes = (
        [f"{len(unreadable):,} unreadable images were skipped: {join_first(unreadable, '; ')}"] if unreadable else []
    )
    notes += describe_remarks(remarks)
    if value_range is not None:
        notes.append(
            f"gray values of images of more than 8 bits were scaled: {value_range[0]:,g} became 0 and "
            f"{value_range[1]:,g} became 255"
        )
    masks = MaskDecoder(listing, preprocessing, workers, bad_images, progress)
    train, val, test = (_make_split(folder, split, listing, errors[split], masks) for split in SPLITS)
    notes += masks.notes()
    without_images = [
        name
        for label, name in enumerate(listing.classes)
        if listing.splits["train"][name] and label not in train.labels
    ]
    if without_images:
        raise InputError(
            f"every class in '{listing.path}' must have a readable training image, got none of "
            f"{quote_names(without_images)}. Add images of these classes."
        )
    files = {}
    for split in SPLITS:
        labels = [label for label, _ in listing.samples(split)]
        sha256_of = decoded[split].sha256_of
        files[split] = [(labels[row], sha256_of[row]) for row in sorted(sha256_of)]
    digest = fingerprint_of_files(listing.classes, files, value_range)
    return SplitArrays(listing.classes, train, val, test, tuple(notes), value_range, digest)


def _make_split(folder: Path, split: str, listing: Listing, errors: Mapping[int, str], masks: MaskDecoder) -> Split:
    """Return the decoded images of ``split`` without the unreadable rows, and their masks."""
    samples = listing.samples(split)
    kept = np.array([row for row in range(len(samples)) if row not in errors], np.int64)
    if errors and not len(kept):
        raise InputError(f"the {split} split of '{listing.path}' must have a readable image, got none. Add images.")
    path = folder / f"{split}_images.npy"
    images = select_rows(path, kept) if errors else np.load(path, mmap_mode="r")
    labels = np.array([samples[row][0] for row in kept], np.int64)
    files = [samples[row][1] for row in kept]
    return Split(
        images,
        labels,
        masks.decode(folder / f"{split}_masks.npy", files, f"reading {split} masks"),
        names=tuple(escape_name(file.name) for file in files),
    )
