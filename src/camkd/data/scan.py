"""What lies in a folder of pictures: the splits, their classes, their files. Opens none of them."""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unicodedata import category

import numpy as np

from camkd.data.dataset import SPLITS, balanced_subset, limited_to
from camkd.data.images import SUFFIXES
from camkd.types import InputError

FOLDER_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What a split's folder may be called, in capitals or not."""
SHARE = 0.1
"""How much of each class is held out for a split that is missing."""
KINDS = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
HIDDEN = ("Cc", "Zl", "Zp")
"""Unicode categories of what would begin a new line or tell a terminal to do something."""
LISTED = 10
"""How many names a message gives before it only counts them."""


class ImageFile(NamedTuple):
    """A picture file: its path below the root, and what tells that it changed."""

    name: str
    bytes: int
    modified_ns: int


Classes = Mapping[str, Sequence[ImageFile]]
"""The pictures of each class, by the class's name."""


@dataclass(frozen=True)
class FolderListing:
    """What lies in a folder: the pictures of each split's classes, and what a person should know of it."""

    root: Path
    splits: Mapping[str, Classes]
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(self.splits["train"]))

    def rows(self, split: str) -> list[tuple[int, ImageFile]]:
        """Label and picture for each row of ``split``, by class and then by name."""
        found = self.splits[split]
        return [(label, picture) for label, name in enumerate(self.classes) for picture in found[name]]

    def paths(self, split: str) -> list[str]:
        """Where the picture of each row of ``split`` lies."""
        return [os.path.join(self.root, picture.name) for _, picture in self.rows(split)]

    def spread(self, split: str, n: int) -> list[str]:
        """Where at most ``n`` pictures of ``split`` lie: as many of each class, far apart in it, of ``n`` classes."""
        found = list(self.splits[split].values())
        classes = found[:: _step(found, n)]
        chosen = [picture for pictures in classes for picture in pictures[:: _step(pictures, n // len(classes))]]
        return [os.path.join(self.root, picture.name) for picture in chosen]

    def limited(self, n: int, of: tuple[str, ...] = SPLITS) -> FolderListing:
        """The first ``n`` pictures of each split ``of`` these, the classes taking turns, as in `Dataset.limited`."""
        if n >= max(len(self.rows(split)) for split in of):
            return self
        classes, splits = self.classes, dict(self.splits)
        for split in of:
            rows = self.rows(split)
            kept: dict[str, list[ImageFile]] = {name: [] for name in classes}
            for row in balanced_subset(np.array([label for label, _ in rows], np.int64), n):
                label, picture = rows[row]
                kept[classes[label]].append(picture)
            splits[split] = kept
        return FolderListing(self.root, splits, (*self.notes, limited_to(n, of)))


def scan(root: Path, *, unseen: bool = False) -> FolderListing:
    """Find the pictures of every split and class below ``root``, without opening any.

    Of ``unseen`` pictures, where there is no train folder, none are for train and val and all for test: those of the
    test folder, or of ``root`` where that has no splits.

    Raises `InputError` where a person has to put something right first.
    """
    if not root.is_dir():
        raise InputError(f"'{root}' is a file, but a folder with one folder of pictures a class is needed.")
    try:
        found, notes = _find_splits(root, unseen)
    except PermissionError as error:
        raise InputError(f"'{error.filename}' cannot be opened: allow yourself to read it.") from error
    for split in found:
        _check_split(root, split, found)
    missing = [split for split in SPLITS if split not in found]
    if "train" in missing:
        found = {split: found["test"] if split == "test" else dict.fromkeys(found["test"], ()) for split in SPLITS}
    elif missing:
        found |= _make_splits(root, found["train"], missing)
        counts = [f"{sum(map(len, found[split].values())):,} {split}" for split in ("train", *missing)]
        notes.append(f"there was no {' and no '.join(missing)} folder, so the split was made here: {', '.join(counts)}")
    return FolderListing(root, found, tuple(notes))


def _make_splits(root: Path, train: Classes, missing: Sequence[str]) -> dict[str, Classes]:
    """Train without what is held out, and each split in ``missing``."""
    parts = {name: _divide(pictures, missing) for name, pictures in train.items()}
    for split in missing:
        if not any(divided[split] for divided in parts.values()):
            raise InputError(
                f"'{root}' has too few pictures to hold some out for {split}: add pictures, three a "
                f"class at least, or a '{split}' folder."
            )
    return {split: {name: parts[name][split] for name in parts} for split in ("train", *missing)}


def _find_splits(root: Path, unseen: bool) -> tuple[dict[str, Classes], list[str]]:
    folders = _split_folders(root, unseen)
    found: dict[str, Classes] = {}
    ignored = 0
    for split, folder in folders.items():
        found[split], others = _find_classes(root, folder)
        ignored += others
    return found, [f"{ignored:,} files that are no pictures of a class were ignored"] if ignored else []


def _split_folders(root: Path, unseen: bool) -> dict[str, Path]:
    """The folder of each split that is there; ``root`` as train for a plain ``<class>/*`` tree, ``unseen`` as test.

    Folders with a split's name are classes where all of them hold pictures directly and another folder is beside them.
    """
    entries = [Path(entry.path) for entry in _entries(root) if _is_folder(entry)]
    folders = {}
    for split, names in FOLDER_NAMES.items():
        present = [folder for folder in entries if folder.name.lower() in names]
        if len(present) > 1:
            raise InputError(
                f"'{root}' has '{present[0].name}' and '{present[1].name}', which mean the same: keep one."
            )
        if present:
            folders[split] = present[0]
    others = len(entries) > len(folders)
    if not folders or (others and all(any(map(_is_picture, _entries(folder))) for folder in folders.values())):
        _check_classes(root, entries)
        return {"test" if unseen else "train": root}
    if unseen and "train" not in folders and "test" in folders:
        return {"test": folders["test"]}
    if "train" not in folders:
        held = " and ".join(f"'{folder.name}'" for folder in folders.values())
        raise InputError(f"'{root}' has {held} but no 'train' folder: add train/<class>/ with the pictures.")
    return folders


def _check_classes(root: Path, folders: Sequence[Path]) -> None:
    """Raise `InputError` where the ``folders`` look like splits by other names, such as train_set and test_set."""
    words = tuple(name for names in FOLDER_NAMES.values() for name in names)
    if sum(folder.name.lower().startswith(words) for folder in folders) < 2:
        return
    held = [_entries(folder) for folder in folders]
    below = {tuple(entry.name for entry in entries if _is_folder(entry)) for entries in held}
    loose = any(_is_picture(entry) for entries in held for entry in entries)
    if len(below) == 1 and len(below.pop()) > 1 and not loose:
        raise InputError(
            f"{quoted([plain(folder.name) for folder in folders])} in '{root}' hold the same folders, which looks like "
            "splits and not like classes: call them train, val and test."
        )


def _find_classes(root: Path, folder: Path) -> tuple[Classes, int]:
    """The pictures of each class folder in ``folder``, sorted, and how many other files there are."""
    above = {root.resolve(), folder.resolve()}
    classes: dict[str, list[ImageFile]] = {}
    ignored = loose = 0
    for entry in _entries(folder):
        if not _is_folder(entry):
            loose += _is_picture(entry)
            ignored += 1
        elif (resolved := Path(entry.path).resolve()) not in above:
            files = list(_walk(Path(entry.path), above | {resolved}))
            pictures = [_picture(root, file) for file in files if _is_picture(file)]
            name = plain(entry.name)
            if name in classes:
                raise InputError(f"'{folder}' has two class folders that are both written '{name}': rename one.")
            classes[name] = sorted(pictures)
            ignored += len(files) - len(pictures)
    if loose and not any(classes.values()):
        raise InputError(
            f"the {loose:,} pictures in '{folder}' lie directly in it, not in class folders: put each into a "
            f"folder named after its class, such as '{folder / 'cat'}'."
        )
    return classes, ignored


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)


def _walk(folder: Path, seen: set[Path]) -> Iterator[os.DirEntry[str]]:
    """Every file below ``folder``; a folder that links lead to again is visited once."""
    for entry in _entries(folder):
        if not _is_folder(entry):
            yield entry
        elif (resolved := Path(entry.path).resolve()) not in seen:
            seen.add(resolved)
            yield from _walk(Path(entry.path), seen)


def find_images(folder: Path) -> list[Path]:
    """Every picture file below ``folder``, sorted; hidden ones are left out.

    Raises `InputError` where there is none.
    """
    found = sorted(Path(entry.path) for entry in _walk(folder, {folder.resolve()}) if _is_picture(entry))
    if not found:
        raise InputError(f"no pictures ({KINDS}) were found in '{folder}': name pictures, or a folder that holds some.")
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_picture(entry: os.DirEntry[str]) -> bool:
    """Whether it is named like a picture and is a file, or a link to nowhere: decoding reports those."""
    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
        return False
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def _picture(root: Path, entry: os.DirEntry[str]) -> ImageFile:
    try:
        status = os.stat(entry.path)
    except OSError:  # a link to nowhere
        status = os.lstat(entry.path)
    return ImageFile(entry.path.removeprefix(f"{root}{os.sep}"), status.st_size, status.st_mtime_ns)


def plain(name: str) -> str:
    r"""``name`` as it can be written to UTF-8 and shown in a line: other bytes and control characters as ``\x1b``."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(sign.encode("unicode_escape").decode() if category(sign) in HIDDEN else sign for sign in text)


def _check_split(root: Path, split: str, found: Mapping[str, Classes]) -> None:
    """Raise `InputError` unless ``split`` has pictures of two or more classes, the same as those of the first."""
    classes, expected = found[split], next(iter(found.values()))
    where = f"'{root}'" if classes is expected else f"the {split} folder of '{root}'"
    if not any(classes.values()):
        raise InputError(f"no pictures ({KINDS}) were found in {where}: put them in one folder a class.")
    differing = {"lacks": expected.keys() - classes.keys(), "adds": classes.keys() - expected.keys()}
    if any(differing.values()):
        said = " and ".join(f"{verb} {quoted(sorted(names))}" for verb, names in differing.items() if names)
        raise InputError(
            f"{where} {said}, but its classes must be those of the train folder: rename or move the class "
            f"folders, or do without {split}."
        )
    empty = [name for name, pictures in classes.items() if not pictures]
    if empty:
        raise InputError(f"{where} has no picture of {quoted(empty)}: add some, or remove the empty folder.")
    if len(classes) < 2:
        (name,) = classes
        nested = all(re.match(rf"{re.escape(name)}/.+/", picture.name) for picture in classes[name])
        hint = f"is '{root / name}' the folder you mean?" if nested else "add a folder for each other class."
        raise InputError(f"{where} has one class, '{name}', but two or more are needed: {hint}")


def _step(row: Sequence[object], n: int) -> int:
    """How far apart at most ``n`` of ``row`` lie that reach through all of it."""
    return max(1, -(-len(row) // n))


def quoted(names: Sequence[str]) -> str:
    """The first few of ``names`` in quotation marks, and how many more there are."""
    return first([f"'{name}'" for name in names])


def first(said: Sequence[str], between: str = ", ") -> str:
    """The first few of ``said``, and how many more there are."""
    more = [f"and {len(said) - LISTED:,} more"] if len(said) > LISTED else []
    return between.join([*said[:LISTED], *more])


def _place(picture: ImageFile) -> float:
    """A number in 0..1 that depends on the path alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(picture.name)).digest()[:6], "big") / 2**48


def _divide(pictures: Sequence[ImageFile], missing: Sequence[str]) -> dict[str, list[ImageFile]]:
    """Part a class into train and the splits in ``missing``, a tenth each, by each picture's place.

    Every split gets a picture, train first, as long as there are enough.
    """
    placed = sorted((_place(picture), picture) for picture in pictures)
    places, ordered = [place for place, _ in placed], [picture for _, picture in placed]
    starts = [bisect_left(places, 1 - SHARE * shares) for shares in range(len(missing), 0, -1)]
    starts.append(len(ordered))
    for split in reversed(range(len(missing))):
        starts[split] = min(starts[split], starts[split + 1] - 1)
    for split in range(len(missing)):
        starts[split] = min(max(starts[split], split + 1), len(ordered))
    borders = zip(("train", *missing), [0, *starts], starts, strict=False)
    return {split: sorted(ordered[start:stop]) for split, start, stop in borders}
