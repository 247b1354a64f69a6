"""The store holds what it was given, whole or not at all, and the fingerprint tells data sets apart."""

from __future__ import annotations

import errno
import fcntl
import os
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camkd.data import dataset as store
from camkd.data.augment import Views
from camkd.data.dataset import (
    SPLITS,
    Dataset,
    Split,
    SplitArrays,
    build_or_open,
    cache_folder,
    fingerprint,
    hold_out,
    keep_rows,
    max_rows,
    new_images,
)
from camkd.types import InputError
from camkd.utils.files import TEMP_SUFFIX


def split(count: int, seed: int, *, size: int = 4, extras: bool = True) -> Split:
    rng = np.random.default_rng(seed)
    return Split(
        images=rng.integers(0, 256, (count, size, size, 3), np.uint8),
        labels=np.arange(count, dtype=np.int64) % 3,
        masks=rng.random((count, size, size)) < 0.5 if extras else None,
        names=tuple(f"{seed}/é{row}.png" for row in range(count)) if extras else None,
    )


def contents(extras: bool = True) -> SplitArrays:
    splits = (split(count, seed, extras=extras) for seed, count in enumerate((12, 6, 5)))
    return SplitArrays(("cat", "dog", "übel"), *splits, notes=("made here",))


def opened(cache: Path, build: Callable[[Path], SplitArrays] = lambda _: contents()) -> Dataset:
    return build_or_open("pets", "key", cache, build)


@pytest.mark.parametrize("extras", [True, False])
def test_a_store_gives_back_what_was_built(tmp_path: Path, extras: bool) -> None:
    data, given_ = opened(tmp_path, lambda _: contents(extras)), contents(extras)
    assert (data.name, data.classes, data.notes) == ("pets", given_.classes, ("made here",))
    for name, stored in data.splits.items():
        expected: Split = getattr(given_, name)
        np.testing.assert_array_equal(stored.images, expected.images)
        np.testing.assert_array_equal(stored.labels, expected.labels)
        assert stored.labels.dtype == np.int64
        assert stored.names == expected.names
        assert (stored.masks is None) == (expected.masks is None)
        if stored.masks is not None and expected.masks is not None:
            np.testing.assert_array_equal(stored.masks, expected.masks)


def test_pictures_are_memory_mapped_and_read_only(tmp_path: Path) -> None:
    images = opened(tmp_path).train.images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_the_second_time_nothing_is_built(tmp_path: Path) -> None:
    first = opened(tmp_path)

    def never(_: Path) -> SplitArrays:
        raise AssertionError("built twice")

    assert opened(tmp_path, never).fingerprint == first.fingerprint


def test_another_key_is_another_store(tmp_path: Path) -> None:
    one = build_or_open("pets", "1", tmp_path, lambda _: contents())
    other = build_or_open("pets", "2", tmp_path, lambda _: contents()._replace(notes=()))
    assert one.fingerprint == other.fingerprint
    assert one.notes != other.notes


def test_an_image_file_that_the_build_wrote_is_kept(tmp_path: Path) -> None:
    def build(folder: Path) -> SplitArrays:
        given_ = contents()
        images = new_images(folder / "train_images.npy", len(given_.train), 4)
        images[:] = 7
        return given_._replace(train=replace(given_.train, images=images))

    assert (opened(tmp_path, build).train.images == 7).all()


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_build_that_stops(tmp_path: Path, stop: type[BaseException]) -> None:
    def build(folder: Path) -> SplitArrays:
        new_images(folder / "train_images.npy", 3, 4)
        raise stop

    with pytest.raises(stop):
        opened(tmp_path, build)
    assert list((tmp_path / "data").iterdir()) == []
    assert len(opened(tmp_path).train) == 12


