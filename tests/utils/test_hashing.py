"""The mixing function of SplitMix64 against its definition in Python integers and against published outputs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from camkd.utils.hashing import GOLDEN_GAMMA, derive_seed, mix64

WORD = (1 << 64) - 1


def reference_mix64(z: int) -> int:
    """``mix64`` as in the paper."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31


def test_published_outputs_for_seed_0() -> None:
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    states = np.array([(n * GOLDEN_GAMMA) & WORD for n in range(1, 5)], np.uint64)
    assert mix64(states).tolist() == expected
    assert [reference_mix64(int(state)) for state in states] == expected


@settings(max_examples=50)
@given(st.lists(st.integers(0, WORD), min_size=1, max_size=5))
def test_mix64_matches_python_integers(words: list[int]) -> None:
    assert mix64(np.array(words, np.uint64)).tolist() == [reference_mix64(word) for word in words]


@settings(max_examples=50)
@given(st.integers(-(2**63), WORD), st.integers(-(2**40), 2**40))
def test_derive_seed_matches_python_integers(seed: int, stream: int) -> None:
    assert derive_seed(seed, stream) == reference_mix64(reference_mix64(seed & WORD) ^ stream * GOLDEN_GAMMA & WORD)
