"""Bounds that a run's figures must keep: ``cam_cosine=0.8,teacher_agreement=0.9``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from camkd.types import InputError


def parse_thresholds(text: str, option: str) -> dict[str, float]:
    """The bound of each figure named in ``text``, for the flag ``option``.

    Raises ``InputError`` where ``text`` is no such list.

    >>> bounds("cam_cosine=0.8,teacher_agreement=0.9", "--fail-under")
    {'cam_cosine': 0.8, 'teacher_agreement': 0.9}
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, bound = (piece.strip() for piece in part.partition("="))
        try:
            found[name] = float(bound)
        except ValueError:
            found[name] = math.nan
        if not name or not math.isfinite(found[name]):
            raise InputError(
                f"{option} has {part!r}, but needs figures with numbers like cam_cosine=0.8: give such ones."
            )
    return found


def violations(figures: Mapping[str, Any], under: Mapping[str, float], over: Mapping[str, float]) -> str | None:
    """Each figure below its bound in ``under`` or above that in ``over``, in one sentence; None where there is none.

    Raises ``InputError`` that lists the figures there are where one has no number here.

    >>> missed({"accuracy": 0.7, "ece": 0.02}, {"accuracy": 0.8}, {"ece": 0.05})
    'accuracy is 0.7, below 0.8.'
    """
    numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    for name in (*under, *over):
        if name not in numbers:
            raise InputError(
                f"there is no figure {name!r} here to hold a bound against: give one of {', '.join(numbers)}."
            )
    said = [f"{name} is {numbers[name]:.6g}, below {bound:g}" for name, bound in under.items() if numbers[name] < bound]
    said += [f"{name} is {numbers[name]:.6g}, above {bound:g}" for name, bound in over.items() if numbers[name] > bound]
    return f"{'; '.join(said)}." if said else None
