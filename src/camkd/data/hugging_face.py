"""Data sets of the Hugging Face library ``datasets``: their images are written to the cache, with a table of them."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from camkd.data.dataset import Progress
from camkd.data.file_names import HUGGING_FACE, dataset_name, escape_name, join_first, quote_names
from camkd.data.image_formats import HEADER_BYTES, detect_format
from camkd.data.listing import split_of
from camkd.data.store import encode_key, staged_folder
from camkd.types import InputError

VERSION = 1
"""Version of the files. Increment it when a change of the code writes other files for the same data set."""

MAX_NAME_LENGTH = 100
"""Largest number of characters of the original file name that is kept."""

SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif"}
"""Suffixes of formats whose suffix is not the lower-case name of the format."""

ARRAY_CHANNELS = (1, 3)
"""Numbers of channels of an array that is an image."""


class Columns(NamedTuple):
    """Names of the columns of a data set.

    Attributes:
        image: Images.
        label: Labels.
        mask: Masks of the object, None without masks.
        others: Columns of texts and numbers, which the table has too.
    """

    image: str
    label: str
    mask: str | None
    others: tuple[str, ...]


def extract(name: str, cache: Path, progress: Progress) -> tuple[Path, list[str]]:
    """Write the images of a data set to the cache, as the files that the data set contains, with a table of them.

    The image column is the only one with images or ``uint8`` arrays, or that with the name ``image``. The label column
    is the only one with class labels, or that with the name ``label``. A further column ``mask`` with images has the
    masks of the objects. Files are written once.

    Args:
        name: ``hf:PATH``, a folder of ``save_to_disk``, or ``hf:NAME``, a data set of the Hugging Face Hub.
        cache: Root of the cache.
        progress: Progress callback.

    Returns:
        Path of the table, and notes for the user.

    Raises:
        InputError: If ``datasets`` is not installed, the data set cannot be loaded, or a column is missing or
            ambiguous. If the disk is full.

    Example:
        >>> table, notes = extract("hf:pets-on-disk", cache_folder(), no_progress)            # doctest: +SKIP
    """
    splits, notes = _name_splits(name, _load(name))
    columns = _find_columns(name, splits)
    classes = _class_names(name, next(iter(splits.values())), columns)
    total = 0
    for split, data in splits.items():
        labels = data[columns.label][:]
        total += len(labels)
        if missing := sum(label is None or label < 0 for label in labels):
            notes.append(f"{missing:,} of {len(labels):,} {split or 'train'} images without label were left out")
    key = encode_key(
        {
            "version": VERSION,
            "columns": [columns.image, columns.label, columns.mask, list(columns.others)],
            "classes": list(classes),
            "splits": {split: _identify(data) for split, data in splits.items()},
        }
    )
    short_name = re.sub(r"[^\w.-]+", "_", dataset_name(name))[:60]
    folder = cache / "hugging_face" / f"{short_name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    table = f"{short_name}.csv"
    if not folder.exists():
        with staged_folder(folder) as temporary, (temporary / table).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            has_split = "" not in splits
            header = ["image", "label", *(["split"] if has_split else []), *(["mask"] if columns.mask else [])]
            writer.writerow([*header, *columns.others])
            for done, row in enumerate(_write_files(temporary, splits, columns, classes), 1):
                writer.writerow(row if has_split else [*row[:2], *row[3:]])
                progress(done, total, "extracting images")
    return folder / table, notes


def _load(name: str) -> Any:
    """Load a data set from disk or from the Hub."""
    location = name.removeprefix(HUGGING_FACE)
    if not location.strip():
        raise InputError(f"data must be {HUGGING_FACE}PATH or {HUGGING_FACE}NAME, got {name!r}. Add a path or a name.")
    try:
        import datasets  # takes seconds to import
    except ImportError as error:
        raise InputError(
            f"{name} needs the package datasets, which is not installed. Run pip install 'camkd[hf]'."
        ) from error
    path = Path(location).expanduser()
    try:
        if path.exists():
            return datasets.load_from_disk(str(path), keep_in_memory=False)
        return datasets.load_dataset(location)
    except Exception as error:  # the library raises its own, those of pyarrow and those of the network
        kind = "a folder of save_to_disk" if path.exists() else "a folder of save_to_disk, or a data set of the Hub"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name} must be {kind}, got an error: {reason} Correct the name, or the network.") from error


def _name_splits(name: str, data: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the data set of each split: train, val and test, or the empty name for one without splits."""
    if not hasattr(data, "keys"):
        return {"": data}, []
    splits: dict[str, Any] = {}
    given: dict[str, str] = {}
    ignored = []
    for key, part in data.items():
        split = split_of(str(key))
        if split is None:
            ignored.append(str(key))
        elif split in given:
            raise InputError(
                f"{name} must have one {split} split, got '{given[split]}' and '{key}'. Remove one of them."
            )
        else:
            given[split] = str(key)
            splits[split] = part
    if not splits:
        raise InputError(
            f"{name} must have a split train, val or test, got {quote_names(ignored) or 'none'}. Rename the splits."
        )
    return splits, [f"splits with other names were ignored: {quote_names(ignored)}"] if ignored else []


