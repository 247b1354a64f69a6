"""`camkd audit` on folders with planted faults: recall and precision of each kind are 1."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from camkd.audit.audit import audit
from camkd.audit.findings import KINDS, LEADS
from camkd.config import DataConfig
from camkd.data.dataset import cache_folder
from camkd.types import InputError
from support.cli import camkd
from support.photos import make_photos

CLASSES = ("cat", "dog", "emu")
PER_CLASS = 24


def write(root: Path, splits: Sequence[str] = ("train", "val", "test"), classes: Sequence[str] = CLASSES) -> Path:
    """Write different images: 24 of each class in train, 4 in val and test."""
    photos = iter(make_photos(len(classes) * (PER_CLASS + 8), 128))
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(PER_CLASS if split == "train" else 4):
                next(photos).save(folder / f"{number}.png")
    return root


def compress(path: Path) -> bytes:
    stream = io.BytesIO()
    Image.open(path).save(stream, "JPEG", quality=40)
    return stream.getvalue()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clean") / "pets")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write(tmp_path_factory.mktemp("faulty") / "pets")
    train, val, test = (root / split for split in ("train", "val", "test"))
    (train / "cat" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (test / "dog" / "half.png").write_bytes((train / "dog" / "0.png").read_bytes()[:2000])
    (test / "cat" / "same.png").write_bytes((train / "cat" / "1.png").read_bytes())
    (val / "dog" / "recompressed.jpg").write_bytes(compress(train / "dog" / "2.png"))
    Image.open(train / "emu" / "3.png").crop((2, 2, 126, 126)).save(test / "emu" / "cropped.png")
    ImageEnhance.Brightness(Image.open(train / "emu" / "4.png")).enhance(0.8).save(train / "dog" / "darker.png")
    Image.open(train / "cat" / "5.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(train / "cat" / "flipped.png")
    for number, value in enumerate((0, 128, 255, 255)):
        Image.new("RGB", (100, 100), (value,) * 3).save(train / "emu" / f"blank {number}.png")
    Image.open(train / "dog" / "6.png").resize((30, 30)).save(train / "dog" / "6.png")
    make_photos(3, 400)[2].crop((0, 0, 400, 90)).save(train / "dog" / "long.png")
    Image.open(train / "emu" / "7.png").convert("L").save(train / "emu" / "7.png")
    return root


def found(result: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return the names of the images of each group by kind, sorted."""
    return {
        kind: sorted(sorted(image["name"] for image in group["images"]) for group in finding["groups"])
        for kind, finding in result["findings"].items()
    }


def test_clean_images_have_no_faults(clean: Path) -> None:
    result, lines = audit(DataConfig(str(clean)))
    assert result["findings"] == {}
    assert lines == [
        "pets: 96 images (72 train, 12 val, 12 test) in 3 classes, median 128 × 128 pixels",
        "  no faults found",
    ]
    assert result["classes"]["emu"] == {"train": 24, "val": 4, "test": 4}
    assert result["sizes"] == {"width": [128, 128, 128], "height": [128, 128, 128]}


def test_every_planted_fault_is_found_and_nothing_else(faulty: Path) -> None:
    result, lines = audit(DataConfig(str(faulty)))
    assert found(result) == {
        "unreadable": [["test/dog/half.png"], ["train/cat/broken.jpg"]],
        "leakage": [
            ["test/cat/same.png", "train/cat/1.png"],
            ["test/emu/cropped.png", "train/emu/3.png"],
            ["train/dog/2.png", "val/dog/recompressed.jpg"],
        ],
        "conflicts": [["train/dog/darker.png", "train/emu/4.png"]],
        "duplicates": [["train/cat/5.png", "train/cat/flipped.png"], ["train/dog/darker.png", "train/emu/4.png"]],
        "blank": [[f"train/emu/blank {number}.png"] for number in range(4)],
        "small": [["train/dog/6.png"]],
        "proportions": [["train/dog/long.png"]],
        "gray": [["train/emu/7.png"]],
    }
    assert list(result["findings"]) == [kind for kind in KINDS if kind in result["findings"]], "in order of severity"
    assert result["findings"]["leakage"]["count"] == 3
    assert result["findings"]["leakage"]["summary"] == "1 val and 2 test images have a duplicate in another split"
    exact = result["findings"]["leakage"]["groups"][0]
    assert exact["exact"] is True
    assert exact["images"][0] == {"name": "train/cat/1.png", "split": "train", "label": "cat"}
    assert json.loads(json.dumps(result)) == result
    text = "\n".join(lines)
    assert "train/cat/1.png" in text
    assert "= test/cat/same.png: identical" in text
    assert "and 1 more" in text  # of four blank images, three are named


