"""Built-in datasets and folders through `open_data`: common properties and errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.data import SOURCES, Dataset, hold_out, open_data
from camkd.data.shapes import COUNTS, SHAPES
from camkd.types import InputError


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "pets" / name / f"{number}.png")
    return tmp_path / "pets"


@pytest.fixture(params=["shapes", "folder"])
def data(request: pytest.FixtureRequest, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    for name in COUNTS:
        monkeypatch.setitem(COUNTS, name, 20)
    return open_data(str(pets) if request.param == "folder" else request.param, cache=tmp_path / "cache")


def test_dtypes_and_shapes_of_every_source(data: Dataset) -> None:
    assert len(data.classes) >= 2
    assert len(data.fingerprint) == 64
    for split in data.splits.values():
        n, height, width, channels = split.images.shape
        assert (height, channels) == (width, 3)
        assert split.images.dtype == np.uint8
        assert not split.images.flags.writeable
        assert split.labels.shape == (n,) == (len(split),)
        assert split.labels.dtype == np.int64
        assert set(split.labels) <= set(range(len(data.classes)))
        assert split.masks is None or split.masks.shape == (n, height, width)
        assert split.names is None or len(split.names) == n
    assert set(data.train.labels) == set(range(len(data.classes)))


def test_registry_matches_the_datasets() -> None:
    assert tuple(SOURCES) == ("shapes", "shapes-cue", "cifar10", "cifar100")
    for source in SOURCES.values():
        assert source.summary
        assert "\n" not in source.summary
    assert SOURCES["shapes"].classes == len(SHAPES)
    assert SOURCES["shapes"].images == (10_000, 1_000, 2_000)
    held_out = hold_out(np.repeat(np.arange(100), 500), 0.1)
    assert SOURCES["cifar100"].images[1] == held_out.sum()


def test_limit_and_size(pets: Path, tmp_path: Path) -> None:
    small = open_data(pets, limit=6, size=12, cache=tmp_path / "cache")
    assert small.train.images.shape == (6, 12, 12, 3)
    np.testing.assert_array_equal(np.bincount(small.train.labels), [3, 3])
    assert small.fingerprint != open_data(pets, size=12, cache=tmp_path / "cache").fingerprint


def test_limit_and_train_limit_of_a_built_in_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COUNTS:
        monkeypatch.setitem(COUNTS, name, 20)
    data = open_data("shapes", limit=15, train_limit=10, cache=tmp_path)
    assert [len(split) for split in data.splits.values()] == [10, 15, 15]


def test_relative_path_and_home_folder(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(pets)
    relative = open_data(".")
    home = open_data("~/pets")
    assert relative.name == home.name == "pets"
    assert relative.train.names == home.train.names
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 1


def test_message_of_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_data("cifar11", cache=tmp_path)
    assert str(caught.value) == (
        "data must be shapes, shapes-cue, cifar10, cifar100, a folder with one subfolder of images per class, a "
        "table of images (.csv, .tsv), or hf:PATH or hf:NAME, got 'cifar11', which does not exist. Check the name."
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"size": 0}, "size must be 1 or more, got 0"),
        ({"size": 3_000_000_000}, "size must be at most 65,535 pixels, got 3,000,000,000"),
        ({"limit": -1}, "limit .* got -1"),
        ({"train_limit": 0}, "train_limit .* got 0"),
        ({"workers": 0}, "workers .* got 0"),
        ({"bad_images": "ignore"}, "'fail' or 'skip', got 'ignore'"),
    ],
)
def test_invalid_option_is_rejected(tmp_path: Path, option: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        open_data("shapes", cache=tmp_path, **option)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_import_does_not_load_torch() -> None:
    code = "import sys, camkd.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
