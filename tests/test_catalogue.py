"""The lists tell the truth about what there is."""

from __future__ import annotations

from typing import Any

import pytest

from camkd.catalogue import show
from camkd.data.sources import SOURCES
from camkd.models import MODELS, build
from camkd.objectives import METHODS
from camkd.types import InputError


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    found, (columns, rows) = show("models", 32, 10)
    assert [row[0] for row in rows] == list(found)
    assert {len(row) for row in rows} == {len(columns)}
    return found


def test_every_model_is_listed_with_its_cost(models: dict[str, Any]) -> None:
    assert list(models) == list(MODELS)
    for name in ("cam-net", "resnet8"):
        assert models[name]["params"] == sum(p.numel() for p in build(name, 10, 32).parameters())
    assert all(entry["macs"] > entry["params"] for entry in models.values())


def test_the_student_is_small_and_its_map_is_not(models: dict[str, Any]) -> None:
    student = models["cam-net"]
    assert student["params"] <= 96_000
    assert min(student["map"]) >= 8
    assert student["form"] == "exact"


def test_the_write_ups_teacher(models: dict[str, Any]) -> None:
    assert round(models["resnet50-mlp"]["params"] / 1e6, 1) == 27.7
    assert models["resnet50-mlp"]["form"] == "gradient"
    assert {name for name, entry in models.items() if entry["form"] == "gradient"} == {"resnet50-mlp"}


def test_methods() -> None:
    found, (columns, rows) = show("methods", 32, 10)
    assert list(found) == list(METHODS) == [row[0] for row in rows]
    assert found["cam-kd"]["terms"] == {name: term.weight for name, term in METHODS["cam-kd"].terms.items()}
    assert all(entry["summary"] and entry["source"] for entry in found.values())
    assert {len(row) for row in rows} == {len(columns)}


def test_data() -> None:
    found, (_, rows) = show("data", 32, 10)
    assert list(found) == list(SOURCES)
    assert [row[0] for row in rows] == [*SOURCES, "FOLDER"]
    assert found["cifar10"]["pictures"] == [45_000, 5_000, 10_000]


@pytest.mark.parametrize(
    ("what", "size", "classes", "named"),
    [("cats", 32, 10, "'cats'"), ("models", 0, 10, "size is 0"), ("models", 32, -1, "classes is -1")],
)
def test_what_there_is_not(what: str, size: int, classes: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        show(what, size, classes)
