"""Numbers out of numbers: SplitMix64's finaliser, for views that are pure functions and for checksums.

Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def splitmix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit words, elementwise, that turns any pattern into noise."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def derive_seed(seed: int, part: int) -> int:
    """Where the stream of numbers of ``part`` (an epoch, a file) of ``seed`` starts."""
    start = splitmix64(np.array([seed & _MASK], np.uint64)) ^ np.uint64(part * GOLDEN_GAMMA & _MASK)
    return int(splitmix64(start)[0])
