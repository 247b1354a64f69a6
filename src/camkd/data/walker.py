"""List the folders and image files below a folder, without the files of the operating system and of camkd."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

from camkd.data.file_names import comparable_name, count_suffixes, escape_name, join_first, quote_names
from camkd.data.ignored import is_own_folder, is_system_name
from camkd.data.image_formats import SUFFIXES
from camkd.data.listing import split_of
from camkd.types import InputError

IMAGE_TYPES = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
"""Suffixes of the image files that are decoded, for messages."""

OTHER_IMAGE_SUFFIXES = {
    ".ai", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dib", ".dng", ".eps", ".exr", ".heic", ".heif", ".ico",
    ".j2k", ".jp2", ".jxl", ".jxr", ".nef", ".orf", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".raf",
    ".raw", ".rw2", ".svg", ".tga", ".tif", ".tiff",
} - SUFFIXES  # fmt: skip
"""Suffixes of image files that are not decoded. A class folder of such files is an error."""


@dataclass
class Walker:
    """Reader of folders that leaves out the folders and files of `camkd.data.ignored`, and records them for notes.

    Args:
        root: The folder that paths in notes are relative to.
    """

    root: Path
    system_folders: set[str] = field(default_factory=set)
    own_folders: set[str] = field(default_factory=set)
    hidden_images: set[str] = field(default_factory=set)
    broken_links: set[str] = field(default_factory=set)
    mask_folder: Path | None = None

    def entries(self, folder: Path | str) -> list[os.DirEntry[str]]:
        """Return the folders and files in ``folder``, sorted by name."""
        with os.scandir(folder) as iterator:
            entries = sorted(iterator, key=lambda entry: entry.name)
        return [entry for entry in entries if self._is_kept(entry)]

    def _is_kept(self, entry: os.DirEntry[str]) -> bool:
        entry_is_folder = is_folder(entry)
        if is_system_name(entry.name):
            if entry_is_folder:
                self.system_folders.add(entry.path)
            elif is_image(entry):
                self.hidden_images.add(entry.path)
            return False
        if entry_is_folder and is_own_folder(entry.path):
            self.own_folders.add(entry.path)
            return False
        if entry_is_folder and is_mask_folder(entry.path, self.root):
            self.mask_folder = Path(entry.path)
            return False
        if is_broken_link(entry):
            self.broken_links.add(entry.path)
            return False
        return True

    def folders(self, folder: Path | str) -> list[os.DirEntry[str]]:
        """Return the folders in ``folder``, sorted by name."""
        return [entry for entry in self.entries(folder) if is_folder(entry)]

    def walk(self, folder: Path | str, visited: set[Path]) -> Iterator[os.DirEntry[str]]:
        """Yield every file below ``folder``. Symbolic links are followed; each folder is visited once."""
        for entry in self.entries(folder):
            if not is_folder(entry):
                yield entry
            elif (resolved := Path(entry.path).resolve()) not in visited:
                visited.add(resolved)
                yield from self.walk(entry.path, visited)

    def images(self, folder: Path | str) -> Iterator[os.DirEntry[str]]:
        """Yield every image file below ``folder``, but not those below a link to a folder above it."""
        visited = {self.root.resolve(), Path(folder).resolve()}
        return (entry for entry in self.walk(folder, visited) if is_image(entry))

    def count_direct_images(self, folder: Path | str) -> int:
        """Count the images that lie directly in ``folder``."""
        return sum(map(is_image, self.entries(folder)))

    def class_names(self, folder: Path | str) -> set[str]:
        """Return the names of the folders in ``folder`` that hold images."""
        return {class_name(entry.name) for entry in self.folders(folder) if any(self.images(entry.path))}

    def notes(self) -> list[str]:
        """Return the notes about everything that was ignored."""
        notes = []
        if self.system_folders:
            counts = Counter(os.path.basename(path) for path in self.system_folders)
            names = [f"{count:,} '{escape_name(name)}'" for name, count in sorted(counts.items())]
            notes.append(
                f"{len(self.system_folders):,} folders of the operating system or of tools were ignored: "
                f"{join_first(names)}"
            )
        for description, paths in (
            ("folders that camkd wrote", self.own_folders),
            ("hidden images", self.hidden_images),
        ):
            if paths:
                notes.append(f"{len(paths):,} {description} were ignored: {self._quote(sorted(paths))}")
        if self.broken_links:
            links = join_first([describe_link(self.root, path) for path in sorted(self.broken_links)])
            notes.append(f"{len(self.broken_links):,} broken links were ignored: {links}")
        return notes

    def _quote(self, paths: Sequence[str]) -> str:
        return quote_names([escape_name(relative_name(self.root, path)) for path in paths])


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the files below a folder, sorted. Files and folders of `camkd.data.ignored` are left out.

    Args:
        folder: The folder.

    Returns:
        Paths of the image files, at least one, and of the other files.

    Raises:
        InputError: If there is no image file.
    """
    images: list[Path] = []
    others: list[Path] = []
    for entry in Walker(folder).walk(folder, {folder.resolve()}):
        (images if is_image(entry) else others).append(Path(entry.path))
    if not images:
        raise InputError(
            f"'{folder}' must contain images ({IMAGE_TYPES}), got {count_suffixes(others) or 'none'}. Choose images or "
            "a folder that contains images."
        )
    return sorted(images), sorted(others)


