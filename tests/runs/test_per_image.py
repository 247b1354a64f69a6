"""The file of the results of each test image: no pickles, atomic, corrupt files are rejected."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from camkd.runs.per_image import read_per_image, write_per_image
from camkd.types import InputError


def test_columns_survive_a_round_trip_without_pickles(tmp_path: Path) -> None:
    columns = {
        "label": np.arange(6, dtype=np.int32),
        "cam_cosine": np.linspace(0, 1, 6, dtype=np.float32),
        "name": np.array([f"ü/{i}.png" for i in range(6)]),
    }
    path = tmp_path / "per_image.npz"
    write_per_image(path, columns)
    stored = read_per_image(path)
    assert list(stored) == list(columns)
    for name, column in columns.items():
        assert stored[name].dtype == column.dtype
        np.testing.assert_array_equal(stored[name], column)
    assert all(name.endswith(".npy") for name in zipfile.ZipFile(path).namelist())
    assert [entry.name for entry in tmp_path.iterdir()] == ["per_image.npz"]


def test_columns_with_python_objects_keep_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "per_image.npz"
    write_per_image(path, {"label": np.arange(3)})
    with pytest.raises(ValueError, match="pickle"):
        write_per_image(path, {"label": np.array([object()])})
    assert read_per_image(path)["label"].tolist() == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["per_image.npz"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"no archive"])
def test_corrupt_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "per_image.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"per_image\.npz must be .*corrupt.*--resume"):
        read_per_image(path)
