"""Folders of pictures: every layout of them, and one clear sentence where something is wrong."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.data.dataset import Dataset, Split, no_progress
from camkd.data.folder import open_folder
from camkd.data.scan import scan
from camkd.types import InputError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def save(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def tree(root: Path, *classes: str, count: int = 10) -> Path:
    """``root/<class>/0.png`` and so on; each picture's colour is its own."""
    for place, name in enumerate(classes):
        for number in range(count):
            save(root / name / f"{number}.png", (number, place, 100))
    return root


def opened(root: Path, cache: Path, **options: object) -> Dataset:
    given: dict[str, object] = {
        "size": None,
        "limit": None,
        "workers": 2,
        "bad_images": "fail",
        "cache": cache,
        "progress": no_progress,
    }
    return open_folder(root, **(given | options))  # type: ignore[arg-type]


def assert_refused(root: Path, cache: Path, match: str, **options: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        opened(root, cache, **options)
    assert "\n" not in str(caught.value)
    assert not (cache / "data").exists() or not list((cache / "data").iterdir())


def names(split: Split) -> set[str]:
    assert split.names is not None
    return set(split.names)


# Layouts


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_given_splits_are_taken_as_they_are(tmp_path: Path, val: str) -> None:
    root = tmp_path / "pets"
    for split, count in (("train", 4), (val, 3), ("test", 2)):
        tree(root / split, "dog", "cat", count=count)
    data = opened(root, tmp_path / "cache")
    assert data.name == "pets"
    assert data.classes == ("cat", "dog")
    assert [len(split) for split in data.splits.values()] == [8, 6, 4]
    assert data.notes == ()
    assert names(data.val) == {f"{val}/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)}


@pytest.mark.parametrize("called", [("Train", "Test"), ("training", "Testing"), ("TRAIN", "VALID", "TEST")])
def test_splits_are_known_in_capitals_and_as_training_and_testing(tmp_path: Path, called: tuple[str, ...]) -> None:
    for name in called:
        tree(tmp_path / name, "dog", "cat", count=30)
    found = scan(tmp_path)
    assert found.classes == ("cat", "dog")
    assert {picture.name.split("/")[0] for _, picture in found.rows("train")} == {called[0]}
    assert {picture.name.split("/")[0] for _, picture in found.rows("test")} == {called[-1]}


@pytest.mark.parametrize("name", ["train", "Test", "valid"])
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, name: str) -> None:
    found = scan(tree(tmp_path, name, "plane", count=6))
    assert found.classes == tuple(sorted((name, "plane")))
    assert sum(len(found.rows(split)) for split in ("train", "val", "test")) == 12


def test_classes_may_all_hold_the_same_folders(tmp_path: Path) -> None:
    for name in ("robin", "wren"):
        tree(tmp_path / name, "2025", "2026", count=6)
    assert scan(tmp_path).classes == ("robin", "wren")


def test_each_row_is_the_picture_that_its_name_says(tmp_path: Path) -> None:
    data = opened(tree(tmp_path / "pets", "cat", "dog", "eel", count=30), tmp_path / "cache")
    for split in data.splits.values():
        assert split.images.shape == (len(split), 8, 8, 3)
        for image, label, name in zip(split.images, split.labels, split.names or (), strict=True):
            assert name.split("/")[0] == data.classes[label]
            number = int(Path(name).stem)
            place = ("cat", "dog", "eel").index(data.classes[label])
            assert (image == (number, place, 100)).all()


def test_a_flat_tree_is_split_by_path(tmp_path: Path) -> None:
    data = opened(tree(tmp_path / "pets", "cat", "dog", count=200), tmp_path / "cache")
    sizes = [len(split) for split in data.splits.values()]
    assert sum(sizes) == 400
    assert sizes[0] == pytest.approx(320, abs=30)
    assert sizes[1] == pytest.approx(40, abs=20)
    assert sizes[2] == pytest.approx(40, abs=20)
    assert names(data.train).isdisjoint(names(data.val) | names(data.test))
    assert any("no val and no test folder, so the split was made here" in note for note in data.notes)


def test_adding_a_picture_to_a_class_of_sixty_moves_no_other(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat", "dog", count=60)
    before = {split: {p.name for _, p in scan(root).rows(split)} for split in ("train", "val", "test")}
    for name in ("0a.png", "zz.png", "30b.png"):
        save(root / "cat" / name)
    after = {split: {p.name for _, p in scan(root).rows(split)} for split in ("train", "val", "test")}
    assert all(before[split] <= after[split] for split in before)


@pytest.mark.parametrize(("count", "expected"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1))])
def test_small_classes_are_in_every_split(tmp_path: Path, count: int, expected: tuple[int, int, int]) -> None:
    found = scan(tree(tmp_path, *"abcdefgh", count=count)).splits
    for name in "abcdefgh":
        parts = tuple(len(found[split][name]) for split in ("train", "val", "test"))
        assert sum(parts) == count
        assert min(parts) >= 1
    if count == 3:
        assert parts == expected


