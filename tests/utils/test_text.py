"""Names shortened at the end or in the middle."""

from __future__ import annotations

import unicodedata

import pytest

from camkd.utils.text import shorten, shorten_middle


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [("日本の猫", 8, "日本の猫"), ("日本の猫", 7, "日本の…"), ("tab\there", 20, "tab here"), ("owl", 3, "owl")],
)
def test_shorten_counts_wide_characters_twice(name: str, width: int, expected: str) -> None:
    assert shorten(name, width) == expected


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("IMG_20260102_123456_holiday.jpeg", 16, "IMG_2026…ay.jpeg"),
        ("日本の猫日本の猫日本の猫.jpg", 14, "日本の…猫.jpg"),
        ("line\nbreak.png", 20, "line break.png"),
        ("x.jpg", 5, "x.jpg"),
        ("e\u0301" * 10, 5, "e\u0301e\u0301…e\u0301e\u0301"),
    ],
)
def test_shorten_middle_keeps_both_ends(name: str, width: int, expected: str) -> None:
    assert shorten_middle(name, width) == expected


@pytest.mark.parametrize("width", range(1, 30))
@pytest.mark.parametrize("name", ["a" * 200 + ".png", "猫" * 40 + ".jpg", "a猫" * 20, "e\u0301" * 40])
def test_shortened_names_fit(name: str, width: int) -> None:
    for text in (shorten(name, width), shorten_middle(name, width)):
        wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
        combining = sum(unicodedata.combining(character) != 0 for character in text)
        assert len(text) + wide - combining <= width
