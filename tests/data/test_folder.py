"""Folders of images: layouts, splits, the cached dataset, its cache key and errors."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from tests.support.image_folders import make_classes, save_image

from camkd.data import decode
from camkd.data.dataset import Dataset, Split, no_progress
from camkd.data.files import cache_key, open_listing
from camkd.data.listing import ImageFile, Listing
from camkd.data.scan import scan
from camkd.types import InputError, Preprocessing

WHITE = (255, 255, 255)


def open_images(root: Path, cache: Path, **options: object) -> Dataset:
    defaults: dict[str, object] = {
        "size": None,
        "limit": None,
        "workers": 1,
        "bad_images": "fail",
        "cache": cache,
        "progress": no_progress,
    }
    listing = scan(root, test_only=bool(options.pop("test_only", False)))
    return open_listing(listing, **(defaults | options))  # type: ignore[arg-type]


def assert_rejected(root: Path, cache: Path, match: str, **options: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_images(root, cache, **options)
    assert "\n" not in str(caught.value)
    assert not (cache / "data").exists() or not list((cache / "data").iterdir())


def names(split: Split) -> set[str]:
    assert split.names is not None
    return set(split.names)


# --- layouts


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_existing_splits_are_used(tmp_path: Path, val: str) -> None:
    root = tmp_path / "pets"
    for split, count in (("train", 4), (val, 3), ("test", 2)):
        make_classes(root / split, "dog", "cat", count=count)
    data = open_images(root, tmp_path / "cache")
    assert data.name == "pets"
    assert data.classes == ("cat", "dog")
    assert [len(split) for split in data.splits.values()] == [8, 6, 4]
    assert data.notes == ()
    assert names(data.val) == {f"{val}/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)}


@pytest.mark.parametrize("folders", [("Train", "Test"), ("training", "Testing"), ("TRAIN", "VALID", "TEST")])
def test_split_folders_in_any_case_and_spelling(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for name in folders:
        make_classes(tmp_path / name, "dog", "cat", count=30)
    listing = scan(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert {file.name.split("/")[0] for _, file in listing.samples("train")} == {folders[0]}
    assert {file.name.split("/")[0] for _, file in listing.samples("test")} == {folders[-1]}


@pytest.mark.parametrize("name", ["train", "Test", "valid"])
def test_class_with_the_name_of_a_split(tmp_path: Path, name: str) -> None:
    listing = scan(make_classes(tmp_path, name, "plane", count=6))
    assert listing.classes == tuple(sorted((name, "plane")))
    assert sum(len(listing.samples(split)) for split in ("train", "val", "test")) == 12


def test_classes_with_equal_subfolders(tmp_path: Path) -> None:
    for name in ("robin", "wren"):
        make_classes(tmp_path / name, "2025", "2026", count=6)
    assert scan(tmp_path).classes == ("robin", "wren")


def test_row_matches_name_label_and_pixels(tmp_path: Path) -> None:
    classes = ("cat", "dog", "eel")
    data = open_images(make_classes(tmp_path / "pets", *classes, count=30), tmp_path / "cache")
    for split in data.splits.values():
        assert split.images.shape == (len(split), 8, 8, 3)
        for image, label, name in zip(split.images, split.labels, split.names or (), strict=True):
            assert name.split("/")[0] == data.classes[label]
            assert (image == (int(Path(name).stem), classes.index(data.classes[label]), 100)).all()


def test_folder_without_splits_is_split_by_path(tmp_path: Path) -> None:
    data = open_images(make_classes(tmp_path / "pets", "cat", "dog", count=200), tmp_path / "cache")
    sizes = [len(split) for split in data.splits.values()]
    assert sum(sizes) == 400
    assert sizes[0] == pytest.approx(320, abs=30)
    assert sizes[1] == pytest.approx(40, abs=20)
    assert sizes[2] == pytest.approx(40, abs=20)
    assert names(data.train).isdisjoint(names(data.val) | names(data.test))
    expected = f"train were held out: {sizes[0]} train, {sizes[1]} val, {sizes[2]} test"
    assert data.notes == (f"there is no val and no test folder, so images of {expected}",)


def test_adding_an_image_moves_no_other_image(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "cat", "dog", count=60)
    before = {split: {file.name for _, file in scan(root).samples(split)} for split in ("train", "val", "test")}
    for name in ("0a.png", "zz.png", "30b.png"):
        save_image(root / "cat" / name)
    after = {split: {file.name for _, file in scan(root).samples(split)} for split in ("train", "val", "test")}
    assert all(before[split] <= after[split] for split in before)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_small_class_is_in_every_split(tmp_path: Path, count: int) -> None:
    splits = scan(make_classes(tmp_path, *"abcdefgh", count=count)).splits
    for name in "abcdefgh":
        counts = tuple(len(splits[split][name]) for split in ("train", "val", "test"))
        assert sum(counts) == count
        assert min(counts) >= 1


@pytest.mark.fault("class with one image")
def test_class_of_one_image_is_in_train(tmp_path: Path) -> None:
    make_classes(tmp_path, "common", count=10)
    save_image(tmp_path / "rare" / "only.png")
    assert [file.name for label, file in scan(tmp_path).samples("train") if label == 1] == ["rare/only.png"]


@pytest.mark.parametrize(
    ("existing", "missing"),
    [(("train",), "no val and no test"), (("train", "test"), "no val"), (("train", "val"), "no test")],
)
def test_missing_splits_are_held_out_from_train(tmp_path: Path, existing: tuple[str, ...], missing: str) -> None:
    for split in existing:
        make_classes(tmp_path / split, "a", "b", count=50)
    listing = scan(tmp_path)
    assert any(f"there is {missing} folder" in note for note in listing.notes)
    for split in {"val", "test"} - set(existing):
        held_out = [file.name for _, file in listing.samples(split)]
        assert 2 <= len(held_out) <= 25
        assert all(name.startswith("train/") for name in held_out)
    total = sum(len(listing.samples(split)) for split in ("train", "val", "test"))
    assert total == 100 * len(existing)


def test_images_in_subfolders_of_a_class(tmp_path: Path) -> None:
    make_classes(tmp_path, "a", "b", count=5)
    save_image(tmp_path / "a" / "more" / "x.JPEG")
    listing = scan(tmp_path)
    assert "a/more/x.JPEG" in {file.name for split in listing.splits for _, file in listing.samples(split)}


def test_other_files_are_counted_and_hidden_files_are_not(tmp_path: Path) -> None:
    make_classes(tmp_path, "a", "b", count=4)
    (tmp_path / "README.txt").write_text("two classes")
    (tmp_path / "a" / "list.csv").write_text("0")
    (tmp_path / ".DS_Store").write_text("")
    save_image(tmp_path / ".thumbs" / "x.png")
    listing = scan(tmp_path)
    assert listing.classes == ("a", "b")
    assert "2 files that are not images of a class were ignored: 1 .csv, 1 .txt" in listing.notes


@pytest.mark.fault("symbolic links in a loop")
@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_symbolic_links_are_followed_once(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", count=4)
    outside = save_image(tmp_path / "elsewhere" / "x.png")
    (root / "a" / "linked.png").symlink_to(outside)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)
    save_image(root / "a" / "deep" / "y.png")
    (root / "a" / "deep" / "again").symlink_to(root / "a" / "deep")
    (root / "loop").symlink_to(root)
    (root / "b" / "eternal.png").symlink_to(root / "b" / "eternal.png")
    listing = scan(root)
    assert listing.classes == ("a", "b")
    paths = [file.name for split in listing.splits for _, file in listing.samples(split)]
    assert "a/linked.png" in paths
    assert [path for path in paths if path.endswith("y.png")] == ["a/deep/y.png"]
    assert_rejected(root, tmp_path / "cache", r"got 1 unreadable.*eternal\.png: Too many levels")


# --- image size


def test_mixed_sizes_become_64(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", count=3)
    save_image(root / "a" / "wide.png", size=(20, 10))
    save_image(root / "a" / "high.png", size=(10, 20))
    assert open_images(root, tmp_path / "cache").train.images.shape[1:] == (64, 64, 3)
    assert open_images(root, tmp_path / "cache", size=12).train.images.shape[1:] == (12, 12, 3)


def test_common_size_considers_a_small_class_after_a_large_one(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "aa", count=420)
    for number in range(40):
        save_image(root / "bb" / f"{number}.png", size=(20, 20))
    assert open_images(root, tmp_path / "cache").train.images.shape[1:] == (64, 64, 3)


def test_common_size_considers_the_last_images_of_a_class(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", count=200)
    for number in range(200, 400):
        save_image(root / "a" / f"x{number}.png", size=(20, 20))
    assert open_images(root, tmp_path / "cache").train.images.shape[1:] == (64, 64, 3)


@pytest.mark.parametrize(("classes", "count", "expected"), [(2, 40, 20), (7, 5, 20), (50, 3, 20), (3, 4, 12)])
def test_sample_paths_are_balanced(tmp_path: Path, classes: int, count: int, expected: int) -> None:
    for label in range(classes):
        for split in ("train", "val", "test"):
            folder = tmp_path / split / f"{label:02d}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").touch()
    paths = scan(tmp_path).sample_paths("train", 20)
    counts = Counter(Path(path).parent.name for path in paths)
    assert 0.6 * expected <= len(set(paths)) == len(paths) <= expected
    assert len(counts) == (17 if classes == 50 else classes)
    assert max(counts.values()) == min(counts.values())


# --- test_only


@pytest.mark.parametrize("folder", [".", "test", "Testing"])
def test_test_only_assigns_all_images_to_test(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "pets"
    make_classes(root / folder, "a", "b", count=2)
    data = open_images(root, tmp_path / "cache", test_only=True)
    assert [len(split) for split in data.splits.values()] == [0, 0, 4]
    assert data.classes == ("a", "b")
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.notes == ()
    assert names(data.test) == {(Path(folder) / f"{name}/{n}.png").as_posix() for name in "ab" for n in range(2)}
    again = open_images(root, tmp_path / "cache", test_only=True)
    assert again.fingerprint == data.fingerprint
    (root / folder / "a" / "0.png").write_text("not an image")
    assert len(open_images(root, tmp_path / "cache", test_only=True, bad_images="skip").test) == 3


def test_test_only_with_a_train_folder_uses_the_splits(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("test", 3)):
        make_classes(tmp_path / "pets" / split, "a", "b", count=count)
    data = open_images(tmp_path / "pets", tmp_path / "cache", test_only=True)
    assert data.fingerprint == open_images(tmp_path / "pets", tmp_path / "cache").fingerprint
    assert len(data.test) == 6


# --- the cached dataset


@pytest.mark.fault("images changed after caching")
def test_images_are_decoded_once_and_again_when_a_file_changes(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b")
    calls: list[tuple[int, int, str]] = []
    first = open_images(root, tmp_path / "cache", progress=lambda *arguments: calls.append(arguments))
    second = open_images(root, tmp_path / "cache", progress=lambda *arguments: calls.append(arguments))
    assert first.fingerprint == second.fingerprint
    assert [description for *_, description in calls] == [
        f"reading {split} images" for split in ("train", "val", "test")
    ]
    assert all(done == total for done, total, _ in calls)
    save_image(root / "a" / "0.png", WHITE)
    assert open_images(root, tmp_path / "cache").fingerprint != first.fingerprint


def test_fingerprint_depends_on_content_and_not_on_path(tmp_path: Path) -> None:
    data = open_images(make_classes(tmp_path / "one", "a", "b"), tmp_path / "cache")
    copy = open_images(make_classes(tmp_path / "two", "a", "b"), tmp_path / "cache")
    other = open_images(make_classes(tmp_path / "three", "a", "c"), tmp_path / "cache")
    assert copy.fingerprint == data.fingerprint
    assert other.fingerprint != data.fingerprint


@pytest.mark.slow
def test_fingerprint_is_independent_of_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "IN_PROCESS_SECONDS", 0.0)
    root = make_classes(tmp_path / "pets", "a", "b", count=150)
    datasets = [open_images(root, tmp_path / f"cache{workers}", workers=workers) for workers in (1, 4)]
    assert datasets[0].fingerprint == datasets[1].fingerprint


def test_ctrl_c_leaves_no_files(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_images(make_classes(tmp_path / "pets", "a", "b", count=150), tmp_path / "cache", progress=interrupt)
    assert not list((tmp_path / "cache" / "data").iterdir())


def test_limit_decodes_only_the_first_images(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", "c", count=40)
    calls: list[tuple[int, int, str]] = []
    expected = open_images(root, tmp_path / "cache").limited(7)
    (root / "c" / "39.png").write_text("not an image, and not among the first images")
    data = open_images(root, tmp_path / "cache", limit=7, progress=lambda *arguments: calls.append(arguments))
    assert data.fingerprint == expected.fingerprint
    assert [split.names for split in data.splits.values()] == [split.names for split in expected.splits.values()]
    assert data.notes == expected.notes
    assert isinstance(data.train.images, np.memmap)
    assert {total for _, total, _ in calls} == {7}


def test_train_limit_keeps_the_other_splits(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", "c", count=40)
    whole = open_images(root, tmp_path / "cache")
    limited = open_images(root, tmp_path / "cache", train_limit=7)
    assert limited.fingerprint == whole.limited(7, ("train",)).fingerprint
    assert limited.notes == whole.limited(7, ("train",)).notes
    assert limited.test.names == whole.test.names
    assert limited.val.names == whole.val.names


def test_limit_below_the_number_of_classes_and_above_the_number_of_images(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", "c", count=40)
    two = open_images(root, tmp_path / "cache", limit=2)
    assert two.classes == ("a", "b", "c")
    assert two.train.labels.tolist() == [0, 1]
    whole = open_images(root, tmp_path / "cache")
    assert open_images(root, tmp_path / "cache", limit=len(whole.train)).notes == whole.notes
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 2


# --- the cache key

ROOT = Path("/nonexistent/pets")
CAT = ImageFile("train/cat/0.png", 70, 1_700_000_000_000_000_001)
DOG = ImageFile("train/dog/\udcff.png", 71, 1_700_000_000_000_000_002)
LISTING = Listing(
    ROOT,
    {"train": {"cat": (CAT,), "dog": (DOG,)}, "val": {"cat": (), "dog": ()}, "test": {"cat": (), "dog": ()}},
    ("a note",),
)
KEY = (
    '{"bad_images":"fail","fit":"crop","interpolation":"bicubic","root":"/nonexistent/pets","size":32,"source":"folder","splits":{"test":{"cat":[],"dog":[]},'
    '"train":{"cat":[["train/cat/0.png",70,1700000000000000001]],'
    '"dog":[["train/dog/\\udcff.png",71,1700000000000000002]]},"val":{"cat":[],"dog":[]}},"value_range":null,"version":6}'
)


def test_cache_key_is_stable() -> None:
    assert cache_key(LISTING, Preprocessing(32), "fail") == KEY


def test_cache_key_is_independent_of_class_and_field_names() -> None:
    class RenamedFile(NamedTuple):
        name: str
        bytes: int
        modified_ns: int
        group: str | None
        weight: float | None
        mask: None

    RenamedListing = type("RenamedListing", (Listing,), {})
    splits = {
        split: {name: [RenamedFile(*file) for file in files] for name, files in classes.items()}
        for split, classes in LISTING.splits.items()
    }
    assert cache_key(RenamedListing(ROOT, splits, ()), Preprocessing(32), "fail") == KEY


@pytest.mark.parametrize(
    "file", [CAT._replace(name="train/cat/1.png"), CAT._replace(bytes=69), CAT._replace(modified_ns=1)]
)
def test_cache_key_changes_with_each_file(file: ImageFile) -> None:
    splits = {**LISTING.splits, "train": {"cat": (file,), "dog": (DOG,)}}
    assert cache_key(replace(LISTING, splits=splits), Preprocessing(32), "fail") != KEY


def test_cache_key_changes_with_each_option() -> None:
    moved = {**LISTING.splits, "val": LISTING.splits["train"], "train": LISTING.splits["val"]}
    keys = {
        KEY,
        cache_key(LISTING, Preprocessing(33), "fail"),
        cache_key(LISTING, Preprocessing(32), "skip"),
        cache_key(LISTING, Preprocessing(32, value_range=(0.0, 9.0)), "fail"),
        cache_key(LISTING, Preprocessing(32, "pad"), "fail"),
        cache_key(LISTING, Preprocessing(32, "crop", "bilinear"), "fail"),
        cache_key(replace(LISTING, root=ROOT / "other"), Preprocessing(32), "fail"),
        cache_key(replace(LISTING, splits=moved), Preprocessing(32), "fail"),
    }
    assert len(keys) == 8


def test_cache_key_names_the_stored_dataset(tmp_path: Path) -> None:
    open_images(make_classes(tmp_path / "pets", "a", "b"), tmp_path / "cache", limit=3)
    (folder,) = (tmp_path / "cache" / "data").iterdir()
    key = cache_key(scan(tmp_path / "pets").limited(3), Preprocessing(8), "fail")
    assert folder.name == f"pets-{hashlib.sha256(f'4 {key}'.encode()).hexdigest()[:16]}"


# --- invalid folders


def images_without_classes(root: Path) -> None:
    for number in range(3):
        save_image(root / f"{number}.png")


def nested(root: Path) -> None:
    make_classes(root / "dataset", "a", "b")


def different_classes(root: Path) -> None:
    make_classes(root / "train", "a", "b")
    make_classes(root / "test", "a", "c")


def unlabeled_splits(root: Path) -> None:
    images_without_classes(root / "train")
    images_without_classes(root / "test")


def splits_with_other_names(root: Path) -> None:
    for split in ("train_set", "test_set"):
        make_classes(root / split, "a", "b")


def two_val_folders(root: Path) -> None:
    for split in ("train", "val", "valid"):
        make_classes(root / split, "a", "b")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda root: None, r"'.*pets' must contain images \(apng, avif, bmp, dib, gif.*, got none"),
        (lambda root: (root / "train").mkdir(), r"must contain images.*, got none"),
        (lambda root: make_classes(root, "a"), "got one, 'a'. Add a folder"),
        (nested, r"got one, 'dataset'\. Did you mean the folder '.*pets/dataset'\?"),
        (images_without_classes, "got 3 images directly in '.*pets'.*'.*pets/cat'"),
        (lambda root: images_without_classes(root / "train"), "got 3 images directly in '.*pets/train'"),
        (unlabeled_splits, "got 3 images directly in '.*pets/train'"),
        (splits_with_other_names, "'.*pets' .* got 'test_set', 'train_set'"),
        (different_classes, r"the test folder of '.*pets' .*\(missing: 'b'; additional: 'c'\)"),
        (two_val_folders, "one val folder, got 'val' and 'valid'"),
        (lambda root: make_classes(root / "test", "a", "b"), "must have a 'train' folder, got only 'test'"),
        (lambda root: make_classes(root, "a", "b", count=1), "for val, got too few"),
        (lambda root: make_classes(root, "a", "b", count=2), "for test, got too few"),
    ],
)
def test_invalid_folder_is_rejected(tmp_path: Path, make: Callable[[Path], object], match: str) -> None:
    root = tmp_path / "pets"
    root.mkdir()
    make(root)
    assert_rejected(root, tmp_path / "cache", match)


def test_message_of_an_invalid_folder(tmp_path: Path) -> None:
    different_classes(tmp_path / "pets")
    with pytest.raises(InputError) as caught:
        scan(tmp_path / "pets")
    assert str(caught.value) == (
        f"the test folder of '{tmp_path / 'pets'}' must have the classes of the train folder, got differences "
        "(missing: 'b'; additional: 'c'). Rename or move the class folders, or remove the test folder."
    )


def test_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(b"PK")
    assert_rejected(tmp_path / "pets.zip", tmp_path / "cache", r"pets\.zip' must be a folder.*, got another file")


# --- unreadable images


@pytest.mark.fault("unreadable image")
def test_message_of_an_unreadable_image(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b")
    (root / "a" / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(InputError) as caught:
        open_images(root, tmp_path / "cache")
    assert str(caught.value) == (
        f"all images in '{root}' must be readable, got 1 unreadable (a/page.jpg: an image must be JPEG, PNG, WebP, "
        "GIF, BMP, TIFF or AVIF, got an HTML page). Replace or delete them, or skip them with --bad-images skip."
    )
    assert not list((tmp_path / "cache" / "data").iterdir())


def test_first_ten_unreadable_images_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", count=12)
    for number in range(12):
        (root / "b" / f"{number}.png").write_text("not an image")
    with pytest.raises(InputError, match="got 12 unreadable") as caught:
        open_images(root, tmp_path / "cache")
    assert str(caught.value).count("b/") == 10
    assert "and 2 more" in str(caught.value)


def test_unreadable_images_can_be_skipped(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", count=30)
    whole = open_images(root, tmp_path / "cache")
    for name in ("a/3.png", "b/0.png", "b/29.png"):
        (root / name).write_text("not an image")
    data = open_images(root, tmp_path / "cache", bad_images="skip")
    assert any(note.startswith("3 unreadable images were skipped: ") for note in data.notes)
    for split, whole_split in zip(data.splits.values(), whole.splits.values(), strict=True):
        rows = [row for row, name in enumerate(whole_split.names or ()) if name in names(split)]
        np.testing.assert_array_equal(split.images, whole_split.images[rows])
        np.testing.assert_array_equal(split.labels, whole_split.labels[rows])
    assert sum(map(len, data.splits.values())) == 57
    with pytest.raises(InputError, match="got 3 unreadable"):
        open_images(root, tmp_path / "cache")


def test_every_class_and_split_must_keep_an_image(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for split in ("train", "val", "test"):
        make_classes(root / split, "a", "b", count=2)
    for number in range(2):
        (root / "train" / "b" / f"{number}.png").write_text("not an image")
    assert_rejected(root, tmp_path / "cache", "readable training image, got none of 'b'", bad_images="skip")
    for name in ("a", "b"):
        for number in range(2):
            (root / "val" / name / f"{number}.png").write_text("not an image")
    assert_rejected(root, tmp_path / "cache", "the val split of .* got none", bad_images="skip")


# --- CIFAR-10 as a folder


@pytest.mark.slow
def test_cifar10_as_a_folder(cifar10_folder: Path, tmp_path: Path) -> None:
    data = open_images(cifar10_folder, tmp_path)
    assert data.train.images.shape[1:] == (32, 32, 3)
    assert len(data.train) + len(data.val) == 50_000
    assert len(data.test) == 10_000
    np.testing.assert_array_equal(np.bincount(data.test.labels), np.full(10, 1000))
    assert data.train.names is not None
    for row in (0, 17_000, len(data.train) - 1):
        with Image.open(cifar10_folder / data.train.names[row]) as image:
            np.testing.assert_array_equal(data.train.images[row], np.asarray(image))
