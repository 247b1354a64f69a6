"""List the splits, classes and image files of a folder. No image is opened."""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unicodedata import category

import numpy as np

from camkd.data.dataset import SPLITS, balanced_subset, limit_note
from camkd.data.image_formats import SUFFIXES
from camkd.types import InputError
from camkd.utils.text import shorten_middle

SPLIT_FOLDER_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Folder names of each split, compared without regard to case."""

HELD_OUT_FRACTION = 0.1
"""Fraction of each class that is held out for a missing split."""

IMAGE_TYPES = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))

ESCAPED_CATEGORIES = ("Cc", "Zl", "Zp")
"""Unicode categories of control characters, which a terminal may execute, and of line and paragraph separators."""

MAX_SUFFIX_WIDTH = 16
"""Largest number of columns of a file suffix in a message."""

MAX_LISTED = 10
"""Maximum number of items that a message lists. Further items are counted."""


class ImageFile(NamedTuple):
    """Image file.

    Attributes:
        name: Path relative to the root of the dataset.
        bytes: Size of the file.
        modified_ns: Modification time in nanoseconds.
    """

    name: str
    bytes: int
    modified_ns: int


ClassFiles = Mapping[str, Sequence[ImageFile]]
"""Image files of each class, by class name."""


@dataclass(frozen=True)
class FolderListing:
    """Image files of a folder by split and class.

    Args:
        root: The folder.
        splits: Image files of each split and class.
        notes: Messages for the user, for example that a split was made.
    """

    root: Path
    splits: Mapping[str, ClassFiles]
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, sorted."""
        return tuple(sorted(self.splits["train"]))

    def samples(self, split: str) -> list[tuple[int, ImageFile]]:
        """Return the label and the file of each image of ``split``, sorted by class, then by file name."""
        files = self.splits[split]
        return [(label, file) for label, name in enumerate(self.classes) for file in files[name]]

    def paths(self, split: str) -> list[str]:
        """Return the path of each image of ``split``, in the order of `samples`."""
        return [os.path.join(self.root, file.name) for _, file in self.samples(split)]

    def sample_paths(self, split: str, n: int) -> list[str]:
        """Return the paths of at most ``n`` evenly spaced images of at most ``n`` evenly spaced classes of ``split``.

        The classes share ``n`` equally; a class with fewer images than its share contributes all of them.
        """
        all_classes = list(self.splits[split].values())
        classes = all_classes[:: _stride(all_classes, n)]
        chosen = [file for files in classes for file in files[:: _stride(files, n // len(classes))]]
        return [os.path.join(self.root, file.name) for file in chosen]

    def limited(self, n: int, splits: tuple[str, ...] = SPLITS) -> FolderListing:
        """Keep ``n`` images of each of ``splits``: the first images of each class, as `Dataset.limited` does."""
        if n >= max(len(self.samples(split)) for split in splits):
            return self
        classes = self.classes
        limited_splits = dict(self.splits)
        for split in splits:
            samples = self.samples(split)
            kept: dict[str, list[ImageFile]] = {name: [] for name in classes}
            for row in balanced_subset(np.array([label for label, _ in samples], np.int64), n):
                label, file = samples[row]
                kept[classes[label]].append(file)
            limited_splits[split] = kept
        return FolderListing(self.root, limited_splits, (*self.notes, limit_note(n, splits)))


def scan(root: Path, *, test_only: bool = False) -> FolderListing:
    """List the image files of every split and class below a folder.

    The folder is ``<split>/<class>/*`` or ``<class>/*``. Images for a missing split are held out from train.

    Args:
        root: The folder.
        test_only: Whether a folder without a train folder is a test split: the images of its test folder, or all images
            if it has no split folders. Train and val are then empty.

    Returns:
        The image files and the notes for the user.

    Raises:
        InputError: If the folder does not have this structure, cannot be read, or has fewer than two classes. If a
            class has no image. If there are too few images to hold out a missing split.

    Example:
        >>> scan(Path("pets")).classes             # doctest: +SKIP
        ('cat', 'dog')
    """
    if not root.is_dir():
        raise InputError(
            f"'{root}' must be a folder with one subfolder of images per class, got a file. Choose a folder."
        )
    try:
        splits, notes = _find_splits(root, test_only)
    except PermissionError as error:
        raise InputError(
            f"'{error.filename}' must be readable, got a permission error. Change its permissions."
        ) from error
    for split in splits:
        _check_split(root, split, splits)
    missing = [split for split in SPLITS if split not in splits]
    if "train" in missing:
        no_files: ClassFiles = dict.fromkeys(splits["test"], ())
        splits = {"train": no_files, "val": no_files, "test": splits["test"]}
    elif missing:
        splits |= _hold_out_splits(root, splits["train"], missing)
        counts = [f"{sum(map(len, splits[split].values())):,} {split}" for split in ("train", *missing)]
        notes.append(
            f"there is no {' and no '.join(missing)} folder, so images of train were held out: {', '.join(counts)}"
        )
    return FolderListing(root, splits, tuple(notes))


def _hold_out_splits(root: Path, train: ClassFiles, missing: Sequence[str]) -> dict[str, ClassFiles]:
    """Divide the images of train into train and the ``missing`` splits."""
    parts = {name: _assign_splits(files, missing) for name, files in train.items()}
    for split in missing:
        if not any(part[split] for part in parts.values()):
            raise InputError(
                f"'{root}' must have enough images to hold some out for {split}, got too few. Add images, at least "
                f"three per class, or add a '{split}' folder."
            )
    return {split: {name: parts[name][split] for name in parts} for split in ("train", *missing)}


def _find_splits(root: Path, test_only: bool) -> tuple[dict[str, ClassFiles], list[str]]:
    splits: dict[str, ClassFiles] = {}
    ignored: list[Path] = []
    for split, folder in _split_folders(root, test_only).items():
        splits[split], others = _find_classes(root, folder)
        ignored += others
    if not ignored:
        return splits, []
    return splits, [f"{len(ignored):,} files that are not images of a class were ignored: {count_suffixes(ignored)}"]


def _split_folders(root: Path, test_only: bool) -> dict[str, Path]:
    """Return the folder of each split that exists.

    ``root`` itself is the train folder, or the test folder with ``test_only``, if it contains only class folders.
    Folders with the name of a split are class folders if all of them directly contain images and ``root`` has other
    folders.
    """
    subfolders = [Path(entry.path) for entry in _visible_entries(root) if _is_folder(entry)]
    folders = {}
    for split, names in SPLIT_FOLDER_NAMES.items():
        matching = [folder for folder in subfolders if folder.name.lower() in names]
        if len(matching) > 1:
            raise InputError(
                f"'{root}' must have one {split} folder, got '{matching[0].name}' and '{matching[1].name}'. Keep one "
                "of them."
            )
        if matching:
            folders[split] = matching[0]
    has_other_folders = len(subfolders) > len(folders)
    if not folders or (has_other_folders and all(map(_contains_images, folders.values()))):
        _check_not_splits(root, subfolders)
        return {"test" if test_only else "train": root}
    if test_only and "train" not in folders and "test" in folders:
        return {"test": folders["test"]}
    if "train" not in folders:
        existing = " and ".join(f"'{folder.name}'" for folder in folders.values())
        raise InputError(
            f"'{root}' must have a 'train' folder, got only {existing}. Add train/<class>/ with the images."
        )
    return folders


def _contains_images(folder: Path) -> bool:
    return any(map(_is_image, _visible_entries(folder)))


def _check_not_splits(root: Path, folders: Sequence[Path]) -> None:
    """Raise `InputError` if ``folders`` look like splits with other names, for example train_set and test_set."""
    prefixes = tuple(name for names in SPLIT_FOLDER_NAMES.values() for name in names)
    if sum(folder.name.lower().startswith(prefixes) for folder in folders) < 2:
        return
    contents = [_visible_entries(folder) for folder in folders]
    subfolder_names = {tuple(entry.name for entry in entries if _is_folder(entry)) for entries in contents}
    has_images = any(_is_image(entry) for entries in contents for entry in entries)
    if len(subfolder_names) == 1 and len(subfolder_names.pop()) > 1 and not has_images:
        raise InputError(
            f"the folders in '{root}' must be classes or train, val and test, got "
            f"{quote_names([escape_name(folder.name) for folder in folders])} with the same subfolders. Rename them to "
            "train, val and test."
        )


def _find_classes(root: Path, folder: Path) -> tuple[ClassFiles, list[Path]]:
    """Return the image files of each class folder in ``folder``, sorted, and the ignored files."""
    ancestors = {root.resolve(), folder.resolve()}
    classes: dict[str, list[ImageFile]] = {}
    ignored: list[Path] = []
    images_outside_classes = 0
    for entry in _visible_entries(folder):
        if not _is_folder(entry):
            images_outside_classes += _is_image(entry)
            ignored.append(Path(entry.path))
        elif (resolved := Path(entry.path).resolve()) not in ancestors:
            entries = list(_walk(Path(entry.path), ancestors | {resolved}))
            files = [_image_file(root, file) for file in entries if _is_image(file)]
            name = escape_name(entry.name)
            if name in classes:
                raise InputError(
                    f"class names must be unique, got two folders in '{folder}' that are displayed as '{name}'. Rename "
                    "one of them."
                )
            classes[name] = sorted(files)
            ignored += [Path(file.path) for file in entries if not _is_image(file)]
    if images_outside_classes and not any(classes.values()):
        raise InputError(
            f"images must be in one folder per class, got {images_outside_classes:,} images directly in '{folder}'. "
            f"Move each image into a folder named after its class, such as '{folder / 'cat'}'."
        )
    return classes, ignored


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the files and folders in ``folder`` that are not hidden, sorted by name."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)


def _walk(folder: Path, visited: set[Path]) -> Iterator[os.DirEntry[str]]:
    """Yield every file below ``folder``. Symbolic links are followed; each folder is visited once."""
    for entry in _visible_entries(folder):
        if not _is_folder(entry):
            yield entry
        elif (resolved := Path(entry.path).resolve()) not in visited:
            visited.add(resolved)
            yield from _walk(Path(entry.path), visited)


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the files below a folder, sorted. Hidden files and folders are ignored.

    Args:
        folder: The folder.

    Returns:
        Paths of the image files, at least one, and of the other files.

    Raises:
        InputError: If there is no image file.
    """
    images: list[Path] = []
    others: list[Path] = []
    for entry in _walk(folder, {folder.resolve()}):
        (images if _is_image(entry) else others).append(Path(entry.path))
    if not images:
        raise InputError(
            f"'{folder}' must contain images ({IMAGE_TYPES}), got {count_suffixes(others) or 'none'}. Choose images or "
            "a folder that contains images."
        )
    return sorted(images), sorted(others)


def count_suffixes(paths: Iterable[Path]) -> str:
    """Count files by suffix, the most frequent first.

    Args:
        paths: The files.

    Returns:
        The counts on one line.

    Example:
        >>> count_suffixes([Path("a.tif"), Path("b.TIF"), Path("LICENSE")])
        '2 .tif, 1 without suffix'
    """
    counts = Counter(shorten_middle(path.suffix.lower(), MAX_SUFFIX_WIDTH) or "without suffix" for path in paths)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return join_first([f"{count:,} {escape_name(suffix)}" for suffix, count in ordered])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a file with an image suffix.

    A broken symbolic link is included, so that decoding reports it.
    """
    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
        return False
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def _image_file(root: Path, entry: os.DirEntry[str]) -> ImageFile:
    try:
        status = os.stat(entry.path)
    except OSError:  # a broken symbolic link
        status = os.lstat(entry.path)
    return ImageFile(entry.path.removeprefix(f"{root}{os.sep}"), status.st_size, status.st_mtime_ns)


def escape_name(name: str) -> str:
    r"""Return a file name as one line of valid UTF-8; undecodable bytes and control characters become ``\x1b``."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        character.encode("unicode_escape").decode() if category(character) in ESCAPED_CATEGORIES else character
        for character in text
    )


def _check_split(root: Path, split: str, splits: Mapping[str, ClassFiles]) -> None:
    """Raise `InputError` unless ``split`` has two or more classes with images, the same as the first split."""
    classes = splits[split]
    expected = next(iter(splits.values()))
    location = f"'{root}'" if classes is expected else f"the {split} folder of '{root}'"
    if not any(classes.values()):
        raise InputError(
            f"{location} must contain images ({IMAGE_TYPES}), got none. Add one folder of images per class."
        )
    differences = {"missing": expected.keys() - classes.keys(), "additional": classes.keys() - expected.keys()}
    if any(differences.values()):
        listed = "; ".join(f"{kind}: {quote_names(sorted(names))}" for kind, names in differences.items() if names)
        raise InputError(
            f"{location} must have the classes of the train folder, got differences ({listed}). Rename or move the "
            f"class folders, or remove the {split} folder."
        )
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise InputError(
            f"every class folder in {location} must contain images, got none of {quote_names(empty)}. Add images, or "
            "remove the empty folder."
        )
    if len(classes) < 2:
        (name,) = classes
        nested = all(re.match(rf"{re.escape(name)}/.+/", file.name) for file in classes[name])
        advice = f"Did you mean the folder '{root / name}'?" if nested else "Add a folder for each other class."
        raise InputError(f"{location} must have two or more classes, got one, '{name}'. {advice}")


def _stride(items: Sequence[object], n: int) -> int:
    """Return the smallest step for which ``items[::step]`` has at most ``n`` items."""
    return max(1, -(-len(items) // n))


def quote_names(names: Sequence[str]) -> str:
    """Join the first `MAX_LISTED` names in quotation marks and count the others."""
    return join_first([f"'{name}'" for name in names])


def join_first(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first `MAX_LISTED` items and count the others."""
    others = [f"and {len(items) - MAX_LISTED:,} more"] if len(items) > MAX_LISTED else []
    return separator.join([*items[:MAX_LISTED], *others])


def _path_hash(file: ImageFile) -> float:
    """Hash the path of an image to a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(os.fsencode(file.name)).digest()[:6], "big") / 2**48


def _assign_splits(files: Sequence[ImageFile], missing: Sequence[str]) -> dict[str, list[ImageFile]]:
    """Divide the images of a class into train and the ``missing`` splits, a tenth each, by a hash of their paths.

    Every split gets at least one image if there are enough images. Otherwise train has priority.
    """
    by_hash = sorted((_path_hash(file), file) for file in files)
    hashes = [value for value, _ in by_hash]
    ordered = [file for _, file in by_hash]
    starts = [bisect_left(hashes, 1 - HELD_OUT_FRACTION * count) for count in range(len(missing), 0, -1)]
    starts.append(len(ordered))
    for index in reversed(range(len(missing))):
        starts[index] = min(starts[index], starts[index + 1] - 1)
    for index in range(len(missing)):
        starts[index] = min(max(starts[index], index + 1), len(ordered))
    borders = zip(("train", *missing), [0, *starts], starts, strict=False)
    return {split: sorted(ordered[start:stop]) for split, start, stop in borders}
