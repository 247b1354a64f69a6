"""Groups of images, which stay in one split, in folders and tables."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.test_table import error_of, list_files, read, write_table
from tests.support.image_folders import make_classes, save_image

from camkd.data import open_data
from camkd.data.listing import ClassFiles, ImageFile, Listing
from camkd.data.missing_splits import complete_splits
from camkd.data.scan import scan
from camkd.types import InputError


def splits_by_group(splits: dict[str, ClassFiles]) -> dict[str, set[str]]:
    """Return the splits that each group is in."""
    result = defaultdict(set)
    for split, classes in splits.items():
        for files in classes.values():
            for file in files:
                result[str(file.group)].add(split)
    return result


def make_patients(root: Path, *, patients: int = 30, views: int = 3) -> Path:
    """Write `<class>/p<patient>-<view>.png`. Each patient has images of both classes."""
    for patient in range(patients):
        for view in range(views):
            for number, name in enumerate(("healthy", "sick")):
                save_image(root / name / f"p{patient:03d}-{view}.png", (patient, view, number))
    return root


@settings(max_examples=25)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=60, max_size=150),
    missing=st.sampled_from((("val", "test"), ("val",), ("test",))),
    mixed=st.booleans(),
)
def test_no_group_is_in_two_splits_and_classes_keep_their_share(
    sizes: list[tuple[int, int]], missing: tuple[str, ...], mixed: bool
) -> None:
    sizes = [*sizes, *((3, label) for label in (0, 1, 2) for _ in range(20))]
    train: dict[str, list[ImageFile]] = {name: [] for name in "abc"}
    for group, (size, label) in enumerate(sizes):
        for image in range(size):
            name = "abc"[(label + image * mixed) % 3]
            train[name].append(ImageFile(f"{name}/{group}-{image}.png", 1, 1, f"g{group}"))
    existing: dict[str, ClassFiles] = {"train": train}
    for split in {"val", "test"} - set(missing):
        existing[split] = {name: [ImageFile(f"{split}/{name}.png", 1, 1, f"{split}-{name}")] for name in "abc"}
    splits, notes = complete_splits(existing, Path("t.csv"), "table", has_groups=True)
    groups = splits_by_group(splits)
    assert all(len(of_group) == 1 for of_group in groups.values())
    assert f"each of the {len(groups):,} groups is in one split" in notes
    for name in "abc":
        files = sorted(file.name for split in ("train", *missing) for file in splits[split][name])
        assert files == sorted(file.name for file in train[name])  # each image once
        shares = np.array([len(splits[split][name]) for split in missing]) / len(train[name])
        assert (np.abs(shares - 0.1) < 0.07).all(), (name, shares)


def test_split_is_independent_of_the_order_of_rows(tmp_path: Path) -> None:
    root = make_patients(tmp_path / "scans")
    rows = [(name, label, name.split("/")[1][:4]) for name, label in list_files(root)]
    first, second = (
        read(write_table(root / name, order, "image,label,group"))  # type: ignore[arg-type]
        for name, order in (("a.csv", rows), ("b.csv", rows[::-1]))
    )
    assert [split.names for split in first.splits.values()] == [split.names for split in second.splits.values()]


def test_column_and_regular_expression_give_the_same_splits(tmp_path: Path) -> None:
    root = make_patients(tmp_path / "scans")
    rows = [(name, label, name.split("/")[1][:4]) for name, label in list_files(root)]
    table = write_table(root / "scans.csv", rows, "image,label,Patient")
    datasets = (
        read(table, group="patient"),
        read(table, group_regex=r"/(p\d+)-"),
        read(root, group_regex=r"/(p\d+)-"),
        read(write_table(root / "g.csv", rows, "image,label,group")),
    )
    assert len({data.fingerprint for data in datasets}) == 1
    assert read(root).fingerprint != datasets[0].fingerprint
    patients = [{Path(name).name[:4] for name in split.names or ()} for split in datasets[0].splits.values()]
    assert [len(group) for group in patients] == [24, 3, 3]
    assert len(set.union(*patients)) == 30
    assert datasets[0].at_size(12).train.names == datasets[0].train.names
    assert "each of the 30 groups is in one split" in datasets[0].notes


def test_given_splits_are_kept_and_the_missing_one_is_made_of_groups(tmp_path: Path) -> None:
    make_patients(tmp_path / "train")
    for patient in (90, 91):
        for name in ("healthy", "sick"):
            save_image(tmp_path / "test" / name / f"p0{patient}-0.png", (patient, 0, 0))
    listing = scan(tmp_path, group_regex=r"(p\d+)-")
    assert len(listing.samples("test")) == 4
    assert all(len(splits) == 1 for splits in splits_by_group(dict(listing.splits)).values())
    assert len(listing.samples("val")) == 18


def test_groups_in_two_given_splits_are_named(tmp_path: Path) -> None:
    rows = []
    for split, numbers in (("train", range(5)), ("val", range(4, 6)), ("test", range(6, 8))):
        for number in numbers:
            for label in ("a", "b"):
                save_image(tmp_path / split / label / f"p{number}.png", (number, 0, 0))
                rows.append((f"{split}/{label}/p{number}.png", label, split, f"p{number}"))
    message = "must be in one split, got 1 in several: 'p4' (2 train, 2 val). Move the images"
    assert message in error_of(write_table(tmp_path / "t.csv", rows, "image,label,split,group"))
    with pytest.raises(InputError, match="1 in several: 'p4'"):
        scan(tmp_path, group_regex=r"(p\d)")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("p(", "must be a regular expression, got 'p(' (missing )"),
        ("p[0-9]+", "must have a capturing group, got 'p[0-9]+'. Put parentheses"),
        ("(q[0-9]+)", "must match --group-regex '(q[0-9]+)', got 12 paths without a group: 'healthy/p000-0.png'"),
        ("p[0-9]+(x?)", "got 12 paths without a group"),
    ],
)
def test_invalid_regular_expressions(tmp_path: Path, pattern: str, message: str) -> None:
    root = make_patients(tmp_path / "scans", patients=2)
    with pytest.raises(InputError) as caught:
        scan(root, group_regex=pattern)
    assert message in str(caught.value)


def test_options_that_do_not_fit_the_data(tmp_path: Path) -> None:
    root = make_patients(tmp_path / "scans", patients=6)
    table = write_table(root / "t.csv", list_files(root))
    assert "--group must be given with a table, got 'x' for" in error_of(root, group="x")
    assert "--group must be a column of" in error_of(table, group="x")
    assert "must not be given together" in error_of(table, group="x", group_regex="(p)")
    for option in ("group", "group_regex"):
        with pytest.raises(InputError, match=f"{option} must be given with a folder or table"):
            open_data("shapes", **{option: "x", "cache": tmp_path})  # type: ignore[arg-type]


def test_rows_without_group_are_named(tmp_path: Path) -> None:
    root = make_classes(tmp_path, "a", "b", count=2)
    rows = [(*row, group) for row, group in zip(list_files(root), ("x", "", "y", " "), strict=True)]
    message = "must have a group in the column 'group', got none in rows 3, 5. Fill in the groups"
    assert message in error_of(write_table(root / "t.csv", rows, "image,label,group"))


def test_too_few_groups(tmp_path: Path) -> None:
    root = make_patients(tmp_path / "scans", patients=2, views=5)
    message = "got 2 groups, 2 of them with images of 'healthy'. Add images of other groups"
    assert message in error_of(root, group_regex=r"(p\d+)")


def test_class_of_one_group_stays_in_train(tmp_path: Path) -> None:
    root = make_patients(tmp_path / "scans", patients=20, views=1)
    for view in range(5):
        save_image(root / "rare" / f"p900-{view}.png", (view, 0, 0))
    listing: Listing = scan(root, group_regex=r"(p\d+)")
    assert len(listing.splits["train"]["rare"]) == 5
    assert len(listing.splits["test"]["sick"]) > 0


def test_missing_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    root = make_patients(tmp_path / "scans")
    assert "Run pip install 'camkd[data]'" in error_of(root, group_regex=r"(p\d+)")
