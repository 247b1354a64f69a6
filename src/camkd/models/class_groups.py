"""Mapping from the classes of trained weights to the classes of a dataset."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from camkd.models.foreign_weights import parse_classes
from camkd.types import InputError
from camkd.utils.files import load_json

MAX_LISTED = 5
"""Maximum number of class names that an error message lists."""

Groups = tuple[tuple[int, ...], ...]
"""Indices of the classes of the weights that are mapped to each class of the data."""


class ClassFile(NamedTuple):
    """Content of the file of ``--classes``.

    Attributes:
        path: The file.
        names: Class names of the weights in order, or None for a mapping.
        pairs: Line number, class of the weights (name or index) and class of the data, for each line of a mapping.
    """

    path: Path
    names: tuple[str, ...] | None
    pairs: tuple[tuple[int, str, str], ...] = ()


def read_class_file(file: str | Path) -> ClassFile:
    """Read the class names of trained weights, or their mapping to the classes of the data.

    Args:
        file: A ``.csv`` file with two columns, the class of the weights (name or index) and the class of the data; a
            ``.json`` file with a list of names, or a dict between names and indices; or a text file with one name per
            line. The order of names is that of the logits.

    Returns:
        The names or the mapping.

    Raises:
        InputError: If the file cannot be read, or contains neither class names nor a mapping.

    Example:
        >>> read_class_file("imagenet-to-pets.csv").pairs[0]                # doctest: +SKIP
        (1, 'tabby', 'cat')
    """
    path = Path(file).expanduser()
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"--classes must be a .txt, .json or .csv file, got {path}, which {problem}. Check the path.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} must be a text file in UTF-8, got: {error}. Save the file as UTF-8.") from error
    if path.suffix.lower() == ".csv":
        return ClassFile(path, None, _parse_mapping(text, path))
    if path.suffix.lower() == ".json":
        try:
            names = parse_classes(load_json(text))
        except ValueError as error:
            raise InputError(f"{path} must be valid JSON, got: {error}. Correct the file.") from error
    else:
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise InputError(f"{path} must hold class names in order, got none. Write one name per line, or a JSON list.")
    return ClassFile(path, names)


def _parse_mapping(text: str, path: Path) -> tuple[tuple[int, str, str], ...]:
    pairs = []
    reader = csv.reader(text.splitlines())
    for row in reader:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != 2 or not all(cells):
            raise InputError(
                f"Each line of {path} must have two columns separated by a comma, a class of the weights and a class "
                f"of the data, got {','.join(row)!r} in line {reader.line_num}. Correct the line."
            )
        pairs.append((reader.line_num, cells[0], cells[1]))
    if not pairs:
        raise InputError(
            f"{path} must have one line or more, got an empty file. Write a class of the weights, a comma and a class "
            "of the data in each line."
        )
    return tuple(pairs)


def group_classes(
    names: Sequence[str] | None, count: int, classes: Sequence[str], pairs: Sequence[tuple[int, str, str]] | None
) -> Groups:
    """Map the classes of trained weights to the classes of the data, and group them by class of the data.

    Names are compared in Unicode's normalization form C. Classes of the weights that are mapped to no class of the data
    are ignored.

    Args:
        names: Class names of the weights in order, or None if they are unknown.
        count: Number of classes of the weights.
        classes: Classes of the data.
        pairs: Lines of a mapping, see `ClassFile`. A first line with two unknown names is a header. None: classes are
            matched by name, or by index if ``names`` is None too.

    Returns:
        The indices of the classes of the weights for each class of the data.

    Raises:
        InputError: If the number of classes differs, a name in the mapping is unknown or ambiguous, a class of the
            weights is mapped to several classes, or no class of the weights is mapped to a class of the data.

    Example:
        >>> pairs = [(1, "1", "cat"), (2, "lion", "cat"), (3, "dog", "dog")]
        >>> group_classes(("dog", "tabby", "lion"), 3, ("cat", "dog"), pairs)
        ((1, 2), (0,))
    """
    if names is not None and len(names) != count:
        raise InputError(
            f"The classes of the weights must be {count:,} names, one per logit, got {len(names):,}. Correct the list."
        )
    if pairs is None and names is None:
        if count != len(classes):
            raise InputError(
                f"The weights must have {len(classes):,} classes, those of the data, got {count:,}. Map the classes "
                "with --classes mapping.csv, or train a new head with --train head."
            )
        return tuple((index,) for index in range(count))
    targets = {_normalize(name): label for label, name in enumerate(classes)}
    sources: dict[str, list[int]] = {}
    for index, name in enumerate(names or ()):
        sources.setdefault(_normalize(name), []).append(index)
    label_of: dict[int, int] = {}
    if pairs is None:
        for name, label in targets.items():
            label_of |= dict.fromkeys(sources.get(name, ()), label)
    else:
        label_of = _apply_mapping(pairs, sources, targets, count)
    groups = tuple(
        tuple(index for index in sorted(label_of) if label_of[index] == label) for label in range(len(classes))
    )
    unmapped = [name for name, group in zip(classes, groups, strict=True) if not group]
    if unmapped:
        available = "" if names is None else f" The weights have {_list_names(names)}."
        raise InputError(
            f"Each class of the data must have a class of the weights, got none for {_list_names(unmapped)}."
            f"{available} Name or map the classes with --classes."
        )
    return groups


def _apply_mapping(
    pairs: Sequence[tuple[int, str, str]], sources: dict[str, list[int]], targets: dict[str, int], count: int
) -> dict[int, int]:
    """Return the index of the class of the data for the index of each mapped class of the weights."""
    label_of: dict[int, int] = {}
    for number, (line, source, target) in enumerate(pairs):
        indices = sources.get(_normalize(source), [])
        if not indices and source.isascii() and source.isdecimal() and int(source) < count:
            indices = [int(source)]
        label = targets.get(_normalize(target))
        if number == 0 and not indices and label is None and len(pairs) > 1:
            continue  # a header
        if len(indices) != 1:
            rule = f"a name or an index below {count:,}" if not indices else "a unique name"
            value = repr(source) if not indices else f"{source!r}, the name of classes {', '.join(map(str, indices))}"
            raise InputError(f"The class of the weights in line {line} must be {rule}, got {value}. Write the index.")
        if label is None:
            raise InputError(
                f"The class of the data in line {line} must be one of {_list_names(list(targets))}, got {target!r}. "
                "Correct the name."
            )
        if label_of.setdefault(indices[0], label) != label:
            raise InputError(
                f"Each class of the weights must be mapped to one class of the data, got a second class for {source!r} "
                f"in line {line}. Remove a line."
            )
    return label_of


def is_one_to_one(groups: Groups) -> bool:
    """Return True if exactly one class of the weights is mapped to each class of the data."""
    return all(len(group) == 1 for group in groups)


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _list_names(names: Sequence[str]) -> str:
    listed = ", ".join(names[:MAX_LISTED])
    return listed if len(names) <= MAX_LISTED else f"{listed}, ... ({len(names):,})"