def holds_images(folder: Path) -> bool:
    """Return whether a subfolder of a folder holds images. A folder that camkd wrote holds none.

    Args:
        folder: The folder.
    """
    return not is_own_folder(folder) and bool(Walker(folder).class_names(folder))


def is_mask_folder(folder: str, root: Path) -> bool:
    """Return whether a folder holds object masks, in folders with the names of the classes or splits beside it.

    Such a folder is ``root/masks``. It holds no image directly. Otherwise it is a class.

    Args:
        folder: The folder.
        root: Folder of the dataset.
    """
    if os.path.dirname(folder) != str(root) or comparable_name(os.path.basename(folder)) != "masks":
        return False
    with os.scandir(folder) as iterator:
        entries = [entry for entry in iterator if not is_system_name(entry.name)]
    if any(map(is_image, entries)):
        return False
    with os.scandir(root) as iterator:
        beside = {entry.path: class_name(entry.name) for entry in iterator if is_folder(entry) and entry.path != folder}
    classes = set(beside.values())
    for path, name in beside.items():
        if split_of(name):
            with os.scandir(path) as iterator:
                classes |= {class_name(entry.name) for entry in iterator if is_folder(entry)}
    return any(class_name(entry.name) in classes for entry in entries if is_folder(entry))


def describe_empty(root: Path, path: str, files: Sequence[Path]) -> str:
    """Describe a folder without images. Raise `InputError` if it holds images of formats that are not decoded."""
    counts = count_suffixes(files)
    if any(file.suffix.lower() in OTHER_IMAGE_SUFFIXES for file in files):
        raise InputError(
            f"the folder '{path}' must contain images ({IMAGE_TYPES}), got {counts}. Convert the images, or remove the "
            "folder."
        )
    name = f"'{escape_name(relative_name(root, path))}'"
    return f"{name} ({counts})" if files else name


def describe_link(root: Path, path: str) -> str:
    """Return the name of a symbolic link and its target."""
    return f"'{escape_name(relative_name(root, path))}' to '{escape_name(os.readlink(path))}'"


def relative_name(root: Path, path: str) -> str:
    """Return a path below ``root`` without ``root``."""
    return path.removeprefix(f"{root}{os.sep}")


def class_name(folder_name: str) -> str:
    """Return the displayed name of a class folder, in the normal form NFC."""
    return normalize("NFC", escape_name(folder_name))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a symbolic link to a folder."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a file with an image suffix.

    A broken symbolic link is included, so that decoding reports it.
    """
    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
        return False
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def is_broken_link(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a symbolic link to nothing. Links with an image suffix are images, see `is_image`."""
    return entry.is_symlink() and not os.path.exists(entry.path) and not is_image(entry)
