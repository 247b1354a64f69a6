"""Names of files and classes in messages: escaped, quoted, counted and compared."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from unicodedata import category, normalize

from camkd.utils.text import shorten_middle

ESCAPED_CATEGORIES = ("Cc", "Zl", "Zp")
"""Unicode categories of control characters, which a terminal may execute, and of line and paragraph separators."""

VARIATION_SELECTORS = re.compile("[\u034f\u180b-\u180d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Characters without width outside of the Unicode category Cf."""

MAX_SUFFIX_WIDTH = 16
"""Largest number of columns of a file suffix in a message."""

TABLE_SUFFIXES = (".csv", ".tsv")
"""Suffixes of tables that list image files."""

HUGGING_FACE = "hf:"
"""Start of the name of a data set of the Hugging Face library ``datasets``, before its path or its name on the Hub."""

MAX_LISTED = 10
"""Maximum number of items that a message lists. Further items are counted."""


def escape_name(name: str) -> str:
    r"""Return a file name as one line of valid UTF-8; undecodable bytes and control characters become ``\x1b``."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        character.encode("unicode_escape").decode() if category(character) in ESCAPED_CATEGORIES else character
        for character in text
    )


def dataset_name(data: str) -> str:
    """Return the name of a dataset without its location and its source, and of a table without suffix.

    Args:
        data: Name or path of the dataset, as in ``--data``.

    Example:
        >>> [dataset_name(data) for data in ("cifar10", "/data/pets", "/data/pets.csv", "hf:me/pets")]
        ['cifar10', 'pets', 'pets', 'pets']
    """
    path = Path(data.removeprefix(HUGGING_FACE)).expanduser().resolve()
    return path.stem if is_table_name(path.name) else path.name


def is_table_name(name: str) -> bool:
    """Return whether a file of this name is a table of images.

    Args:
        name: Name or path of the file.
    """
    return name.lower().endswith(TABLE_SUFFIXES)


def quote_names(names: Sequence[str]) -> str:
    """Join the first `MAX_LISTED` names in quotation marks and count the others."""
    return join_first([f"'{name}'" for name in names])


def join_first(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first `MAX_LISTED` items and count the others."""
    others = [f"and {len(items) - MAX_LISTED:,} more"] if len(items) > MAX_LISTED else []
    return separator.join([*items[:MAX_LISTED], *others])


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


def comparable_name(name: str) -> str:
    """Return a name in NFKC, without upper case, invisible characters, and spaces at its ends."""
    visible = "".join(character for character in name if not _is_invisible(character))
    return normalize("NFKC", normalize("NFKC", visible).casefold()).strip()


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
    by_folded_name = {comparable_name(name): name for name in names}
    return [
        f"{reveal(name)} for {reveal(by_folded_name[comparable_name(name)])}"
        for name in additional
        if comparable_name(name) in by_folded_name
    ]


def _is_invisible(character: str) -> bool:
    """Return whether a character has no width or only selects the form of the character before it."""
    return category(character) == "Cf" or VARIATION_SELECTORS.fullmatch(character) is not None


def reveal(name: str) -> str:
    r"""Return a name in quotation marks, with invisible characters as ``\u200b``."""
    shown = [c.encode("unicode_escape").decode() if _is_invisible(c) else c for c in name]
    return f"'{''.join(shown)}'"
