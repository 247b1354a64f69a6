"""Find the folders of train, val and test in a folder, and refuse folders that only look like classes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NoReturn
from unicodedata import normalize

from camkd.data.file_names import comparable_name, escape_name, join_first, quote_names, respelled_names
from camkd.data.listing import SPLIT_NAMES, split_of
from camkd.data.walker import Walker, describe_empty, describe_link, is_folder, relative_name
from camkd.types import InputError

SPLIT_WORDS = tuple(name for names in SPLIT_NAMES.values() for name in names)
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
"""Names of the only folder in a split that mark its images as unlabeled, as in test/unknown."""

MAX_SPLIT_DEPTH = 3
"""Number of levels of folders below the root in which splits are searched."""


def find_split_folders(walker: Walker, test_only: bool) -> tuple[dict[str, Path], list[str]]:
    """Find the folder of each split, and collect notes for the user.

    If the root contains only class folders, it is itself the train folder, or with ``test_only`` the test folder.
    Folders with the name of a split are splits if they hold class folders. A single folder with such a name is a class
    if it holds images directly and other folders with images lie beside it.

    Args:
        walker: The walker of the root folder.
        test_only: Whether a root without split folders is the test folder.

    Returns:
        Folders by name of the split, and the notes.
    """
    root = walker.root
    subfolders = walker.folders(root)
    named = _named_folders(walker, subfolders)
    whole = {"test" if test_only else "train": root}
    if not named:
        notes = _check_not_splits(walker, subfolders)
        _check_no_splits_in_classes(walker, subfolders)
        return whole, notes
    others = [entry.name for entry in subfolders if split_of(entry.name) is None and any(walker.images(entry.path))]
    labeled = {split: folder for split, folder in named.items() if walker.class_names(folder)}
    left_out = _find_unlabeled(walker, labeled, test_only)
    labeled = {split: folder for split, folder in labeled.items() if split not in left_out}
    unlabeled = {split: folder for split, folder in named.items() if split not in labeled}
    if not labeled and others:
        return whole, [_check_class_named_like_split(root, list(unlabeled.values()), others)]
    if test_only and "train" not in named and "test" in named:
        folders = {"test": named["test"]}
    elif "train" in named:
        folders = {split: folder for split, folder in named.items() if split == "train" or split in labeled}
    else:
        existing = quote_names([folder.name for folder in named.values()])
        if walker.broken_links:
            links = [describe_link(root, path) for path in sorted(walker.broken_links)]
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
        describe_empty(root, entry.path, [Path(file.path) for file in walker.walk(entry.path, {root.resolve()})])
        for entry in subfolders
        if split_of(entry.name) is not None and not any(walker.images(entry.path))
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


def _find_unlabeled(walker: Walker, labeled: Mapping[str, Path], test_only: bool) -> dict[str, str]:
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
        if not test_only or split_of(name) or comparable_name(name) in UNLABELED_FOLDERS:
            count = sum(1 for _ in walker.images(folder))
            notes[split] = (
                f"'{folder.name}' was left out, because its {count:,} images lie in one folder, '{name}', which is not "
                "a class of train"
            )
    return notes


def _named_folders(walker: Walker, subfolders: Sequence[os.DirEntry[str]]) -> dict[str, Path]:
    """Return the folder of each split that holds images, by its name."""
    named: dict[str, Path] = {}
    for split in SPLIT_NAMES:
        for entry in subfolders:
            if split_of(entry.name) != split or not any(walker.images(entry.path)):
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


def _check_class_named_like_split(root: Path, folders: Sequence[Path], others: Sequence[str]) -> str:
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


def _check_majority(walker: Walker, split: Path, others: Sequence[str]) -> None:
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


def _check_not_splits(walker: Walker, folders: Sequence[os.DirEntry[str]]) -> list[str]:
    """Raise `InputError` if ``folders`` hold splits with other names, for example train_set and test_set, or folds.

    Folders look like splits in two cases:

    - Their names contain the words of two or more splits, such as train_set and test_set. In addition, every folder
      with images has such a name and one is train, or two names differ only in the split, or two of the folders hold
      class folders with the same names.
    - Their names start with the names of splits, and they hold the same two or more class folders. Folders of only one
      split are classes if another folder holds these class folders too.

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
    splits = {name: split_of(word) for name, word in words.items()}
    named = [folder for folder in filled if folder.name in words]
    if len(set(splits.values())) > 1:
        complete = len(named) == len(filled) and "train" in splits.values()
        if complete or _have_pairs(splits, words) or _share_classes(walker, named, filled):
            _raise_other_splits(walker, named)
    prefixed = [folder for folder in filled if comparable_name(folder.name).startswith(SPLIT_WORDS)]
    if len(prefixed) > 1 and _have_equal_subfolders(walker, prefixed):
        prefixes = {comparable_name(folder.name)[:2] for folder in prefixed}  # "tr", "va" or "te"
        if len(prefixes) > 1 or not any(
            _have_equal_subfolders(walker, [*prefixed, other]) for other in filled if other not in prefixed
        ):
            _raise_other_splits(walker, prefixed)
    return _check_no_folds(walker, filled)


