"""Folders that users have: splits beside other folders, system folders, spellings of names, missing classes."""

from __future__ import annotations

import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from camkd.data.dataset import no_progress
from camkd.data.listing import Listing
from camkd.data.scan import scan
from camkd.data.shapes import COUNTS, SHAPES
from camkd.data.sources import open_data
from camkd.data.walker import find_images
from camkd.experiments.finished_runs import reevaluate
from camkd.types import InputError
from support.cli import QUICK, camkd


def save_images(folder: Path, count: int, prefix: str = "") -> None:
    """Write images in different colors."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (20 * number % 256, len(folder.name), 0)).save(folder / f"{prefix}{number}.png")


def make(root: Path, **counts: int) -> Path:
    """Write ``count`` images into each folder; ``__`` in a name is a path separator."""
    root.mkdir(parents=True, exist_ok=True)
    for name, count in counts.items():
        save_images(root / name.replace("__", "/"), count)
    return root


def folders_of(listing: Listing, split: str) -> set[str]:
    """Return the folders of the images of a split."""
    return {Path(file.name).parent.as_posix() for _, file in listing.samples(split)}


def total(listing: Listing) -> int:
    return sum(len(listing.samples(split)) for split in listing.splits)


def note(listing: Listing, text: str) -> str:
    """Return the only note that contains ``text``."""
    (match,) = [each for each in listing.notes if text in each]
    return match


# --- splits and classes


@pytest.mark.fault("splits beside other folders")
@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("stray", [0, 3])
def test_train_folder_beside_another_folder_is_a_split(tmp_path: Path, train: str, stray: int) -> None:
    root = make(tmp_path, plots=2, docs=0, **{f"{train}__cat": 10, f"{train}__dog": 10})
    save_images(root / train, stray)
    listing = scan(root)
    assert listing.classes == ("cat", "dog")
    assert total(listing) == 20
    assert note(listing, "were ignored: 'plots'").startswith(f"folders beside '{train}'")
    names = [f"'{train}/{number}.png'" for number in range(stray)]
    strays = [each for each in listing.notes if "outside of class folders" in each]
    assert strays == [f"3 images outside of class folders were ignored: {', '.join(names)}"] * bool(stray)


@pytest.mark.fault("splits beside other folders")
def test_several_folders_of_classes_are_splits_beside_any_folder(tmp_path: Path) -> None:
    root = make(tmp_path, train__cat=3, train__dog=3, train=9, VAL__cat=2, VAL__dog=2, unlabeled=40, cat=40, VAL=1)
    save_images(root, 1)
    listing = scan(root)
    assert listing.classes == ("cat", "dog")
    assert folders_of(listing, "val") == {"VAL/cat", "VAL/dog"}
    assert folders_of(listing, "test") == {"train/cat", "train/dog"}
    assert "'cat', 'unlabeled'" in note(listing, "folders beside")
    assert note(listing, "outside of class folders").startswith("11 images")


@pytest.mark.fault("splits beside other folders")
@pytest.mark.parametrize("name", ["train", "Test", "valid"])
def test_one_folder_of_images_beside_classes_is_a_class(tmp_path: Path, name: str) -> None:
    listing = scan(make(tmp_path, car=5, bus=5, **{name: 5}))
    assert listing.classes == tuple(sorted(("bus", "car", name)))
    assert note(listing, "is a class and not a split").startswith(f"'{name}'")


@pytest.mark.fault("splits beside other folders")
@pytest.mark.parametrize(
    "counts",
    [
        {"train__steam": 5, "train__diesel": 5, "car": 10, "bus": 10},
        {"train__old": 5, "car": 3},
        {"train": 12, "train__old": 5, "train__new": 5, "car": 2},
        {"train": 5, "test": 5, "car": 5},
        {"train": 5, "test1": 5},
        {"test": 9, "test__a": 2, "test__b": 2, "train": 2, "car": 2},
    ],
)
def test_folder_that_may_hold_splits_or_classes_is_rejected(tmp_path: Path, counts: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"must hold splits or classes, got '(train|test)'.*rename") as caught:
        scan(make(tmp_path, **counts))
    assert "\n" not in str(caught.value)


@pytest.mark.fault("splits beside other folders")
@pytest.mark.parametrize(
    "names", [("train2017", "val2017"), ("Train_images", "test_images"), ("my-train", "my-test", "my-val")]
)
def test_splits_with_other_names_are_not_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"which look like splits\. Rename them to train, val and test"):
        scan(make(tmp_path, **dict.fromkeys(names, 4)))


@pytest.mark.fault("splits beside other folders")
def test_classes_whose_names_contain_the_name_of_one_split(tmp_path: Path) -> None:
    names = ("test_negative", "test_positive")
    assert scan(make(tmp_path, **dict.fromkeys(names, 4))).classes == names


@pytest.mark.fault("splits beside other folders")
def test_splits_inside_of_classes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"inside the splits, got splits .*, such as 'cat/test'\. Move the images"):
        scan(make(tmp_path, cat__train=5, cat__test=2, dog__Train=5, dog__Test=2))


SPLITS_WITH_STRANGERS = [
    ("seg_train/b seg_train/f seg_test/b seg_test/f seg_pred", "'seg_test', 'seg_train'"),
    ("seg_train/b seg_train/f seg_test/b plots", "'seg_test', 'seg_train'"),
    ("seg_train/seg_train/b seg_train/seg_train/f seg_test/seg_test/b seg_test/seg_test/f seg_pred/seg_pred",
     "'seg_test/seg_test', 'seg_train/seg_train'"),
    ("my-train/a my-train/b my-val/a my-val/b docs/figures", "'my-train', 'my-val'"),
    ("trainA trainB testA testB", "'testA', 'testB', 'trainA', 'trainB'"),
    ("traina trainb testa testb plots", "'testa', 'testb', 'traina', 'trainb'"),
    ("trainset/a trainset/b testset/a testset/b plots", "'testset', 'trainset'"),
    ("train_images test_images plots", "'test_images', 'train_images'"),
    ("\uff54\uff52\uff41\uff49\uff4e_set \uff54\uff45\uff53\uff54_set", "'\uff54\uff45\uff53\uff54_set', "),
]  # fmt: skip


@pytest.mark.fault("splits beside other folders")
@pytest.mark.parametrize(("folders", "listed"), SPLITS_WITH_STRANGERS)
def test_splits_with_other_names_beside_other_folders_are_not_classes(
    tmp_path: Path, folders: str, listed: str
) -> None:
    with pytest.raises(InputError, match=rf"got {listed}.*which look like splits\. Rename them to train, val and test"):
        scan(make(tmp_path, **dict.fromkeys(folders.split(), 4)))


@pytest.mark.fault("splits beside other folders")
def test_full_width_names_of_splits(tmp_path: Path) -> None:
    train, test = "\uff54\uff52\uff41\uff49\uff4e", "\uff34\uff45\uff53\uff54\u200b"
    listing = scan(make(tmp_path, **{f"{train}/a": 9, f"{train}/b": 9, f"{test}/a": 2, f"{test}/b": 2}))
    assert listing.classes == ("a", "b")
    assert folders_of(listing, "test") == {f"{test}/a", f"{test}/b"}


@pytest.mark.fault("splits beside other folders")
@pytest.mark.parametrize("inner", ["data", "data/images"])
def test_folder_that_holds_splits_is_not_a_class(tmp_path: Path, inner: str) -> None:
    splits = {f"{inner}/{split}/{name}": 3 for split in ("train", "val", "test") for name in "abc"}
    with pytest.raises(InputError, match=rf"got '{inner}', which holds the splits .*\. Choose '.*/{inner}'"):
        scan(make(tmp_path, plots=2, **splits))


@pytest.mark.fault("splits beside other folders")
def test_folder_that_holds_splits_with_other_names_is_not_a_class(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got 'data/testA', 'data/trainA', which look like splits"):
        scan(make(tmp_path, plots=2, data__trainA=3, data__testA=3))


@pytest.mark.fault("splits beside other folders")
def test_folds_inside_of_train_are_not_classes(tmp_path: Path) -> None:
    folders = {f"train/fold{number}/{label}": 3 for number in range(2) for label in ("cat", "dog")}
    with pytest.raises(InputError, match=r"got 'fold0', 'fold1', which look like parts of one dataset"):
        scan(make(tmp_path, **folders))


@pytest.mark.fault("broken or duplicate symbolic links")
def test_broken_link_to_train_is_named(tmp_path: Path) -> None:
    make(tmp_path, val__a=3, val__b=3)
    (tmp_path / "train").symlink_to("/gone")
    with pytest.raises(InputError, match=r"must have a 'train' folder, got only 'val' and the broken links 'train' to"):
        scan(tmp_path)


@pytest.mark.fault("splits beside other folders")
@pytest.mark.parametrize("name", ["fold", "Fold_", "cv-", "data_split"])
def test_folds_are_not_classes(tmp_path: Path, name: str) -> None:
    folders = {f"{name}{number}/{label}": 3 for number in range(3) for label in ("cat", "dog")}
    with pytest.raises(InputError, match=rf"got '{name}0', '{name}1', '{name}2', which look like parts of one dataset"):
        scan(make(tmp_path, plots=2, **folders))


@pytest.mark.fault("splits beside other folders")
@pytest.mark.parametrize(
    "names",
    [
        "car bus",
        "0 1 2",
        "train_station bus_station",
        "freight_train passenger_train",
        "train_station train_wagon bus",
        "trains buses cars",
        "n01440764 n01443537",
    ],
)
def test_equal_subfolders_of_classes_are_legal(tmp_path: Path, names: str) -> None:
    root = make(tmp_path, **{f"{name}/{time}": 3 for name in names.split() for time in ("day", "night")})
    assert scan(root).classes == tuple(sorted(names.split()))


@pytest.mark.fault("splits beside other folders")
def test_numbered_classes_with_equal_subfolders_are_noted(tmp_path: Path) -> None:
    listing = scan(make(tmp_path, **{f"person{number}/{side}": 3 for number in (1, 2) for side in ("left", "right")}))
    assert listing.classes == ("person1", "person2")
    assert note(listing, "are numbered").startswith("'person1', 'person2' are classes")


@pytest.mark.fault("splits beside other folders")
def test_splits_inside_of_some_classes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got splits inside the class folders, such as 'cat/test'"):
        scan(make(tmp_path, cat__train=5, cat__test=2, dog__Train=5, dog__Test=2, plots=3))


@pytest.mark.fault("splits beside other folders")
def test_split_folder_without_images_is_noted(tmp_path: Path) -> None:
    root = make(tmp_path, train__cat=9, train__dog=9, val=0)
    (root / "val" / ".gitkeep").touch()
    listing = scan(root)
    assert total(listing) == 18
    assert "folders without images were ignored: 'val'" in listing.notes


@pytest.mark.fault("broken or duplicate symbolic links")
def test_two_links_to_one_class_are_rejected(tmp_path: Path) -> None:
    make(tmp_path, cat=9, dog=9)
    (tmp_path / "feline").symlink_to("cat")
    with pytest.raises(InputError, match=r"must be different folders, got '.*cat' and '.*feline'"):
        scan(tmp_path)


@pytest.mark.fault("broken or duplicate symbolic links")
@pytest.mark.parametrize(
    ("link", "target"), [("val", "train"), ("test", "val"), ("test", "train/cat"), ("train", "val")]
)
def test_two_splits_in_one_folder_are_rejected(tmp_path: Path, link: str, target: str) -> None:
    splits = {"train", "val", "test"} - {link}
    make(tmp_path, **{f"{split}/{name}": 6 for split in splits for name in ("cat/x", "cat/y", "dog")})
    (tmp_path / link).symlink_to(target)
    with pytest.raises(InputError, match=rf"must be different folders, got .*Remove the link '{link}'"):
        scan(tmp_path)


@pytest.mark.fault("broken or duplicate symbolic links")
def test_one_class_folder_in_two_splits_is_rejected(tmp_path: Path) -> None:
    make(tmp_path, train__cat=9, train__dog=9, val__cat=4)
    (tmp_path / "val" / "dog").symlink_to("../train/dog")
    with pytest.raises(InputError, match=r"must be different folders, got '.*train/dog' and '.*val/dog'"):
        scan(tmp_path)


@pytest.mark.fault("broken or duplicate symbolic links")
def test_broken_link_to_a_class_is_noted(tmp_path: Path) -> None:
    make(tmp_path, cat=9, dog=9)
    (tmp_path / "eel").symlink_to("../gone/eel")
    listing = scan(tmp_path)
    assert listing.notes[0] == "1 broken links were ignored: 'eel' to '../gone/eel'"
    assert not [each for each in listing.notes if "are not images" in each]
    shutil.rmtree(tmp_path / "dog")
    with pytest.raises(InputError, match=r"got one, 'cat'\. Correct the broken links 'eel' to '\.\./gone/eel'"):
        scan(tmp_path)


@pytest.mark.fault("test folder without labels")
@pytest.mark.parametrize("name", ["unknown", "test", "Images"])
@pytest.mark.parametrize("test_only", [False, True])
def test_test_images_in_one_folder_that_is_not_a_class_are_left_out(tmp_path: Path, name: str, test_only: bool) -> None:
    root = make(tmp_path, **{"train/cat": 20, "train/dog": 20, f"test/{name}": 7})
    listing = scan(root, test_only=test_only)
    assert listing.classes == ("cat", "dog")
    assert total(listing) == 40
    assert note(listing, "left out") == (
        f"'test' was left out, because its 7 images lie in one folder, '{name}', which is not a class of train"
    )


@pytest.mark.fault("test folder without labels")
def test_class_of_the_test_folder_for_an_evaluation_is_kept(tmp_path: Path) -> None:
    listing = scan(make(tmp_path, train__cat=9, train__dog=9, test__eel=3), test_only=True)
    assert listing.classes == ("cat", "dog", "eel")
    assert folders_of(listing, "test") == {"test/eel"}


@pytest.mark.fault("test folder without labels")
@pytest.mark.parametrize("split", ["test", "val"])
def test_split_without_class_folders_is_left_out(tmp_path: Path, split: str) -> None:
    listing = scan(make(tmp_path, train__cat=20, train__dog=20, sample=3, **{split: 7}))
    assert listing.classes == ("cat", "dog")
    assert total(listing) == 40
    assert min(len(listing.samples(name)) for name in listing.splits) >= 2
    assert note(listing, "left out") == f"'{split}' was left out, because its 7 images have no class folders"
    assert note(listing, "images of train were held out")


# --- folders of the system, of tools and of camkd


@pytest.mark.fault("system folders")
@pytest.mark.parametrize(
    "name",
    [
        "@eaDir", "__MACOSX", "lost+found", "#recycle", "$RECYCLE.BIN", "System Volume Information", ".git", "wandb",
        ".ipynb_checkpoints", "__pycache__", ".Trash-1000", ".thumbnails", "@Recycle", ".AppleDouble", "NODE_MODULES",
        "Recycled", "FOUND.000", "_vti_cnf", "CVS", "@__thumb", "~snapshot", "_thumbnails",
    ],
)  # fmt: skip
def test_system_folder_is_not_a_class_and_holds_no_images(tmp_path: Path, name: str) -> None:
    for root, classes in ((tmp_path / "flat", ""), (tmp_path / "split", "train/")):
        make(root, **{f"{classes}cat": 6, f"{classes}dog": 6})
        for folder in (name, f"{name}/cat", f"{classes}{name}", f"{classes}cat/{name}", f"{classes}cat/sub/{name}"):
            save_images(root / folder, 5, "thumbnail")
        (root / classes / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
        (root / classes / "cat" / "Thumbs.db").write_bytes(b"")
        listing = scan(root)
        assert listing.classes == ("cat", "dog")
        assert total(listing) == 12
        assert f"'{name}'" in note(listing, "folders of the operating system or of tools were ignored")
        assert note(listing, "1 hidden images") == f"1 hidden images were ignored: '{classes}cat/._0.png'"
        assert len(find_images(root)[0]) == 12


@pytest.mark.fault("folders of camkd among the images")
@pytest.mark.parametrize("markers", [("config.yaml", "environment.json"), ("model.json", "model.safetensors")])
def test_folder_that_camkd_wrote_is_not_a_class(tmp_path: Path, markers: tuple[str, ...]) -> None:
    make(tmp_path, cat=6, dog=6, runs__pets__student__figures=3, cat__student__figures=3)
    for folder in ("runs/pets/student", "cat/student"):
        for name in markers:
            (tmp_path / folder / name).touch()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "train_images.npy").touch()
    listing = scan(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert total(listing) == 12
    assert note(listing, "camkd wrote").endswith("were ignored: 'cat/student', 'runs/pets/student'")
    assert note(listing, "folders without images") == "folders without images were ignored: 'cache' (1 .npy), 'runs'"


@pytest.mark.fault("folders of camkd among the images")
def test_overlays_beside_the_classes_are_not_a_class(working_folder: Path) -> None:
    make(working_folder, cat=6, dog=6)
    command = ["explain", "cam-net-cifar10", ".", "--json", "--out"]
    images = list(camkd(*command, "maps").json["images"])
    assert len(images) == 12
    assert list(camkd(*command, "maps").json["images"]) == images
    assert scan(working_folder).classes == ("cat", "dog")
    assert "--out must be another folder than that of the images, got '.'" in camkd(*command, ".").error
    assert total(scan(working_folder)) == 12


@pytest.mark.slow
@pytest.mark.fault("folders of camkd among the images")
def test_run_and_cache_among_the_images_are_not_classes(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMKD_CACHE", "cache")
    make(working_folder, cat=12, dog=12)
    before = scan(working_folder)
    command = ["teacher", "--data", ".", "--model", "resnet8", *QUICK, "--figure-every", "1"]
    for options in ([], ["--resume", "--accept", "epochs", "--epochs", "2"], ["--out", "cat/run"], ["--out", "."]):
        assert camkd(*command, *options).status == 0
        listing = scan(working_folder)
        assert {split: listing.paths(split) for split in listing.splits} == {
            split: before.paths(split) for split in before.splits
        }
    assert len(list(working_folder.glob("**/figures/*.png"))) > 3
    assert note(listing, "camkd wrote")


@pytest.mark.fault("folders of camkd among the images")
def test_class_of_the_name_of_a_folder_of_camkd(tmp_path: Path) -> None:
    assert scan(make(tmp_path, runs=5, figures=5, cache=5)).classes == ("cache", "figures", "runs")


# --- spellings of class names

NFC = unicodedata.normalize("NFC", "café")
NFD = unicodedata.normalize("NFD", "café")


@pytest.mark.fault("Unicode forms of a class name")
def test_unicode_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    listing = scan(make(tmp_path / "flat", **{NFC: 4, NFD: 5, "tea": 4}))
    assert listing.classes == (NFC, "tea")
    assert len([label for split in listing.splits for label, _ in listing.samples(split) if label == 0]) == 9
    assert "are one class" in note(listing, f"'{NFC}'")
    splits = scan(make(tmp_path / "splits", **{f"train/{NFD}": 9, "train/tea": 9, f"test/{NFC}": 2, "test/tea": 2}))
    assert splits.classes == (NFC, "tea")
    assert folders_of(splits, "test") == {f"test/{NFC}", "test/tea"}


@pytest.mark.fault("Unicode forms of a class name")
@pytest.mark.parametrize(("train", "test"), [("Cat", "cat"), ("cat", "cat "), ("STRASSE", "straße")])
def test_names_that_differ_in_case_or_spaces_between_splits_are_rejected(tmp_path: Path, train: str, test: str) -> None:
    root = make(tmp_path, **{f"train/{train}": 9, "train/dog": 9, f"test/{test}": 3, "test/dog": 3})
    with pytest.raises(
        InputError, match=f"must spell the class names like the train folder, got '{test}' for '{train}'"
    ):
        scan(root)


@pytest.mark.fault("Unicode forms of a class name")
def test_names_that_differ_in_case_or_spaces_in_one_split_are_noted(tmp_path: Path) -> None:
    listing = scan(make(tmp_path, **{"Cat": 4, "cat": 4, "cat ": 4, "dog": 4}))
    assert listing.classes == ("Cat", "cat", "cat ", "dog")
    assert note(listing, "differ only in upper and lower case").startswith("the classes 'Cat', 'cat', 'cat '")


LOOK_ALIKE = [
    ("cat", "cat\u200b", r"cat\u200b"),
    ("cat", "\ufeffcat", r"\ufeffcat"),
    ("\u2764", "\u2764\ufe0f", "\u2764\\ufe0f"),
    ("cat", "\uff43\uff41\uff54", "\uff43\uff41\uff54"),
]


@pytest.mark.fault("Unicode forms of a class name")
@pytest.mark.parametrize(("name", "other", "shown"), LOOK_ALIKE)
def test_names_that_look_equal_are_noted_or_rejected(tmp_path: Path, name: str, other: str, shown: str) -> None:
    listing = scan(make(tmp_path / "flat", **{name: 4, other: 4, "dog": 4}))
    assert len(listing.classes) == 3
    assert f"'{shown}'" in note(listing, "look equal or are invisible")
    root = make(tmp_path / "splits", **{f"train/{name}": 9, "train/dog": 9, f"test/{other}": 3, "test/dog": 3})
    with pytest.raises(InputError, match=f"got '{re.escape(shown)}' for '{name}'"):
        scan(root)


# --- classes without images


@pytest.mark.fault("class without images")
@pytest.mark.parametrize(
    ("name", "counts"),
    [("0.pjpeg", "2 .pjpeg"), ("0", "2 without suffix"), ("0.jpg ", "2 '.jpg '"), ("0.npy", "2 .npy")],
)
def test_suffixes_of_a_folder_without_images_are_counted(tmp_path: Path, name: str, counts: str) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    with pytest.raises(InputError, match=rf"must contain images \(.*\), got {counts}\. Convert the files"):
        scan(tmp_path)


@pytest.mark.fault("class without images")
def test_val_or_test_without_a_class_of_train(tmp_path: Path) -> None:
    root = make(tmp_path, train__a=9, train__b=9, train__c=9, val__c=4, val__a=0, test__a=2, test__b=3)
    listing = scan(root)
    assert listing.classes == ("a", "b", "c")
    assert [label for label, _ in listing.samples("val")] == [2] * 4
    assert [label for label, _ in listing.samples("test")] == [0] * 2 + [1] * 3
    assert "there are no val images of 'a', 'b'" in listing.notes
    assert "there are no test images of 'c'" in listing.notes


@pytest.mark.fault("class without images")
def test_empty_class_folder_is_ignored(tmp_path: Path) -> None:
    root = make(tmp_path, a=6, b=6, hollow=0, labels=0)
    (root / "labels" / "all.txt").touch()
    listing = scan(root)
    assert listing.classes == ("a", "b")
    assert note(listing, "hollow") == "folders without images were ignored: 'hollow', 'labels' (1 .txt)"


@pytest.mark.fault("class without images")
def test_images_of_a_class_whose_train_folder_is_empty_are_rejected(tmp_path: Path) -> None:
    root = make(tmp_path, train__a=9, train__b=9, train__hollow=0, test__a=2, test__b=2, test__hollow=2)
    with pytest.raises(InputError, match=r"the test folder of .* \(additional: 'hollow'\)"):
        scan(root)


@pytest.mark.fault("class without images")
@pytest.mark.parametrize("suffix", ["psd", "CR2"])
def test_class_of_images_of_another_format_is_rejected(tmp_path: Path, suffix: str) -> None:
    root = make(tmp_path, a=6, b=6, raw=0)
    (root / "raw" / f"1.{suffix}").touch()
    with pytest.raises(InputError, match=rf"raw' must contain images \(.*\), got 1 \.{suffix.lower()}"):
        scan(root)


@pytest.mark.fault("class without images")
def test_test_only_needs_one_class(tmp_path: Path) -> None:
    assert scan(make(tmp_path / "flat", cat=2), test_only=True).classes == ("cat",)
    listing = scan(make(tmp_path / "splits", train__dog=9, test__cat=2, plots=1), test_only=True)
    assert listing.classes == ("cat", "dog")
    assert folders_of(listing, "test") == {"test/cat"}


# --- folders with the name of a built-in dataset


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, a small built-in dataset and an empty cache."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    for split in COUNTS:
        monkeypatch.setitem(COUNTS, split, 20)
    return folder


@pytest.mark.fault("folder with the name of a built-in dataset")
def test_folder_of_images_and_built_in_dataset_of_one_name(working_folder: Path) -> None:
    make(working_folder / "shapes", cat=5, dog=5)
    with pytest.raises(InputError, match=r"got 'shapes', which is .* Set it to \./shapes for the folder, or rename"):
        open_data("shapes")
    for name in ("./shapes", "shapes/", str(working_folder / "shapes"), Path("shapes")):
        assert open_data(name).classes == ("cat", "dog")
    assert open_data("shapes", built_in=True).classes == tuple(sorted(SHAPES))


@pytest.mark.fault("folder with the name of a built-in dataset")
@pytest.mark.parametrize("content", ["", "cifar-10-batches-py/data_batch_1", "student/figures/cams.png"])
def test_folder_without_images_does_not_hide_the_built_in_dataset(working_folder: Path, content: str) -> None:
    file = working_folder / "shapes" / content / "x"
    file.parent.mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "figures/cams.png"):
        if "student" in content:
            (working_folder / "shapes" / "student" / name).touch()
    data = open_data("shapes")
    assert data.classes == tuple(sorted(SHAPES))
    assert data.notes[0] == "'shapes' is the built-in dataset, not the folder ./shapes, which holds no images"


@pytest.mark.fault("folder with the name of a built-in dataset")
def test_finished_run_on_built_in_data_beside_a_folder_of_that_name(working_folder: Path) -> None:
    make(working_folder / "cifar10", cat=5, dog=5)
    with pytest.raises(InputError, match="got 'cifar10', which is a built-in dataset and a folder"):
        reevaluate("cam-net-cifar10", "cifar10", None, "cpu", no_progress, print)


@pytest.mark.fault("empty name of a dataset")
@pytest.mark.parametrize("name", ["", " ", "\t"])
@pytest.mark.parametrize("command", ["train", "teacher", "distill", "compare", "evaluate", "export", "bench-device"])
def test_empty_name_of_a_dataset_is_an_error(working_folder: Path, name: str, command: str) -> None:
    make(working_folder, cat=5, dog=5)
    model = ["cam-net-cifar10"] if command in ("evaluate", "export", "bench-device") else []
    error = camkd(command, *model, "--data", name).error
    assert f"got {name!r}" in error


# --- finished runs


def copy_classes(source: Path, target: Path, *names: str) -> Path:
    """Copy class folders under their names, or under the name after a colon."""
    for name in names:
        old, _, new = name.partition(":")
        shutil.copytree(source / old, target / (new or old))
    return target


@pytest.mark.slow
@pytest.mark.fault("class without images")
@pytest.mark.parametrize("split", ["", "test", "train"])
@pytest.mark.parametrize("names", [("sky",), ("berry", "sky")])
def test_evaluate_on_images_of_some_classes(
    finished: Any, easy_folder: Path, tmp_path: Path, names: tuple[str, ...], split: str
) -> None:
    student = str(finished.folder / "student")
    whole = camkd("evaluate", student, "--json").json
    copy_classes(easy_folder / "test", tmp_path / "new" / split, *names)
    output = camkd("evaluate", student, "--data", str(tmp_path / "new"), "--json")
    absent = [name for name in whole["per_class"] if name not in names]
    assert list(output.json["per_class"]) == list(names)
    assert f"no images of {len(absent)} of the model's 3 classes: '{absent[0]}'" in output.err
    if split != "train":
        assert output.json["per_class"] == {name: whole["per_class"][name] for name in names}
        rows = [
            row if sum(row) and name in names else [0, 0, 0]
            for name, row in zip(whole["per_class"], whole["confusion"], strict=True)
        ]
        assert output.json["confusion"] == rows
        recalls = [whole["per_class"][name]["recall"] for name in names]
        assert output.json["balanced_accuracy"] == pytest.approx(sum(recalls) / len(names))
        assert output.json["accuracy"] == pytest.approx(sum(recalls) / len(names))


@pytest.mark.slow
@pytest.mark.fault("class without images")
@pytest.mark.parametrize("case", ["one class", "few images", "test folder"])
def test_export_with_images_that_cannot_be_split(finished: Any, easy_folder: Path, tmp_path: Path, case: str) -> None:
    names = ("sky",) if case == "one class" else ("berry", "sky")
    images = tmp_path / "images" / ("test" if case == "test folder" else "")
    copy_classes(easy_folder / "test", images, *names)
    count = len(list(images.rglob("*.png")))
    if case == "few images":
        readable = {next((images / name).iterdir()) for name in names}
        for path in set(images.rglob("*.png")) - readable:
            path.write_bytes(b"broken")
        count = len(readable)
    arguments = ["--data", str(tmp_path / "images"), "--bad-images", "skip"]
    result = camkd("export", str(finished.folder / "student"), "--out", str(tmp_path / "out"), *arguments)
    assert result.status == 0, result.error
    assert f"the {count} test images of" in result.err + result.out
    assert (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.slow
@pytest.mark.fault("class without images")
@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("berry:apple", "leaf:pear"), "got 'apple', 'pear'. Give images of the model's classes"),
        (("berry", "leaf:Leaf"), "got 'Leaf'. Rename 'Leaf' for 'leaf'"),
        (("berry", "leaf", "sky", "sky:sea"), "got 'sea'"),
    ],
)
def test_evaluate_on_other_classes_is_refused(
    finished: Any, easy_folder: Path, tmp_path: Path, names: tuple[str, ...], match: str
) -> None:
    new = str(copy_classes(easy_folder / "test", tmp_path / "new", *names))
    error = camkd("evaluate", str(finished.folder / "student"), "--data", new).error
    assert match in error
    assert "(berry, leaf, sky)" in error


@pytest.mark.slow
@pytest.mark.fault("unreadable image for a finished run")
def test_evaluate_leaves_out_unreadable_images(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    student = str(finished.folder / "student")
    new = copy_classes(easy_folder / "test", tmp_path / "new", "berry", "leaf", "sky")
    expected = camkd("evaluate", student, "--data", str(new), "--json").json
    (new / "leaf" / "broken.png").write_bytes(b"<html>404</html>")
    command = ["evaluate", student, "--data", str(new), "--json"]
    assert "skip them with --bad-images skip" in camkd(*command).error
    output = camkd(*command, "--bad-images", "skip")
    assert output.json["confusion"] == expected["confusion"]
    assert "1 unreadable images were skipped: leaf/broken.png" in output.err


@pytest.mark.slow
@pytest.mark.fault("unreadable image for a finished run")
@pytest.mark.parametrize("out", ["maps.png", "maps.npz", "maps.json", "maps"])
def test_explain_leaves_out_unreadable_images(finished: Any, easy_folder: Path, tmp_path: Path, out: str) -> None:
    student = str(finished.folder / "student")
    images = copy_classes(easy_folder / "test", tmp_path / "new", "sky")
    readable = sorted(map(str, (images / "sky").iterdir()))
    (images / "sky" / "0.png").write_bytes(b"<html>404</html>")
    (images / "sky" / "zz.jpg").write_bytes(b"")
    (images / "gone.png").symlink_to("nowhere.png")
    command = ["explain", student, str(images), "--out", str(tmp_path / out), "--json"]
    output = camkd(*command)
    assert sorted(output.json["images"]) == readable
    assert [Path(path).name for path in output.json["unreadable"]] == ["gone.png", "0.png", "zz.jpg"]
    assert "3 unreadable images were skipped: " in output.err
    assert (tmp_path / out).exists()
    assert "gone.png' must be a readable image file" in camkd(*command, "--bad-images", "fail").error
    for path in readable:
        Path(path).unlink()
    error = camkd(*command).error
    assert "gone.png' must be a readable image file" in error
    assert "2 more are unreadable" in error


@pytest.mark.fault("unreadable image for a finished run")
def test_explain_of_a_missing_file_is_an_error(working_folder: Path) -> None:
    save_images(working_folder, 1)
    error = camkd("explain", "cam-net-cifar10", "0.png", "typo.png").error
    assert "'typo.png' must be a readable image file" in error
    assert "must not be empty" in camkd("explain", "cam-net-cifar10", "").error
