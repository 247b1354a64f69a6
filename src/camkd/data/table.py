"""Tables of image files: ``.csv`` or ``.tsv`` with the columns image and label, and optionally split and others."""

from __future__ import annotations

import csv
import math
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

from camkd.data.dataset import SPLITS
from camkd.data.file_names import comparable_name, escape_name, join_first, quote_names, respelled_names
from camkd.data.groups import add_groups
from camkd.data.listing import (
    SPLIT_NAMES,
    ClassFiles,
    ImageFile,
    Listing,
    MaskFile,
    notes_of_similar_names,
    split_of,
)
from camkd.data.missing_splits import complete_splits
from camkd.data.walker import class_name
from camkd.types import InputError

REQUIRED_COLUMNS = ("image", "label")
COLUMNS = (*REQUIRED_COLUMNS, "split", "group", "weight", "mask")
"""Columns of a table. Other columns are ignored."""

SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""Separator of the columns by the suffix of the table."""

SEPARATOR_NAMES = {",": "commas", "\t": "tabs"}


class Row(NamedTuple):
    """Row of a table.

    Attributes:
        number: Number of the row, as in a spreadsheet. The header is row 1.
        image: Path of the image, absolute or relative to the folder of the table.
        label: Class name.
        split: Split: train, val or test. None without the column.
        group: Group of the image. None without groups.
        weight: Weight of the image in the cross-entropy, 1 for an empty cell. None without the column.
        mask: Path of the mask of the object, absolute or relative to the folder of the table. None without a mask.
    """

    number: int
    image: str
    label: str
    split: str | None
    group: str | None
    weight: float | None
    mask: str | None


def read_table(
    path: Path,
    *,
    test_only: bool = False,
    bad_images: Literal["fail", "skip"] = "fail",
    group: str | None = None,
    group_regex: str | None = None,
) -> Listing:
    """List the image files of a table. No image is opened.

    The first row names the columns. ``image`` is the path of a file, absolute or relative to the folder of the table,
    and ``label`` is the class name. ``split`` is the split. Without this column, or without rows of val or test, images
    are held out from train. The path in the table decides the split, as the path of an image in a folder does.
    ``weight`` is the weight of the image in the cross-entropy, 0 or more. ``mask`` is the path of a mask of the object.

    Args:
        path: The table, ``.csv`` or ``.tsv``, UTF-8 with or without byte order mark.
        test_only: Whether a table without train rows is a test split: its test rows, or all rows without the column
            ``split``. Train and val are then empty. One class is enough.
        bad_images: Treatment of images that do not exist: ``fail`` raises an error, ``skip`` leaves them out and adds a
            note.
        group: Column with the group of each image, which stays in one split (default: ``group``, if there is one).
            Ignored without train rows.
        group_regex: Regular expression that captures the group of an image in its path, in place of a column.

    Returns:
        The image files and the notes for the user.

    Raises:
        InputError: If the table cannot be read, a column is missing, or a cell is invalid. If an image is in two rows
            or does not exist. If there are fewer than two classes, or val or test have a class that train lacks. If a
            group is in two splits. The message names the rows or groups.

    Example:
        >>> read_table(Path("pets.csv")).classes             # doctest: +SKIP
        ('cat', 'dog')
    """
    rows, notes = _read_rows(path, group, use_groups=group_regex is None)
    _check_once(path, rows)
    root = path.parent
    files = {}
    missing = []
    for row in rows:
        file = _image_file(root, row.image)
        if isinstance(file, str):
            missing.append((row.number, f"{_quote(row.image)}: {file}"))
        else:
            files[row.number] = file
    if missing and (bad_images == "fail" or not files):
        advice = "Correct the paths, or leave the rows out with --bad-images skip"
        if not files and all(isinstance(_image_file(root, row.image.replace("\\", "/")), ImageFile) for row in rows):
            advice = "Write / instead of \\ in the paths"
        raise InputError(
            f"every image of '{path}' must be a file, absolute or relative to '{root}', got {_describe(missing)}. "
            f"{advice}."
        )
    masks, mask_notes = _find_masks(path, rows, bad_images)
    notes += mask_notes
    if missing:
        notes.append(f"{len(missing):,} rows without an image file were left out: {_describe(missing)}")
        rows = [row for row in rows if row.number in files]
    by_split = _rows_by_split(path, rows, test_only)
    labels = {row.label for row in next(iter(by_split.values()))}  # of train, if there are train rows
    _check_classes(path, by_split, labels, test_only)
    splits: dict[str, ClassFiles] = {}
    for split, split_rows in by_split.items():
        classes: dict[str, list[ImageFile]] = {name: [] for name in sorted(labels)}
        for row in split_rows:
            classes[row.label].append(
                files[row.number]._replace(group=row.group, weight=row.weight, mask=masks.get(row.number))
            )
        splits[split] = {name: sorted(group) for name, group in classes.items()}
    notes += notes_of_similar_names(sorted(labels), f"'{path}'")
    notes += _notes_of_equal_numbers(labels)
    has_groups = group_regex is not None or rows[0].group is not None
    if group_regex is not None and "train" in splits:
        splits = add_groups(splits, path, group_regex)
    complete, split_notes = complete_splits(splits, path, "table", has_groups=has_groups)
    if any(complete["train"].values()) and all(
        file.weight == 0 for group in complete["train"].values() for file in group
    ):
        raise InputError(
            f"a training image of '{path}' must have a weight above 0, got 0 for all. Correct the column 'weight'."
        )
    return Listing(root, complete, (*notes, *split_notes), path)


def table_images(path: Path) -> list[Path]:
    """Return the paths of the images of a table, in the order of the rows.

    Args:
        path: The table.

    Raises:
        InputError: If the table cannot be read, a column is missing, or a cell is invalid.
    """
    rows, _ = _read_rows(path, None, use_groups=False)
    return [path.parent / row.image for row in rows]


def _read_rows(path: Path, group: str | None, *, use_groups: bool) -> tuple[list[Row], list[str]]:
    """Parse a table and check its cells, but not its files."""
    records = _records(path)
    header = next(records, (1, []))[1]
    columns, notes = _find_columns(path, header, group, use_groups)
    errors: dict[str, list[tuple[int, str]]] = {
        "width": [],
        "image": [],
        "label": [],
        "group": [],
        "split": [],
        "weight": [],
    }
    rows = []
    for number, record in records:
        if len(record) > len(header):
            errors["width"].append((number, f"{len(record)} cells"))
            continue
        cells = {name: record[index] if index < len(record) else "" for name, index in columns.items()}
        image = cells["image"]  # spaces are part of a path
        mask = str(PurePath(cells["mask"])) if cells.get("mask", "").strip() else None
        cells = {name: cell.strip() for name, cell in cells.items()}
        for name in (*REQUIRED_COLUMNS, "group"):
            if cells.get(name) == "":
                errors[name].append((number, ""))
        split = cells.get("split")
        if split is not None and split_of(split) is None:
            errors["split"].append((number, _quote(split)))
        weight = _parse_weight(cells.get("weight"))
        if weight is not None and not 0 <= weight < math.inf:
            errors["weight"].append((number, _quote(cells["weight"])))
        rows.append(
            Row(number, str(PurePath(image)), class_name(cells["label"]), split, cells.get("group"), weight, mask)
        )
    separator = SEPARATOR_NAMES[SEPARATORS[path.suffix.lower()]]
    for name, rule, advice in (
        (
            "width",
            f"every row of '{path}' must have the {len(header)} cells of the header or fewer",
            f"Put cells with {separator} in double quotes",
        ),
        ("image", f"every row of '{path}' must have an image", "Fill in the paths, or delete the rows"),
        ("label", f"every row of '{path}' must have a label", "Fill in the labels, or delete the rows"),
        (
            "group",
            f"every row of '{path}' must have a group in the column '{group or 'group'}'",
            "Fill in the groups, another one for each single image",
        ),
        ("weight", f"every weight in '{path}' must be a number of 0 or more", "Correct the cells"),
    ):
        if errors[name]:
            got = _describe(errors[name])
            raise InputError(f"{rule}, got {got if name in ('width', 'weight') else f'none in {got}'}. {advice}.")
    if errors["split"]:
        if not any(row.split for row in rows):
            return [row._replace(split=None) for row in rows], notes
        names = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
        raise InputError(
            f"every split in '{path}' must be one of {names}, got {_describe(errors['split'])}. Correct the cells, or "
            "delete the rows."
        )
    if not rows:
        raise InputError(f"'{path}' must have a row for each image, got only a header. Add rows.")
    return [row._replace(split=None if row.split is None else split_of(row.split)) for row in rows], notes


def _parse_weight(text: str | None) -> float | None:
    """Return the weight of a cell: 1 if it is empty, NaN if it is not a number, None without the column."""
    if text is None:
        return None
    try:
        return float(text or "1")
    except ValueError:
        return math.nan


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each row that is not empty."""
    separator = SEPARATORS[path.suffix.lower()]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
            try:
                for number, record in enumerate(reader, 1):
                    if any(map(str.strip, record)):
                        yield number, record
            except csv.Error as error:
                raise InputError(
                    f"'{path}' must be a table with cells separated by {SEPARATOR_NAMES[separator]}, got an error in "
                    f"line {reader.line_num} ({error}). Look for a double quote that is not closed."
                ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{path}' must be text in UTF-8, got other bytes ({error.reason} at byte {error.start:,}). Save the table "
            "as CSV in UTF-8."
        ) from error
    except OSError as error:
        raise InputError(f"'{path}' must be readable, got: {error.strerror}. Change its permissions.") from error