def _separate_words(name: str) -> str:
    """Return a folder name in lower case, with an underscore between the words of camel case, as in trainA."""
    return comparable_name(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", normalize("NFKC", name)))


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


def _class_folders(walker: Walker, folder: str) -> tuple[str, set[str]]:
    """Return a folder and the names of its class folders. A folder that holds only one folder is descended into."""
    names = walker.class_names(folder)
    inner = walker.folders(folder)
    if len(names) == 1 and len(inner) == 1 and not walker.count_direct_images(folder):
        below, inner_names = _class_folders(walker, inner[0].path)
        return (below, inner_names) if inner_names else (folder, names)
    return folder, names


def _share_classes(walker: Walker, named: Sequence[os.DirEntry[str]], filled: Sequence[os.DirEntry[str]]) -> bool:
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


def _have_equal_subfolders(walker: Walker, folders: Sequence[os.DirEntry[str]]) -> bool:
    """Return whether all folders hold the same two or more class folders and no image directly."""
    names = {tuple(sorted(walker.class_names(folder.path))) for folder in folders}
    return len(names) == 1 and len(names.pop()) > 1 and not any(walker.count_direct_images(f.path) for f in folders)


def _raise_other_splits(walker: Walker, folders: Sequence[os.DirEntry[str]]) -> NoReturn:
    paths = [escape_name(relative_name(walker.root, _class_folders(walker, folder.path)[0])) for folder in folders]
    raise InputError(
        f"the folders in '{walker.root}' must be classes or train, val and test, got {quote_names(paths)}, which look "
        "like splits. Rename them to train, val and test, with one folder per class inside."
    )


def _check_no_folds(walker: Walker, folders: Sequence[os.DirEntry[str]]) -> list[str]:
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


def _check_holds_no_splits(walker: Walker, folder: str) -> None:
    """Raise `InputError` if a folder in the root, or a folder in it, holds two or more splits with class folders."""
    pending = [(folder, 1)]
    for path, depth in pending:
        inner = walker.folders(path)
        named = [entry for entry in inner if split_of(entry.name) and any(walker.images(entry.path))]
        if len({split_of(entry.name) for entry in named}) > 1 and any(walker.class_names(e.path) for e in named):
            names = quote_names([escape_name(entry.name) for entry in named])
            raise InputError(
                f"'{walker.root}' must hold splits or classes, got '{escape_name(relative_name(walker.root, path))}', "
                f"which holds the splits {names}. Choose '{path}'."
            )
        words = {e.name: word for e in inner if (word := _find_split_word(e.name)) and any(walker.images(e.path))}
        if _have_pairs({name: split_of(word) for name, word in words.items()}, words) and not named:
            _raise_other_splits(walker, [entry for entry in inner if entry.name in words])
        if depth < MAX_SPLIT_DEPTH:
            pending += [(entry.path, depth + 1) for entry in inner if not entry.is_symlink()]


def _check_no_splits_in_classes(walker: Walker, folders: Sequence[os.DirEntry[str]]) -> None:
    """Raise `InputError` if two or more ``folders``, or all with images, hold two or more splits and nothing else."""
    contents = [walker.entries(folder.path) for folder in folders if any(walker.images(folder.path))]
    splits = [{split_of(entry.name) if is_folder(entry) else None for entry in entries} for entries in contents]
    with_splits = [index for index, names in enumerate(splits) if len(names) > 1 and None not in names]
    if len(with_splits) > 1 or (splits and len(with_splits) == len(splits)):
        first = relative_name(walker.root, contents[with_splits[0]][0].path)
        raise InputError(
            f"'{walker.root}' must have class folders inside the splits, got splits inside the class folders, such as "
            f"'{escape_name(first)}'. Move the images to train/<class>, val/<class> and test/<class>."
        )
