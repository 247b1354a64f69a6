"""The lists tell the truth about what there is."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from camkd.cli.listing import COSTS, COSTS_AT, costs, show, stored_costs
from camkd.cli.main import _parser
from camkd.cli.recipes import RECIPES
from camkd.data.sources import SOURCES
from camkd.distill.methods import METHODS
from camkd.models import MODELS, build
from camkd.types import InputError

WRITE = f"""python -c "from camkd.cli.listing import *; from camkd.utils.files import write_json; \
write_json(COSTS, costs(*COSTS_AT))" writes {COSTS.name} again"""


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    found, (columns, rows) = show("models", 32, 10)
    assert [row[0] for row in rows] == [*found, "timm:NAME", "torchvision:NAME"]
    assert {len(row) for row in rows} == {len(columns)}
    return found


def test_every_model_is_listed_with_its_cost(models: dict[str, Any]) -> None:
    assert list(models) == list(MODELS)
    for name in ("cam-net", "resnet8"):
        assert models[name]["params"] == sum(p.numel() for p in build(name, 10, 32).parameters())
    assert all(entry["macs"] > entry["params"] for entry in models.values())
    assert all(entry["summary"] and "\n" not in entry["summary"] for entry in models.values())


def test_the_costs_that_are_kept_are_those_that_are_counted(models: dict[str, Any]) -> None:
    assert stored_costs().keys() == MODELS.keys(), f"give each model summary and form in {COSTS.name}, then: {WRITE}"
    assert models == costs(*COSTS_AT), WRITE


def test_other_pictures_and_classes_are_counted(keep_models: Callable[..., None], models: dict[str, Any]) -> None:
    keep_models("cam-net")
    wide, many = (show("models", *given)[0]["cam-net"] for given in ((64, 10), (32, 100)))
    assert wide["map"] == [32, 32]
    assert wide["params"] == models["cam-net"]["params"]
    assert many["params"] > models["cam-net"]["params"]
    assert many["macs"] < wide["macs"] < 5 * models["cam-net"]["macs"]


@pytest.mark.parametrize("what", ["models", "data"])
def test_a_list_answers_without_torch(what: str) -> None:
    code = f"import sys; from camkd.cli.main import main; sys.exit(main(['list', '{what}']) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in (MODELS if what == "models" else SOURCES))


def test_the_student_is_small_and_its_map_is_not(models: dict[str, Any]) -> None:
    student = models["cam-net"]
    assert student["params"] <= 96_000
    assert min(student["map"]) >= 8
    assert student["form"] == "exact"


def test_the_lite_student_keeps_to_the_budget_of_mlperf_tiny(models: dict[str, Any]) -> None:
    assert models["cam-net-lite"]["macs"] <= 12_500_000
    assert min(models["cam-net-lite"]["map"]) >= 8


def test_the_write_ups_teacher(models: dict[str, Any]) -> None:
    assert round(models["resnet50-mlp"]["params"] / 1e6, 1) == 27.7
    assert models["resnet50-mlp"]["form"] == "gradient"
    assert {name for name, entry in models.items() if entry["form"] == "gradient"} == {"resnet50-mlp"}


def test_methods() -> None:
    found, (columns, rows) = show("methods", 32, 10)
    assert list(found) == list(METHODS) == [row[0] for row in rows]
    assert found["cam-kd"]["terms"] == METHODS["cam-kd"].terms
    assert all(entry["summary"] and entry["source"] for entry in found.values())
    assert {len(row) for row in rows} == {len(columns)}


def test_recipes() -> None:
    found, (columns, rows) = show("recipes", 32, 10)
    assert list(found) == list(RECIPES) == [row[0] for row in rows]
    assert {len(row) for row in rows} == {len(columns)}
    for said in found.values():
        assert all(said.values())
        _parser().parse_args(shlex.split(said["command"])[1:])  # every option is one of the command's


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


@pytest.mark.parametrize("size", [1, 3])
def test_pictures_too_small_for_a_network_are_named(size: int) -> None:
    with pytest.raises(InputError, match=rf"cannot take pictures of {size} x {size} pixels.*give a larger --size"):
        show("models", size, 10)