def _find_columns(
    path: Path, header: Sequence[str], group: str | None, use_groups: bool
) -> tuple[dict[str, int], list[str]]:
    """Return the index of each known column by its name in `COLUMNS`, and a note about the others."""
    names = [comparable_name(name) for name in header]
    sought = {name: name for name in COLUMNS if name != "group"}
    if use_groups:
        sought["group"] = comparable_name(group or "group")
    columns = {key: names.index(name) for key, name in sought.items() if name in names}
    shown = [escape_name(name) for name in header]
    if missing := [name for name in REQUIRED_COLUMNS if name not in columns]:
        separator = SEPARATORS[path.suffix.lower()]
        advice = (
            f"Separate the columns by {SEPARATOR_NAMES[separator]}"
            if len(header) == 1 and any(character in header[0] for character in ",;\t|")
            else "Name the columns in the first row"
        )
        raise InputError(
            f"'{path}' must have the columns {quote_names(REQUIRED_COLUMNS)}, got {quote_names(shown) or 'no columns'} "
            f"without {quote_names(missing)}. {advice}."
        )
    if group is not None and "group" not in columns:
        raise InputError(
            f"--group must be a column of '{path}', got {group!r}, and the columns {quote_names(shown)}. Choose one of "
            "them."
        )
    if double := sorted({shown[index] for index in columns.values() if names.count(names[index]) > 1}):
        raise InputError(
            f"the columns of '{path}' must have different names, got two of {quote_names(double)}. Rename one."
        )
    ignored = [name for index, name in enumerate(shown) if index not in columns.values() and names[index]]
    return columns, [f"columns that are not used were ignored: {quote_names(ignored)}"] if ignored else []


