"""Unlabeled images: the joint training split, and near duplicates that are left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camkd.data.dataset import UNLABELED, Dataset
from camkd.data.images import decode
from camkd.data.sources import open_data
from camkd.data.unlabeled import add_unlabeled
from camkd.data.views import Views
from camkd.types import InputError, Preprocessing

CPU = torch.device("cpu")


def scene(seed: int, side: int = 48) -> Image.Image:
    """A random scene of large colored rectangles."""
    rng = np.random.default_rng(seed)
    pixels = np.full((side, side, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(12):
        top, left = rng.integers(0, side - 8, 2)
        height, width = rng.integers(6, side // 2, 2)
        pixels[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


@pytest.fixture
def labeled_folder(tmp_path: Path) -> Path:
    """Two classes, 6 training, 2 validation and 2 test images each."""
    seed = 0
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                scene(seed).save(folder / f"{number}.png")
                seed += 1
    return tmp_path / "pets"


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    """Eight images at two depths, of which none is in `labeled_folder`."""
    folder = tmp_path / "pile"
    (folder / "a" / "b").mkdir(parents=True)
    for number in range(8):
        scene(100 + number).save(folder / ("a/b" if number % 2 else "") / f"{number}.png")
    return folder


@pytest.fixture
def labeled(labeled_folder: Path) -> Dataset:
    return open_data(labeled_folder, size=32)


def test_labeled_images_come_first(labeled: Dataset, pile: Path) -> None:
    joint = add_unlabeled(labeled, pile)
    assert joint.labeled is labeled
    assert labeled.labeled is labeled
    assert joint.train.labels.tolist() == [0] * 6 + [1] * 6 + [UNLABELED] * 8
    np.testing.assert_array_equal(joint.train.images[:12], labeled.train.images)
    names = [name for name in joint.train.names or () if name not in (labeled.train.names or ())]
    assert names == sorted(path.relative_to(pile).as_posix() for path in pile.rglob("*.png"))
    for name, pixels in zip(names, joint.train.images[12:], strict=True):
        np.testing.assert_array_equal(pixels, decode(pile / name, Preprocessing(32, "crop", "bicubic")))
    np.testing.assert_array_equal(joint.val.images, labeled.val.images)
    joint.train.verify(np.arange(20), joint.train.images)
    assert "unlabeled images: 8 of" in joint.notes[-1]


def test_near_duplicates_of_validation_and_test_are_left_out(
    labeled: Dataset, labeled_folder: Path, pile: Path
) -> None:
    with Image.open(labeled_folder / "test" / "cat" / "1.png") as image:
        image.resize((90, 90)).save(pile / "copy.jpg", quality=80)
    shutil.copy(labeled_folder / "val" / "dog" / "0.png", pile / "a" / "same.png")
    shutil.copy(labeled_folder / "train" / "dog" / "0.png", pile / "a" / "train.png")  # does no harm
    joint = add_unlabeled(labeled, pile)
    names = joint.train.names or ()
    assert len(joint.train) == 12 + 9
    assert "a/train.png" in names
    assert not {"copy.jpg", "a/same.png"} & set(names)
    assert "2 near duplicates of validation and test images are left out: 'a/same.png', 'copy.jpg'" in joint.notes[-1]


def test_blank_copies_are_left_out_and_other_blank_images_are_not(labeled_folder: Path, pile: Path) -> None:
    Image.new("RGB", (40, 40), (10, 20, 30)).save(labeled_folder / "val" / "cat" / "blank.png")
    for name, color in (("same", (10, 20, 30)), ("other", (10, 20, 40))):
        Image.new("RGB", (40, 40), color).save(pile / f"{name}.png")
    names = add_unlabeled(open_data(labeled_folder, size=32), pile).train.names or ()
    assert "other.png" in names
    assert "same.png" not in names


def test_joint_split_at_another_size(labeled: Dataset, labeled_folder: Path, pile: Path) -> None:
    with Image.open(labeled_folder / "test" / "cat" / "1.png") as image:
        image.save(pile / "copy.png")
    joint = add_unlabeled(labeled, pile)
    large = joint.at_size(40)
    assert large.train.images.shape == (20, 40, 40, 3)
    assert large.train.names == joint.train.names
    assert large.source_fingerprint == joint.source_fingerprint != labeled.source_fingerprint
    assert large.labeled.train.images.shape == (12, 40, 40, 3)
    assert large.labeled.source_fingerprint == labeled.source_fingerprint
    assert large.fingerprint != joint.fingerprint != labeled.fingerprint


def test_fingerprint_depends_on_the_unlabeled_images(labeled: Dataset, pile: Path) -> None:
    before = add_unlabeled(labeled, pile)
    assert add_unlabeled(labeled, pile).fingerprint == before.fingerprint
    scene(999).save(pile / "new.png")
    after = add_unlabeled(labeled, pile)
    assert after.fingerprint != before.fingerprint
    assert after.source_fingerprint != before.source_fingerprint


def test_labels_of_mixed_views(labeled: Dataset, pile: Path) -> None:
    """The probabilities of a class add up to the share of its images; an unlabeled image has no share."""
    joint = add_unlabeled(labeled, pile)
    for policy in ("strong", "photo-mix"):
        views = Views(joint.train, 2, policy, 0, CPU)
        known = Views(joint.train.take(np.arange(20)), 3, policy, 0, CPU)
        known.labels[12:] = 2  # the unlabeled images as a third class
        batch, expected = (view[1, torch.arange(20)] for view in (views, known))
        torch.testing.assert_close(batch.x, expected.x)
        torch.testing.assert_close(batch.labels, expected.labels[:, :2])
    plain = Views(joint.train, 2, "light", 0, CPU)[1, torch.arange(20)].labels
    assert plain.tolist() == joint.train.labels.tolist()


@pytest.mark.parametrize("case", ["missing", "file", "empty", "only duplicates", "unreadable"])
def test_wrong_folder_is_one_sentence(case: str, labeled: Dataset, labeled_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    if case != "missing":
        folder.mkdir()
    if case == "file":
        folder = labeled_folder / "train" / "cat" / "0.png"
    elif case == "only duplicates":
        shutil.copytree(labeled_folder / "val", folder / "val")
    elif case == "unreadable":
        (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError) as raised:
        add_unlabeled(labeled, folder)
    assert "\n" not in str(raised.value)
    assert folder.name in str(raised.value)


def test_unreadable_images_can_be_skipped(labeled: Dataset, pile: Path) -> None:
    (pile / "broken.png").write_bytes(b"no image")
    joint = add_unlabeled(labeled, pile, bad_images="skip")
    assert len(joint.train) == 20
    assert any("broken.png" in note for note in joint.notes)
