"""Classes of trained weights and those of a dataset: files, orders, maps and errors."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from camkd.models.class_groups import group_classes, is_one_to_one, read_class_file
from camkd.types import InputError

DATA = ("café", "dog", "sky")


def decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "sky\ncafé\ndog\n"),
        ("a.txt", "﻿sky\r\ncafé\r\n\r\ndog"),
        ("a.json", json.dumps(["sky", "café", "dog"])),
        ("a.json", json.dumps({"café": 1, "sky": 0, "dog": 2})),
        ("a.json", json.dumps({"0": "sky", "1": "café", "2": "dog"})),
    ],
)
def test_names_in_order(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    class_file = read_class_file(path)
    assert class_file.names == ("sky", "café", "dog")
    assert group_classes(class_file.names, 3, DATA, None) == ((1,), (2,), (0,))


def test_names_are_compared_in_a_normal_form() -> None:
    assert group_classes((decomposed("café"), "dog", "sky"), 3, DATA, None) == ((0,), (1,), (2,))
    assert group_classes(("café", "dog", "sky"), 3, (decomposed("café"), "dog"), None) == ((0,), (1,))


def test_without_names_the_number_must_fit() -> None:
    assert group_classes(None, 3, DATA, None) == ((0,), (1,), (2,))
    with pytest.raises(InputError, match="must have 3 classes, those of the data, got 1,000"):
        group_classes(None, 1000, DATA, None)


def test_a_map_by_name_and_index_with_a_header(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text(
        'ImageNet class,class\n"terrier, Yorkshire",dog\n3,dog\n\n0 , sky\nespresso,café\n', encoding="utf-8"
    )
    class_file = read_class_file(path)
    names = ("sky blue", "espresso", "terrier, Yorkshire", "poodle", "lion")
    groups = group_classes(names, 5, DATA, class_file.pairs)
    assert groups == ((1,), (2, 3), (0,))
    assert not is_one_to_one(groups)


def test_a_numeric_name_comes_before_an_index() -> None:
    assert group_classes(("1", "0"), 2, ("a", "b"), [(1, "0", "a"), (2, "1", "b")]) == ((1,), (0,))


PAIRS = [(1, "0", "café"), (2, "1", "dog"), (3, "2", "sky")]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([*PAIRS, (4, "lion", "dog")], "line 4 must be a name or an index below 4, got 'lion'"),
        ([*PAIRS, (4, "4", "dog")], "line 4 must be a name or an index below 4, got '4'"),
        ([*PAIRS, (4, "crane", "dog")], "line 4 must be a unique name, got 'crane', the name of classes 1, 3"),
        ([*PAIRS, (4, "3", "cow")], r"class of the data in line 4 must be one of café, dog, sky, got 'cow'"),
        ([*PAIRS, (4, "0", "dog")], "mapped to one class of the data, got a second class for '0' in line 4"),
        (PAIRS[:2], "got none for sky"),
        ([(1, "lion", "cow"), *PAIRS[1:]], "got none for café"),
    ],
)
def test_errors_of_a_map(pairs: list[tuple[int, str, str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        group_classes(("a", "crane", "c", "crane"), 4, DATA, pairs)


def test_errors_of_names() -> None:
    with pytest.raises(InputError, match="must be 4 names, one per logit, got 3"):
        group_classes(DATA, 4, DATA, None)
    with pytest.raises(InputError, match=r"got none for café, dog\. The weights have Dog, coffee, sky\."):
        group_classes(("Dog", "coffee", "sky"), 3, DATA, None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "empty file"),
        ("a.csv", b"a,b,c\n", "two columns"),
        ("a.csv", b"a,b\nc\n", "got 'c' in line 2"),
        ("a.csv", b"a,\n", "two columns"),
        ("a.json", b"[1, 2]", "class names in order"),
        ("a.json", b"{", "valid JSON"),
        ("a.txt", b"\n\n", "class names in order"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_errors_of_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_class_file(path)
    assert str(path) in str(raised.value)
    with pytest.raises(InputError, match="does not exist"):
        read_class_file(tmp_path / "other.txt")