@pytest.mark.fault("a class of one picture")
def test_a_class_of_one_picture_trains(tmp_path: Path) -> None:
    tree(tmp_path, "common", count=10)
    save(tmp_path / "rare" / "only.png")
    assert [p.name for label, p in scan(tmp_path).rows("train") if label == 1] == ["rare/only.png"]


@pytest.mark.parametrize(
    ("given", "missing"),
    [(("train",), "no val and no test"), (("train", "test"), "no val"), (("train", "val"), "no test")],
)
def test_missing_splits_come_out_of_train(tmp_path: Path, given: tuple[str, ...], missing: str) -> None:
    for split in given:
        tree(tmp_path / split, "a", "b", count=50)
    found = scan(tmp_path)
    assert any(f"there was {missing} folder" in note for note in found.notes)
    for split in {"val", "test"} - set(given):
        held = [p.name for _, p in found.rows(split)]
        assert 2 <= len(held) <= 25
        assert all(name.startswith("train/") for name in held)
    total = sum(len(found.rows(split)) for split in ("train", "val", "test"))
    assert total == 100 * len(given)


def test_pictures_deeper_in_a_class_folder_belong_to_the_class(tmp_path: Path) -> None:
    tree(tmp_path, "a", "b", count=5)
    save(tmp_path / "a" / "more" / "x.JPEG")
    assert "a/more/x.JPEG" in {p.name for split in ("train", "val", "test") for _, p in scan(tmp_path).rows(split)}


def test_other_files_are_counted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    tree(tmp_path, "a", "b", count=4)
    (tmp_path / "README.txt").write_text("two classes")
    (tmp_path / "a" / "list.csv").write_text("0")
    (tmp_path / ".DS_Store").write_text("")
    save(tmp_path / ".thumbs" / "x.png")
    found = scan(tmp_path)
    assert found.classes == ("a", "b")
    assert "2 files that are no pictures of a class were ignored" in found.notes


@pytest.mark.fault("loops of links")
@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "a", "b", count=4)
    outside = save(tmp_path / "elsewhere" / "x.png")
    (root / "a" / "linked.png").symlink_to(outside)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)
    save(root / "a" / "deep" / "y.png")
    (root / "a" / "deep" / "again").symlink_to(root / "a" / "deep")
    (root / "loop").symlink_to(root)
    (root / "b" / "eternal.png").symlink_to(root / "b" / "eternal.png")
    found = scan(root)
    assert found.classes == ("a", "b")
    every = [p.name for split in ("train", "val", "test") for _, p in found.rows(split)]
    assert "a/linked.png" in every
    assert [name for name in every if name.endswith("y.png")] == ["a/deep/y.png"]
    assert_refused(root, tmp_path / "cache", r"1 of the pictures.*eternal\.png: Too many levels")


