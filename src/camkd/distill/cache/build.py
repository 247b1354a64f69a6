"""Build the teacher cache of a run: a fast forward function, a record format and a key."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camkd.cams import bias, form, predict
from camkd.config import DistillConfig, TrainConfig
from camkd.data.augment import VERSION as VIEWS
from camkd.data.augment import get_policy
from camkd.data.dataset import Dataset
from camkd.distill.cache import Manifest, RecordFormat, Store, TeacherCache, key_of, store_folder
from camkd.distill.cache.records import ALL_CLASSES
from camkd.distill.teacher import Teacher
from camkd.models.fold_batchnorm import fold_batchnorm
from camkd.runs.load_model import read_model_info
from camkd.types import Prediction
from camkd.utils.devices import pick_device, pick_precision

PART = 32
"""Pictures a teacher is asked about at once on a processor: their activations stay in its caches."""


ANSWERS = 1
"""Goes up when the same weights would answer otherwise: another ``forward``, other maps, another way of asking."""


LARGEST_MAP = 8
"""Cells a side of the maps that are kept, unless asked for otherwise."""


def build_teacher_cache(
    teacher: Teacher, data: Dataset, config: TrainConfig, lesson: DistillConfig, *, features: bool = False
) -> TeacherCache:
    """The teacher behind its store; without one where ``features`` are asked for, which are not kept."""
    size = int(data.train.images.shape[1])
    answer = make_teacher_fn(teacher.model, size, config, features=features)
    if features:
        return TeacherCache(answer)
    layout = record_format_for(teacher.model, size, answer, lesson.cache_map_size)
    precision = pick_precision(config.precision, torch.device(pick_device(config.device)))
    manifest = Manifest(
        teacher=str(teacher.folder.resolve()),
        architecture=read_model_info(teacher.folder).architecture,
        data=data.name,
        views=config.augment,
        augment_seed=config.augment_seed,
        precision=precision,
        count=len(data.train),
        layout=layout,
    )
    policy = (VIEWS, repr(get_policy(config.augment)), config.augment_seed)
    how = (ANSWERS, pick_device(config.device).partition(":")[0], precision)
    asked = {"data": data.fingerprint, "views": policy, "layout": repr(layout), "how": how}
    return TeacherCache(answer, Store(store_folder(key_of(teacher.model, asked)), manifest))


def make_teacher_fn(
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
    quick = fold_batchnorm(model, probe)
    if form(quick, probe) != form(model, probe):
        return model
    with torch.no_grad():
        logits, ours, *_ = predict(model, probe, classes=1)
        theirs = predict(quick, probe, classes=logits.topk(1).indices).cams
    assert ours is not None and theirs is not None
    same = ours.shape == theirs.shape and (ours - theirs).abs().mean() <= 0.01 * ours.abs().mean()
    return quick if same else model


def record_format_for(
    model: nn.Module, size: int, answer: Callable[[Tensor], Prediction], side: int | None
) -> RecordFormat:
    """How to keep such answers: maps of ``side`` cells (None: their own up to 8), never more than they have.

    Pooling by a whole factor keeps a map's mean, so where the head is linear the logits follow from the maps.
    """
    probe = _probe(model, size)
    cams, offset = answer(probe).cams, bias(model, probe)
    assert cams is not None
    _, classes, *own = cams.shape
    height, width = (min(cells, LARGEST_MAP if side is None else side) for cells in own)
    follows = offset is not None and own[0] % height == own[1] % width == 0 and classes <= ALL_CLASSES
    return RecordFormat(classes, height, width, tuple(offset.tolist()) if follows and offset is not None else None)


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
