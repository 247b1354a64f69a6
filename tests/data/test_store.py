"""Stored datasets: building, opening, rows of image files, and detection of corrupt files."""

from __future__ import annotations

import errno
import hashlib
import os
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from camkd.data import dataset as dataset_module
from camkd.data import store as store_module
from camkd.data.dataset import SPLITS, Dataset, Split, fingerprint
from camkd.data.store import SplitArrays, build_or_open, create_image_file, encode_key, select_rows
from camkd.data.views import Views
from camkd.types import InputError
from camkd.utils.files import LOCK_SUFFIX, TEMP_SUFFIX
from support.stored_dataset import make_arrays, open_pets

CPU = torch.device("cpu")


def stored_folder(cache: Path) -> Path:
    (folder,) = (cache / "data").iterdir()
    return folder


# --- build and open


@pytest.mark.parametrize("optional_fields", [True, False])
def test_stored_dataset_equals_the_built_arrays(tmp_path: Path, optional_fields: bool) -> None:
    arrays = make_arrays(optional_fields)
    data = open_pets(tmp_path, lambda _: arrays)
    assert data.name == "pets"
    assert data.classes == arrays.classes
    assert data.notes == ("a note",)
    for name, stored in data.splits.items():
        expected: Split = getattr(arrays, name)
        np.testing.assert_array_equal(stored.images, expected.images)
        np.testing.assert_array_equal(stored.labels, expected.labels)
        assert stored.labels.dtype == np.int64
        assert stored.names == expected.names
        assert (stored.masks is None) == (expected.masks is None)
        if stored.masks is not None and expected.masks is not None:
            np.testing.assert_array_equal(stored.masks, expected.masks)


def test_images_are_memory_mapped_and_read_only(tmp_path: Path) -> None:
    images = open_pets(tmp_path).train.images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_dataset_is_built_once(tmp_path: Path) -> None:
    def fail(_: Path) -> SplitArrays:
        raise AssertionError("built twice")

    data = open_pets(tmp_path)
    assert open_pets(tmp_path, fail).fingerprint == data.fingerprint


def test_other_key_is_another_stored_dataset(tmp_path: Path) -> None:
    first = build_or_open("pets", "1", tmp_path, lambda _: make_arrays())
    second = build_or_open("pets", "2", tmp_path, lambda _: make_arrays()._replace(notes=()))
    assert first.fingerprint == second.fingerprint
    assert first.notes != second.notes


def test_folder_name_is_a_hash_of_version_and_key(tmp_path: Path) -> None:
    open_pets(tmp_path)
    assert stored_folder(tmp_path).name == f"pets-{hashlib.sha256(b'4 key').hexdigest()[:16]}"
    assert stored_folder(tmp_path).name == "pets-48a43c50f644286e"


def test_folder_name_is_safe(tmp_path: Path) -> None:
    build_or_open("../a b/" + "x" * 300, "key", tmp_path, lambda _: make_arrays())
    assert len(stored_folder(tmp_path).name) < 100
    assert "/" not in stored_folder(tmp_path).name


def test_encoded_key_is_canonical() -> None:
    expected = '{"a":[0.5,"\\u00e9"],"version":1}'
    assert encode_key({"version": 1, "a": (0.5, "é")}) == encode_key({"a": [0.5, "é"], "version": 1}) == expected


def test_image_file_written_by_build_is_kept(tmp_path: Path) -> None:
    def build(folder: Path) -> SplitArrays:
        arrays = make_arrays()
        images = create_image_file(folder / "train_images.npy", len(arrays.train), 4)
        images[:] = 7
        return arrays._replace(train=replace(arrays.train, images=images))

    assert (open_pets(tmp_path, build).train.images == 7).all()


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt])
def test_failed_build_leaves_no_files(tmp_path: Path, exception: type[BaseException]) -> None:
    def build(folder: Path) -> SplitArrays:
        create_image_file(folder / "train_images.npy", 3, 4)
        raise exception

    with pytest.raises(exception):
        open_pets(tmp_path, build)
    assert list((tmp_path / "data").iterdir()) == []
    assert len(open_pets(tmp_path).train) == 12


