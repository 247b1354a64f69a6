"""The classes of a model as a sentence, which stands beside the predictions for images of unknown content."""

from __future__ import annotations

from collections.abc import Sequence

from camkd.utils.plot_style import shorten

MAX_NAMES = 20
"""Largest number of classes that a sentence names. Further classes are counted."""

MAX_COLUMNS = 40
"""Width of a class name in columns. A longer name is shortened."""


def describe_classes(classes: Sequence[str]) -> str:
    """Name the classes of a model.

    A model predicts one of its classes for every image, so the sentence prevents that a prediction for an image of
    another class is misread.

    Args:
        classes: Names of all ``K`` classes.

    Returns:
        The sentence, with at most `MAX_NAMES` names.

    Example:
        >>> describe_classes(["cat", "dog"])
        'The model knows these 2 classes only: cat, dog. Every image gets one of them, whatever it shows.'
    """
    names = ", ".join(shorten(name, MAX_COLUMNS) for name in classes[:MAX_NAMES])
    more = f", and {len(classes) - MAX_NAMES:,} more" if len(classes) > MAX_NAMES else ""
    sentence = f"The model knows these {len(classes):,} classes only: {names}{more}."
    return f"{sentence} Every image gets one of them, whatever it shows."
