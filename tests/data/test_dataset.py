"""Datasets in memory: fingerprints, subsets and the root of the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camkd.data.dataset import (
    Dataset,
    Split,
    balanced_subset,
    cache_folder,
    fingerprint,
    hold_out,
    max_rows,
    round_robin,
)
from camkd.data.store import SplitArrays
from camkd.types import InputError
from support.stored_dataset import make_arrays, open_pets


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder(Path("elsewhere")) == Path("elsewhere")
    monkeypatch.delenv("CAMKD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "camkd"


@pytest.mark.parametrize(
    ("max_bytes", "shape", "rows"), [(1000, (10, 10, 3), 3), (299, (10, 10, 3), 1), (300, (10, 10, 3), 1)]
)
def test_max_rows(max_bytes: int, shape: tuple[int, ...], rows: int) -> None:
    assert max_rows(max_bytes, np.zeros((4, *shape), np.uint8)) == rows


# --- fingerprint


def change_pixel(arrays: SplitArrays) -> SplitArrays:
    images = arrays.test.images.copy()
    images[-1, -1, -1, -1] ^= 1
    return arrays._replace(test=replace(arrays.test, images=images))


def change_label(arrays: SplitArrays) -> SplitArrays:
    labels = arrays.val.labels.copy()
    labels[0] = 2
    return arrays._replace(val=replace(arrays.val, labels=labels))


def change_size(arrays: SplitArrays) -> SplitArrays:
    def reshape(split: Split) -> Split:
        return replace(split, images=split.images.reshape(len(split), 2, 8, 3))

    return arrays._replace(train=reshape(arrays.train), val=reshape(arrays.val), test=reshape(arrays.test))


def move_image_from_val_to_train(arrays: SplitArrays) -> SplitArrays:
    """Move the first image of val to the end of train; the order of all images stays the same."""
    images = np.concatenate([arrays.train.images, arrays.val.images[:1]])
    labels = np.concatenate([arrays.train.labels, arrays.val.labels[:1]])
    return arrays._replace(train=Split(images, labels), val=arrays.val.take(np.arange(1, len(arrays.val))))


def change_class_names(arrays: SplitArrays) -> SplitArrays:
    """Move a letter from a class name to the next one."""
    return arrays._replace(classes=("cat", "do", "gübel"))


def fingerprint_of(arrays: SplitArrays) -> str:
    return fingerprint(arrays.classes, {"train": arrays.train, "val": arrays.val, "test": arrays.test})


@pytest.mark.parametrize(
    "change", [change_pixel, change_label, change_size, move_image_from_val_to_train, change_class_names]
)
def test_fingerprint_changes_with_the_content(change: Callable[[SplitArrays], SplitArrays]) -> None:
    assert fingerprint_of(change(make_arrays())) != fingerprint_of(make_arrays())


def test_fingerprint_is_independent_of_masks_and_names(tmp_path: Path) -> None:
    plain = make_arrays(optional_fields=False)
    assert fingerprint_of(plain) == fingerprint_of(make_arrays()) == open_pets(tmp_path).fingerprint


# --- subsets


def test_round_robin_and_balanced_subset() -> None:
    labels = np.array([2, 0, 0, 0, 1, 2])
    assert round_robin(labels).tolist() == [1, 4, 0, 2, 5, 3]
    assert balanced_subset(labels, 4).tolist() == [0, 1, 2, 4]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(1, 90))
def test_limited_is_balanced_and_keeps_the_order(labels: list[int], n: int) -> None:
    rows = np.array(labels, np.int64)
    images = np.arange(len(rows), dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8)
    whole = Split(images, rows, names=tuple(map(str, range(len(rows)))))
    data = Dataset("d", tuple("abcde"), whole, whole, whole, "f" * 64, "f" * 64, ())
    small = data.limited(n)
    assert len(small.train) == len(small.val) == min(n, len(rows))
    chosen = small.train.images[:, 0, 0, 0].astype(int)
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(small.train.labels, rows[chosen])
    assert small.train.names == tuple(str(row) for row in chosen)
    whole_counts = np.bincount(rows, minlength=5)
    counts = np.bincount(small.train.labels, minlength=5)
    incomplete = counts < whole_counts
    assert not incomplete.any() or counts.max() <= counts[incomplete].min() + 1
    for label in range(5):
        first = np.flatnonzero(rows == label)[: counts[label]]
        np.testing.assert_array_equal(chosen[rows[chosen] == label], first)


def test_limited_dataset_has_another_fingerprint(tmp_path: Path) -> None:
    data = open_pets(tmp_path)
    small = data.limited(6)
    assert (len(small.train), len(small.val), len(small.test)) == (6, 6, 5)
    assert small.train.masks is not None
    assert small.fingerprint == data.limited(6).fingerprint != data.fingerprint
    assert small.notes[-1] == "limited to 6 class-balanced images of each split"


def test_limit_of_one_split(tmp_path: Path) -> None:
    data = open_pets(tmp_path)
    small = data.limited(3, ("train",))
    assert (len(small.train), len(small.val), len(small.test)) == (3, len(data.val), len(data.test))
    assert small.notes[-1] == "limited to 3 class-balanced images of train"
    assert small.fingerprint not in (data.fingerprint, data.limited(3).fingerprint)


def test_limit_above_the_size_returns_the_same_dataset(tmp_path: Path) -> None:
    data = open_pets(tmp_path)
    assert data.limited(12) is data


def test_limit_below_one_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got 0"):
        open_pets(tmp_path).limited(0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=200), st.floats(0.05, 0.5), st.integers(0, 5))
def test_hold_out_is_stratified(labels: list[int], fraction: float, seed: int) -> None:
    rows = np.array(labels, np.int64)
    held_out = hold_out(rows, fraction, seed)
    np.testing.assert_array_equal(held_out, hold_out(rows, fraction, seed))
    for label in set(labels):
        count = int((rows == label).sum())
        held_out_count = int(held_out[rows == label].sum())
        assert count - held_out_count >= 1
        assert abs(held_out_count - fraction * count) <= 1
        assert held_out_count >= 1 or count == 1


def test_hold_out_is_random_and_depends_on_the_seed() -> None:
    labels = np.repeat([0, 1], 1000)
    held_out = hold_out(labels, 0.1)
    assert (held_out != hold_out(labels, 0.1, seed=1)).any()
    assert 300 < np.flatnonzero(held_out[:1000]).mean() < 700
    assert (held_out[:1000] != held_out[1000:]).any()