@pytest.mark.parametrize(
    ("error", "room"),
    [
        (OSError("120 requested and 7 written"), True),  # numpy's
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "cat.jpg"), False),
    ],
)
def test_only_a_full_disk_is_called_one(tmp_path: Path, error: OSError, room: bool) -> None:
    def build(folder: Path) -> SplitArrays:
        raise error

    with pytest.raises(InputError if room else OSError) as caught:
        opened(tmp_path, build)
    assert "no room in" in str(caught.value) if room else caught.value is error
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.fault("remains of a killed process")
def test_what_a_killed_build_left_goes_with_the_next_one(tmp_path: Path) -> None:
    left, other = (tmp_path / "data" / f".{name}.0123abcd{TEMP_SUFFIX}" for name in ("pets-1", "elsewhere-2"))
    for folder in (left, other):
        folder.mkdir(parents=True)
        new_images(folder / "train_images.npy", 3, 4)
    handle = os.open(other, os.O_RDONLY)  # of another store, which is being built
    fcntl.flock(handle, fcntl.LOCK_EX)
    opened(tmp_path)
    os.close(handle)
    assert not left.exists()
    assert other.exists()


def test_a_store_that_another_process_finishes_first_is_used(tmp_path: Path) -> None:
    def build(_: Path) -> SplitArrays:
        opened(tmp_path)
        return contents()._replace(notes=("second",))

    assert opened(tmp_path, build).notes == ("made here",)
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    opened(tmp_path)
    (folder,) = (tmp_path / "data").iterdir()
    (folder / "val_labels.npy").unlink()
    with pytest.raises(InputError, match=f"{folder.name}.*damaged.*delete it"):
        opened(tmp_path)


@pytest.mark.fault("a folder that cannot be written")
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cannot be written.*CAMKD_CACHE"):
        opened(tmp_path / "cache")


def test_a_full_disk_is_noticed_before_the_pictures_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"no room.*smaller size"):
        new_images(tmp_path / "train_images.npy", 3, 4)


def test_the_name_of_the_folder_is_safe(tmp_path: Path) -> None:
    build_or_open("../a b/" + "x" * 300, "key", tmp_path / "cache", lambda _: contents())
    (folder,) = (tmp_path / "cache" / "data").iterdir()
    assert len(folder.name) < 100
    assert "/" not in folder.name


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=20).filter(any))
def test_keep_rows_keeps_them_in_order(tmp_path_factory: pytest.TempPathFactory, kept: list[bool]) -> None:
    path = tmp_path_factory.mktemp("rows") / "train_images.npy"
    images = new_images(path, len(kept), 2)
    images[:] = np.arange(len(kept), dtype=np.uint8)[:, None, None, None]
    rows = np.flatnonzero(kept)
    keep_rows(path, rows)
    np.testing.assert_array_equal(np.load(path)[:, 0, 0, 0], rows)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def changed_pixel(c: SplitArrays) -> SplitArrays:
    images = c.test.images.copy()
    images[-1, -1, -1, -1] ^= 1
    return c._replace(test=replace(c.test, images=images))


def changed_label(c: SplitArrays) -> SplitArrays:
    labels = c.val.labels.copy()
    labels[0] = 2
    return c._replace(val=replace(c.val, labels=labels))


def changed_size(c: SplitArrays) -> SplitArrays:
    def flat(s: Split) -> Split:
        return replace(s, images=s.images.reshape(len(s), 2, 8, 3))

    return c._replace(train=flat(c.train), val=flat(c.val), test=flat(c.test))


def moved_border(c: SplitArrays) -> SplitArrays:
    """The same pictures in the same order, with the first of val at the end of train."""
    images = np.concatenate([c.train.images, c.val.images[:1]])
    labels = np.concatenate([c.train.labels, c.val.labels[:1]])
    return c._replace(train=Split(images, labels), val=c.val.take(np.arange(1, len(c.val))))


def changed_class(c: SplitArrays) -> SplitArrays:
    return c._replace(classes=("cat", "do", "gübel"))


def mark(c: SplitArrays) -> str:
    return fingerprint(c.classes, {"train": c.train, "val": c.val, "test": c.test})


