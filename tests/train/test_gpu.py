"""What holds on a GPU: the same views, maps and loss curves as on a processor, exact resume, and nobody who waits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camkd.cams import MAP_METHODS as MAPS
from camkd.cams import predict
from camkd.config import DataConfig, DistillConfig, TrainConfig
from camkd.data.augment import POLICIES, Views
from camkd.data.dataset import Dataset
from camkd.distill.cache import TeacherCache
from camkd.distill.cache.build import build_teacher_cache
from camkd.distill.methods import METHODS
from camkd.distill.objective import Objective, parse_objective
from camkd.distill.teacher import Teacher, load_teacher
from camkd.evaluate import faithfulness, predict_split
from camkd.experiments.pipeline import train_run
from camkd.models import MODELS, build
from camkd.models.io import ModelInfo, save
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback
from camkd.train.loop import Interrupted, fit
from stopping import Stop

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product: the same bits each time
GPU = torch.device("cuda")
Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def same_kernels() -> Iterator[None]:
    """Kernels that add in a fixed order, and full fp32: what is compared is the loop and not the library."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = True


@pytest.fixture
def taught(easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Teacher:
    """A teacher that knows nothing, on the GPU, with a store of its own."""
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    model = build("resnet8", 3, 16, seed=9)
    save(model, tmp_path / "teacher", ModelInfo("resnet8", easy.classes, 16, 1, 1, "teacher", "plain", "easy", "", 9))
    return load_teacher(tmp_path / "teacher", easy, "cuda")


def settings(**changes: Any) -> TrainConfig:
    values = {"epochs": 2, "batch_size": 24, "lr": 0.1, "optimizer": "sgd", "precision": "fp32", "device": "cuda"}
    return TrainConfig(**{**values, **changes})


def known(teacher: Teacher, data: Dataset, config: TrainConfig, method: str) -> TeacherCache | None:
    goal = parse_objective(method)
    if not goal.needs_teacher:
        return None
    return build_teacher_cache(teacher, data, config, DistillConfig(method), features="features" in goal.needs)


def fitted(
    data: Dataset,
    folder: Path,
    config: TrainConfig,
    goal: Objective,
    knowledge: TeacherCache | None = None,
    student: nn.Module | None = None,
    **how: Any,
) -> tuple[Weights, list[dict[str, Any]]]:
    model = build("resnet8", 3, 16, seed=0) if student is None else student
    best = fit(model, data, goal, config, Run(folder), knowledge=knowledge, **how)
    return {name: tensor.cpu() for name, tensor in best.state_dict().items()}, Run(folder).read_history()


def same(ours: Weights, theirs: Weights) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


class NobodyWaits(Callback):
    """Makes it an error to wait for the GPU, from the first step of an epoch to the last but one."""

    def __init__(self, steps: int, epoch: int) -> None:
        self.steps, self.guarded, self.done, self.looked = steps, epoch, 0, 0

    def step(self, pictures: int) -> None:
        self.done += 1
        epoch, place = divmod(self.done, self.steps)
        guarding = epoch == self.guarded and 0 < place < self.steps - 1
        self.looked += guarding
        torch.cuda.set_sync_debug_mode("error" if guarding else "default")


@pytest.mark.parametrize("policy", POLICIES)
def test_views_are_those_of_a_processor(easy: Dataset, policy: str) -> None:
    samples = torch.arange(len(easy.train)).flip(0)
    here, there = (Views(easy.train, 3, policy, 5, device)[3, samples] for device in (torch.device("cpu"), GPU))
    assert there.x.is_cuda
    assert there.x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(there.x.cpu(), here.x, rtol=0, atol=1e-5)
    torch.testing.assert_close(there.labels.cpu(), here.labels, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_maps_are_those_of_a_processor(name: str) -> None:
    model, x = build(name, 5, 32, seed=1).eval(), torch.rand(3, 3, 32, 32)
    here = predict(model, x)
    there = predict(model.to(GPU, memory_format=torch.channels_last), x.to(GPU))
    assert here.cams is not None
    assert there.cams is not None
    for ours, theirs in ((there.logits, here.logits), (there.cams, here.cams)):
        assert (ours.detach().cpu() - theirs.detach()).norm() <= 1e-4 * theirs.detach().norm()


@pytest.mark.parametrize("method", MAPS)
def test_every_map_method_runs_there(method: str) -> None:
    model, x = build("resnet8", 5, 32, seed=1).eval(), torch.rand(3, 3, 32, 32)
    here = predict(model, x, method=method).cams
    there = predict(model.to(GPU), x.to(GPU), method=method).cams
    assert here is not None
    assert there is not None
    torch.testing.assert_close(there.detach().cpu(), here.detach(), rtol=1e-3, atol=1e-5)


def test_answers_and_faithfulness_are_those_of_a_processor(easy: Dataset) -> None:
    model = build("resnet8", 3, 16, seed=1)
    here, sums = predict_split(model, easy.test), faithfulness(model, easy.test)
    model.to(GPU)
    there, there_sums = predict_split(model, easy.test), faithfulness(model, easy.test)
    assert not there.logits.is_cuda  # answers are kept on the host
    torch.testing.assert_close(there.logits, here.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(there.maps, here.maps, rtol=1e-3, atol=1e-4)
    assert there_sums == pytest.approx(sums, abs=0.02)


def test_a_run_has_the_loss_curve_of_a_processor(easy: Dataset, tmp_path: Path) -> None:
    def curve(device: str) -> list[float]:
        config = settings(device=device, views="strong", lr=0.02)
        return [row["train_loss"] for row in fitted(easy, tmp_path / device, config, parse_objective("plain"))[1]]

    assert curve("cuda") == pytest.approx(curve("cpu"), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_there(easy: Dataset, tmp_path: Path, taught: Teacher, method: str) -> None:
    torch.use_deterministic_algorithms(False)  # some pool and resize with kernels that have no fixed order
    config = settings(epochs=1, views="strong", precision="auto")
    student = build("cam-net", 3, 16, seed=0)
    _, rows = fitted(
        easy, tmp_path / "run", config, parse_objective(method), known(taught, easy, config, method), student
    )
    assert np.isfinite(rows[0]["train_loss"])
    assert Run(tmp_path / "run").checkpoints


def test_nobody_waits_for_the_gpu_where_the_answers_are_known(easy: Dataset, tmp_path: Path, taught: Teacher) -> None:
    torch.use_deterministic_algorithms(False)
    config = settings(epochs=3, augment_epochs=1, views="strong", precision="auto", figure_every=0)
    watch = NobodyWaits(steps=4, epoch=1)
    try:
        fitted(
            easy,
            tmp_path / "run",
            config,
            parse_objective("cam-kd"),
            known(taught, easy, config, "cam-kd"),
            watch=watch,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.looked == 2


@pytest.mark.parametrize("step", [1, 4, 6])
def test_an_interrupted_run_goes_on_to_the_same_bits(easy: Dataset, tmp_path: Path, taught: Teacher, step: int) -> None:
    """From the store that the first run filled."""
    config, goal = settings(views="strong"), parse_objective("ce=0.1,kd=0.9,cam=1:pool=1")
    whole, rows = fitted(easy, tmp_path / "whole", config, goal, known(taught, easy, config, "kd"))
    with pytest.raises(Interrupted):
        fitted(easy, tmp_path / "cut", config, goal, known(taught, easy, config, "kd"), watch=Stop(step))
    again, rows_again = fitted(easy, tmp_path / "cut", config, goal, known(taught, easy, config, "kd"), resume=True)
    assert same(whole, again)
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in rows_again]


def test_a_network_that_draws_random_numbers_goes_on_to_the_same_bits(easy: Dataset, tmp_path: Path) -> None:
    def dropping(folder: Path, seed: int, **how: Any) -> Weights:
        model = build("resnet8", 3, 16, seed=0)
        model.fc = nn.Sequential(nn.Dropout(), model.fc)  # type: ignore[arg-type]
        torch.manual_seed(seed)
        return fitted(easy, folder, settings(epochs=1), parse_objective("plain"), student=model, **how)[0]

    whole = dropping(tmp_path / "whole", 1)
    with pytest.raises(Interrupted):
        dropping(tmp_path / "cut", 1, watch=Stop(2))
    assert same(dropping(tmp_path / "cut", 2, resume=True), whole)
    assert not same(dropping(tmp_path / "other", 2), whole)


@pytest.mark.parametrize("skip", [False, True])
def test_a_loss_that_is_not_finite_is_never_kept(easy: Dataset, tmp_path: Path, skip: bool) -> None:
    class Spoilt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = build("resnet8", 3, 16, seed=0), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            answer: Tensor = self.inner(x)
            return answer * float("nan") if self.training and self.calls == 2 else answer

    config = settings(epochs=1, on_nan="skip" if skip else "stop")
    if skip:
        weights, rows = fitted(easy, tmp_path / "run", config, parse_objective("plain"), student=Spoilt())
        assert rows[0]["skipped_samples"] == 24
        assert all(tensor.isfinite().all() for tensor in weights.values())
        return
    with pytest.raises(FloatingPointError, match="epoch 1"):
        fitted(easy, tmp_path / "run", config, parse_objective("plain"), student=Spoilt())
    assert not Run(tmp_path / "run").checkpoints


def test_a_whole_run_is_written(easy: Dataset, tmp_path: Path, taught: Teacher) -> None:
    """Training, evaluation, maps and gallery, with teacher and student on the GPU."""
    torch.use_deterministic_algorithms(False)
    config = settings(epochs=1, precision="auto")
    knowledge = known(taught, easy, config, "cam-kd")
    told = (DataConfig("easy"), replace(config, figure_every=1))
    figures = train_run(tmp_path / "run", easy, "cam-net", "student", told, DistillConfig(), taught, knowledge)
    assert {"accuracy", "cam_cosine", "road"} <= figures.keys()
    assert Run(tmp_path / "run").finished
