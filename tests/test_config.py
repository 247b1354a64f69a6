"""Configuration: ranges of numbers, defaults, and the round trip through config.yaml."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import yaml

from camkd.config import (
    RANGES,
    DataConfig,
    DistillConfig,
    OptimizerSettings,
    RunConfig,
    TeacherConfig,
    TrainConfig,
    check_ranges,
    epochs_in_budget,
    num_augmented_epochs,
    resolve_optimizer,
)
from camkd.types import InputError
from camkd.utils.units import parse_quantity


def test_defaults_are_in_range() -> None:
    values = {
        field.name: field.default
        for config in (DataConfig, TrainConfig, DistillConfig, TeacherConfig)
        for field in fields(config)
    }
    check_ranges(values)
    assert parse_quantity(values["cache_budget"], "cache_budget", "B") == 8 * 10**9
    assert set(RANGES) - set(values) == {"teacher_epochs", "teacher_size"}


@pytest.mark.parametrize(("name", "wrong"), [("cache_map_size", 0), ("cache_map_size", -3), ("augment_epochs", 0)])
def test_out_of_range_number_is_refused(name: str, wrong: int) -> None:
    check_ranges({name: None})
    check_ranges({name: 1})
    with pytest.raises(InputError, match=f"{name} must be 1 or more.*got {wrong}"):
        check_ranges({name: wrong})


BOUNDARIES = {
    "1 or more, up to a billion": ([1, 7, 10**9], [0, 0.5, -3, 10**9 + 1, 10**400]),
    "0 or more": ([0, 0.25, 9], [-1, -1e-9]),
    "more than 0": ([1e-9, 5], [0, -1]),
    "between 0 and 1": ([0, 0.5, 1], [-1e-9, 1.001]),
    "between 0 and 4,294,967,295": ([0, 2**32 - 1], [-1, 2**32]),
}
"""Valid and invalid values of each range."""


@pytest.mark.parametrize("name", RANGES)
def test_range_boundaries(name: str) -> None:
    valid, invalid = BOUNDARIES[RANGES[name][0]]
    for value in valid:
        check_ranges({name: value})
    for value in (*invalid, math.inf, -math.inf, math.nan):
        with pytest.raises(InputError, match=f"{name} must be {RANGES[name][0]}, got {value}"):
            check_ranges({name: value})


@pytest.mark.parametrize(
    ("config", "default", "expected"),
    [
        (TrainConfig(), "sgd", OptimizerSettings("sgd", 0.2, 5e-4)),
        (TrainConfig(), "adamw", OptimizerSettings("adamw", 0.01, 0.01)),
        (TrainConfig(optimizer="sgd"), "adamw", OptimizerSettings("sgd", 0.2, 5e-4)),
        (TrainConfig(lr=0.3), "sgd", OptimizerSettings("sgd", 0.3, 5e-4)),
        (TrainConfig(optimizer="adamw", weight_decay=0.0), "sgd", OptimizerSettings("adamw", 0.01, 0.0)),
    ],
)
def test_resolve_optimizer(config: TrainConfig, default: str, expected: OptimizerSettings) -> None:
    assert resolve_optimizer(config, default) == expected


# --- round trip through config.yaml

STUDENT = RunConfig(
    DataConfig("folder", size=64), TrainConfig(epochs=3, lr=0.5), DistillConfig("/runs/teacher", "kd"), "resnet8"
)
TEACHER = RunConfig(DataConfig("folder"), TrainConfig(seed=7), model="resnet20", role="teacher")


@pytest.mark.parametrize("config", [RunConfig(), STUDENT, TEACHER, replace(STUDENT, role="control")])
def test_options_round_trip(config: RunConfig) -> None:
    options = yaml.safe_load(yaml.safe_dump(config.options()))
    assert RunConfig.from_options(options, config.role) == config


def test_options_are_those_of_the_command() -> None:
    assert not {"teacher", "student", "method", "cache_budget"} & TEACHER.options().keys()
    assert (TEACHER.options()["model"], TEACHER.method) == ("resnet20", "plain")
    assert (STUDENT.options()["student"], STUDENT.options()["teacher"]) == ("resnet8", "/runs/teacher")


def test_missing_option_has_its_default_and_unknown_options_are_ignored() -> None:
    assert RunConfig.from_options({"student": "cam-net", "later": 1}) == RunConfig()
    assert RunConfig.from_options({"model": "resnet8"}).role == "teacher"


@pytest.mark.parametrize(("epochs", "augment_epochs", "expected"), [(5, None, 5), (5, 2, 2), (5, 9, 5)])
def test_num_augmented_epochs(epochs: int, augment_epochs: int | None, expected: int) -> None:
    assert num_augmented_epochs(TrainConfig(epochs=epochs, augment_epochs=augment_epochs)) == expected


@pytest.mark.parametrize(("budget", "expected"), [("10B", 3), ("6B", 2), ("2B", 0), ("0", 0)])
def test_epochs_in_budget(budget: str, expected: int) -> None:
    config = RunConfig(train=TrainConfig(epochs=3), distill=DistillConfig(cache_budget=budget))
    assert epochs_in_budget(config, epoch_bytes=3) == expected
