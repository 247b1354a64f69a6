"""Trained networks to learn from: finding one, checking that it fits the pictures, asking it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from camkd.cams import bias, form, predict
from camkd.config import Lesson, TrainConfig
from camkd.data.store import Dataset, Split
from camkd.data.views import VERSION as VIEWS
from camkd.data.views import policy_named
from camkd.devices import pick_device, pick_precision
from camkd.evaluate import Examination, examine
from camkd.knowledge import Knowledge, Layout, Manifest, Store, key_of, store_folder
from camkd.knowledge.records import ALL_CLASSES
from camkd.models import is_model
from camkd.models.folding import folded
from camkd.models.saved import DESCRIPTION
from camkd.referee import Shown
from camkd.runs import default_folder, describe, load, locate
from camkd.types import InputError, Prediction

PART = 32
"""Pictures a teacher is asked about at once on a processor: their activations stay in its caches."""

ANSWERS = 1
"""Goes up when the same weights would answer otherwise: another ``forward``, other maps, another way of asking."""

LARGEST_MAP = 8
"""Cells a side of the maps that are kept, unless asked for otherwise."""


@dataclass(frozen=True)
class Teacher:
    """A trained network to learn from, frozen."""

    model: nn.Module
    folder: Path
    val: Split
    test: Split

    @cached_property
    def shown(self) -> Shown:
        """What it says of the validation pictures."""
        said = examine(self.model, self.val)
        return Shown(said.shown, said.maps)

    @cached_property
    def examination(self) -> Examination:
        """Its answers to the test pictures, asked when a student is finished and not before."""
        return examine(self.model, self.test)

    def check(self) -> float:
        """Its validation accuracy. Raises ``InputError`` where it is no better than guessing the commonest class.

        So is a teacher whose weights, normalisation or order of classes are not those of these pictures. No better: by
        less than two standard errors of that share. One that is always right passes.
        """
        labels = torch.from_numpy(np.array(self.val.labels))
        right = float((self.shown.labels == labels).double().mean())
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
    default = default_folder(data, "teacher", name)
    for place in (Path(name), Path(name) / "teacher", default):
        if (place / DESCRIPTION).exists():
            return place
    if is_model(name):
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
    return Teacher(model, folder, data.val, data.test)


def knowledge_of(
    teacher: Teacher, data: Dataset, config: TrainConfig, lesson: Lesson, *, features: bool = False
) -> Knowledge:
    """The teacher behind its store; without one where ``features`` are asked for, which are not kept."""
    size = int(data.train.images.shape[1])
    answer = answering(teacher.model, size, config, features=features)
    if features:
        return Knowledge(answer)
    layout = layout_of(teacher.model, size, answer, lesson.knowledge_map)
    precision = pick_precision(config.precision, torch.device(pick_device(config.device)))
    manifest = Manifest(
        teacher=str(teacher.folder.resolve()),
        architecture=describe(teacher.folder).architecture,
        data=data.name,
        views=config.views,
        view_seed=config.view_seed,
        precision=precision,
        count=len(data.train),
        layout=layout,
    )
    policy = (VIEWS, repr(policy_named(config.views)), config.view_seed)
    how = (ANSWERS, pick_device(config.device).partition(":")[0], precision)
    asked = {"data": data.fingerprint, "views": policy, "layout": repr(layout), "how": how}
    return Knowledge(answer, Store(store_folder(key_of(teacher.model, asked)), manifest))


def answering(
    model: nn.Module, size: int, config: TrainConfig, *, features: bool = False
) -> Callable[[Tensor], Prediction]:
    """How a frozen network is asked quickly: batch normalisation folded, in parts that fit a processor's caches.

    Asked for ``features`` it stays as it is: folding would take its stages apart.
    """
    device = torch.device(pick_device(config.device))
    bf16 = pick_precision(config.precision, device) == "bf16"
    quick = copy.deepcopy(model).eval().requires_grad_(False)
    if not features:
        quick = _folded(quick, _probe(model, size))

    def answer(x: Tensor) -> Prediction:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            parts = [predict(quick, part, features=features) for part in x.split(PART if x.is_cpu else len(x))]
        return _joined(parts).float()

    return answer


def _folded(model: nn.Module, probe: Tensor) -> nn.Module:
    """Folded, unless tracing loses the layer that the maps are made of: slower or other maps would follow."""
    quick = folded(model, probe)
    if form(quick, probe) != form(model, probe):
        return model
    with torch.no_grad():
        logits, ours, *_ = predict(model, probe, classes=1)
        theirs = predict(quick, probe, classes=logits.topk(1).indices).cams
    assert ours is not None and theirs is not None
    same = ours.shape == theirs.shape and (ours - theirs).abs().mean() <= 0.01 * ours.abs().mean()
    return quick if same else model


def layout_of(model: nn.Module, size: int, answer: Callable[[Tensor], Prediction], side: int | None) -> Layout:
    """How to keep such answers: maps of ``side`` cells (None: their own up to 8), never more than they have.

    Pooling by a whole factor keeps a map's mean, so where the head is linear the logits follow from the maps.
    """
    probe = _probe(model, size)
    cams, offset = answer(probe).cams, bias(model, probe)
    assert cams is not None
    _, classes, *own = cams.shape
    height, width = (min(cells, LARGEST_MAP if side is None else side) for cells in own)
    follows = offset is not None and own[0] % height == own[1] % width == 0 and classes <= ALL_CLASSES
    return Layout(classes, height, width, tuple(offset.tolist()) if follows and offset is not None else None)


def _probe(model: nn.Module, size: int) -> Tensor:
    device = next(model.parameters()).device
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def _joined(parts: Sequence[Prediction]) -> Prediction:
    """The answers to a batch out of those to its parts."""

    def joined(part: Sequence[Any]) -> Any:
        if isinstance(part[0], tuple):
            return tuple(joined(stage) for stage in zip(*part, strict=True))
        return None if part[0] is None else torch.cat(list(part))

    return Prediction(*(joined(part) for part in zip(*parts, strict=True)))


def listed(names: tuple[str, ...]) -> str:
    """The first names of many, and how many there are."""
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ({len(names)})"
