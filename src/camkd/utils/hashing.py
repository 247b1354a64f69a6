"""Integer hashing with the mixing function of SplitMix64, for counter-based random numbers and checksums.

Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""Increment of the state of SplitMix64: the odd integer nearest to 2^64 divided by the golden ratio.

The multiples of this integer, modulo 2^64, are spread evenly, so consecutive counters have distant states.
"""

_MASK = (1 << 64) - 1


def mix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply ``mix64``, the output function of SplitMix64: a bijection of 64-bit integers that mixes all bits.

    ``mix64(seed + n * GOLDEN_GAMMA)`` is the ``n``-th output of SplitMix64, counted from 1.

    Args:
        z: Unsigned integers of any shape.

    Returns:
        The hashes, with the shape of ``z``.

    Example:
        >>> [hex(value) for value in mix64(np.array([GOLDEN_GAMMA], np.uint64)).tolist()]
        ['0xe220a8397b1dcdaf']
    """
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def derive_seed(seed: int, stream: int) -> int:
    """Derive the 64-bit seed of an independent random stream.

    Args:
        seed: Any integer, taken modulo 2^64.
        stream: Number of the stream, such as the number of an epoch or of a file.

    Returns:
        ``mix64(mix64(seed) ^ stream * GOLDEN_GAMMA)``.

    Example:
        >>> derive_seed(0, 1) != derive_seed(0, 2)
        True
    """
    state = mix64(np.array([seed & _MASK], np.uint64)) ^ np.uint64(stream * GOLDEN_GAMMA & _MASK)
    return int(mix64(state)[0])
