"""Confidence intervals of shares."""

from __future__ import annotations

import math

Z = 1.959963984540054
"""Quantile 0.975 of the normal distribution, for intervals of 95 %."""


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Compute the 95 % confidence interval of a share by Wilson's score method.

        (p + z^2 / 2n  ±  z * sqrt(p * (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),    p = successes / n

    The interval lies in 0..1 and has a positive width for every share, also for 0 of ``n``. Source: Wilson 1927,
    "Probable inference, the law of succession, and statistical inference".

    Args:
        successes: Number of successes.
        count: Number of trials ``n``, 1 or more.

    Returns:
        The lower and the upper end.

    Example:
        >>> low, high = wilson_interval(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
    """
    share = successes / count
    center = share + Z**2 / (2 * count)
    half_width = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    return max(0.0, (center - half_width) / scale), min(1.0, (center + half_width) / scale)
