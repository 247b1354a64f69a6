"""Tables of image files: columns, encodings, splits, and errors that name rows."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.support.image_folders import make_classes, save_image

from camkd.data import Dataset, open_data
from camkd.data.dataset import weights_digest
from camkd.data.listing import ImageFile
from camkd.data.table import read_table
from camkd.types import InputError


def write_table(path: Path, rows: Sequence[Sequence[object]], header: str = "image,label") -> Path:
    """Write a table. Cells are quoted if necessary."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def list_files(root: Path) -> list[tuple[str, str]]:
    """Return the path and the label of each image of class folders."""
    return [(file.relative_to(root).as_posix(), file.parent.name) for file in sorted(root.rglob("*.png"))]


def read(path: Path, **options: object) -> Dataset:
    return open_data(path, **{"size": 8, "workers": 1, "cache": path.parent / "cache", **options})  # type: ignore[arg-type]


def error_of(path: Path, **options: object) -> str:
    """Return the error of a table, in one line, and check that nothing was stored."""
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    assert not list((path.parent / "cache").rglob("*.npy"))
    return str(caught.value)


# --- equal to a folder


@pytest.mark.parametrize("layout", ["classes", "splits"])
def test_table_of_a_folder_is_the_dataset_of_the_folder(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "pets"
    if layout == "classes":
        make_classes(root, "dog", "cat", count=40)
        table = write_table(root / "pets.csv", reversed(list_files(root)))  # type: ignore[arg-type]
    else:
        for split, count in (("Train", 8), ("validation", 3), ("test", 4)):
            make_classes(root / split, "dog", "cat", count=count)
        rows = [(name, label, name.split("/")[0]) for name, label in list_files(root)]
        table = write_table(root / "pets.tsv", rows, "image,label,split")
    folder, listed = read(root), read(table)
    assert listed.name == "pets"
    assert listed.classes == folder.classes == ("cat", "dog")
    assert [len(split) for split in listed.splits.values()] == [len(split) for split in folder.splits.values()]
    assert [split.names for split in listed.splits.values()] == [split.names for split in folder.splits.values()]
    assert (listed.fingerprint, listed.source_fingerprint) == (folder.fingerprint, folder.source_fingerprint)
    assert listed.at_size(12).train.images.shape[1:3] == (12, 12)
    assert listed.at_size(12).fingerprint == folder.at_size(12).fingerprint
    assert read(table, limit=3).fingerprint == read(root, limit=3).fingerprint
    assert read(table, train_limit=2).fingerprint == read(root, train_limit=2).fingerprint


def test_fit_and_interpolation_apply_to_tables(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        for number in range(10):
            save_image(root / name / f"{number}.png", (number, 0, 0), (24, 8))
    table = write_table(root / "t.csv", list_files(root))
    for options in ({"fit": "pad"}, {"interpolation": "bilinear"}):
        assert read(table, **options).fingerprint == read(root, **options).fingerprint
    assert read(table, fit="pad").fingerprint != read(table).fingerprint


def test_moved_table_has_the_same_splits_and_fingerprints(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "dog", "cat", count=30)
    before = read(write_table(root / "pets.csv", list_files(root)))
    moved = root.rename(tmp_path / "other")
    after = read(moved / "pets.csv")
    assert after.fingerprint == before.fingerprint
    assert [split.names for split in after.splits.values()] == [split.names for split in before.splits.values()]


def test_more_rows_move_no_image_to_another_split(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "dog", "cat", count=60)
    files = list_files(root)
    few, all_files = (
        read_table(write_table(root / name, rows))
        for name, rows in (("a.csv", files[:50] + files[60:110]), ("b.csv", files))
    )
    for split in ("train", "val", "test"):
        assert {file.name for _, file in few.samples(split)} <= {file.name for _, file in all_files.samples(split)}


# --- formats


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
        lambda text: ("\n" + text.replace("\n", "\n\n")).encode()[1:],
    ],
    ids=["plain", "bom", "crlf", "bom and crlf", "empty lines"],
)
def test_encodings_quotes_and_spaces(tmp_path: Path, encode: Callable[[str], bytes]) -> None:
    names = ["a, b.png", 'c "d".png', "é.png", " e.png"]
    for number, name in enumerate(names):
        save_image(tmp_path / name, (number, 0, 0))
    lines = ["Image,LABEL ,split"]
    for name, label, split in zip(names, ("Ä", "b", "Ä ", "b"), ("train", "train", "val", "test"), strict=True):
        lines.append(f'"{name.replace(chr(34), chr(34) * 2)}", {label},{split}')
    table = tmp_path / "t.csv"
    table.write_bytes(encode("\n".join(lines) + "\n"))
    data = read(table)
    assert data.classes == ("b", "Ä")
    assert data.train.names == ('c "d".png', "a, b.png")
    assert (data.val.names, data.test.names) == (("é.png",), (" e.png",))