def _image_file(root: Path, image: str) -> ImageFile | str:
    """Return the image file, or the reason why there is none."""
    try:
        status = os.stat(os.path.join(root, image))
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # a zero byte
        return str(error)
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    return ImageFile(image, status.st_size, status.st_mtime_ns)


def _find_masks(
    path: Path, rows: Sequence[Row], bad_images: Literal["fail", "skip"]
) -> tuple[dict[int, MaskFile], list[str]]:
    """Return the mask of each row that has one, by the number of the row, and notes for the user."""
    masks = {}
    missing = []
    for row in rows:
        if row.mask is None:
            continue
        file = _image_file(path.parent, row.mask)
        if isinstance(file, str):
            missing.append((row.number, f"{_quote(row.mask)}: {file}"))
        else:
            masks[row.number] = MaskFile(file.name, file.bytes, file.modified_ns)
    if missing and bad_images == "fail":
        raise InputError(
            f"every mask of '{path}' must be a file, absolute or relative to '{path.parent}', got "
            f"{_describe(missing)}. Correct the paths, or leave the masks out with --bad-images skip."
        )
    return masks, [f"{len(missing):,} masks that are no files were left out: {_describe(missing)}"] if missing else []


def _check_once(path: Path, rows: Sequence[Row]) -> None:
    """Raise `InputError` if an image is in two rows. Two paths of one folder are equal."""
    folders: dict[str, str] = {}
    rows_by_file: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        folder, name = os.path.split(row.image)
        if folder not in folders:
            folders[folder] = os.path.realpath(os.path.join(path.parent, folder)) if "\0" not in folder else folder
        rows_by_file.setdefault((folders[folder], name), []).append(row)
    double = [group for group in rows_by_file.values() if len(group) > 1]
    if not double:
        return
    described = []
    for group in double:
        numbers = join_first([f"{row.number:,}" for row in group])
        labels = sorted({row.label for row in group})
        splits = [split for split in SPLITS if split in {row.split for row in group}]
        different = [
            *([f"labels {quote_names(labels)}"] if len(labels) > 1 else []),
            *([f"splits {', '.join(splits)}"] if len(splits) > 1 else []),
        ]
        description = f" ({' and '.join(different)})" if different else ""
        described.append(f"{_quote(group[0].image)} in rows {numbers}{description}")
    raise InputError(
        f"every image of '{path}' must be in one row, got {len(double):,} in several: {join_first(described, '; ')}. "
        "Delete the other rows."
    )


