"""Numbers with units: parsing, formatting and the round trip."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camkd.types import InputError
from camkd.utils.units import (
    finite_number,
    format_count,
    format_duration,
    format_percent,
    format_points,
    format_quantity,
    parse_quantity,
)

POWERS = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12}


def plain_spaces(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


# --- parsing


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("4GB", "B", 4_000_000_000),
        ("4 GB", "B", 4_000_000_000),
        ("  4gb ", "B", 4_000_000_000),
        ("4G", "B", 4_000_000_000),
        ("4.1GB", "B", 4_100_000_000),
        ("0", "B", 0),
        ("0.0GB", "B", 0),
        ("17", "B", 17),
        ("17b", "B", 17),
        ("500MB", "B", 500_000_000),
        ("1.5kB", "B", 1_500),
        ("2TB", "B", 2_000_000_000_000),
        ("1.28M", "", 1_280_000),
        ("50000", "", 50_000),
        ("50k", "", 50_000),
        ("3.7g", "", 3_700_000_000),
    ],
)
def test_parse_quantity_examples(text: str, unit: str, expected: int) -> None:
    quantity = parse_quantity(text, "it", unit)
    assert quantity == expected
    assert isinstance(quantity, int)


@given(
    whole=st.integers(0, 9999),
    thousandths=st.integers(0, 999),
    prefix=st.sampled_from(sorted(POWERS)),
    unit=st.sampled_from(["", "B"]),
    upper=st.booleans(),
)
def test_parse_quantity_equals_decimal_arithmetic(
    whole: int, thousandths: int, prefix: str, unit: str, upper: bool
) -> None:
    number = f"{whole}.{thousandths:03d}"
    suffix = (prefix + unit).upper() if upper else (prefix + unit).lower()
    exact = Decimal(number) * 10 ** POWERS[prefix]
    assert abs(parse_quantity(number + suffix, "it", unit) - exact) <= Decimal("0.5")


@pytest.mark.parametrize("unit", ["", "B"])
@pytest.mark.parametrize(
    "text",
    ["", " ", "much", "-1", "-1GB", "+1", "1e9", "1,000", "1.", ".5", "1..5", "G", "GB", "B", "4GiB", "4PB", "4kk",
     "4 G B x", "nan", "inf", "0x10", "1 2", "4BB", None],
)  # fmt: skip
def test_parse_quantity_rejects_other_text_and_gives_valid_examples(text: str, unit: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"cache_budget must be a quantity, got {text!r}.")) as error:
        parse_quantity(text, "cache_budget", unit)
    examples = re.search(r"like (.*) or (.*)\.$", str(error.value))
    assert examples is not None
    assert all(parse_quantity(example, "it", unit) > 0 for example in examples.groups())


@pytest.mark.parametrize("text", ["5B", "5kB", "1.28MB"])
def test_parse_quantity_without_unit_rejects_bytes(text: str) -> None:
    with pytest.raises(InputError, match=f"got '{text}'"):
        parse_quantity(text, "images")


@pytest.mark.parametrize(("value", "expected"), [(0, 0.0), (-3, -3.0), (0.25, 0.25), (1e308, 1e308)])
def test_finite_number_returns_a_float(value: float, expected: float) -> None:
    assert finite_number(value) == expected
    assert isinstance(finite_number(value), float)


@pytest.mark.parametrize("value", [None, "3", True, [1], {}, math.nan, math.inf, -math.inf, 10**400])
def test_finite_number_is_none_for_everything_else(value: Any) -> None:
    assert finite_number(value) is None


# --- formatting


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_250, "1.2 kB"),
        (19_968, "20.0 kB"),
        (6_400_000, "6.4 MB"),
        (1_300_000_000, "1.3 GB"),
        (4e9, "4.0 GB"),
        (25.6e12, "25.6 TB"),
        (4e15, "4,000.0 TB"),
    ],
)
def test_format_quantity_examples(number: float, expected: str) -> None:
    assert format_quantity(number) == expected


def test_format_quantity_with_another_unit() -> None:
    assert format_quantity(1_280_000, "images") == "1.3 Mimages"
    assert format_quantity(12, "images") == "12 images"


@given(st.integers(0, 10**16))
def test_parse_quantity_inverts_format_quantity_up_to_rounding(number: int) -> None:
    text = format_quantity(number)
    parsed = parse_quantity(text.replace(",", ""), "it", "B")
    assert abs(parsed - number) <= max(0.5, 0.051 * 10 ** (3 * min(4, max(0, (len(str(number)) - 1) // 3))))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0"), (999, "999"), (999.6, "1 k"), (271_098, "271 k"), (999_999, "1 M"), (1.3e9, "1.3 G")],
)
def test_format_count_examples(number: float, expected: str) -> None:
    assert plain_spaces(format_count(number)) == expected


def test_format_percent_and_points() -> None:
    assert plain_spaces(format_percent(0.8914)) == "89.1 %"
    assert (format_points(-0.032), format_points(0.04)) == ("−3.2", "+4.0")
    assert [format_points(value, 2) for value in (0.005, -0.005, 0)] == ["+0.50", "−0.50", "+0.00"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.52, "0.5 s"), (59.7, "1 min"), (75, "1 min 15 s"), (3725, "1 h 2 min"), (3600, "1 h")],
)
def test_format_duration_examples(seconds: float, expected: str) -> None:
    assert plain_spaces(format_duration(seconds)) == expected