def test_quoted_line_break_in_a_name(tmp_path: Path) -> None:
    for number, name in enumerate(("x\ny.png", "z.png")):
        save_image(tmp_path / name, (number, 0, 0))
    rows = [("x\ny.png", "a", "train"), ("z.png", "b", "train"), ("gone.png", "b", "test")]
    table = write_table(tmp_path / "t.csv", rows, "image,label,split")
    assert "row 4 ('gone.png'" in error_of(table)  # the row of a spreadsheet, not the line of the file


def test_paths_absolute_above_and_through_a_link(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "dog", "cat", count=4)
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "link").symlink_to(root / "cat")
    rows = [(f"../pets/dog/{n}.png", "dog", s) for n, s in enumerate(("train", "train", "val", "test"))]
    rows += [
        (str(root / "cat" / "0.png"), "cat", "train"),
        ("link/1.png", "cat", "val"),
        ("link/../cat/2.png", "cat", "test"),
    ]
    data = read(write_table(tables / "t.csv", rows, "image,label,split"))
    assert [len(split) for split in data.splits.values()] == [3, 2, 2]
    assert "../pets/dog/0.png" in (data.train.names or ())


def test_labels_that_look_like_numbers_are_names(tmp_path: Path) -> None:
    root = make_classes(tmp_path, "2", "10", "1.0", "1", count=10)
    data = read(write_table(root / "t.csv", list_files(root)))
    assert data.classes == ("1", "1.0", "10", "2")
    assert "'1', '1.0' are different classes, although they are equal numbers" in data.notes


def test_similar_labels_and_other_columns_are_noted(tmp_path: Path) -> None:
    root = make_classes(tmp_path, "cat", "Cat", count=10)
    table = write_table(root / "t.csv", [(*row, 3) for row in list_files(root)], "image,label,width")
    notes = "\n".join(read(table).notes)
    assert "'Cat', 'cat' in" in notes
    assert "columns that are not used were ignored: 'width'" in notes


def test_empty_split_column_counts_as_none(tmp_path: Path) -> None:
    root = make_classes(tmp_path, "a", "b", count=20)
    table = write_table(root / "t.csv", [(*row, "") for row in list_files(root)], "image,label,split")
    assert "there are no val and no test rows, so images of train were held out" in "\n".join(read(table).notes)


def test_test_split_only(tmp_path: Path) -> None:
    root = make_classes(tmp_path, "a", "b", count=3)
    table = write_table(root / "t.csv", list_files(root))
    assert [len(split) for split in read(table, test_only=True).splits.values()] == [0, 0, 6]
    one_class = write_table(root / "u.csv", list_files(root)[:3])
    assert read(one_class, test_only=True).classes == ("a",)
    rows = [(*row, split) for row, split in zip(list_files(root), ("val", "test", "test") * 2, strict=True)]
    split = write_table(root / "v.csv", rows, "image,label,split")
    assert [len(part) for part in read(split, test_only=True).splits.values()] == [0, 0, 4]