def test_unbalanced_and_small_classes(tmp_path: Path) -> None:
    photos = make_photos(66, 64)
    for number, photo in enumerate(photos):
        folder = (
            tmp_path
            / ("train" if number < 62 else "val" if number < 64 else "test")
            / ("rare" if number % 16 == 0 else "common")
        )
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"{number}.png")
    (tmp_path / "val" / "common").mkdir(exist_ok=True)
    result, _ = audit(DataConfig(str(tmp_path)))
    assert set(result["findings"]) == {"few-images", "imbalance"}
    assert result["findings"]["few-images"]["summary"] == "1 class has fewer than 20 training images: rare 4"
    assert (
        result["findings"]["imbalance"]["summary"] == "common has 14.5 times as many training images as rare (58 and 4)"
    )


def test_class_whose_images_are_all_unreadable(clean: Path, tmp_path: Path) -> None:
    root = write(tmp_path / "pets")
    for path in (root / "train" / "dog").iterdir():
        path.write_bytes(b"nothing")
    result, _ = audit(DataConfig(str(root)))
    assert result["findings"]["unreadable"]["count"] == PER_CLASS
    assert result["findings"]["few-images"]["summary"] == "1 class has fewer than 20 training images: dog 0"


def test_all_images_unreadable(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.png").write_bytes(b"nothing")
    result, _ = audit(DataConfig(str(tmp_path)))
    assert result["findings"]["unreadable"]["count"] == 15


@pytest.mark.slow
def test_built_in_dataset_has_no_files() -> None:
    result, lines = audit(DataConfig("shapes"))
    assert result["sizes"] == {}
    assert "leakage" not in result["findings"]
    assert lines[0].startswith("shapes: ")


def test_table(clean: Path, tmp_path: Path) -> None:
    paths = sorted(clean.glob("train/*/*.png"))
    rows = [f"{path},{path.parent.name}" for path in paths]
    (tmp_path / "copy.png").write_bytes(paths[0].read_bytes())
    table = tmp_path / "pets.csv"
    table.write_text("\n".join(["image,label", *rows, "copy.png,dog", "absent.png,dog"]) + "\n", encoding="utf-8")
    result, _ = audit(DataConfig(str(table)))
    assert found(result)["conflicts"] == [[str(paths[0]), "copy.png"]]
    assert any("absent.png" in note for note in result["notes"])


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must contain images"):
        audit(DataConfig(str(tmp_path)))


def test_single_image(tmp_path: Path) -> None:
    make_photos(1, 64)[0].save(tmp_path / "one.png")
    with pytest.raises(InputError, match="directly in"):
        audit(DataConfig(str(tmp_path)))


def test_one_class(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for number, photo in enumerate(make_photos(12, 64)):
        photo.save(tmp_path / "cat" / f"{number}.png")
    with pytest.raises(InputError, match="must have two or more classes, got one, 'cat'"):
        audit(DataConfig(str(tmp_path)))


def test_command(faulty: Path, clean: Path) -> None:
    output = camkd("audit", str(clean), "--json", "--fail-on", "leakage,unreadable")
    assert output.json["findings"] == {}
    output = camkd("audit", str(faulty), "--fail-on", "leakage, unreadable")
    assert output.status == 1
    assert output.out.startswith("pets: ")
    assert output.last_line.startswith("camkd: unreadable: 2 images cannot be read; leakage: 1 val and 2 test images")
    assert camkd("audit", str(faulty), "--fail-on", "imbalance").status == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing"], "got 'missing', which does not exist"),
        (["shapes", "--fail-on", "leaks"], "--fail-on must be kinds of unreadable, leakage"),
        (["shapes", "--size", "0"], "size must be 1 to 65,535, got 0"),
        ([""], "DATASET must not be empty"),
    ],
)
def test_bad_input(arguments: list[str], expected: str) -> None:
    assert expected in camkd("audit", *arguments).error


def test_nothing_is_left_in_the_cache(clean: Path) -> None:
    audit(DataConfig(str(clean)))
    assert not list(cache_folder().glob("data/audit-*"))


def test_every_kind_has_a_meaning() -> None:
    assert KINDS.keys() == LEADS.keys()
    assert np.all([title and LEADS[kind] for kind, title in KINDS.items()])


def test_groups_choose_the_splits_as_in_training(tmp_path: Path) -> None:
    photos = make_photos(60, 64)
    for number in range(60):
        folder = tmp_path / CLASSES[number % 2]
        folder.mkdir(exist_ok=True)
        patient = number // 4
        photos[number - number % 4 if number % 4 == 2 else number].save(folder / f"p{patient}_{number}.png")
    findings = audit(DataConfig(str(tmp_path)))[0]["findings"]
    assert findings["duplicates"]["count"] + findings["leakage"]["count"] >= 15
    assert "leakage" not in audit(DataConfig(str(tmp_path), group_regex=r"(p\d+)_"))[0]["findings"]
