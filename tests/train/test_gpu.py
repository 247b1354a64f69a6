"""GPUs: the results of a CPU, exact resume, and no step that waits for the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camkd.cams import MAP_METHODS, predict
from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.augment import POLICIES
from camkd.data.dataset import Dataset
from camkd.data.views import Views
from camkd.distill.cache import TeacherCache
from camkd.distill.cache.build import build_teacher_cache
from camkd.distill.methods import METHODS
from camkd.distill.objective import parse_objective
from camkd.distill.teacher import Teacher, load_teacher
from camkd.evaluate import faithfulness, predict_split
from camkd.experiments.pipeline import TeacherWithCache, train_run
from camkd.models import MODELS, build
from camkd.models.io import ModelInfo, save
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback
from camkd.types import Interrupted
from support.interrupt import InterruptAt
from support.training import FitResult, Weights, build_network, equal_weights, fit_network, train_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product, for deterministic results
CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def deterministic_kernels() -> Iterator[None]:
    """Use deterministic kernels and full fp32: the tests compare the training loop, not the libraries."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = True


@pytest.fixture
def untrained_teacher(easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Teacher:
    """An untrained teacher on the GPU, and an empty cache."""
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    model = build("resnet8", 3, 16, seed=9)
    save(model, tmp_path / "teacher", ModelInfo("resnet8", easy.classes, 16, 1, 1, "teacher", "plain", "easy", "", 9))
    return load_teacher(tmp_path / "teacher", easy, "cuda")


def gpu_config(**changes: Any) -> TrainConfig:
    return train_config(**{"lr": 0.1, "optimizer": "sgd", "device": "cuda", **changes})


def make_cache(teacher: Teacher, data: Dataset, config: TrainConfig, method: str) -> TeacherCache | None:
    """Build the teacher cache of a method, or None if its loss needs no teacher."""
    objective = parse_objective(method)
    if not objective.needs_teacher:
        return None
    run_config = RunConfig(DataConfig("easy"), config, DistillConfig(method=method))
    return build_teacher_cache(teacher, run_config, features="features" in objective.needs)


def train(data: Dataset, folder: Path, config: TrainConfig, method: str = "plain", **options: Any) -> FitResult:
    """Train a ResNet-8 and return its weights on the CPU."""
    weights, rows = fit_network(data, folder, config, parse_objective(method), **options)
    return FitResult({name: tensor.cpu() for name, tensor in weights.items()}, rows)


class ForbidWaiting(Callback):
    """Make it an error to wait for the GPU, from the second step of an epoch to the last but one.

    Args:
        steps_per_epoch: Steps of an epoch.
        epoch: The epoch, from 0.
    """

    def __init__(self, steps_per_epoch: int, epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.epoch = epoch
        self.num_steps = 0
        self.num_guarded_steps = 0

    def on_batch_end(self, num_images: int) -> None:
        self.num_steps += 1
        epoch, step = divmod(self.num_steps, self.steps_per_epoch)
        is_guarded = epoch == self.epoch and 0 < step < self.steps_per_epoch - 1
        self.num_guarded_steps += is_guarded
        torch.cuda.set_sync_debug_mode("error" if is_guarded else "default")


@pytest.mark.parametrize("policy", POLICIES)
def test_augmented_views_equal_those_of_the_cpu(easy: Dataset, policy: str) -> None:
    samples = torch.arange(len(easy.train)).flip(0)
    cpu_batch, gpu_batch = (Views(easy.train, 3, policy, 5, device)[3, samples] for device in (CPU, GPU))
    assert gpu_batch.x.is_cuda
    assert gpu_batch.x.is_contiguous(memory_format=torch.channels_last)
    difference = (gpu_batch.x.cpu() - cpu_batch.x).abs()
    rounded = 0.001 if policy.startswith("photo") else 0  # operations on integers differ where rounding does
    assert (difference > 1e-5).float().mean() <= rounded
    torch.testing.assert_close(gpu_batch.labels.cpu(), cpu_batch.labels, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_maps_equal_those_of_the_cpu(name: str) -> None:
    model = build(name, 5, 32, seed=1).eval()
    x = torch.rand(3, 3, 32, 32)
    cpu_prediction = predict(model, x)
    gpu_prediction = predict(model.to(GPU, memory_format=torch.channels_last), x.to(GPU))
    assert cpu_prediction.cams is not None
    assert gpu_prediction.cams is not None
    for result, expected in (
        (gpu_prediction.logits, cpu_prediction.logits),
        (gpu_prediction.cams, cpu_prediction.cams),
    ):
        assert (result.detach().cpu() - expected.detach()).norm() <= 1e-4 * expected.detach().norm()


@pytest.mark.parametrize("method", MAP_METHODS)
def test_map_methods_equal_those_of_the_cpu(method: str) -> None:
    model = build("resnet8", 5, 32, seed=1).eval()
    x = torch.rand(3, 3, 32, 32)
    cpu_maps = predict(model, x, method=method).cams
    gpu_maps = predict(model.to(GPU), x.to(GPU), method=method).cams
    assert cpu_maps is not None
    assert gpu_maps is not None
    torch.testing.assert_close(gpu_maps.detach().cpu(), cpu_maps.detach(), rtol=1e-3, atol=1e-5)


def test_predictions_and_faithfulness_equal_those_of_the_cpu(easy: Dataset) -> None:
    model = build("resnet8", 3, 16, seed=1)
    cpu_predictions = predict_split(model, easy.test)
    cpu_metrics = faithfulness(model, easy.test)
    model.to(GPU)
    gpu_predictions = predict_split(model, easy.test)
    gpu_metrics = faithfulness(model, easy.test)
    assert not gpu_predictions.logits.is_cuda  # predictions of a split are collected on the CPU
    torch.testing.assert_close(gpu_predictions.logits, cpu_predictions.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gpu_predictions.maps, cpu_predictions.maps, rtol=1e-3, atol=1e-4)
    assert gpu_metrics == pytest.approx(cpu_metrics, abs=0.02)


def test_loss_curve_equals_that_of_the_cpu(easy: Dataset, tmp_path: Path) -> None:
    def losses(device: str) -> list[float]:
        config = gpu_config(device=device, augment="strong", lr=0.02)
        return [row["train_loss"] for row in train(easy, tmp_path / device, config).rows]

    assert losses("cuda") == pytest.approx(losses("cpu"), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(easy: Dataset, tmp_path: Path, untrained_teacher: Teacher, method: str) -> None:
    torch.use_deterministic_algorithms(False)  # pooling and resizing have no deterministic kernels
    config = gpu_config(epochs=1, augment="strong", precision="auto")
    cache = make_cache(untrained_teacher, easy, config, method)
    _, rows = train(easy, tmp_path / "run", config, method, cache=cache, model=build_network(name="cam-net"))
    assert np.isfinite(rows[0]["train_loss"])
    assert Run(tmp_path / "run").checkpoints


def test_no_step_waits_for_the_gpu_with_cached_outputs(
    easy: Dataset, tmp_path: Path, untrained_teacher: Teacher
) -> None:
    """The first of three epochs fills the cache, and waiting is an error in the second."""
    torch.use_deterministic_algorithms(False)
    config = gpu_config(epochs=3, augment_epochs=1, augment="strong", precision="auto", figure_every=0)
    cache = make_cache(untrained_teacher, easy, config, "cam-kd")
    callback = ForbidWaiting(steps_per_epoch=4, epoch=1)
    try:
        train(easy, tmp_path / "run", config, "cam-kd", cache=cache, callbacks=[callback])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert callback.num_guarded_steps == 2


@pytest.mark.parametrize("step", [1, 4, 6])
def test_interrupted_run_resumes_to_the_same_bits(
    easy: Dataset, tmp_path: Path, untrained_teacher: Teacher, step: int
) -> None:
    """With the teacher outputs that the first run cached."""
    config = gpu_config(augment="strong")
    method = "ce=0.1,kd=0.9,cam=1:pool=1"

    def distill(folder: str, **options: Any) -> FitResult:
        cache = make_cache(untrained_teacher, easy, config, method)
        return train(easy, tmp_path / folder, config, method, cache=cache, **options)

    weights, rows = distill("whole")
    with pytest.raises(Interrupted):
        distill("interrupted", callbacks=[InterruptAt(step)])
    resumed_weights, resumed_rows = distill("interrupted", resume=True)
    assert equal_weights(weights, resumed_weights)
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in resumed_rows]


def test_resume_with_dropout(easy: Dataset, tmp_path: Path) -> None:
    def train_dropout(folder: str, seed: int, **options: Any) -> Weights:
        model = build_network()
        model.fc = nn.Sequential(nn.Dropout(), model.fc)  # type: ignore[arg-type]
        torch.manual_seed(seed)
        return train(easy, tmp_path / folder, gpu_config(epochs=1), model=model, **options).weights

    weights = train_dropout("whole", 1)
    with pytest.raises(Interrupted):
        train_dropout("interrupted", 1, callbacks=[InterruptAt(2)])
    assert equal_weights(train_dropout("interrupted", 2, resume=True), weights)
    assert not equal_weights(train_dropout("other", 2), weights)


class NonFiniteModel(nn.Module):
    """A ResNet-8 whose second training batch has NaN logits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = build_network()
        self.num_batches = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_batches += self.training
        logits: Tensor = self.network(x)
        return logits * float("nan") if self.training and self.num_batches == 2 else logits


def test_loss_that_is_not_finite_stops_the_run(easy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train(easy, tmp_path / "run", gpu_config(epochs=1), model=NonFiniteModel())
    assert not Run(tmp_path / "run").checkpoints


def test_batch_that_is_not_finite_is_skipped(easy: Dataset, tmp_path: Path) -> None:
    weights, rows = train(easy, tmp_path / "run", gpu_config(epochs=1, on_nan="skip"), model=NonFiniteModel())
    assert rows[0]["skipped_samples"] == 24
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_whole_run_with_evaluation_and_figures(easy: Dataset, tmp_path: Path, untrained_teacher: Teacher) -> None:
    torch.use_deterministic_algorithms(False)
    config = gpu_config(epochs=1, precision="auto", figure_every=1)
    teacher_with_cache = TeacherWithCache(untrained_teacher, make_cache(untrained_teacher, easy, config, "cam-kd"))
    run_config = RunConfig(DataConfig("easy"), config, DistillConfig(method="cam-kd"), "cam-net", "student")
    metrics = train_run(tmp_path / "run", run_config, easy, teacher_with_cache)
    assert {"accuracy", "cam_cosine", "road"} <= metrics.keys()
    assert Run(tmp_path / "run").finished
