"""Quantities as people write them, both ways, and every number's range."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camkd.config import (
    RANGES,
    DataConfig,
    DistillConfig,
    OptimizerSettings,
    TrainConfig,
    check_ranges,
    resolve_optimizer,
)
from camkd.types import InputError
from camkd.utils.units import format_quantity, parse_quantity

POWERS = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12}


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
def test_quantities(text: str, unit: str, expected: int) -> None:
    found = parse_quantity(text, "it", unit)
    assert found == expected
    assert isinstance(found, int)


@given(
    whole=st.integers(0, 9999),
    thousandths=st.integers(0, 999),
    prefix=st.sampled_from(sorted(POWERS)),
    unit=st.sampled_from(["", "B"]),
    upper=st.booleans(),
)
def test_a_quantity_is_its_decimal_number(whole: int, thousandths: int, prefix: str, unit: str, upper: bool) -> None:
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
def test_what_is_no_quantity_is_named_with_an_example(text: str, unit: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"cache_budget is {text!r}, but has to be a quantity")) as said:
        parse_quantity(text, "cache_budget", unit)
    examples = re.search(r"like (.*), (.*): give", str(said.value))
    assert examples is not None
    assert all(parse_quantity(example, "it", unit) > 0 for example in examples.groups())


@pytest.mark.parametrize("text", ["5B", "5kB", "1.28MB"])
def test_a_number_of_pictures_has_no_unit(text: str) -> None:
    with pytest.raises(InputError, match="pictures is"):
        parse_quantity(text, "pictures")


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
def test_quantities_for_people(number: float, expected: str) -> None:
    assert format_quantity(number) == expected


def test_another_unit_for_people() -> None:
    assert format_quantity(1_280_000, "pictures") == "1.3 Mpictures"
    assert format_quantity(12, "pictures") == "12 pictures"


@given(st.integers(0, 10**16))
def test_what_is_written_for_people_is_read_to_the_digits_it_shows(number: int) -> None:
    text = format_quantity(number)
    again = parse_quantity(text.replace(",", ""), "it", "B")
    assert abs(again - number) <= max(0.5, 0.051 * 10 ** (3 * min(4, max(0, (len(str(number)) - 1) // 3))))


def test_the_defaults_are_within_their_ranges() -> None:
    values = {
        field.name: field.default for config in (DataConfig, TrainConfig, DistillConfig) for field in fields(config)
    }
    check_ranges(values)
    assert parse_quantity(values["cache_budget"], "cache_budget", "B") == 8 * 10**9
    assert set(RANGES) - set(values) == {"teacher_epochs"}


@pytest.mark.parametrize(("name", "wrong"), [("cache_map_size", 0), ("cache_map_size", -3), ("augment_epochs", 0)])
def test_numbers_out_of_their_range_are_named(name: str, wrong: int) -> None:
    check_ranges({name: None})
    check_ranges({name: 1})
    with pytest.raises(InputError, match=f"{name} is {wrong}, but has to be 1 or more"):
        check_ranges({name: wrong})


BORDERS = {
    "1 or more, up to a billion": ([1, 7, 10**9], [0, 0.5, -3, 10**9 + 1, 10**400]),
    "0 or more": ([0, 0.25, 9], [-1, -1e-9]),
    "more than 0": ([1e-9, 5], [0, -1]),
    "between 0 and 1": ([0, 0.5, 1], [-1e-9, 1.001]),
    "between 0 and 4,294,967,295": ([0, 2**32 - 1], [-1, 2**32]),
}
"""What each range takes and what it does not."""


@pytest.mark.parametrize("name", RANGES)
def test_ranges_end_where_they_say(name: str) -> None:
    within, beyond = BORDERS[RANGES[name][0]]
    for value in within:
        check_ranges({name: value})
    for value in (*beyond, math.inf, -math.inf, math.nan):
        with pytest.raises(InputError, match=f"{name} is {value}, but has to be {RANGES[name][0]}: give such a number"):
            check_ranges({name: value})


@pytest.mark.parametrize(
    ("config", "own", "expected"),
    [
        (TrainConfig(), "sgd", OptimizerSettings("sgd", 0.2, 5e-4)),
        (TrainConfig(), "adamw", OptimizerSettings("adamw", 0.01, 0.01)),
        (TrainConfig(optimizer="sgd"), "adamw", OptimizerSettings("sgd", 0.2, 5e-4)),
        (TrainConfig(lr=0.3), "sgd", OptimizerSettings("sgd", 0.3, 5e-4)),
        (TrainConfig(optimizer="adamw", weight_decay=0.0), "sgd", OptimizerSettings("adamw", 0.01, 0.0)),
    ],
)
def test_what_nobody_says_of_the_steps_follows_the_network(
    config: TrainConfig, own: str, expected: OptimizerSettings
) -> None:
    assert resolve_optimizer(config, own) == expected
