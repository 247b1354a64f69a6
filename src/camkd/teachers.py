"""Trained networks to learn from: finding one, checking that it fits the pictures, asking it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.config import Lesson, TrainConfig
from camkd.data.store import Dataset, Split, cache_folder
from camkd.data.views import policy_named
from camkd.devices import pick_device, pick_precision
from camkd.evaluate import Examination, examine
from camkd.knowledge import Knowledge, epochs_within, key_of, record
from camkd.models import MODELS
from camkd.models.modes import evaluating
from camkd.objectives import Objective
from camkd.runs import default_folder, describe, load, locate
from camkd.train import Ask
from camkd.types import InputError, Prediction


@dataclass(frozen=True)
class Teacher:
    """A trained network to learn from, frozen."""

    model: nn.Module
    folder: Path
    test: Split

    @cached_property
    def examination(self) -> Examination:
        """Its answers to the test pictures, asked when a student is finished and not before."""
        return examine(self.model, self.test)


def find_teacher(name: str, data: str) -> Path:
    """The folder of a trained teacher: a run, a shipped name, or a model name trained on ``data`` at its default place.

    Raises ``InputError`` with the command that trains it where there is none.
    """
    default = default_folder(data, "teacher", name)
    for place in (Path(name), Path(name) / "teacher", default):
        if (place / "model.json").exists():
            return place
    if name in MODELS:
        raise InputError(
            f"there is no trained {name} for {data!r} in {default}: train it with "
            f"'camkd teacher --data {data} --model {name}', or give --teacher the folder of one."
        )
    return locate(name)


def adopt_teacher(folder: Path, data: Dataset, device: str) -> Teacher:
    """Load a teacher, check that it knows these classes, and freeze it."""
    said = describe(folder)
    size = data.train.images.shape[1]
    if said.classes != data.classes:
        raise InputError(
            f"the teacher in {folder} knows the classes {listed(said.classes)}, but the pictures have "
            f"{listed(data.classes)}: train a teacher on these pictures."
        )
    if said.size != size:
        raise InputError(
            f"the teacher in {folder} was trained on {said.size} pixel pictures, not {size}: add --size {said.size}."
        )
    model = load(folder).requires_grad_(False).to(pick_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(model, folder, data.test)


def asking(teacher: Teacher, data: Dataset, config: TrainConfig, lesson: Lesson, goal: Objective) -> Ask:
    """How the loop asks the teacher: through the store, or live where a term reads features, which it does not keep."""
    device = torch.device(pick_device(config.device))
    precision = pick_precision(config.precision, device)

    def live(x: Tensor) -> Prediction:
        with (
            evaluating(teacher.model),
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            return predict(teacher.model, x, features="features" in goal.needs).float()

    if "features" in goal.needs:
        return lambda epoch, samples, x: live(x)
    key = key_of(
        teacher.model,
        {
            "data": data.fingerprint,
            "views": repr(policy_named(config.views)),
            "view_seed": config.view_seed,
            "precision": precision,
        },
    )
    cams = live(torch.zeros(1, 3, *data.train.images.shape[1:3], device=device)).cams
    assert cams is not None
    kept = epochs_within(lesson.knowledge_budget, len(data.train), record(*cams.shape[1:]).itemsize)
    return Knowledge(live, cache_folder(None) / "knowledge" / key, len(data.train), kept)


def listed(names: tuple[str, ...]) -> str:
    """The first names of many, and how many there are."""
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ({len(names)})"
