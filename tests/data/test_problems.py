"""Faults of a dataset that training names in one line, computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.cli.commands.common import open_data as open_data_of_command
from camkd.cli.progress import ProgressReporter
from camkd.config import DataConfig
from camkd.data import problems
from camkd.data.dataset import Dataset
from camkd.data.problems import FILE, check_dataset
from camkd.data.sources import open_data
from support.photos import make_photos

EXPECTED = [
    "1 val and 1 test images have a duplicate in another split",
    "2 duplicates have different labels",
    "1 image repeats another image of the same split",
    "2 images are nearly one color",
]


def write(root: Path) -> Path:
    for number, photo in enumerate(make_photos(40, 64)):
        folder = root / ("train" if number < 24 else "val" if number < 32 else "test") / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"{number}.png")
    return root


@pytest.fixture
def faulty(tmp_path: Path) -> Dataset:
    root = write(tmp_path / "pets")
    photos = make_photos(40, 64)
    photos[0].save(root / "test" / "cat" / "a.jpg", quality=60)
    photos[2].transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "val" / "cat" / "b.png")
    photos[3].save(root / "train" / "cat" / "c.png")
    for number in range(2):
        Image.new("RGB", (64, 64), (9, 9, 9)).save(root / "train" / "dog" / f"blank {number}.png")
    return open_data(root, size=32)


def stored_file(data: Dataset) -> Path:
    assert isinstance(data.train.images, np.memmap)
    return Path(str(data.train.images.filename)).parent / FILE


def test_faults_are_found_once(faulty: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_dataset(faulty) == EXPECTED
    with monkeypatch.context() as patch:
        patch.setattr(problems, "find_duplicates", lambda *parts, **options: pytest.fail("computed again"))
        assert check_dataset(faulty) == EXPECTED


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": [0, "x"], "lines": []}'])
def test_invalid_file_is_computed_again(faulty: Dataset, content: str) -> None:
    stored_file(faulty).write_text(content, encoding="utf-8")
    assert check_dataset(faulty) == EXPECTED


def test_cached_dataset_opens_with_the_file(faulty: Dataset, tmp_path: Path) -> None:
    check_dataset(faulty)
    assert stored_file(faulty).exists()
    assert open_data(tmp_path / "pets", size=32).fingerprint == faulty.fingerprint


def test_cache_that_cannot_be_written(faulty: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, value: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(problems, "write_json", fail)
    assert check_dataset(faulty) == EXPECTED


def test_dataset_in_memory(faulty: Dataset) -> None:
    assert check_dataset(faulty.limited(20)) is not None


def test_training_names_the_faults_in_one_line(
    faulty: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "pets")
    open_data_of_command(DataConfig(root, size=32), ProgressReporter())
    lines = [line for line in capsys.readouterr().err.splitlines() if "camkd audit" in line]
    assert lines == [f"  {'; '.join(EXPECTED)}. List them with: camkd audit {root}"]


def test_training_names_nothing_without_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_data_of_command(DataConfig(str(write(tmp_path / "clean")), size=32), ProgressReporter())
    assert "audit" not in capsys.readouterr().err