@pytest.mark.parametrize(
    ("error", "is_full_disk"),
    [
        (OSError("120 requested and 7 written"), True),  # the error of NumPy
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "cat.jpg"), False),
    ],
)
def test_full_disk_during_a_build(tmp_path: Path, error: OSError, is_full_disk: bool) -> None:
    def build(folder: Path) -> SplitArrays:
        raise error

    with pytest.raises(InputError if is_full_disk else OSError) as caught:
        open_pets(tmp_path, build)
    assert "got a full disk after" in str(caught.value) if is_full_disk else caught.value is error
    assert list((tmp_path / "data").iterdir()) == []


def test_full_disk_is_detected_before_images_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(InputError) as caught:
        create_image_file(tmp_path / "train_images.npy", 3, 4)
    assert str(caught.value) == (
        f"'{tmp_path.parent}' must have space for 144 B of decoded images, got a full disk. Free some space, choose a "
        "smaller size, or set CAMKD_CACHE to another folder."
    )


@pytest.mark.fault("temporary files of a killed process")
def test_leftovers_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    stale, locked = (tmp_path / "data" / f".{name}.0123abcd{TEMP_SUFFIX}" for name in ("pets-1", "elsewhere-2"))
    for folder in (stale, locked):
        folder.mkdir(parents=True)
        create_image_file(folder / "train_images.npy", 3, 4)
    with FileLock(f"{locked}{LOCK_SUFFIX}"):  # another process builds this dataset
        open_pets(tmp_path)
    assert not stale.exists()
    assert locked.exists()


def test_dataset_finished_first_by_another_process_is_used(tmp_path: Path) -> None:
    def build(_: Path) -> SplitArrays:
        open_pets(tmp_path)
        return make_arrays()._replace(notes=("second",))

    assert open_pets(tmp_path, build).notes == ("a note",)
    assert len(list((tmp_path / "data").iterdir())) == 1


@pytest.mark.fault("read-only folder")
def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"'.*cache/data' must be writable.*CAMKD_CACHE"):
        open_pets(tmp_path / "cache")


# --- rows and chunks


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=20).filter(any))
def test_select_rows_keeps_the_order(tmp_path_factory: pytest.TempPathFactory, selected: list[bool]) -> None:
    path = tmp_path_factory.mktemp("rows") / "train_images.npy"
    images = create_image_file(path, len(selected), 2)
    images[:] = np.arange(len(selected), dtype=np.uint8)[:, None, None, None]
    rows = np.flatnonzero(selected)
    select_rows(path, rows)
    np.testing.assert_array_equal(np.load(path)[:, 0, 0, 0], rows)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_memory_is_independent_of_the_dataset_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = create_image_file(tmp_path / "x.npy", 100, 224)  # 15 MB
    split = Split(images, np.zeros(100, np.int64))
    for module in (dataset_module, store_module):
        monkeypatch.setattr(module, "CHUNK_BYTES", 1 << 20)
    tracemalloc.start()
    in_chunks = fingerprint(("a",), {"train": split})
    select_rows(tmp_path / "x.npy", np.arange(99))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    monkeypatch.undo()
    assert in_chunks == fingerprint(("a",), {"train": split})


# --- corrupt files


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 16
    path.write_bytes(content)


def read_all(data: Dataset) -> None:
    """Read every image of every split as training and evaluation do."""
    for split in data.splits.values():
        views = Views(split, 3, "light", 0, CPU)
        for samples in torch.arange(len(split)).split(4):
            views[0, samples]


def test_stored_images_match_their_checksums(tmp_path: Path) -> None:
    data = open_pets(tmp_path)
    read_all(data)
    read_all(data.limited(5))
    assert data.train.checksums is not None
    assert data.train.checksums.tolist() == [zlib.crc32(image.tobytes()) for image in data.train.images]


