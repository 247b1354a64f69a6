"""Short training runs on small images: settings, networks, loss terms, and callbacks that record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.config import TrainConfig
from camkd.data.dataset import Dataset
from camkd.distill.cache import TeacherCache
from camkd.distill.losses.logits import CrossEntropy
from camkd.distill.objective import Objective, WeightedTerm, parse_objective
from camkd.evaluate import SplitPredictions, predict_split
from camkd.models import build
from camkd.models.eval_mode import eval_mode
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback
from camkd.train.loop import fit
from camkd.types import Prediction

Weights = dict[str, Tensor]

PLAIN = parse_objective("plain")


class FitResult(NamedTuple):
    """The returned weights of a run and its history."""

    weights: Weights
    rows: list[dict[str, Any]]


def train_config(**changes: Any) -> TrainConfig:
    """Settings of two epochs of four steps on the fixture `easy`, on the CPU in fp32."""
    settings = {"epochs": 2, "batch_size": 24, "lr": 0.4, "precision": "fp32", "device": "cpu"}
    return TrainConfig(**{**settings, **changes})


def build_network(seed: int = 0, name: str = "resnet8") -> nn.Module:
    """Build a network for 3 classes and images of 16 pixels."""
    return build(name, 3, 16, seed)


def copy_weights(model: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal_weights(weights: Weights, others: Weights) -> bool:
    """Return whether names and values are equal, bit by bit."""
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a history without the entries that depend on the speed of the machine."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


def compute_targets(teacher: nn.Module, data: Dataset) -> SplitPredictions:
    """Compute a teacher's predictions on the validation images."""
    return predict_split(teacher, data.val)


class RecordingCache(TeacherCache):
    """A cache without a store, which records epoch, sample indices and images of every call of the teacher."""

    def __init__(self, teacher: nn.Module) -> None:
        self.calls: list[tuple[int, Tensor, Tensor]] = []

        def teacher_fn(x: Tensor) -> Prediction:
            with eval_mode(teacher), torch.no_grad():
                return predict(teacher, x, features=True)

        super().__init__(teacher_fn)

    def compute(self, epoch: int, indices: Tensor, x: Tensor) -> Prediction:
        self.calls.append((epoch, indices.clone(), x.clone()))
        return super().compute(epoch, indices, x)


@dataclass
class Recorder(Callback):
    """Record what a run reports.

    Args:
        model: The trained model, whose weights are copied after each batch.
    """

    model: nn.Module | None = None
    started: tuple[str, int, int] = ("", 0, 0)
    sizes: list[int] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    averages: list[Weights] = field(default_factory=list)

    def on_train_start(self, name: str, total_steps: int, completed_steps: int) -> None:
        self.started = (name, total_steps, completed_steps)

    def on_batch_end(self, num_images: int) -> None:
        self.sizes.append(num_images)
        if self.model is not None:
            self.weights.append(copy_weights(self.model))

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        self.rows.append(row)
        self.averages.append(copy_weights(model))


def fit_network(
    data: Dataset,
    folder: Path,
    config: TrainConfig | None = None,
    objective: Objective = PLAIN,
    *,
    model: nn.Module | None = None,
    teacher: nn.Module | None = None,
    cache: TeacherCache | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Train a network (default: a ResNet-8 with seed 0) and return its weights and its history."""
    run = Run(folder)
    average = fit(
        build_network() if model is None else model,
        data,
        objective,
        config or train_config(),
        run,
        teacher=None if teacher is None else compute_targets(teacher, data),
        cache=cache,
        resume=resume,
        callbacks=callbacks,
    )
    return FitResult(copy_weights(average), run.read_history())


def single_term(term: Any, weight: float = 1.0) -> Objective:
    """Return an objective of one term with the name ``loss``."""
    return Objective({"loss": WeightedTerm(term, weight)})


@dataclass(frozen=True)
class ConstantTerm:
    """Loss term with the same value for every image, and a gradient of zero."""

    value: float
    needs = frozenset({"logits"})
    needs_teacher = False

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        return student.logits[:, 0] * 0 + self.value


@dataclass(frozen=True)
class LogitTerm:
    """Loss term that is ``factor`` times the first logit, for a gradient of any size."""

    factor: float
    needs = frozenset({"logits"})
    needs_teacher = False

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        return self.factor * student.logits[:, 0]


@dataclass(frozen=True)
class NonFiniteTerm(CrossEntropy):
    """Cross-entropy that is not finite at some batches.

    Args:
        batches: Numbers of the batches, counted from 1 over the whole run.
        value: Factor of the loss at these batches, nan or inf. None: the loss is finite, but its gradient is not.
    """

    batches: tuple[int, ...] = ()
    value: float | None = math.nan
    sizes: list[int] = field(default_factory=list)

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        self.sizes.append(len(labels))
        loss = super().__call__(student, teacher, labels)
        if len(self.sizes) not in self.batches:
            return loss
        return loss + (student.logits[:, 0] * 0).sqrt() if self.value is None else loss * self.value
