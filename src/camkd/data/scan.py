"""List the splits, classes and image files of a folder. No image is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from unicodedata import normalize

from camkd.data.file_names import (
    count_suffixes,
    escape_name,
    join_first,
    quote_names,
    respelled_names,
)
from camkd.data.groups import add_groups
from camkd.data.listing import ClassFiles, ImageFile, Listing, MaskFile, notes_of_similar_names
from camkd.data.missing_splits import complete_splits
from camkd.data.splits import find_split_folders
from camkd.data.walker import (
    IMAGE_TYPES,
    Walker,
    class_name,
    describe_empty,
    describe_link,
    is_broken_link,
    is_folder,
    is_image,
    relative_name,
)
from camkd.types import InputError


def scan(root: Path, *, test_only: bool = False, group_regex: str | None = None) -> Listing:
    """List the image files of every split and class below a folder.

    The folder is ``<split>/<class>/*`` or ``<class>/*``. A folder ``masks`` with the same structure beside these
    folders has object masks: the mask of ``cat/1.jpg`` is ``masks/cat/1.png``. Images for a missing split are held out
    from train. Class names are compared and returned in the Unicode normal form NFC. A split may lack classes of train.

    Args:
        root: The folder.
        test_only: Whether a folder without a train folder is a test split: the images of its test folder, or all images
            if it has no split folders. Train and val are then empty. With a train folder, a class may be in one split
            only. One class is enough.
        group_regex: Regular expression that captures the group of an image in its path, relative to the folder. A group
            stays in one split. Ignored without train images.

    Returns:
        The image files and the notes for the user.

    Raises:
        InputError: If the folder does not have this structure, cannot be read, or has fewer than two classes. If the
            folder can be read as splits and as classes. If a class is in val or test, but not in train. If there are
            too few images to hold out a missing split. If a group is in two splits.

    Example:
        >>> scan(Path("pets")).classes             # doctest: +SKIP
        ('cat', 'dog')
    """
    if not root.is_dir():
        raise InputError(
            f"'{root}' must be a folder with one subfolder of images per class, or a table of images (.csv, .tsv), got "
            "another file. Choose a folder or a table."
        )
    try:
        splits, notes = _find_splits(root, test_only)
    except PermissionError as error:
        raise InputError(
            f"'{error.filename}' must be readable, got a permission error. Change its permissions."
        ) from error
    names = {name for classes in splits.values() for name in classes} if test_only else next(iter(splits.values()))
    for split in splits:
        _check_split(root, split, splits, names)
    if len(names) < 2 and not test_only:
        _raise_one_class(root, splits["train"])
    splits = {split: {name: classes.get(name, ()) for name in sorted(names)} for split, classes in splits.items()}
    if group_regex is not None and "train" in splits:
        splits = add_groups(splits, root, group_regex)
    complete, split_notes = complete_splits(splits, root, "folder", has_groups=group_regex is not None)
    return Listing(root, complete, (*notes, *split_notes))


def _find_splits(root: Path, test_only: bool) -> tuple[dict[str, ClassFiles], list[str]]:
    walker = Walker(root)
    folders, notes = find_split_folders(walker, test_only)
    splits: dict[str, ClassFiles] = {}
    ignored = _IgnoredFiles()
    class_folders: dict[Path, str] = {}
    for split, folder in folders.items():
        splits[split] = _find_classes(walker, folder, ignored, class_folders)
    if root not in folders.values():
        ignored.images += [Path(entry.path) for entry in walker.entries(root) if is_image(entry)]
    notes = [*notes, *ignored.notes(root), *walker.notes()]
    if walker.mask_folder is not None:
        masks = _find_masks(root, walker.mask_folder)
        splits, mask_notes = _add_masks(splits, masks, has_split_folders=root not in folders.values())
        notes += mask_notes
    return splits, notes


def _find_masks(root: Path, folder: Path) -> dict[str, MaskFile]:
    """Return the masks below a folder by their path in it, without suffix."""
    masks: dict[str, MaskFile] = {}
    for entry in Walker(folder).walk(folder, {folder.resolve()}):
        if not is_image(entry):
            continue
        mask = MaskFile(*image_file(root, entry)[:3])
        key = _mask_key(relative_name(folder, entry.path))
        if key in masks:
            raise InputError(
                f"an image in '{root}' must have one mask, got '{escape_name(masks[key].name)}' and "
                f"'{escape_name(mask.name)}'. Delete one of them."
            )
        masks[key] = mask
    return masks


def _mask_key(name: str) -> str:
    return normalize("NFC", Path(name).with_suffix("").as_posix())


def _add_masks(
    splits: Mapping[str, ClassFiles], masks: Mapping[str, MaskFile], *, has_split_folders: bool
) -> tuple[dict[str, ClassFiles], list[str]]:
    """Set the mask of each image file, and return notes about masks of no image.

    The mask of ``train/cat/1.jpg`` is ``train/cat/1`` or ``cat/1`` with any image suffix.
    """
    used = set()

    def add_mask(file: ImageFile) -> ImageFile:
        key = _mask_key(file.name)
        keys = [key, key.partition("/")[2]] if has_split_folders else [key]
        found = next((key for key in keys if key in masks), None)
        if found is None:
            return file
        used.add(found)
        return file._replace(mask=masks[found])

    with_masks: dict[str, ClassFiles] = {
        split: {name: [add_mask(file) for file in files] for name, files in classes.items()}
        for split, classes in splits.items()
    }
    unused = [masks[key].name for key in sorted(masks.keys() - used)]
    names = quote_names([escape_name(name) for name in unused])
    return with_masks, [f"{len(unused):,} masks of no image were ignored: {names}"] if unused else []


@dataclass
class _IgnoredFiles:
    """Files and folders that were ignored because they belong to no class."""

    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    spellings: list[str] = field(default_factory=list)

    def notes(self, root: Path) -> list[str]:
        """Return the notes about these files."""
        notes = []
        if self.images:
            names = quote_names([escape_name(relative_name(root, str(path))) for path in self.images])
            notes.append(f"{len(self.images):,} images outside of class folders were ignored: {names}")
        if self.others:
            counts = count_suffixes(self.others)
            notes.append(f"{len(self.others):,} files that are not images of a class were ignored: {counts}")
        if self.folders:
            notes.append(f"folders without images were ignored: {join_first(self.folders)}")
        return notes + self.spellings


def _find_classes(walker: Walker, folder: Path, ignored: _IgnoredFiles, class_folders: dict[Path, str]) -> ClassFiles:
    """Return the image files of each class folder in ``folder`` that holds images, sorted.

    Args:
        walker: Walker of the root.
        folder: Folder of a split.
        ignored: Collects ignored files.
        class_folders: Path of each class folder of all splits by its path without links. Class folders are added.

    Raises:
        InputError: If two class folders are one folder.
    """
    root = walker.root
    ancestors = {root.resolve(), folder.resolve()}
    classes: dict[str, list[ImageFile]] = {}
    spelling: dict[str, str] = {}
    images: list[Path] = []
    for entry in walker.entries(folder):
        if not is_folder(entry):
            (images if is_image(entry) else ignored.others).append(Path(entry.path))
            continue
        if (resolved := Path(entry.path).resolve()) in ancestors:
            continue
        entries = list(walker.walk(entry.path, ancestors | {resolved}))
        files = [image_file(root, file) for file in entries if is_image(file)]
        others = [Path(file.path) for file in entries if not is_image(file)]
        name = class_name(entry.name)
        if resolved in class_folders:
            raise InputError(
                f"class folders must be different folders, got '{class_folders[resolved]}' and '{entry.path}', which "
                "are one folder. Remove the link."
            )
        class_folders[resolved] = entry.path
        if not files:
            ignored.folders.append(describe_empty(root, entry.path, others))
            continue
        if name in classes:
            if normalize("NFC", entry.name) != normalize("NFC", spelling[name]):
                raise InputError(
                    f"class names must be unique, got two folders in '{folder}' that are displayed as '{name}'. Rename "
                    "one of them."
                )
            ignored.spellings.append(
                f"two folders in '{folder}' have the name '{name}' in different Unicode forms and are one class"
            )
        spelling[name] = entry.name
        classes[name] = sorted([*classes.get(name, []), *files])
        ignored.others += others
    if images and not classes:
        raise InputError(
            f"images must be in one folder per class, got {len(images):,} images directly in '{folder}'. "
            f"Move each image into a folder named after its class, such as '{folder / 'cat'}'."
        )
    ignored.images += images
    ignored.spellings += notes_of_similar_names(list(classes), f"'{folder}'")
    return classes


def image_file(root: Path, entry: os.DirEntry[str]) -> ImageFile:
    """Return the size and the modification time of an image file below ``root``."""
    try:
        status = os.stat(entry.path)
    except OSError:  # a broken symbolic link
        status = os.lstat(entry.path)
    return ImageFile(entry.path.removeprefix(f"{root}{os.sep}"), status.st_size, status.st_mtime_ns)


def _check_split(root: Path, split: str, splits: Mapping[str, ClassFiles], names: Collection[str]) -> None:
    """Raise `InputError` unless ``split`` has images, and only classes in ``names``."""
    classes = splits[split]
    location = f"'{root}'" if split == next(iter(splits)) else f"the {split} folder of '{root}'"
    if not classes:
        files = [Path(entry.path) for entry in Walker(root).walk(root, {root.resolve()})]
        advice = (
            "Convert the files, correct their suffixes, or choose another folder"
            if files
            else "Add one folder of images per class"
        )
        raise InputError(
            f"{location} must contain images ({IMAGE_TYPES}), got {count_suffixes(files) or 'none'}. {advice}."
        )
    additional = sorted(classes.keys() - names)
    if not additional:
        return
    missing = sorted(names - classes.keys())
    if respelled := respelled_names(additional, names):
        raise InputError(
            f"{location} must spell the class names like the train folder, got {join_first(respelled)}. Rename one of "
            "the folders; upper and lower case, spaces and invisible characters count."
        )
    differences = {"missing": missing, "additional": additional}
    listed = "; ".join(f"{kind}: {quote_names(group)}" for kind, group in differences.items() if group)
    raise InputError(
        f"{location} must have the classes of the train folder, got differences ({listed}). Rename or move the class "
        f"folders, or remove the {split} folder."
    )


def _raise_one_class(root: Path, classes: ClassFiles) -> NoReturn:
    (name,) = classes
    nested = all(re.match(rf"{re.escape(name)}/.+/", file.name) for file in classes[name])
    with os.scandir(root) as entries:
        links = [describe_link(root, entry.path) for entry in entries if is_broken_link(entry)]
    if links:
        advice = f"Correct the broken links {join_first(sorted(links))}."
    else:
        advice = f"Did you mean the folder '{root / name}'?" if nested else "Add a folder for each other class."
    raise InputError(f"'{root}' must have two or more classes, got one, '{name}'. {advice}")