@pytest.mark.fault("corrupted byte in the dataset cache")
@pytest.mark.parametrize("field", ["images", "labels", "masks", "sums"])
@pytest.mark.parametrize("split", SPLITS)
def test_flipped_bit_is_detected(tmp_path: Path, split: str, field: str) -> None:
    open_pets(tmp_path)
    path = stored_folder(tmp_path) / f"{split}_{field}.npy"
    for position in range(128, path.stat().st_size, max(1, path.stat().st_size // 23)):
        flip_bit(path, position)
        with pytest.raises(InputError, match=r"corrupt"):
            read_all(open_pets(tmp_path))
        flip_bit(path, position)
    read_all(open_pets(tmp_path))


@pytest.mark.fault("corrupted byte in the dataset cache")
@pytest.mark.parametrize(("name", "size"), [("dataset.json", None), ("val_images.npy", 118)])
def test_flipped_bit_of_the_manifest_or_of_a_header_is_detected(tmp_path: Path, name: str, size: int | None) -> None:
    open_pets(tmp_path)
    path = stored_folder(tmp_path) / name
    content = path.read_bytes()
    for position in range(0, size or len(content), 7):
        if content[position : position + 1].isspace():
            continue  # a space between the parts of a header may change
        flip_bit(path, position)
        with pytest.raises(InputError, match=r"must be intact"):
            open_pets(tmp_path)
        path.write_bytes(content)
    read_all(open_pets(tmp_path))


@pytest.mark.fault("truncated or missing file of the dataset cache")
@pytest.mark.parametrize("keep", [0, 150, -1])
@pytest.mark.parametrize("field", ["images", "labels", "sums"])
def test_truncated_or_missing_file_is_detected(tmp_path: Path, field: str, keep: int) -> None:
    open_pets(tmp_path)
    path = stored_folder(tmp_path) / f"train_{field}.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"must be intact"):
        open_pets(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"must be intact"):
        open_pets(tmp_path)


def test_message_of_a_corrupt_dataset(tmp_path: Path) -> None:
    open_pets(tmp_path)
    folder = stored_folder(tmp_path)
    path = folder / "val_labels.npy"
    flip_bit(path, 130)
    with pytest.raises(InputError) as caught:
        open_pets(tmp_path)
    assert str(caught.value) == (
        f"the cached dataset '{folder}' must be intact, got a corrupt file (the checksum of val_labels.npy differs). "
        "Delete the folder to rebuild it."
    )


@pytest.mark.parametrize(
    "images",
    [np.zeros((12, 4, 4, 3), np.float32), np.zeros((11, 4, 4, 3), np.uint8), np.zeros((12, 4, 4, 4), np.uint8)],
    ids=["floats", "too few", "four channels"],
)
def test_images_of_wrong_dtype_or_shape_are_detected(tmp_path: Path, images: np.ndarray) -> None:
    open_pets(tmp_path)
    np.save(stored_folder(tmp_path) / "train_images.npy", images)
    with pytest.raises(InputError, match=r"train_images\.npy must be uint8 of shape \(12, H, W, 3\), got"):
        open_pets(tmp_path)


def test_message_of_corrupt_images(tmp_path: Path) -> None:
    open_pets(tmp_path)
    path = stored_folder(tmp_path) / "train_images.npy"
    header_bytes = path.stat().st_size - 12 * 48
    for row in (7, 9):
        flip_bit(path, header_bytes + 48 * row + 3)
    views = Views(open_pets(tmp_path).train, 3, "none", 0, CPU)
    views[0, torch.tensor([0, 8, 11])]
    with pytest.raises(InputError) as caught:
        views[0, torch.tensor([0, 7, 9])]
    assert str(caught.value) == (
        f"stored images must match their checksums, got 2 corrupt, the first at index 7. Delete the folder "
        f"{stored_folder(tmp_path)} to rebuild it."
    )
