"""List the splits, classes and image files of a folder. No image is opened."""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, NoReturn
from unicodedata import category, normalize

import numpy as np

from camkd.data.dataset import SPLITS, balanced_subset, limit_note
from camkd.data.ignored import is_own_folder, is_system_name
from camkd.data.image_formats import SUFFIXES
from camkd.types import InputError
from camkd.utils.text import shorten_middle

SPLIT_FOLDER_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Folder names of each split, compared without regard to case, invisible characters and full width."""

SPLIT_WORDS = tuple(name for names in SPLIT_FOLDER_NAMES.values() for name in names)
"""Folder names of all splits."""

SPLIT_PATTERN = re.compile(rf"(?:.*[\d\W_])?({'|'.join(SPLIT_WORDS)})(?:[\d\W_].*|[a-rt-z])?", re.DOTALL)
"""Names that contain the name of a split as a word, such as test_images or trainb, in lower case."""

FOLD_WORDS = frozenset(
    {"batch", "chunk", "cv", "fold", "kfold", "part", "partition", "set", "shard", "split", "subset"}
)
"""Words in the names of numbered parts of a dataset, such as fold1."""

UNLABELED_FOLDERS = frozenset(
    {
        "all",
        "all_classes",
        "data",
        "dummy",
        "images",
        "imgs",
        "no_class",
        "no_label",
        "unknown",
        "unlabeled",
        "unlabelled",
    }
)
"""Names of a folder of images without labels, the only folder in a split."""

MAX_SPLIT_DEPTH = 3
"""Number of levels of folders below the root in which splits are searched."""

HELD_OUT_FRACTION = 0.1
"""Fraction of each class that is held out for a missing split."""

IMAGE_TYPES = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))

OTHER_IMAGE_SUFFIXES = {
    ".ai", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dib", ".dng", ".eps", ".exr", ".heic", ".heif", ".ico",
    ".j2k", ".jp2", ".jxl", ".jxr", ".nef", ".orf", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".raf",
    ".raw", ".rw2", ".svg", ".tga", ".tif", ".tiff",
} - SUFFIXES  # fmt: skip
"""Suffixes of image files that are not decoded. A class folder of such files is an error."""

ESCAPED_CATEGORIES = ("Cc", "Zl", "Zp")
"""Unicode categories of control characters, which a terminal may execute, and of line and paragraph separators."""

VARIATION_SELECTORS = re.compile("[\u034f\u180b-\u180d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Characters without width outside of the Unicode category Cf."""

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

    The folder is ``<split>/<class>/*`` or ``<class>/*``. Images for a missing split are held out from train. Class
    names are compared and returned in the Unicode normal form NFC. A split may lack classes of train.

    Args:
        root: The folder.
        test_only: Whether a folder without a train folder is a test split: the images of its test folder, or all images
            if it has no split folders. Train and val are then empty. With a train folder, a class may be in one split
            only. One class is enough.

    Returns:
        The image files and the notes for the user.

    Raises:
        InputError: If the folder does not have this structure, cannot be read, or has fewer than two classes. If the
            folder can be read as splits and as classes. If a class is in val or test, but not in train. If there are
            too few images to hold out a missing split.

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
    names = {name for classes in splits.values() for name in classes} if test_only else next(iter(splits.values()))
    for split in splits:
        _check_split(root, split, splits, names)
    if len(names) < 2 and not test_only:
        _raise_one_class(root, splits["train"])
    splits = {split: {name: classes.get(name, ()) for name in sorted(names)} for split, classes in splits.items()}
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
    return FolderListing(root, splits, (*notes, *_notes_of_absent_classes(splits)))


def _notes_of_absent_classes(splits: Mapping[str, ClassFiles]) -> list[str]:
    """Name the classes without images in val and test. Accuracy per class is undefined for these classes."""
    splits_by_classes: dict[tuple[str, ...], list[str]] = {}
    for split in ("val", "test"):
        absent = tuple(name for name, files in splits[split].items() if not files)
        if 0 < len(absent) < len(splits[split]):
            splits_by_classes.setdefault(absent, []).append(split)
    return [
        f"there are no {' and no '.join(names)} images of {quote_names(absent)}"
        for absent, names in splits_by_classes.items()
    ]


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


@dataclass
class _Walker:
    """Lists folders without the folders and files of `camkd.data.ignored`, and collects the paths of these.

    Args:
        root: The folder that paths in notes are relative to.
    """

    root: Path
    system_folders: set[str] = field(default_factory=set)
    own_folders: set[str] = field(default_factory=set)
    hidden_images: set[str] = field(default_factory=set)
    broken_links: set[str] = field(default_factory=set)

    def entries(self, folder: Path | str) -> list[os.DirEntry[str]]:
        """Return the folders and files in ``folder``, sorted by name."""
        with os.scandir(folder) as iterator:
            entries = sorted(iterator, key=lambda entry: entry.name)
        return [entry for entry in entries if self._is_kept(entry)]

    def _is_kept(self, entry: os.DirEntry[str]) -> bool:
        is_folder = _is_folder(entry)
        if is_system_name(entry.name):
            if is_folder:
                self.system_folders.add(entry.path)
            elif _is_image(entry):
                self.hidden_images.add(entry.path)
            return False
        if is_folder and is_own_folder(entry.path):
            self.own_folders.add(entry.path)
            return False
        if _is_broken_link(entry):
            self.broken_links.add(entry.path)
            return False
        return True

    def folders(self, folder: Path | str) -> list[os.DirEntry[str]]:
        """Return the folders in ``folder``, sorted by name."""
        return [entry for entry in self.entries(folder) if _is_folder(entry)]

    def walk(self, folder: Path | str, visited: set[Path]) -> Iterator[os.DirEntry[str]]:
        """Yield every file below ``folder``. Symbolic links are followed; each folder is visited once."""
        for entry in self.entries(folder):
            if not _is_folder(entry):
                yield entry
            elif (resolved := Path(entry.path).resolve()) not in visited:
                visited.add(resolved)
                yield from self.walk(entry.path, visited)

    def images(self, folder: Path | str) -> Iterator[os.DirEntry[str]]:
        """Yield every image file below ``folder``, but not those below a link to a folder above it."""
        visited = {self.root.resolve(), Path(folder).resolve()}
        return (entry for entry in self.walk(folder, visited) if _is_image(entry))

    def count_direct_images(self, folder: Path | str) -> int:
        """Count the images that lie directly in ``folder``."""
        return sum(map(_is_image, self.entries(folder)))

    def class_names(self, folder: Path | str) -> set[str]:
        """Return the names of the folders in ``folder`` that hold images."""
        return {_class_name(entry.name) for entry in self.folders(folder) if any(self.images(entry.path))}

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
            links = join_first([_describe_link(self.root, path) for path in sorted(self.broken_links)])
            notes.append(f"{len(self.broken_links):,} broken links were ignored: {links}")
        return notes

    def _quote(self, paths: Sequence[str]) -> str:
        return quote_names([escape_name(_relative(self.root, path)) for path in paths])


def _relative(root: Path, path: str) -> str:
    return path.removeprefix(f"{root}{os.sep}")


def _class_name(folder_name: str) -> str:
    """Return the displayed name of a class folder, in the normal form NFC."""
    return normalize("NFC", escape_name(folder_name))


def _find_splits(root: Path, test_only: bool) -> tuple[dict[str, ClassFiles], list[str]]:
    walker = _Walker(root)
    folders, notes = _split_folders(walker, test_only)
    splits: dict[str, ClassFiles] = {}
    ignored = _IgnoredFiles()
    class_folders: dict[Path, str] = {}
    for split, folder in folders.items():
        splits[split] = _find_classes(walker, folder, ignored, class_folders)
    if root not in folders.values():
        ignored.images += [Path(entry.path) for entry in walker.entries(root) if _is_image(entry)]
    return splits, [*notes, *ignored.notes(root), *walker.notes()]


def _split_folders(walker: _Walker, test_only: bool) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split that exists, and notes.

    ``root`` itself is the train folder, or the test folder with ``test_only``, if it contains only class folders.
    Folders with the name of a split are splits if they hold class folders. One such folder is a class if it holds
    images directly and other folders with images lie beside it.
    """
    root = walker.root
    subfolders = walker.folders(root)
    named = _named_folders(walker, subfolders)
    whole = {"test" if test_only else "train": root}
    if not named:
        notes = _check_not_splits(walker, subfolders)
        _check_no_splits_in_classes(walker, subfolders)
        return whole, notes
    others = [entry.name for entry in subfolders if _split_of(entry.name) is None and any(walker.images(entry.path))]
    labeled = {split: folder for split, folder in named.items() if walker.class_names(folder)}
    left_out = _find_unlabeled(walker, labeled, test_only)
    labeled = {split: folder for split, folder in labeled.items() if split not in left_out}
    unlabeled = {split: folder for split, folder in named.items() if split not in labeled}
    if not labeled and others:
        return whole, [_check_class_of_split_name(root, list(unlabeled.values()), others)]
    if test_only and "train" not in named and "test" in named:
        folders = {"test": named["test"]}
    elif "train" in named:
        folders = {split: folder for split, folder in named.items() if split == "train" or split in labeled}
    else:
        existing = quote_names([folder.name for folder in named.values()])
        if walker.broken_links:
            links = [_describe_link(root, path) for path in sorted(walker.broken_links)]
            existing += f" and the broken links {join_first(links)}"
        folder = next(iter(named.values()))
        advice = f"Choose '{folder}'" if test_only else "Add train/<class>/ with the images"
        raise InputError(
            f"'{root}' must have a '{next(iter(whole))}' folder, got only {existing}. {advice}, or rename "
            f"'{folder.name}' if it is a class."
        )
    first = next(iter(folders.values()))
    numbered = _check_no_folds(walker, [entry for entry in walker.folders(first) if any(walker.images(entry.path))])
    if others and len(labeled) == 1:
        _check_majority(walker, first, others)
    notes = [
        left_out.get(split)
        or f"'{folder.name}' was left out, because its {walker.count_direct_images(folder):,} images have no class "
        "folders"
        for split, folder in named.items()
        if split not in folders
    ]
    empty = [
        _describe_empty(root, entry.path, [Path(file.path) for file in walker.walk(entry.path, {root.resolve()})])
        for entry in subfolders
        if _split_of(entry.name) is not None and not any(walker.images(entry.path))
    ]
    notes += numbered
    if empty:
        notes.append(f"folders without images were ignored: {join_first(empty)}")
    if others:
        notes.append(
            f"folders beside {' and '.join(repr(folder.name) for folder in folders.values())} were ignored: "
            f"{quote_names([escape_name(name) for name in others])}"
        )
    return folders, notes


def _find_unlabeled(walker: _Walker, labeled: Mapping[str, Path], test_only: bool) -> dict[str, str]:
    """Return a note for each split that is left out, because its only folder is not a class, such as test/unknown.

    With ``test_only``, a class may be in test only. Then the name of the folder must be one of `UNLABELED_FOLDERS`.
    """
    classes = walker.class_names(labeled["train"]) if "train" in labeled else set()
    if len(classes) < 2:
        return {}
    notes = {}
    for split in labeled.keys() - {"train"}:
        folder = labeled[split]
        names = walker.class_names(folder)
        name = min(names)
        if len(names) > 1 or name in classes or respelled_names([name], classes):
            continue
        if not test_only or _split_of(name) or _fold(name) in UNLABELED_FOLDERS:
            count = sum(1 for _ in walker.images(folder))
            notes[split] = (
                f"'{folder.name}' was left out, because its {count:,} images lie in one folder, '{name}', which is not "
                "a class of train"
            )
    return notes


def _split_of(name: str) -> str | None:
    """Return the split that a folder name stands for."""
    folded = _fold(name)
    return next((split for split, names in SPLIT_FOLDER_NAMES.items() if folded in names), None)


def _named_folders(walker: _Walker, subfolders: Sequence[os.DirEntry[str]]) -> dict[str, Path]:
    """Return the folder of each split that holds images, by its name."""
    named: dict[str, Path] = {}
    for split in SPLIT_FOLDER_NAMES:
        for entry in subfolders:
            if _split_of(entry.name) != split or not any(walker.images(entry.path)):
                continue
            if split in named:
                raise InputError(
                    f"'{walker.root}' must have one {split} folder, got '{named[split].name}' and '{entry.name}'. Keep "
                    "one of them."
                )
            named[split] = Path(entry.path)
    for first, second in combinations(named.values(), 2):
        paths = (first.resolve(), second.resolve())
        if paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0]):
            link = second if second.is_symlink() else first
            raise InputError(
                f"the splits in '{walker.root}' must be different folders, got '{first.name}' and '{second.name}', "
                f"which hold the same images. Remove the link '{link.name}'."
            )
    return named


def _check_class_of_split_name(root: Path, folders: Sequence[Path], others: Sequence[str]) -> str:
    """Return the note that a folder is a class despite its name. Raise `InputError` if it may be a split."""
    names = [folder.name for folder in folders]
    beside = quote_names([escape_name(name) for name in others])
    if len(folders) > 1 or any(_find_split_word(name) for name in others):
        raise InputError(
            f"'{root}' must hold splits or classes, got {quote_names(names)} with images directly inside, which may be "
            f"splits without class folders or classes beside {beside}. Move the images of each split into class "
            f"folders, such as '{folders[0] / 'cat'}', or rename the classes to another name than that of a split."
        )
    return f"'{names[0]}' is a class and not a split, because its images lie directly in it and beside {beside}"


def _check_majority(walker: _Walker, split: Path, others: Sequence[str]) -> None:
    """Raise `InputError` if a folder may be a split or a class beside ``others``.

    It is a split if it has two or more class folders, and most of the images lie in them.
    """
    labeled = sum(1 for entry in walker.folders(split) for _ in walker.images(entry.path))
    direct = walker.count_direct_images(split)
    beside = sum(1 for name in others for _ in walker.images(walker.root / name))
    if len(walker.class_names(split)) > 1 and labeled > max(direct, beside):
        return
    names = quote_names([escape_name(name) for name in others])
    raise InputError(
        f"'{walker.root}' must hold splits or classes, got '{split.name}', which may be a split or a class beside "
        f"{names}. If it is a split, move {names} to another folder; if it is a class, rename it to another name than "
        "that of a split."
    )


def _check_not_splits(walker: _Walker, folders: Sequence[os.DirEntry[str]]) -> list[str]:
    """Raise `InputError` if ``folders`` hold splits with other names, for example train_set and test_set, or folds.

    The names of splits contain the names of two splits and nothing else, or they differ only in the split, or the
    folders hold the same class folders. Further folders may lie beside them.

    Args:
        walker: Walker of the root.
        folders: All folders in the root.

    Returns:
        Notes about numbered folders with the same subfolders, which are classes.
    """
    filled = [folder for folder in folders if any(walker.images(folder.path))]
    for folder in filled:
        _check_holds_no_splits(walker, folder.path)
    words = {folder.name: word for folder in filled if (word := _find_split_word(folder.name))}
    splits = {name: _split_of(word) for name, word in words.items()}
    named = [folder for folder in filled if folder.name in words]
    if len(set(splits.values())) > 1:
        complete = len(named) == len(filled) and "train" in splits.values()
        if complete or _have_pairs(splits, words) or _share_classes(walker, named, filled):
            _raise_other_splits(walker, named)
    prefixed = [folder for folder in filled if _fold(folder.name).startswith(SPLIT_WORDS)]
    if len(prefixed) > 1 and _have_equal_subfolders(walker, prefixed):
        prefixes = {_fold(folder.name)[:2] for folder in prefixed}  # "tr", "va" or "te"
        if len(prefixes) > 1 or not any(
            _have_equal_subfolders(walker, [*prefixed, other]) for other in filled if other not in prefixed
        ):
            _raise_other_splits(walker, prefixed)
    return _check_no_folds(walker, filled)


def _separate_words(name: str) -> str:
    """Return a folder name in lower case, with an underscore between the words of camel case, as in trainA."""
    return _fold(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", normalize("NFKC", name)))


def _find_split_word(name: str) -> str | None:
    """Return the name of a split that a folder name contains as a word."""
    match = SPLIT_PATTERN.fullmatch(_separate_words(name))
    return match[1] if match else None


def _have_pairs(splits: Mapping[str, str | None], words: Mapping[str, str]) -> bool:
    """Return whether the name of a train folder and that of another split are equal except for the split."""
    rests: dict[str, set[str | None]] = {}
    for name, split in splits.items():
        rests.setdefault(_separate_words(name).replace(words[name], "", 1), set()).add(split)
    return any("train" in group and len(group) > 1 for group in rests.values())


def _class_folders(walker: _Walker, folder: str) -> tuple[str, set[str]]:
    """Return a folder and the names of its class folders. A folder that holds only one folder is descended into."""
    names = walker.class_names(folder)
    inner = walker.folders(folder)
    if len(names) == 1 and len(inner) == 1 and not walker.count_direct_images(folder):
        below, inner_names = _class_folders(walker, inner[0].path)
        return (below, inner_names) if inner_names else (folder, names)
    return folder, names


def _share_classes(walker: _Walker, named: Sequence[os.DirEntry[str]], filled: Sequence[os.DirEntry[str]]) -> bool:
    """Return whether two of the folders ``named`` hold class folders with the same names.

    One common name does not count if it is also in every other folder, such as a folder ``images`` in each class.
    """
    others = [_class_folders(walker, folder.path)[1] for folder in filled if folder not in named]
    names = [_class_folders(walker, folder.path)[1] for folder in named]
    for index, group in enumerate(names):
        for second in names[:index]:
            common = group & second
            if len(common) > 1 or (common and not (others and all(common <= other for other in others))):
                return True
    return False


def _have_equal_subfolders(walker: _Walker, folders: Sequence[os.DirEntry[str]]) -> bool:
    """Return whether all folders hold the same two or more class folders and no image directly."""
    names = {tuple(sorted(walker.class_names(folder.path))) for folder in folders}
    return len(names) == 1 and len(names.pop()) > 1 and not any(walker.count_direct_images(f.path) for f in folders)


def _raise_other_splits(walker: _Walker, folders: Sequence[os.DirEntry[str]]) -> NoReturn:
    paths = [escape_name(_relative(walker.root, _class_folders(walker, folder.path)[0])) for folder in folders]
    raise InputError(
        f"the folders in '{walker.root}' must be classes or train, val and test, got {quote_names(paths)}, which look "
        "like splits. Rename them to train, val and test, with one folder per class inside."
    )


def _check_no_folds(walker: _Walker, folders: Sequence[os.DirEntry[str]]) -> list[str]:
    """Return a note about numbered folders with the same class folders. Raise `InputError` if they are folds."""
    groups: dict[str, list[os.DirEntry[str]]] = {}
    for folder in folders:
        words = re.sub(r"\d+", " ", _separate_words(folder.name))
        if words != _separate_words(folder.name) and re.search(r"[^\W_]", words):
            groups.setdefault(words, []).append(folder)
    notes = []
    for words, group in groups.items():
        if len(group) < 2 or not _have_equal_subfolders(walker, group):
            continue
        names = quote_names([escape_name(folder.name) for folder in group])
        if FOLD_WORDS.isdisjoint(re.split(r"[\W_]+", words)):
            notes.append(f"{names} are classes, although they are numbered and hold folders with the same names")
            continue
        raise InputError(
            f"the folders in '{walker.root}' must be classes or train, val and test, got {names}, which look like "
            "parts of one dataset, because they hold the same class folders. Move their class folders into train, val "
            "and test."
        )
    return notes


def _check_holds_no_splits(walker: _Walker, folder: str) -> None:
    """Raise `InputError` if a folder in the root, or a folder in it, holds two or more splits with class folders."""
    pending = [(folder, 1)]
    for path, depth in pending:
        inner = walker.folders(path)
        named = [entry for entry in inner if _split_of(entry.name) and any(walker.images(entry.path))]
        if len({_split_of(entry.name) for entry in named}) > 1 and any(walker.class_names(e.path) for e in named):
            names = quote_names([escape_name(entry.name) for entry in named])
            raise InputError(
                f"'{walker.root}' must hold splits or classes, got '{escape_name(_relative(walker.root, path))}', "
                f"which holds the splits {names}. Choose '{path}'."
            )
        words = {e.name: word for e in inner if (word := _find_split_word(e.name)) and any(walker.images(e.path))}
        if _have_pairs({name: _split_of(word) for name, word in words.items()}, words) and not named:
            _raise_other_splits(walker, [entry for entry in inner if entry.name in words])
        if depth < MAX_SPLIT_DEPTH:
            pending += [(entry.path, depth + 1) for entry in inner if not entry.is_symlink()]


def _check_no_splits_in_classes(walker: _Walker, folders: Sequence[os.DirEntry[str]]) -> None:
    """Raise `InputError` if two or more ``folders``, or all with images, hold two or more splits and nothing else."""
    contents = [walker.entries(folder.path) for folder in folders if any(walker.images(folder.path))]
    splits = [{_split_of(entry.name) if _is_folder(entry) else None for entry in entries} for entries in contents]
    with_splits = [index for index, names in enumerate(splits) if len(names) > 1 and None not in names]
    if len(with_splits) > 1 or (splits and len(with_splits) == len(splits)):
        first = _relative(walker.root, contents[with_splits[0]][0].path)
        raise InputError(
            f"'{walker.root}' must have the classes inside of the splits, got splits inside of the classes, such as "
            f"'{escape_name(first)}'. Move the images to train/<class>, val/<class> and test/<class>."
        )


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
            names = quote_names([escape_name(_relative(root, str(path))) for path in self.images])
            notes.append(f"{len(self.images):,} images outside of class folders were ignored: {names}")
        if self.others:
            counts = count_suffixes(self.others)
            notes.append(f"{len(self.others):,} files that are not images of a class were ignored: {counts}")
        if self.folders:
            notes.append(f"folders without images were ignored: {join_first(self.folders)}")
        return notes + self.spellings


def _find_classes(walker: _Walker, folder: Path, ignored: _IgnoredFiles, class_folders: dict[Path, str]) -> ClassFiles:
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
        if not _is_folder(entry):
            (images if _is_image(entry) else ignored.others).append(Path(entry.path))
            continue
        if (resolved := Path(entry.path).resolve()) in ancestors:
            continue
        entries = list(walker.walk(entry.path, ancestors | {resolved}))
        files = [_image_file(root, file) for file in entries if _is_image(file)]
        others = [Path(file.path) for file in entries if not _is_image(file)]
        name = _class_name(entry.name)
        if resolved in class_folders:
            raise InputError(
                f"class folders must be different folders, got '{class_folders[resolved]}' and '{entry.path}', which "
                "are one folder. Remove the link."
            )
        class_folders[resolved] = entry.path
        if not files:
            ignored.folders.append(_describe_empty(root, entry.path, others))
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
    ignored.spellings += _notes_of_similar_names(folder, classes)
    return classes


def _describe_empty(root: Path, path: str, files: Sequence[Path]) -> str:
    """Describe a folder without images. Raise `InputError` if it holds images of formats that are not decoded."""
    counts = count_suffixes(files)
    if any(file.suffix.lower() in OTHER_IMAGE_SUFFIXES for file in files):
        raise InputError(
            f"the folder '{path}' must contain images ({IMAGE_TYPES}), got {counts}. Convert the images, or remove the "
            "folder."
        )
    name = f"'{escape_name(_relative(root, path))}'"
    return f"{name} ({counts})" if files else name


def _fold(name: str) -> str:
    """Return a name in NFKC, without upper case, invisible characters, and spaces at its ends."""
    visible = "".join(character for character in name if not _is_invisible(character))
    return normalize("NFKC", normalize("NFKC", visible).casefold()).strip()


def _is_invisible(character: str) -> bool:
    """Return whether a character has no width or only selects the form of the character before it."""
    return category(character) == "Cf" or VARIATION_SELECTORS.fullmatch(character) is not None


def _reveal(name: str) -> str:
    r"""Return a name in quotation marks, with invisible characters as ``\u200b``."""
    shown = [c.encode("unicode_escape").decode() if _is_invisible(c) else c for c in name]
    return f"'{''.join(shown)}'"


def respelled_names(additional: Iterable[str], names: Iterable[str]) -> list[str]:
    """Find class names that look like other class names: upper and lower case, spaces, invisible characters, NFKC.

    Args:
        additional: Class names.
        names: The other class names.

    Returns:
        Each such name together with the other name.

    Example:
        >>> respelled_names(["cat", "eel"], ["Cat", "dog"])
        ["'cat' for 'Cat'"]
    """
    by_folded_name = {_fold(name): name for name in names}
    return [
        f"{_reveal(name)} for {_reveal(by_folded_name[_fold(name)])}"
        for name in additional
        if _fold(name) in by_folded_name
    ]


def _notes_of_similar_names(folder: Path, names: Iterable[str]) -> list[str]:
    """Name the classes of a folder whose names look alike."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(_fold(name), []).append(name)
    return [
        f"the classes {join_first([_reveal(name) for name in group])} in '{folder}' differ only in upper and lower "
        "case, in spaces or in characters that look equal or are invisible"
        for group in groups.values()
        if len(group) > 1
    ]


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
    for entry in _Walker(folder).walk(folder, {folder.resolve()}):
        (images if _is_image(entry) else others).append(Path(entry.path))
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
    return not is_own_folder(folder) and bool(_Walker(folder).class_names(folder))


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
    return join_first(
        [
            f"{count:,} {escape_name(suffix) if suffix == suffix.strip() else repr(escape_name(suffix))}"
            for suffix, count in ordered
        ]
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a symbolic link to nothing. Links with an image suffix are images, see `_is_image`."""
    return entry.is_symlink() and not os.path.exists(entry.path) and not _is_image(entry)


def _describe_link(root: Path, path: str) -> str:
    return f"'{escape_name(_relative(root, path))}' to '{escape_name(os.readlink(path))}'"


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


def _check_split(root: Path, split: str, splits: Mapping[str, ClassFiles], names: Collection[str]) -> None:
    """Raise `InputError` unless ``split`` has images, and only classes in ``names``."""
    classes = splits[split]
    location = f"'{root}'" if split == next(iter(splits)) else f"the {split} folder of '{root}'"
    if not classes:
        files = [Path(entry.path) for entry in _Walker(root).walk(root, {root.resolve()})]
        advice = (
            "Convert the files, correct their suffixes, or choose another folder"
            if files
            else ("Add one folder of images per class")
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
            f"{location} must spell the classes as the train folder, got {join_first(respelled)}. Rename one of the "
            "folders; upper and lower case, spaces and invisible characters count."
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
        links = [_describe_link(root, entry.path) for entry in entries if _is_broken_link(entry)]
    if links:
        advice = f"Correct the broken links {join_first(sorted(links))}."
    else:
        advice = f"Did you mean the folder '{root / name}'?" if nested else "Add a folder for each other class."
    raise InputError(f"'{root}' must have two or more classes, got one, '{name}'. {advice}")


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