def _rows_by_split(path: Path, rows: Sequence[Row], test_only: bool) -> dict[str, list[Row]]:
    """Return the rows of each split that has rows."""
    if rows[0].split is None:
        return {"test" if test_only else "train": list(rows)}
    by_split: dict[str, list[Row]] = {}
    for split in SPLITS:
        if group := [row for row in rows if row.split == split]:
            by_split[split] = group
    if "train" in by_split:
        return by_split
    if test_only and "test" in by_split:
        return {"test": by_split["test"]}
    needed = "test" if test_only else "train"
    raise InputError(
        f"'{path}' must have rows with the split '{needed}', got only {quote_names(list(by_split))}. Add rows, or "
        "remove the column 'split'."
    )


def _check_classes(path: Path, by_split: Mapping[str, Sequence[Row]], labels: Collection[str], test_only: bool) -> None:
    """Raise `InputError` if val or test have a class that train lacks, or if there are fewer than two classes."""
    additional: dict[str, list[int]] = {}
    for rows in by_split.values():
        for row in rows:
            if row.label not in labels:
                additional.setdefault(row.label, []).append(row.number)
    if additional:
        names = sorted(additional)
        numbers = join_first([f"{number:,}" for number in sorted(n for group in additional.values() for n in group)])
        respelled = respelled_names(names, labels)
        got = join_first(respelled) if respelled else quote_names(names)
        advice = "Correct the labels" if respelled else "Add training images of these classes, or delete the rows"
        raise InputError(
            f"every label of val and test in '{path}' must be a label of train, got {got} in rows {numbers}. {advice}."
        )
    if len(labels) < 2 and not (test_only and "train" not in by_split):
        (name,) = labels
        rows_of = by_split.get("train", ())
        raise InputError(
            f"'{path}' must have two or more classes, got one, '{name}', in all {len(rows_of):,} rows. Add rows of "
            "another class."
        )


def _notes_of_equal_numbers(labels: Iterable[str]) -> list[str]:
    """Name the labels that are different texts of one number, such as 1 and 1.0."""
    groups: dict[float, list[str]] = {}
    for label in sorted(labels):
        try:
            groups.setdefault(float(label), []).append(label)
        except ValueError:
            continue
    return [
        f"{quote_names(group)} are different classes, although they are equal numbers"
        for group in groups.values()
        if len(group) > 1
    ]


def _describe(rows: Sequence[tuple[int, str]]) -> str:
    """List numbers of rows with their values."""
    return ("row " if len(rows) == 1 else "rows ") + join_first(
        [f"{number:,} ({value})" if value else f"{number:,}" for number, value in rows]
    )


def _quote(text: str) -> str:
    return f"'{escape_name(text)}'"
