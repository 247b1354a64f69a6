"""Lists of models, methods, recipes and datasets."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from camkd.cli.listing import COSTS_FILE, COSTS_SIZE_AND_CLASSES, count_costs, list_items, stored_costs
from camkd.cli.main import _build_parser
from camkd.cli.recipes import RECIPES
from camkd.data.sources import SOURCES
from camkd.distill.methods import METHODS
from camkd.models import MODELS, build
from camkd.types import InputError

WRITE = f"""python -c "from camkd.cli.listing import *; from camkd.utils.files import write_json; \
write_json(COSTS_FILE, count_costs(*COSTS_SIZE_AND_CLASSES))" writes {COSTS_FILE.name} again"""


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    items, (columns, rows) = list_items("models", 32, 10)
    assert [row[0] for row in rows] == [*items, "timm:NAME", "torchvision:NAME"]
    assert {len(row) for row in rows} == {len(columns)}
    return items


def test_every_model_has_its_cost(models: dict[str, Any]) -> None:
    assert list(models) == list(MODELS)
    for name in ("cam-net", "resnet8"):
        assert models[name]["params"] == sum(p.numel() for p in build(name, 10, 32).parameters())
    assert all(entry["macs"] > entry["params"] for entry in models.values())
    assert all(entry["summary"] and "\n" not in entry["summary"] for entry in models.values())


@pytest.mark.slow
def test_stored_costs_are_up_to_date(models: dict[str, Any]) -> None:
    assert stored_costs().keys() == MODELS.keys(), (
        f"give each model summary and form in {COSTS_FILE.name}, then: {WRITE}"
    )
    assert models == count_costs(*COSTS_SIZE_AND_CLASSES), WRITE


def test_cost_at_other_sizes_and_classes(keep_models: Callable[..., None], models: dict[str, Any]) -> None:
    keep_models("resnet8")
    large, many_classes = (list_items("models", *arguments)[0]["resnet8"] for arguments in ((64, 10), (32, 100)))
    assert large["map_size"] == [16, 16]
    assert large["params"] == models["resnet8"]["params"]
    assert many_classes["params"] > models["resnet8"]["params"]
    assert many_classes["macs"] < large["macs"] < 5 * models["resnet8"]["macs"]


def test_cost_of_cam_net_at_other_sizes(keep_models: Callable[..., None], models: dict[str, Any]) -> None:
    keep_models("cam-net")
    photo = list_items("models", 64, 10)[0]["cam-net"]
    assert photo["map_size"] == [8, 8]
    assert photo["params"] <= 96_000
    assert photo["macs"] < models["cam-net"]["macs"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["models", "data"])
def test_list_without_torch(kind: str) -> None:
    code = f"import sys; from camkd.cli.main import main; sys.exit(main(['list', '{kind}']) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in (MODELS if kind == "models" else SOURCES))


def test_cam_net_budget_and_map(models: dict[str, Any]) -> None:
    student = models["cam-net"]
    assert student["params"] <= 96_000
    assert min(student["map_size"]) >= 8
    assert student["map_form"] == "exact"


def test_cam_net_lite_fits_the_mlperf_tiny_budget(models: dict[str, Any]) -> None:
    assert models["cam-net-lite"]["macs"] <= 12_500_000
    assert min(models["cam-net-lite"]["map_size"]) >= 8


def test_only_resnet50_mlp_has_gradient_based_maps(models: dict[str, Any]) -> None:
    assert round(models["resnet50-mlp"]["params"] / 1e6, 1) == 27.7
    assert {name for name, entry in models.items() if entry["map_form"] == "gradient"} == {"resnet50-mlp"}


def test_methods() -> None:
    items, (columns, rows) = list_items("methods", 32, 10)
    assert list(items) == list(METHODS) == [row[0] for row in rows]
    assert items["cam-kd"]["terms"] == METHODS["cam-kd"].terms
    assert all(entry["summary"] and entry["source"] for entry in items.values())
    assert {len(row) for row in rows} == {len(columns)}


def test_recipes() -> None:
    items, (columns, rows) = list_items("recipes", 32, 10)
    assert list(items) == list(RECIPES) == [row[0] for row in rows]
    assert {len(row) for row in rows} == {len(columns)}
    for recipe in items.values():
        assert all(recipe.values())
        _build_parser().parse_args(shlex.split(recipe["command"])[1:])


def test_data() -> None:
    items, (_, rows) = list_items("data", 32, 10)
    assert list(items) == list(SOURCES)
    assert [row[0] for row in rows] == [*SOURCES, "FOLDER"]
    assert items["cifar10"]["images"] == [45_000, 5_000, 10_000]


@pytest.mark.parametrize(
    ("kind", "size", "classes", "named"),
    [
        ("cats", 32, 10, "KIND must be one of models, methods, recipes, data, got 'cats'. Choose one of them."),
        ("models", 0, 10, "--size must be 1 or more, got 0. Choose a larger number."),
        ("models", 32, -1, "--classes must be 1 or more, got -1. Choose a larger number."),
    ],
)
def test_unknown_list_or_wrong_number_is_refused(kind: str, size: int, classes: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        list_items(kind, size, classes)


@pytest.mark.parametrize("size", [1, 3])
def test_too_small_images_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=rf"`--size` must be .*got {size} x {size} pixels"):
        list_items("models", size, 10)
