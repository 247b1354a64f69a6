"""Hugging Face data sets without the library ``datasets``. `tests_extras/test_hugging_face.py` has the other tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from camkd.data import open_data
from camkd.data.file_names import dataset_name
from camkd.types import InputError


def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"hf:me/pets needs the package datasets.* pip install 'camkd\[hf\]'"):
        open_data("hf:me/pets", cache=tmp_path)


def test_empty_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be hf:PATH or hf:NAME, got 'hf: '"):
        open_data("hf: ", cache=tmp_path)


def test_folder_whose_name_starts_like_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf:pets").mkdir()
    with pytest.raises(InputError, match="must contain images"):
        open_data("hf:pets", cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["hf:/data/pets", "hf:me/pets", "hf:pets"])
def test_name_of_the_dataset(name: str) -> None:
    assert dataset_name(name) == "pets"