def test_mixed_sizes_become_64_unless_said_otherwise(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "a", "b", count=3)
    save(root / "a" / "wide.png", size=(20, 10))
    save(root / "a" / "high.png", size=(10, 20))
    assert opened(root, tmp_path / "cache").train.images.shape[1:] == (64, 64, 3)
    assert opened(root, tmp_path / "cache", size=12).train.images.shape[1:] == (12, 12, 3)


def test_a_small_class_of_other_size_after_a_large_one_counts(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "aa", count=420)
    for number in range(40):
        save(root / "bb" / f"{number}.png", size=(20, 20))
    assert opened(root, tmp_path / "cache").train.images.shape[1:] == (64, 64, 3)


def test_later_pictures_of_other_size_count(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "a", "b", count=200)
    for number in range(200, 400):
        save(root / "a" / f"x{number}.png", size=(20, 20))
    assert opened(root, tmp_path / "cache").train.images.shape[1:] == (64, 64, 3)


@pytest.mark.parametrize(("classes", "count", "read"), [(2, 40, 20), (7, 5, 20), (50, 3, 20), (3, 4, 12)])
def test_sizes_are_read_of_a_few_pictures_of_each_class(tmp_path: Path, classes: int, count: int, read: int) -> None:
    for place in range(classes):
        for split in ("train", "val", "test"):
            for number in range(count):
                file = tmp_path / split / f"{place:02d}" / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    paths = scan(tmp_path).spread("train", 20)
    counts = Counter(Path(path).parent.name for path in paths)
    assert 0.6 * read <= len(set(paths)) == len(paths) <= read
    assert len(counts) == (17 if classes == 50 else classes)
    assert max(counts.values()) == min(counts.values())


# Pictures that nothing was trained on


@pytest.mark.parametrize("folder", [".", "test", "Testing"])
def test_of_unseen_pictures_all_are_for_the_test(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "pets"
    tree(root / folder, "a", "b", count=2)
    data = opened(root, tmp_path / "cache", unseen=True)
    assert [len(split) for split in data.splits.values()] == [0, 0, 4]
    assert (data.classes, data.test.labels.tolist(), data.notes) == (("a", "b"), [0, 0, 1, 1], ())
    assert names(data.test) == {(Path(folder) / f"{name}/{n}.png").as_posix() for name in "ab" for n in range(2)}
    again = opened(root, tmp_path / "cache", unseen=True)
    assert again.fingerprint == data.fingerprint
    (root / folder / "a" / "0.png").write_text("no")
    assert len(opened(root, tmp_path / "cache", unseen=True, bad_images="skip").test) == 3


def test_unseen_pictures_beside_a_train_folder_are_those_of_the_test(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("test", 3)):
        tree(tmp_path / "pets" / split, "a", "b", count=count)
    data = opened(tmp_path / "pets", tmp_path / "cache", unseen=True)
    assert data.fingerprint == opened(tmp_path / "pets", tmp_path / "cache").fingerprint
    assert len(data.test) == 6


# The store


@pytest.mark.fault("pictures that change under a store")
def test_it_is_decoded_once_and_again_when_a_file_changes(tmp_path: Path) -> None:
    root, heard = tree(tmp_path / "pets", "a", "b"), []
    opened_ = [opened(root, tmp_path / "cache", progress=lambda *said: heard.append(said)) for _ in range(2)]
    assert opened_[0].fingerprint == opened_[1].fingerprint
    assert [what for *_, what in heard] == [f"reading {split} pictures" for split in ("train", "val", "test")]
    assert all(done == total for done, total, _ in heard)
    save(root / "a" / "0.png", WHITE)
    assert opened(root, tmp_path / "cache").fingerprint != opened_[0].fingerprint


def test_the_fingerprint_is_the_content_wherever_it_lies(tmp_path: Path) -> None:
    one = opened(tree(tmp_path / "one", "a", "b"), tmp_path / "cache")
    assert opened(tree(tmp_path / "two", "a", "b"), tmp_path / "cache").fingerprint == one.fingerprint
    assert opened(tree(tmp_path / "three", "a", "c"), tmp_path / "cache").fingerprint != one.fingerprint


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "a", "b", count=150)
    one, four = (opened(root, tmp_path / f"cache{n}", workers=n) for n in (1, 4))
    assert one.fingerprint == four.fingerprint


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(tree(tmp_path / "pets", "a", "b", count=150), tmp_path / "cache", progress=interrupt)
    assert not list((tmp_path / "cache" / "data").iterdir())


