"""Sentences about classes: the classes of a model, and those that a contrast map compares."""

from __future__ import annotations

from collections.abc import Sequence

from camkd.utils.text import shorten

MAX_NAMES = 20
"""Largest number of classes that a sentence names. Further classes are counted."""

MAX_COLUMNS = 40
"""Width of a class name in columns. A longer name is shortened."""


def describe_classes(classes: Sequence[str]) -> str:
    """Return a sentence with the classes of a model.

    The sentence warns that a model also predicts one of its classes for an image of another class.

    Args:
        classes: Names of all ``K`` classes.

    Returns:
        The sentence, with at most `MAX_NAMES` names.

    Example:
        >>> describe_classes(["cat", "dog"])
        'The model predicts one of these 2 classes for every image, even for an image of another class: cat, dog.'
    """
    return (
        f"The model predicts one of these {len(classes):,} classes for every image, even for an image of another "
        f"class: {list_classes(classes)}."
    )


def list_classes(classes: Sequence[str]) -> str:
    """List the names of at most `MAX_NAMES` classes, and count the others.

    Args:
        classes: Names of classes.

    Returns:
        The names, separated by commas. Long names are shortened.

    Example:
        >>> list_classes(["cat"] * 1000)[-19:]
        ', cat, and 980 more'
    """
    names = ", ".join(shorten(name, MAX_COLUMNS) for name in classes[:MAX_NAMES])
    return f"{names}, and {len(classes) - MAX_NAMES:,} more" if len(classes) > MAX_NAMES else names


def describe_map(class_name: str, against: Sequence[str]) -> str:
    """Format the class of a map, and the classes that the map is contrasted with.

    Args:
        class_name: Name of the explained class.
        against: Names of the classes of the contrast. Empty for a map of one class.

    Returns:
        The description.

    Example:
        >>> describe_map("bird", ["cat", "dog"])
        'bird vs. cat or dog'
    """
    return f"{class_name} vs. {' or '.join(against)}" if against else class_name


def describe_contrast(against: Sequence[str]) -> str:
    """Describe contrast maps in a sentence.

    Args:
        against: Names of the classes of the contrast.

    Returns:
        The sentence, with at most `MAX_NAMES` names.

    Example:
        >>> describe_contrast(["cat", "dog"])
        'Every map is a contrast: the evidence for its class minus the mean evidence for these 2 classes: cat, dog.'
    """
    others = f"the mean evidence for these {len(against):,} classes:" if len(against) > 1 else "the evidence for"
    return f"Every map is a contrast: the evidence for its class minus {others} {list_classes(against)}."