def _find_columns(name: str, splits: Mapping[str, Any]) -> Columns:
    """Find the columns by the types of their features, which must be equal in all splits."""
    features = next(iter(splits.values())).features
    for split, data in splits.items():
        if data.features != features:
            raise InputError(
                f"all splits of {name} must have the same columns, got {escape_name(str(dict(features)))[:200]} and in "
                f"{split} {escape_name(str(dict(data.features)))[:200]}. Cast the splits to one type."
            )
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    mask = "mask" if "mask" in images and len(images) > 1 else None
    candidates = [column for column in images if column != mask] or [
        column for column, kind in kinds.items() if kind in ("Array2D", "Array3D") and features[column].dtype == "uint8"
    ]
    image = _choose(name, "image", candidates, "of images (Image, or uint8 arrays)", kinds)
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    label = _choose(name, "label", labels, "of class labels (ClassLabel)", kinds)
    others = tuple(
        column
        for column, kind in kinds.items()
        if kind == "Value"
        and column not in ("image", "label", "split", "mask")
        and "binary" not in features[column].dtype
    )
    return Columns(image, label, mask, others)


def _choose(name: str, default: str, candidates: Sequence[str], description: str, kinds: Mapping[str, str]) -> str:
    """Return the only candidate, or the one with the default name."""
    if len(candidates) == 1:
        return candidates[0]
    if default in candidates:
        return default
    if candidates:
        raise InputError(
            f"{name} must have one column {description}, got {quote_names(candidates)}. Rename one of them to "
            f"'{default}', or remove the others."
        )
    listed = join_first([f"'{escape_name(column)}' ({kind})" for column, kind in kinds.items()])
    raise InputError(
        f"{name} must have a column {description}, got {listed or 'no columns'}. Cast the column with cast_column."
    )


def _class_names(name: str, data: Any, columns: Columns) -> tuple[str, ...]:
    names = tuple(str(class_name) for class_name in data.features[columns.label].names or ())
    if not names:
        raise InputError(
            f"the labels of {name} must have names, got none in '{columns.label}'. Set ClassLabel(names=...)."
        )
    return names


def _identify(data: Any) -> list[Any]:
    """Return the number of rows and the name, size and time of each file of a split."""
    files = []
    for entry in data.cache_files:
        status = os.stat(entry["filename"])
        files.append([os.path.basename(entry["filename"]), status.st_size, status.st_mtime_ns])
    return [data.num_rows, files or data._fingerprint]


def _write_files(
    folder: Path, splits: Mapping[str, Any], columns: Columns, classes: Sequence[str]
) -> Iterator[list[Any]]:
    """Write the files of the images, and yield the row of the table of each labeled image."""
    import datasets

    for split, data in splits.items():
        subfolder = split or "images"
        (folder / subfolder).mkdir()
        for column in (columns.image, columns.mask):
            if column is not None and isinstance(data.features[column], datasets.Image):
                data = data.cast_column(column, datasets.Image(decode=False))
        for index, row in enumerate(data):
            label = row[columns.label]
            if label is None or label < 0:
                yield []
                continue
            image = _write_file(folder, f"{subfolder}/{index:08d}", row[columns.image])
            cells: list[Any] = [image, classes[label], split]
            if columns.mask is not None:
                value = row[columns.mask]
                cells.append("" if value is None else _write_file(folder, f"{subfolder}/{index:08d}-mask", value))
            yield [*cells, *("" if row[column] is None else row[column] for column in columns.others)]


def _write_file(folder: Path, stem: str, value: Any) -> str:
    """Write the file of an image, and return its path in ``folder``. A missing image becomes an empty file."""
    original = ""
    if isinstance(value, Mapping):
        original = os.path.basename(str(value["path"] or ""))
        content = value["bytes"]
        if content is None:
            path = value["path"]
            content = Path(path).read_bytes() if path and os.path.isfile(path) else b""
    elif value is None:
        content = b""
    else:
        content = _encode_png(np.asarray(value))
    try:
        image_format = detect_format(content[:HEADER_BYTES])
        suffix = SUFFIXES.get(image_format, f".{image_format.lower()}")
    except ValueError:
        suffix = ".bin"
    kept = re.sub(r"[^\w.-]+", "_", os.path.splitext(original)[0])[:MAX_NAME_LENGTH]
    name = f"{stem}-{kept}{suffix}" if kept else f"{stem}{suffix}"
    (folder / name).write_bytes(content)
    os.utime(folder / name, (0, 0))  # part of the key of the decoded images; the folder is identified by its content
    return name


def _encode_png(array: np.ndarray[Any, Any]) -> bytes:
    """Encode an array as PNG: gray ``(H, W)``, or ``(H, W, C)`` or ``(C, H, W)`` with 1 or 3 channels."""
    if array.ndim == 3 and array.shape[2] not in ARRAY_CHANNELS and array.shape[0] in ARRAY_CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise InputError(
            f"arrays of images must be (H, W), (H, W, 3) or (3, H, W), got {array.shape}. Store them as Image."
        )
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array.astype(np.uint8))).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