@pytest.mark.parametrize("change", [changed_pixel, changed_label, changed_size, moved_border, changed_class])
def test_the_fingerprint_changes_with(change: Callable[[SplitArrays], SplitArrays]) -> None:
    assert mark(change(contents())) != mark(contents())


def test_the_fingerprint_is_over_content_alone(tmp_path: Path) -> None:
    given_ = contents(extras=False)
    assert mark(given_) == mark(contents()) == opened(tmp_path).fingerprint


def test_what_is_read_at_once_does_not_grow_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = new_images(tmp_path / "x.npy", 100, 224)  # 15 MB
    whole = Split(images, np.zeros(100, np.int64))
    monkeypatch.setattr(store, "CHUNK_BYTES", 1 << 20)
    tracemalloc.start()
    one = fingerprint(("a",), {"train": whole})
    keep_rows(tmp_path / "x.npy", np.arange(99))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4 << 20
    monkeypatch.undo()
    assert one == fingerprint(("a",), {"train": whole})


@pytest.mark.parametrize(
    ("size", "shape", "rows"), [(1000, (10, 10, 3), 3), (299, (10, 10, 3), 1), (300, (10, 10, 3), 1)]
)
def test_rows_within(size: int, shape: tuple[int, ...], rows: int) -> None:
    assert max_rows(size, np.zeros((4, *shape), np.uint8)) == rows


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(1, 90))
def test_limited_is_balanced_and_keeps_the_order(labels: list[int], n: int) -> None:
    rows = np.array(labels, np.int64)
    images = np.arange(len(rows), dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8)
    whole = Split(images, rows, names=tuple(map(str, range(len(rows)))))
    data = Dataset("d", tuple("abcde"), whole, whole, whole, "f" * 64, ())
    small = data.limited(n)
    assert len(small.train) == len(small.val) == min(n, len(rows))
    chosen = small.train.images[:, 0, 0, 0].astype(int)
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(small.train.labels, rows[chosen])
    assert small.train.names == tuple(str(row) for row in chosen)
    whole_counts, counts = np.bincount(rows, minlength=5), np.bincount(small.train.labels, minlength=5)
    short = counts < whole_counts
    assert not short.any() or counts.max() <= counts[short].min() + 1
    for label in range(5):
        first = np.flatnonzero(rows == label)[: counts[label]]
        np.testing.assert_array_equal(chosen[rows[chosen] == label], first)


def test_limited_is_another_data_set_unless_nothing_goes(tmp_path: Path) -> None:
    data = opened(tmp_path)
    small = data.limited(6)
    assert (len(small.train), len(small.val), len(small.test)) == (6, 6, 5)
    assert small.train.masks is not None
    assert small.fingerprint == data.limited(6).fingerprint != data.fingerprint
    assert any("first 6 pictures" in note for note in small.notes)
    assert data.limited(12) is data
    few = data.limited(3, ("train",))
    assert (len(few.train), len(few.val), len(few.test)) == (3, len(data.val), len(data.test))
    assert few.notes[-1] == "limited to the first 3 pictures of train"
    assert few.fingerprint not in (data.fingerprint, small.fingerprint)
    with pytest.raises(InputError, match="limit is 0"):
        data.limited(0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=200), st.floats(0.05, 0.5), st.integers(0, 5))
def test_hold_out_takes_its_share_of_every_class(labels: list[int], fraction: float, seed: int) -> None:
    rows = np.array(labels, np.int64)
    held = hold_out(rows, fraction, seed)
    np.testing.assert_array_equal(held, hold_out(rows, fraction, seed))
    for label in set(labels):
        count, out = int((rows == label).sum()), int(held[rows == label].sum())
        assert count - out >= 1
        assert abs(out - fraction * count) <= 1
        assert out >= 1 or count == 1


