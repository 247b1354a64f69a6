"""A folder of pictures, one folder a class, as a data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from camkd.data.dataset import SPLITS, Dataset, Progress, Split, SplitArrays, build_or_open, keep_rows, new_images
from camkd.data.decode import Decoders
from camkd.data.images import own_size
from camkd.data.scan import FolderListing, first, plain, quoted, scan
from camkd.types import InputError

BadImages = Literal["fail", "skip"]
DEFAULT_SIZE = 64
HEADERS_READ = 300
"""How many training pictures are asked for their size."""


def open_folder(
    root: Path,
    *,
    size: int | None,
    limit: int | None,
    train_limit: int | None = None,
    workers: int | None,
    bad_images: BadImages,
    unseen: bool = False,
    cache: Path,
    progress: Progress,
) -> Dataset:
    """Open ``train/<class>/*`` with optional ``val/`` and ``test/``, or plain ``<class>/*``, as a `Dataset`.

    Splits that are missing are made here, by a hash of each picture's path, so that adding one moves no other from
    a few dozen pictures a class on (each split gets one at least). The pictures become squares of ``size`` pixels
    (None: their own size where they share a small one, or else 64). They are decoded the first time, and again when
    a file's path, size or time changes. With ``limit`` only the first pictures of each split are, the classes
    taking turns; with ``train_limit`` of train alone. Of ``unseen`` pictures all are for the test, and none for
    train and val, where there is no train folder.

    Raises `InputError` where the folder is not such a tree, or where a picture cannot be read and
    ``bad_images`` is "fail"; with "skip" such pictures are left out and counted in the notes.
    """
    tree = scan(root, unseen=unseen)
    if size is None:
        size = own_size(tree.spread("train", HEADERS_READ)) or DEFAULT_SIZE
    if limit is not None:
        tree = tree.limited(limit)
    if train_limit is not None:
        tree = tree.limited(train_limit, ("train",))
    listing = hashlib.sha256(f"{os.fsencode(root.resolve())!r} {size} {bad_images} {tree.splits}".encode())
    return build_or_open(
        root.resolve().name,
        listing.hexdigest(),
        cache,
        lambda folder: _build(folder, tree, size, workers, bad_images, progress),
    )


def _build(
    folder: Path, tree: FolderListing, size: int, workers: int | None, bad_images: BadImages, progress: Progress
) -> SplitArrays:
    """Decode every picture of ``tree`` into ``folder``, then judge those that could not be read."""
    bad = {}
    with Decoders(workers) as decoders:
        for split in SPLITS:
            paths, file = tree.paths(split), folder / f"{split}_images.npy"
            new_images(file, len(paths), size)
            bad[split] = decoders.fill(file, paths, progress, f"reading {split} pictures")
    said = [
        f"{plain(tree.rows(split)[row][1].name)}: {reason}"
        for split, reasons in bad.items()
        for row, reason in reasons.items()
    ]
    if said and bad_images == "fail":
        raise InputError(
            f"{len(said):,} of the pictures in '{tree.root}' cannot be read ({first(said, '; ')}): replace "
            "or delete them, or leave them out with --bad-images skip."
        )
    notes = [f"{len(said):,} unreadable pictures were left out: {first(said, '; ')}"] if said else []
    train, val, test = (_split(folder, split, tree, bad[split]) for split in SPLITS)
    lost = [name for label, name in enumerate(tree.classes) if tree.splits["train"][name] and label not in train.labels]
    if lost:
        raise InputError(f"no readable training picture of {quoted(lost)} is in '{tree.root}': add some.")
    return SplitArrays(tree.classes, train, val, test, (*tree.notes, *notes))


def _split(folder: Path, split: str, tree: FolderListing, bad: Mapping[int, str]) -> Split:
    rows = tree.rows(split)
    kept = np.array([row for row in range(len(rows)) if row not in bad], np.int64)
    if bad and not len(kept):
        raise InputError(f"no readable {split} picture is in '{tree.root}': add some.")
    path = folder / f"{split}_images.npy"
    images = keep_rows(path, kept) if bad else np.load(path, mmap_mode="r")
    labels = np.array([rows[row][0] for row in kept], np.int64)
    return Split(images, labels, names=tuple(plain(rows[row][1].name) for row in kept))
