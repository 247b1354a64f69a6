"""A small dataset of random images, stored in a cache folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from camkd.data.dataset import Dataset, Split
from camkd.data.store import SplitArrays, build_or_open


def make_split(count: int, seed: int, *, optional_fields: bool = True) -> Split:
    rng = np.random.default_rng(seed)
    return Split(
        images=rng.integers(0, 256, (count, 4, 4, 3), np.uint8),
        labels=np.arange(count, dtype=np.int64) % 3,
        masks=rng.random((count, 4, 4)) < 0.5 if optional_fields else None,
        names=tuple(f"{seed}/é{row}.png" for row in range(count)) if optional_fields else None,
    )


def make_arrays(optional_fields: bool = True) -> SplitArrays:
    splits = (make_split(count, seed, optional_fields=optional_fields) for seed, count in enumerate((12, 6, 5)))
    return SplitArrays(("cat", "dog", "übel"), *splits, notes=("a note",))


def open_pets(cache: Path, build: Callable[[Path], SplitArrays] = lambda _: make_arrays()) -> Dataset:
    return build_or_open("pets", "key", cache, build)
