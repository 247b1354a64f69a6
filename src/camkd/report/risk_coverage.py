"""Risk by coverage: the error rate of the answers when only the images of highest confidence are answered."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 200
"""Largest number of points of a curve."""


class RiskCoverage(NamedTuple):
    """Risk-coverage curve.

    Attributes:
        coverage: Share of images that are answered, increasing, ``(P,)``.
        risk: Share of wrong answers among them, ``(P,)``.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]


def risk_coverage(confidence: NDArray[Any], correct: NDArray[np.bool_]) -> RiskCoverage:
    """Compute the risk-coverage curve. Source: Geifman and El-Yaniv 2017, arXiv 1705.08500.

    Args:
        confidence: Confidence of each image ``(N,)``.
        correct: Whether the prediction is correct ``(N,)``.

    Returns:
        At most `MAX_POINTS` points. Images of equal confidence are answered together. The last point has a coverage
        of 1, and its risk is the error rate.

    Example:
        >>> curve = risk_coverage(np.array([0.9, 0.6, 0.8]), np.array([True, False, True]))
        >>> curve.risk.round(2).tolist()
        [0.0, 0.0, 0.33]
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    counts = np.arange(1, len(order) + 1)
    risks = (~correct[order]).cumsum() / counts
    last_of_equals = np.flatnonzero(np.append(ranked[:-1] > ranked[1:], True))
    points = last_of_equals[np.unique(np.linspace(0, len(last_of_equals) - 1, MAX_POINTS).round().astype(int))]
    return RiskCoverage(counts[points] / len(order), risks[points])
