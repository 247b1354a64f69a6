"""Default teacher, check of a network against the images, and estimated times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.dataset import Dataset, Split
from camkd.experiments import planning
from camkd.experiments.planning import Rates
from camkd.experiments.teacher_student import train_all
from camkd.models import build
from camkd.runs.folder import Run
from camkd.types import InputError


def resized(data: Dataset, size: int) -> Dataset:
    """The first pixels of the images of a dataset, or the images repeated, as squares of ``size`` pixels."""

    def resize(split: Split) -> Split:
        repeats = -(-size // split.images.shape[1])
        images = np.tile(split.images, (1, repeats, repeats, 1))[:, :size, :size]
        return Split(np.ascontiguousarray(images), split.labels)

    return replace(data, train=resize(data.train), val=resize(data.val), test=resize(data.test))


@pytest.mark.parametrize(
    ("size", "name"), [(16, "wrn-16-4"), (32, "wrn-16-4"), (33, "resnet20"), (64, "resnet20"), (224, "resnet20")]
)
def test_default_teacher_on_a_cpu_depends_on_the_size(size: int, name: str) -> None:
    assert planning.default_teacher(10, size, "cpu") == name


def test_default_teacher_on_a_gpu_is_the_most_accurate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "pick_device", lambda device: "cuda:0")
    assert planning.default_teacher(10, 224, "auto") == planning.DEFAULT_TEACHERS[0]


def test_network_of_an_existing_run_is_kept(easy: Dataset, tmp_path: Path) -> None:
    Run(tmp_path).start({"model": "resnet8"}, {})
    assert planning.resolve_network("auto", easy, "cpu", tmp_path) == "resnet8"
    assert planning.resolve_network("auto", easy, "cpu", tmp_path / "new") == "wrn-16-4"
    assert planning.resolve_network("auto", easy, "cpu", None) == "wrn-16-4"
    assert planning.resolve_network("cam-net", easy, "cpu", tmp_path) == "cam-net"


@pytest.mark.parametrize(("name", "size"), [("resnet8", 1), ("cam-net", 2), ("resnet11", 2)])
def test_images_that_are_too_small_are_rejected_before_anything_is_written(
    easy: Dataset, tmp_path: Path, name: str, size: int
) -> None:
    data = resized(easy, size)
    config = RunConfig(DataConfig("easy"), TrainConfig(epochs=1), DistillConfig("wrn-16-4"), model=name)
    with pytest.raises(InputError, match=f"{size} x {size} pixels"):
        train_all(tmp_path / "run", config, data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 2])
def test_times_are_not_estimated_for_images_that_are_too_small(easy: Dataset, size: int) -> None:
    config = RunConfig(train=TrainConfig(epochs=1), model="cam-net-lite", role="teacher")
    with pytest.raises(InputError, match=f"{size} x {size} pixels"):
        planning.estimate_run(config, resized(easy, size))


def test_seconds_add_up_the_images(easy: Dataset) -> None:
    """96 training, 24 validation and 24 test images; 85 forward passes and 16 imputations per test image."""
    rates = Rates(training=10.0, validation=100.0, evaluation=50.0, imputation=200.0)
    expected = 3 * (96 / 10 + 24 / 100) + (24 + 85 * 24) / 50 + 16 * 24 / 200
    assert planning.training_seconds(easy, rates, 3) == pytest.approx(expected)
    assert planning.teacher_output_seconds(easy, 50.0, 2) == pytest.approx((2 * 96 + 24 + 24) / 50)


@pytest.mark.parametrize(("method", "parts"), [("cam-kd", ["student", "teacher outputs"]), ("plain", ["student"])])
def test_estimate_names_the_parts_and_keeps_the_random_state(easy: Dataset, method: str, parts: list[str]) -> None:
    config = RunConfig(train=TrainConfig(epochs=2), distill=DistillConfig(method=method), model="resnet8")
    state = torch.get_rng_state()
    estimate = planning.estimate_distillation(build("resnet8", 3, 16).eval(), 16, config, easy)
    assert sorted(estimate) == parts
    assert all(seconds > 0 for seconds in estimate.values())
    assert torch.equal(torch.get_rng_state(), state)