def test_limited_only_the_first_are_decoded(tmp_path: Path) -> None:
    root, heard = tree(tmp_path / "pets", "a", "b", "c", count=40), []
    given = opened(root, tmp_path / "cache").limited(7)
    (root / "c" / "39.png").write_text("no picture, and not among the first")
    data = opened(root, tmp_path / "cache", limit=7, progress=lambda *said: heard.append(said))
    assert data.fingerprint == given.fingerprint
    assert [split.names for split in data.splits.values()] == [split.names for split in given.splits.values()]
    assert data.notes == given.notes
    assert isinstance(data.train.images, np.memmap)
    assert {total for _, total, _ in heard} == {7}


def test_few_training_pictures_and_all_others(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "a", "b", "c", count=40)
    whole = opened(root, tmp_path / "cache")
    few = opened(root, tmp_path / "cache", train_limit=7)
    assert few.fingerprint == whole.limited(7, ("train",)).fingerprint
    assert few.notes == whole.limited(7, ("train",)).notes
    assert few.test.names == whole.test.names
    assert few.val.names == whole.val.names


def test_a_limit_may_leave_classes_out_and_may_leave_all_in(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "a", "b", "c", count=40)
    two = opened(root, tmp_path / "cache", limit=2)
    assert (two.classes, two.train.labels.tolist()) == (("a", "b", "c"), [0, 1])
    whole = opened(root, tmp_path / "cache")
    assert opened(root, tmp_path / "cache", limit=len(whole.train)).notes == whole.notes
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 2


# What is wrong with a folder


def loose(root: Path) -> None:
    for number in range(3):
        save(root / f"{number}.png")


def empty_class(root: Path) -> None:
    tree(root, "a", "b")
    (root / "hollow").mkdir()


def nested(root: Path) -> None:
    tree(root / "dataset", "a", "b")


def classes_differ(root: Path) -> None:
    tree(root / "train", "a", "b")
    tree(root / "test", "a", "c")


def val_lacks(root: Path) -> None:
    tree(root / "train", "a", "b", "c")
    tree(root / "valid", "a", "b")


def unlabelled(root: Path) -> None:
    loose(root / "train")
    loose(root / "test")


def other_names(root: Path) -> None:
    for split in ("train_set", "test_set"):
        tree(root / split, "a", "b")


def unlabelled_test(root: Path) -> None:
    tree(root / "train", "a", "b")
    loose(root / "test")
    (root / "notes").mkdir()


def two_vals(root: Path) -> None:
    for split in ("train", "val", "valid"):
        tree(root / split, "a", "b")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda root: None, r"no pictures \(bmp, jpeg.*were found in"),
        (lambda root: (root / "train").mkdir(), "no pictures"),
        (lambda root: tree(root, "a"), "has one class, 'a', but two or more are needed: add"),
        (nested, "has one class, 'dataset'.*is '.*pets/dataset' the folder you mean"),
        (loose, "the 3 pictures in '.*pets' lie directly in it, not in class folders.*pets/cat'"),
        (lambda root: loose(root / "train"), "the 3 pictures in '.*pets/train' lie directly in it"),
        (unlabelled, "the 3 pictures in '.*pets/train' lie directly in it"),
        (unlabelled_test, "the 3 pictures in '.*pets/test' lie directly in it"),
        (other_names, "'test_set', 'train_set' in '.*pets' hold the same folders, which looks like splits.*call them"),
        (empty_class, "no picture of 'hollow': add some, or remove the empty folder"),
        (classes_differ, "the test folder of '.*pets' lacks 'b' and adds 'c'"),
        (val_lacks, "the val folder of '.*pets' lacks 'c',"),
        (two_vals, "'val' and 'valid', which mean the same"),
        (lambda root: tree(root / "test", "a", "b"), "has 'test' but no 'train' folder"),
        (lambda root: tree(root, "a", "b", count=1), "too few pictures to hold some out for val"),
        (lambda root: tree(root, "a", "b", count=2), "too few pictures to hold some out for test"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path, make: Callable[[Path], object], match: str) -> None:
    root = tmp_path / "pets"
    root.mkdir()
    make(root)
    assert_refused(root, tmp_path / "cache", match)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(b"PK")
    assert_refused(tmp_path / "pets.zip", tmp_path / "cache", r"pets\.zip' is a file, but a folder")


