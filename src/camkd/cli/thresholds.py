"""Thresholds on metrics, like ``cam_cosine=0.8,teacher_agreement=0.9``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from camkd.report.metric_table import class_recalls
from camkd.types import InputError


def parse_thresholds(text: str, option: str) -> dict[str, float]:
    """Parse the value of ``--fail-under`` or ``--fail-over``.

    Args:
        text: Metrics with numbers, separated by commas, such as ``cam_cosine=0.8,teacher_agreement=0.9``.
        option: Name of the option, for error messages.

    Returns:
        The thresholds by metric.

    Raises:
        InputError: If ``text`` has another form, or a number is not finite.

    Example:
        >>> parse_thresholds("cam_cosine=0.8,teacher_agreement=0.9", "--fail-under")
        {'cam_cosine': 0.8, 'teacher_agreement': 0.9}
    """
    thresholds: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            thresholds[name] = float(number)
        except ValueError:
            thresholds[name] = math.nan
        if not name or not math.isfinite(thresholds[name]):
            raise InputError(
                f"{option} must be metrics with numbers, got {part!r}. Write, for example, cam_cosine=0.8."
            )
    return thresholds


def violations(metrics: Mapping[str, Any], under: Mapping[str, float], over: Mapping[str, float]) -> str | None:
    """Describe the metrics that violate a threshold in one sentence.

    Args:
        metrics: Metrics by name. The recall of a class in ``per_class`` has the name ``recall:CLASS``.
        under: Thresholds that metrics must not be below.
        over: Thresholds that metrics must not be above.

    Returns:
        The sentence, or None if no threshold is violated.

    Raises:
        InputError: If a metric with a threshold does not exist. The message lists the existing metrics.

    Example:
        >>> violations({"accuracy": 0.7, "ece": 0.02}, {"accuracy": 0.8}, {"ece": 0.05})
        'accuracy is 0.7, below 0.8.'
    """
    scalars = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    recalls = class_recalls(metrics)
    numbers = {**scalars, **recalls}
    for name in (*under, *over):
        if name not in numbers:
            names = [*scalars, *(["recall:CLASS"] if recalls else [])]
            raise InputError(f"A threshold must be for one of {', '.join(names)}, got {name!r}. Choose one of them.")
    below = [
        f"{name} is {numbers[name]:.6g}, below {threshold:g}"
        for name, threshold in under.items()
        if numbers[name] < threshold
    ]
    above = [
        f"{name} is {numbers[name]:.6g}, above {threshold:g}"
        for name, threshold in over.items()
        if numbers[name] > threshold
    ]
    return f"{'; '.join([*below, *above])}." if below or above else None