def test_hold_out_depends_on_the_seed_and_looks_random() -> None:
    labels = np.repeat([0, 1], 1000)
    held = hold_out(labels, 0.1)
    assert (held != hold_out(labels, 0.1, seed=1)).any()
    assert 300 < np.flatnonzero(held[:1000]).mean() < 700
    assert (held[:1000] != held[1000:]).any()


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder(Path("elsewhere")) == Path("elsewhere")
    monkeypatch.delenv("CAMKD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "camkd"


# --- damage on the disk


def store_of(cache: Path) -> Path:
    (folder,) = (cache / "data").iterdir()
    return folder


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def read(data: Dataset) -> None:
    """Every picture of every split, as training and evaluation read them."""
    for part in data.splits.values():
        views = Views(part, 3, "light", 0, torch.device("cpu"))
        for samples in torch.arange(len(part)).split(4):
            views[0, samples]


def test_pictures_are_what_was_written(tmp_path: Path) -> None:
    data = opened(tmp_path)
    read(data)
    read(data.limited(5))
    assert data.train.sums is not None
    assert data.train.sums.tolist() == [zlib.crc32(image.tobytes()) for image in data.train.images]


@pytest.mark.fault("a flipped byte in the data store")
@pytest.mark.parametrize("field", ["images", "labels", "masks", "sums"])
@pytest.mark.parametrize("name", SPLITS)
def test_a_flipped_byte_is_caught(tmp_path: Path, name: str, field: str) -> None:
    opened(tmp_path)
    path = store_of(tmp_path) / f"{name}_{field}.npy"
    for place in range(128, path.stat().st_size, max(1, path.stat().st_size // 23)):
        flipped(path, place)
        with pytest.raises(InputError, match=r"not what was written|is damaged"):
            read(opened(tmp_path))
        flipped(path, place)
    read(opened(tmp_path))


@pytest.mark.fault("a flipped byte in the data store")
def test_a_flipped_byte_of_the_manifest_or_of_a_header_is_caught(tmp_path: Path) -> None:
    opened(tmp_path)
    for path, size in ((store_of(tmp_path) / "dataset.json", None), (store_of(tmp_path) / "val_images.npy", 118)):
        content = path.read_bytes()
        for place in range(0, size or len(content), 7):
            if content[place : place + 1].isspace():
                continue  # between the parts of a header
            flipped(path, place)
            with pytest.raises(InputError, match=r"is damaged"):
                opened(tmp_path)
            path.write_bytes(content)
    read(opened(tmp_path))


@pytest.mark.fault("a data store's file cut or gone")
@pytest.mark.parametrize("keep", [0, 150, -1])
@pytest.mark.parametrize("field", ["images", "labels", "sums"])
def test_a_file_that_is_cut_off_or_gone_is_caught(tmp_path: Path, field: str, keep: int) -> None:
    opened(tmp_path)
    path = store_of(tmp_path) / f"train_{field}.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"is damaged .* delete it to rebuild it"):
        opened(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"is damaged .* delete it to rebuild it"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "other",
    [np.zeros((12, 4, 4, 3), np.float32), np.zeros((11, 4, 4, 3), np.uint8), np.zeros((12, 4, 4, 4), np.uint8)],
    ids=["floats", "too few", "four channels"],
)
def test_pictures_of_another_form_are_caught(tmp_path: Path, other: np.ndarray) -> None:
    opened(tmp_path)
    np.save(store_of(tmp_path) / "train_images.npy", other)
    with pytest.raises(InputError, match=r"is damaged .*train_images\.npy has the shape"):
        opened(tmp_path)


def test_the_damaged_picture_is_named(tmp_path: Path) -> None:
    opened(tmp_path)
    path = store_of(tmp_path) / "train_images.npy"
    header = path.stat().st_size - 12 * 48
    for row in (7, 9):
        flipped(path, header + 48 * row + 3)
    data = opened(tmp_path)
    views = Views(data.train, 3, "none", 0, torch.device("cpu"))
    views[0, torch.tensor([0, 8, 11])]
    wanted = rf"picture 7 \(one of 2\) are not what was written: delete the folder {store_of(tmp_path)}, it"
    with pytest.raises(InputError, match=wanted):
        views[0, torch.tensor([0, 7, 9])]
