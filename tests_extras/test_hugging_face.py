"""Data sets of the Hugging Face library ``datasets``, saved to disk: they are the datasets of the same files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Array2D, Array3D, ClassLabel, DatasetDict, Features, Value
from PIL import Image

from camkd.data import Dataset, open_data
from camkd.data.dataset import SPLITS
from camkd.types import InputError
from support.cli import QUICK, camkd

CLASSES = ["dog", "cat"]  # not sorted
LABEL = ClassLabel(names=CLASSES)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def noise(number: int, height: int = 12, width: int = 16) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def encode(number: int) -> bytes:
    """Encode an image: in turn a JPEG that must be rotated, a PNG with alpha and a gray PNG of 16 bits."""
    stream = io.BytesIO()
    if number % 3 == 0:
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(noise(number)).save(stream, "JPEG", exif=exif, quality=60)
    elif number % 3 == 1:
        Image.fromarray(noise(number)).convert("RGBA").save(stream, "PNG")
    else:
        Image.fromarray(noise(number)[..., 0].astype(np.uint16) * 100).save(stream, "PNG")
    return stream.getvalue()


def make(numbers: Sequence[int], **columns: Any) -> datasets.Dataset:
    """Make a data set of encoded images. Even numbers are dogs."""
    rows = {
        "image": [{"bytes": encode(number), "path": None} for number in numbers],
        "label": [number % 2 for number in numbers],
    }
    types = {"image": datasets.Image(), "label": LABEL}
    for name, (kind, values) in columns.items():
        rows[name] = values
        types[name] = kind
    return datasets.Dataset.from_dict(rows, features=Features(types))


def read(path: Path, tmp_path: Path, **options: Any) -> Dataset:
    return open_data(f"hf:{path}", **{"size": 8, "workers": 1, "cache": tmp_path / "cache", **options})


def write_folder(root: Path, splits: dict[str, Sequence[int]]) -> Path:
    """Write the same images as a folder of files."""
    for split, numbers in splits.items():
        for index, number in enumerate(numbers):
            file = root / split / CLASSES[number % 2] / f"{index:08d}.img"
            file = file.with_suffix(".jpg" if number % 3 == 0 else ".png")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(number))
    return root


SPLIT_NUMBERS = {"train": range(0, 20), "validation": range(20, 28), "test": range(28, 40)}


def test_saved_data_set_is_the_folder_of_its_files(tmp_path: Path) -> None:
    DatasetDict({name: make(numbers) for name, numbers in SPLIT_NUMBERS.items()}).save_to_disk(str(tmp_path / "pets"))
    folder = write_folder(tmp_path / "folder", SPLIT_NUMBERS)  # type: ignore[arg-type]
    data = read(tmp_path / "pets", tmp_path)
    expected = open_data(folder, size=8, workers=1, cache=tmp_path / "cache")
    assert data.name == "pets"
    assert data.classes == ("cat", "dog")
    assert data.value_range == expected.value_range is not None
    assert data.fingerprint == expected.fingerprint
    assert data.source_fingerprint == expected.source_fingerprint
    assert data.at_size(12).fingerprint == expected.at_size(12).fingerprint
    assert (
        read(tmp_path / "pets", tmp_path, fit="pad").fingerprint
        == open_data(folder, size=8, fit="pad", workers=1, cache=tmp_path / "cache").fingerprint
    )
    assert len(read(tmp_path / "pets", tmp_path, limit=5).train) == 5


def test_files_are_written_once(tmp_path: Path) -> None:
    make(range(60)).save_to_disk(str(tmp_path / "pets"))
    first = read(tmp_path / "pets", tmp_path)
    assert "there are no val and no test rows, so images of train were held out" in "\n".join(first.notes)
    (folder,) = (tmp_path / "cache" / "hugging_face").iterdir()
    written = {path: path.stat().st_ino for path in folder.rglob("*")}
    read(tmp_path / "pets", tmp_path, size=12)
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == written
    assert len(written) == 62


def test_moved_data_set_has_the_same_splits(tmp_path: Path) -> None:
    DatasetDict({"train": make(range(60))}).save_to_disk(str(tmp_path / "pets"))
    first = read(tmp_path / "pets", tmp_path)
    second = read((tmp_path / "pets").rename(tmp_path / "moved"), tmp_path)
    assert second.fingerprint == first.fingerprint
    assert [split.names for split in second.splits.values()] == [split.names for split in first.splits.values()]


@pytest.mark.parametrize(
    ("feature", "values"),
    [
        (Array3D((6, 8, 3), "uint8"), [noise(n, 6, 8) for n in range(40)]),
        (Array3D((3, 6, 8), "uint8"), [noise(n, 6, 8).transpose(2, 0, 1) for n in range(40)]),
        (Array2D((6, 8), "uint8"), [noise(n, 6, 8)[..., 0] for n in range(40)]),
    ],
    ids=["channels last", "channels first", "gray"],
)  # fmt: skip
def test_arrays_are_stored_losslessly(tmp_path: Path, feature: Any, values: list[Any]) -> None:
    rows = {"pixels": values, "label": [n % 2 for n in range(40)]}
    features = Features({"pixels": feature, "label": LABEL})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "arrays"))
    data = read(tmp_path / "arrays", tmp_path, size=6)
    for split in data.splits.values():
        for name, image in zip(split.names or (), split.images, strict=True):
            original = noise(int(Path(name).stem), 6, 8)[:, 1:7]
            assert (image == (original[..., :1] if isinstance(feature, Array2D) else original)).all()


def test_columns_for_groups_weights_and_masks(tmp_path: Path) -> None:
    masks = [None if n % 2 else {"bytes": _mask(n), "path": None} for n in range(120)]
    saved = make(
        range(120),
        patient=(Value("string"), [f"p{n // 3}" for n in range(120)]),
        weight=(Value("float32"), [n / 4 for n in range(120)]),
        mask=(datasets.Image(), masks),
    )
    saved.save_to_disk(str(tmp_path / "scans"))
    data = read(tmp_path / "scans", tmp_path, group="patient")
    assert "each of the 40 groups is in one split" in data.notes
    patients = []
    for split in data.splits.values():
        numbers = [int(Path(name).stem) for name in split.names or ()]
        patients.append({number // 3 for number in numbers})
        assert split.weights is not None
        assert split.masks is not None
        assert split.weights.tolist() == [number / 4 for number in numbers]
        assert split.masks.any((1, 2)).tolist() == [number % 2 == 0 for number in numbers]
    assert sum(map(len, patients)) == 40


def _mask(number: int) -> bytes:
    height, width = (16, 12) if number % 3 == 0 else (12, 16)
    mask = np.zeros((height, width), np.uint8)
    mask[4:8, 4:8] = 255
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return stream.getvalue()


def test_images_without_label_are_left_out(tmp_path: Path) -> None:
    unlabeled = make(range(8))
    unlabeled = unlabeled.remove_columns("label").add_column("label", [-1] * 8, feature=LABEL)
    partly = (
        make(range(40)).remove_columns("label").add_column("label", [-1, *(n % 2 for n in range(1, 40))], feature=LABEL)
    )
    DatasetDict({"train": partly, "test": unlabeled}).save_to_disk(str(tmp_path / "pets"))
    notes = "\n".join((data := read(tmp_path / "pets", tmp_path)).notes)
    assert "1 of 40 train images without label were left out" in notes
    assert "8 of 8 test images without label were left out" in notes
    assert sum(map(len, data.splits.values())) == 39


def test_unreadable_and_missing_images(tmp_path: Path) -> None:
    saved = make(range(40))
    rows = {
        "image": [
            {"bytes": b"broken", "path": None},
            None,
            *saved.cast_column("image", datasets.Image(decode=False))["image"][2:],
        ]
    }
    broken = datasets.Dataset.from_dict({**rows, "label": saved["label"][:]}, features=saved.features)
    broken.save_to_disk(str(tmp_path / "pets"))
    with pytest.raises(InputError, match="got 2 unreadable"):
        read(tmp_path / "pets", tmp_path)
    assert sum(map(len, read(tmp_path / "pets", tmp_path, bad_images="skip").splits.values())) == 38


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.remove_columns("image"), "must have a column of images.*, got 'label' \\(ClassLabel\\)"),
        (lambda data: data.remove_columns("label"), "must have a column of class labels.*, got 'image' \\(Image\\)"),
        (
            lambda data: data.rename_column("label", "a").add_column("b", [0] * 20, feature=LABEL),
            "must have one column of class labels.*, got 'a', 'b'. Rename one of them to 'label'",
        ),
        (lambda data: DatasetDict({"extra": data}), "must have a split train, val or test, got 'extra'"),
        (
            lambda data: DatasetDict({"val": data, "validation": data}),
            "must have one val split, got 'val' and 'validation'",
        ),
        (
            lambda data: DatasetDict({"train": data, "test": data.remove_columns("label")}),
            "all splits of .* must have the same columns",
        ),
    ],
)  # fmt: skip
def test_data_sets_that_cannot_be_used(tmp_path: Path, change: Any, message: str) -> None:
    change(make(range(20))).save_to_disk(str(tmp_path / "pets"))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "pets", tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache" / "data").exists()


def test_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="must be a folder of save_to_disk, got an error: ") as caught:
        read(tmp_path / "empty", tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="must be a folder of save_to_disk, or a data set of the Hub, got an error: "):
        open_data("hf:nobody/nothing-of-this-name", cache=tmp_path)


def test_name_on_the_hub_uses_the_splits_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = DatasetDict({name: make(numbers) for name, numbers in SPLIT_NUMBERS.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"me/pets": saved}[name])
    data = open_data("hf:me/pets", size=8, workers=1, cache=tmp_path)
    assert [len(data.splits[split]) for split in SPLITS] == [20, 8, 12]


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    DatasetDict({name: make(numbers) for name, numbers in SPLIT_NUMBERS.items()}).save_to_disk("pets")
    trained = camkd("teacher", "--model", "resnet8", "--data", "hf:pets", "--size", "16", *QUICK)
    assert trained.status == 0, trained.err
    run = "runs/pets/teacher-resnet8"
    assert camkd("evaluate", run, "--json").json["test_images"] == 12
    assert camkd("evaluate", run, "--data", "hf:pets", "--json").json["test_images"] == 12
    camkd("explain", run, "hf:pets", "--out", "maps.json")
    assert len(json.loads(Path("maps.json").read_text())["images"]) == 40
    (tmp_path / "pets").rename(tmp_path / "runs" / "pets2")
    moved = camkd("evaluate", run, "--json")
    assert moved.status == 2
    resumed = camkd(
        "teacher", "--model", "resnet8", "--data", "hf:runs/pets2", "--size", "16", "--out", run, "--resume", *QUICK
    )
    assert "is a finished run" in resumed.err
    audited = camkd("audit", "hf:runs/pets2", "--json")
    assert audited.status == 0, audited.err
