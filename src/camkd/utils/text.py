"""Shorten names for a width in columns."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

ELLIPSIS = "…"


def shorten(name: str, width: int) -> str:
    """Shorten a name to at most ``width`` columns. A truncated name ends with an ellipsis.

    Wide characters take two columns, and unprintable characters such as line breaks become spaces.

    Args:
        name: The name.
        width: Largest number of columns.

    Returns:
        The name on one line.

    Example:
        >>> shorten("Burmilla shorthair", 10)
        'Burmilla …'
    """
    name = _on_one_line(name)
    if _count_columns(name) <= width:
        return name
    return _fitting(name, width - 1) + ELLIPSIS


def shorten_middle(name: str, width: int) -> str:
    """Shorten the name of a file to at most ``width`` columns: the middle becomes an ellipsis, the suffix stays.

    Wide characters take two columns, and unprintable characters such as line breaks become spaces.

    Args:
        name: The name.
        width: Largest number of columns.

    Returns:
        The name on one line.

    Example:
        >>> shorten_middle("holiday in the mountains 0001.jpg", 20)
        'holiday in… 0001.jpg'
    """
    name = _on_one_line(name)
    if _count_columns(name) <= width:
        return name
    end = _fitting(reversed(name), (width - 1) // 2)[::-1]
    while unicodedata.combining(end[:1] or ELLIPSIS):  # an accent without its letter
        end = end[1:]
    return _fitting(name, width - 1 - _count_columns(end)) + ELLIPSIS + end


def _on_one_line(name: str) -> str:
    return "".join(character if character.isprintable() else " " for character in name)


def _fitting(characters: Iterable[str], width: int) -> str:
    """Return the first characters that fit into ``width`` columns."""
    text = ""
    for character in characters:
        if _count_columns(text + character) > width:
            break
        text += character
    return text


def _count_columns(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) != 0 for character in text)