# Pictures that cannot be read


@pytest.mark.fault("bad pictures")
def test_a_broken_picture_is_named_with_the_reason(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "a", "b")
    (root / "a" / "page.jpg").write_text("<html>404</html>")
    match = r"1 of the pictures.*\(a/page\.jpg: not a picture in a known format\): replace or delete"
    assert_refused(root, tmp_path / "cache", match)


def test_the_first_ten_broken_ones_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "a", "b", count=12)
    for number in range(12):
        (root / "b" / f"{number}.png").write_text("no")
    with pytest.raises(InputError, match="12 of the pictures") as caught:
        opened(root, tmp_path / "cache")
    assert str(caught.value).count("b/") == 10
    assert "and 2 more" in str(caught.value)


def test_broken_pictures_can_be_left_out(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "a", "b", count=30)
    whole = opened(root, tmp_path / "cache")
    for name in ("a/3.png", "b/0.png", "b/29.png"):
        (root / name).write_text("no")
    data = opened(root, tmp_path / "cache", bad_images="skip")
    assert any(note.startswith("3 unreadable pictures were left out: ") for note in data.notes)
    for split, all_of_it in zip(data.splits.values(), whole.splits.values(), strict=True):
        rows = [row for row, name in enumerate(all_of_it.names or ()) if name in names(split)]
        np.testing.assert_array_equal(split.images, all_of_it.images[rows])
        np.testing.assert_array_equal(split.labels, all_of_it.labels[rows])
    assert sum(map(len, data.splits.values())) == 57
    with pytest.raises(InputError, match="3 of the pictures"):
        opened(root, tmp_path / "cache")


def test_a_class_must_keep_a_training_picture(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for split in ("train", "val", "test"):
        tree(root / split, "a", "b", count=2)
    for number in range(2):
        (root / "train" / "b" / f"{number}.png").write_text("no")
    assert_refused(root, tmp_path / "cache", "no readable training picture of 'b'", bad_images="skip")
    for name in ("a", "b"):
        for number in range(2):
            (root / "val" / name / f"{number}.png").write_text("no")
    assert_refused(root, tmp_path / "cache", "no readable val picture", bad_images="skip")


# Real pictures


@pytest.mark.slow
@pytest.mark.skipif("CAMKD_CIFAR10" not in os.environ, reason="CAMKD_CIFAR10 does not name the unpacked cifar10-jpeg")
def test_cifar10_as_a_folder(tmp_path: Path) -> None:
    data = opened(Path(os.environ["CAMKD_CIFAR10"]), tmp_path)
    assert data.train.images.shape[1:] == (32, 32, 3)
    assert len(data.train) + len(data.val) == 50_000
    assert len(data.test) == 10_000
    np.testing.assert_array_equal(np.bincount(data.test.labels), np.full(10, 1000))
    for row in (0, 17_000, len(data.train) - 1):
        assert data.train.names is not None
        with Image.open(Path(os.environ["CAMKD_CIFAR10"]) / data.train.names[row]) as image:
            np.testing.assert_array_equal(data.train.images[row], np.asarray(image))
