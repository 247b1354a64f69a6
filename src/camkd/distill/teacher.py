"""Trained networks to learn from: finding one, checking that it fits the pictures, asking it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from camkd.data.dataset import Dataset, Split
from camkd.evaluate import SplitPredictions, predict_split
from camkd.models import is_model_name
from camkd.models.io import INFO_FILE
from camkd.runs.folder import default_run_folder
from camkd.runs.load_model import find_model_folder, load, read_model_info
from camkd.types import InputError
from camkd.utils.devices import pick_device


class TeacherTargets(NamedTuple):
    """What a teacher says of pictures: the ``labels (N,)`` it predicts and the maps ``(N, h, w)`` of these."""

    labels: Tensor
    maps: Tensor


@dataclass(frozen=True)
class Teacher:
    """A trained network to learn from, frozen."""

    model: nn.Module
    folder: Path
    val: Split
    test: Split

    @cached_property
    def val_targets(self) -> TeacherTargets:
        """What it says of the validation pictures."""
        said = predict_split(self.model, self.val)
        return TeacherTargets(said.class_ids, said.maps)

    @cached_property
    def test_predictions(self) -> SplitPredictions:
        """Its answers to the test pictures, asked when a student is finished and not before."""
        return predict_split(self.model, self.test)

    def check(self) -> float:
        """Its validation accuracy. Raises ``InputError`` where it is no better than guessing the commonest class.

        So is a teacher whose weights, normalisation or order of classes are not those of these pictures. No better: by
        less than two standard errors of that share. One that is always right passes.
        """
        labels = torch.from_numpy(np.array(self.val.labels))
        right = float((self.val_targets.labels == labels).double().mean())
        chance = float(labels.bincount().max()) / len(labels)
        bar = min(1.0, chance + 2 * math.sqrt(chance * (1 - chance) / len(labels)))
        if right < bar:
            few = ", or more validation pictures, which lower that" if right > chance else ""
            raise InputError(
                f"the teacher in {self.folder} is right on {right:.1%} of the {len(labels):,} validation pictures, and "
                f"guessing is on {chance:.1%}, so that it has to be on at least {bar:.1%}: look whether it was trained "
                f"on such pictures and for long enough, or give another --teacher{few}."
            )
        return right


def find_teacher(name: str, data: str) -> Path:
    """The folder of a trained teacher: a run, a shipped name, or a model name trained on ``data`` at its default place.

    Raises ``InputError`` with the command that trains it where there is none.
    """
    default = default_run_folder(data, "teacher", name)
    for place in (Path(name), Path(name) / "teacher", default):
        if (place / INFO_FILE).exists():
            return place
    if is_model_name(name):
        raise InputError(
            f"there is no trained {name} for {data!r} in {default}: train it with "
            f"'camkd teacher --data {data} --model {name}', or give --teacher the folder of one."
        )
    return find_model_folder(name)


def load_teacher(folder: Path, data: Dataset, device: str) -> Teacher:
    """Load a teacher, check that it knows these classes, and freeze it."""
    said = read_model_info(folder)
    size = data.train.images.shape[1]
    if said.classes != data.classes:
        raise InputError(
            f"the teacher in {folder} knows the classes {format_names(said.classes)}, but the pictures have "
            f"{format_names(data.classes)}: train a teacher on these pictures."
        )
    if said.size != size:
        raise InputError(
            f"the teacher in {folder} was trained on {said.size} pixel pictures, not {size}: add --size {said.size}."
        )
    model = load(folder).requires_grad_(False).to(pick_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(model, folder, data.val, data.test)


def format_names(names: tuple[str, ...]) -> str:
    """The first names of many, and how many there are."""
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ({len(names)})"