# --- hostile tables


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a/0.png to a/3.png and b/0.png to b/3.png."""
    return make_classes(tmp_path / "images", "a", "b", count=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have the columns 'image', 'label', got no columns without 'image', 'label'"),
        ("file,class\na/0.png,a\n", "got 'file', 'class' without 'image', 'label'. Name the columns in the first row"),
        ("image;label\na/0.png;a\n", "got 'image;label' without 'image', 'label'. Separate the columns by commas"),
        ("image,label,label\na/0.png,a,a\n", "must have different names, got two of 'label'"),
        ("image,label\n", "must have a row for each image, got only a header"),
        ("image,label\na/0.png,a,b,c\n", "must have the 2 cells of the header or fewer, got row 2 (4 cells)"),
        ("image,label\n,a\na/0.png,a\n,b\n", "must have an image, got none in rows 2, 4."),
        ("image,label\na/0.png,\na/1.png\nb/1.png,b\n", "must have a label, got none in rows 2, 3."),
        (
            "image,label,split\na/0.png,a,train\na/1.png,a,dev\na/2.png,a,\n",
            "must be one of train, training, val, valid, validation, test, testing, got rows 3 ('dev'), 4 ('').",
        ),
        ("image,label\na/0.png,a\n./a/0.png,a\nb/0.png,b\n", "got 1 in several: 'a/0.png' in rows 2, 3. Delete"),
        ("image,label\na/0.png,a\na/../a/0.png,b\n", "'a/0.png' in rows 2, 3 (labels 'a', 'b')"),
        (
            "image,label,split\na/0.png,a,train\na/0.png,b,test\n",
            "'a/0.png' in rows 2, 3 (labels 'a', 'b' and splits train, test)",
        ),
        (
            "image,label\na/0.png,a\na/9.png,a\nb,b\n",
            "got rows 3 ('a/9.png': No such file or directory), 4 ('b': not a file)",
        ),
        ("image,label\na\\0.png,a\nb\\0.png,b\n", "Write / instead of \\ in the paths"),
        ("image,label\na/0\0.png,a\nb/0.png,b\n", "got row 2 ('a/0\\x00.png': embedded null byte)"),
        (f"image,label\n{'a' * 5000}.png,a\nb/0.png,b\n", "File name too long"),
        (
            "image,label,split\na/0.png,a,train\nb/0.png,b,train\na/1.png,A,test\nb/1.png,b,val\n",
            "must be a label of train, got 'A' for 'a' in rows 4. Correct the labels",
        ),
        (
            "image,label,split\na/0.png,a,train\nb/0.png,b,train\na/1.png,c,test\na/2.png,c,val\n",
            "must be a label of train, got 'c' in rows 4, 5. Add training images",
        ),
        (
            "image,label,split\na/0.png,a,val\nb/0.png,b,test\n",
            "must have rows with the split 'train', got only 'val', 'test'",
        ),
        ("image,label\na/0.png,a\na/1.png,a\n", "must have two or more classes, got one, 'a', in all 2 rows"),
        ("image,label\na/0.png,a\nb/0.png,b\n", "must have enough images to hold some out for val, got too few"),
        (
            "image,label,weight\na/0.png,a,-1\na/1.png,a,nan\nb/0.png,b,inf\nb/1.png,b,1e-3\nb/2.png,b,one\nb/3.png,b,\n",
            "must be a number of 0 or more, got rows 2 ('-1'), 3 ('nan'), 4 ('inf'), 6 ('one'). Correct the cells",
        ),
        (
            "image,label,weight,split\na/0.png,a,0,train\nb/0.png,b,0,train\na/1.png,a,1,val\nb/1.png,b,1,test\n",
            "must have a weight above 0, got 0 for all. Correct the column 'weight'",
        ),
        ('image,label\n"a/0.png,a\nb/0.png,b\n', "got an error in line 3 (unexpected end of data)"),
        ('image,label\n"a/0.png"x,a\nb/0.png,b\n', "got an error in line 2"),
        (f'image,label\n"{"a" * 200_000}",a\n', "got an error in line 2 (field larger than field limit"),
    ],
)  # fmt: skip
def test_hostile_tables(images: Path, content: str, message: str) -> None:
    table = images / "t.csv"
    table.write_text(content, encoding="utf-8", newline="")
    assert message in error_of(table)


def test_other_encoding(images: Path) -> None:
    table = images / "t.csv"
    table.write_bytes("image,label\na/0.png,a\n".encode("utf-16"))
    assert "must be text in UTF-8, got other bytes (invalid start byte at byte 0)" in error_of(table)


def test_missing_images_are_left_out_with_bad_images_skip(images: Path) -> None:
    rows = [*list_files(images), ("gone.png", "a")]
    data = read(write_table(images / "t.csv", rows), bad_images="skip")
    assert sum(map(len, data.splits.values())) == 8
    assert "1 rows without an image file were left out: row 10 ('gone.png': No such file or directory)" in data.notes
    with pytest.raises(InputError, match=r"gone\.png"):
        read(write_table(images / "u.csv", [("gone.png", "a"), ("gone2.png", "b")]), bad_images="skip")


def test_unreadable_images_are_named(images: Path) -> None:
    (images / "a" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    table = write_table(images / "t.csv", list_files(images))
    assert "a/0.png" in error_of(table)
    assert sum(map(len, read(table, bad_images="skip").splits.values())) == 7


def test_no_table(tmp_path: Path) -> None:
    assert "which does not exist" in error_of(tmp_path / "t.csv")
    (tmp_path / "t.txt").write_text("image,label\n")
    assert "must be a folder with one subfolder of images per class, or a table" in error_of(tmp_path / "t.txt")


def test_folder_with_the_name_of_a_table(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets.csv", "a", "b", count=20)
    assert read(root).classes == ("a", "b")


def test_large_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camkd.data.table._image_file", lambda root, image: ImageFile(image, 1, 1))
    table = write_table(tmp_path / "t.csv", [(f"{n % 300}/{n}.png", n % 7) for n in range(30_000)])
    listing = read_table(table)
    counts = {split: len(listing.samples(split)) for split in listing.splits}
    assert sum(counts.values()) == 30_000
    np.testing.assert_allclose([counts["val"], counts["test"]], 3_000, rtol=0.1)


# --- weights


def test_weights_follow_their_images(tmp_path: Path) -> None:
    root = make_classes(tmp_path, "a", "b", count=20)
    (root / "a" / "3.png").write_bytes(b"broken")
    weight_of = {name: number / 8 for number, (name, _) in enumerate(list_files(root))}
    rows = [(name, label, weight_of[name]) for name, label in list_files(root)]
    data = read(write_table(root / "t.csv", rows[::-1], "image,label,weight"), bad_images="skip")
    for other in (data, data.at_size(12), data.limited(6), read(root / "t.csv", bad_images="skip", limit=6)):
        for split in other.splits.values():
            assert split.weights is not None
            assert split.weights.dtype == np.float32
            assert split.weights.tolist() == [weight_of[name] for name in split.names or ()]


def test_other_weights_need_no_new_images(tmp_path: Path) -> None:
    root = make_classes(tmp_path, "a", "b", count=20)
    rows = [(name, label, "") for name, label in list_files(root)]
    table = write_table(root / "t.csv", rows, "image,label,weight")
    first = read(table)
    write_table(table, [(name, label, 2) for name, label, _ in rows], "image,label,weight")
    second = read(table)
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 1
    assert first.train.weights is not None
    assert second.train.weights is not None
    assert (set(first.train.weights.tolist()), set(second.train.weights.tolist())) == ({1.0}, {2.0})
    assert (first.fingerprint, first.source_fingerprint) == (second.fingerprint, second.source_fingerprint)
    assert weights_digest(first.train) != weights_digest(second.train)
    assert read(root).train.weights is None
