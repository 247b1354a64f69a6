"""Build the teacher cache of a run: inference function, record format and key."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from camkd.cams import bias, form, predict
from camkd.config import RunConfig, TrainConfig
from camkd.data.augment import get_policy, pick_augment
from camkd.data.views import Views
from camkd.distill.cache.records import MAX_CLASSES_WITH_ALL_MAPS, RecordFormat
from camkd.distill.cache.records import VERSION as RECORD_VERSION
from camkd.distill.cache.store import Manifest, Store, store_folder
from camkd.distill.cache.teacher_cache import TeacherCache
from camkd.distill.keys import cache_key, key_inputs
from camkd.distill.teacher import Teacher
from camkd.models.example_images import example_images
from camkd.models.fold_batchnorm import fold_batchnorm
from camkd.types import Prediction
from camkd.utils.devices import pick_device, pick_precision

CPU_BATCH_SIZE = 32
"""Images per forward pass of a teacher on a CPU, small enough for the activations to stay in the CPU cache."""

DEFAULT_MAX_MAP_SIZE = 8
"""Default of the maximum side of cached maps, in cells."""


def build_teacher_cache(teacher: Teacher, config: RunConfig, *, features: bool = False) -> TeacherCache:
    """Build the cache of a teacher's outputs on the augmented training images of a run.

    Args:
        teacher: The teacher. If its image size is not that of the student, it gets the same augmented views rendered at
            its own size. Its images are opened when the first output is computed.
        config: Configuration of the run. The key contains augmentation, augmentation seed, precision, device type and
            map size.
        features: Whether the outputs contain features too. Features are not cached, so the cache has no store.

    Returns:
        The cache. Its store is opened, but its folder is created with the first output.
    """
    data = teacher.student_data
    config = replace(config, train=replace(config.train, augment=pick_augment(config.train.augment, data)))
    teacher_fn = make_teacher_fn(teacher.model, teacher.size, config.train, features=features)
    render = None if teacher.size == data.size else _TeacherViews(teacher, config.train)
    if features:
        return TeacherCache(teacher_fn, render=render)
    record_format = record_format_for(teacher.model, teacher.size, teacher_fn, config.distill.cache_map_size)
    device = torch.device(pick_device(config.train.device))
    manifest = Manifest(
        teacher=str(teacher.folder.resolve()),
        architecture=teacher.architecture,
        data=data.name,
        augment=config.train.augment,
        augment_seed=config.train.augment_seed,
        precision=pick_precision(config.train.precision, device),
        num_samples=len(data.train),
        record_format=record_format,
    )
    return TeacherCache(teacher_fn, Store(store_folder(_key(teacher, manifest, device)), manifest), render=render)


class _TeacherViews:
    """Augmented views at the teacher's image size, opened on first use."""

    def __init__(self, teacher: Teacher, config: TrainConfig) -> None:
        self.teacher = teacher
        self.config = config

    @cached_property
    def views(self) -> Views:
        data = self.teacher.data
        device = torch.device(pick_device(self.config.device))
        frame = self.teacher.student_data.size
        return Views(data.train, len(data.classes), self.config.augment, self.config.augment_seed, device, frame=frame)

    def __call__(self, epoch: int | Tensor, indices: Tensor) -> Tensor:
        return self.views[epoch, indices].x


def _key(teacher: Teacher, manifest: Manifest, device: torch.device) -> str:
    """Return the key of a store. It is the same for students of all sizes if the augmentation has no frame."""
    record_format = manifest.record_format
    policy = get_policy(manifest.augment)
    data = teacher.student_data
    return cache_key(
        teacher.model,
        {
            **key_inputs(teacher.model, manifest.architecture, data, teacher.size, teacher.interpolation, device),
            "augmentation": policy.key(),
            "augmentation_seed": manifest.augment_seed,
            "frame": data.size if policy.uses_frame else None,
            "records": {
                "version": RECORD_VERSION,
                "classes": record_format.classes,
                "map": [record_format.height, record_format.width],
                "bias": None if record_format.bias is None else list(record_format.bias),
            },
            "precision": manifest.precision,
        },
    )


def make_teacher_fn(
    model: nn.Module, image_size: int, config: TrainConfig, *, features: bool = False
) -> Callable[[Tensor], Prediction]:
    """Create the inference function of a frozen network, with batch normalization folded into the convolutions.

    On a CPU, a batch is processed in parts of `CPU_BATCH_SIZE` images.

    Args:
        model: The network, on the device of ``config``. The function uses a copy.
        image_size: Side of the images in pixels.
        config: Settings with device and precision.
        features: Whether the predictions contain features too. The network is then not folded, because folding changes
            its stages.

    Returns:
        A function from images ``(N, 3, H, W)`` to a `Prediction` in fp32.
    """
    device = torch.device(pick_device(config.device))
    bf16 = pick_precision(config.precision, device) == "bf16"
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    if not features:
        frozen = _fold_if_equivalent(frozen, example_images(image_size, next(model.parameters()).device))

    def teacher_fn(x: Tensor) -> Prediction:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            chunks = x.split(CPU_BATCH_SIZE if x.is_cpu else len(x))
            outputs = [predict(frozen, chunk, features=features) for chunk in chunks]
        return _concatenate(outputs).float()

    return teacher_fn


def _fold_if_equivalent(model: nn.Module, images: Tensor) -> nn.Module:
    """Fold batch normalization, or return ``model`` if folding changes the maps.

    Tracing can lose the layer that the maps are computed from. The folded network is therefore used only if the form
    and the shape of its maps are the same, and if the maps of the top class differ by at most 1 % in the mean.
    """
    folded = fold_batchnorm(model, images)
    if form(folded, images) != form(model, images):
        return model
    with torch.no_grad():
        logits, maps, *_ = predict(model, images, top=1)
        folded_maps = predict(folded, images, classes=logits.topk(1).indices).cams
    assert maps is not None
    assert folded_maps is not None
    same_shape = maps.shape == folded_maps.shape
    return folded if same_shape and (maps - folded_maps).abs().mean() <= 0.01 * maps.abs().mean() else model


def record_format_for(
    model: nn.Module, image_size: int, teacher_fn: Callable[[Tensor], Prediction], map_size: int | None
) -> RecordFormat:
    """Choose the format of the records of a teacher's outputs.

    The logits of a linear head are computed from the maps and not stored, if the maps of all classes are stored and are
    pooled by an integer factor, which keeps the mean of a map.

    Args:
        model: The teacher.
        image_size: Side of the images in pixels.
        teacher_fn: Inference function of the teacher.
        map_size: Maximum side of the cached maps in cells; smaller maps are not enlarged. None: `DEFAULT_MAX_MAP_SIZE`.

    Returns:
        The record format.
    """
    images = example_images(image_size, next(model.parameters()).device)
    cams = teacher_fn(images).cams
    head_bias = bias(model, images)
    assert cams is not None
    _, classes, *grid = cams.shape
    height, width = (min(cells, DEFAULT_MAX_MAP_SIZE if map_size is None else map_size) for cells in grid)
    is_integer_factor = grid[0] % height == grid[1] % width == 0
    if head_bias is None or not is_integer_factor or classes > MAX_CLASSES_WITH_ALL_MAPS:
        return RecordFormat(classes, height, width)
    return RecordFormat(classes, height, width, tuple(head_bias.tolist()))


def _concatenate(outputs: Sequence[Prediction]) -> Prediction:
    """Concatenate the predictions of the parts of a batch."""

    def concatenate(parts: Sequence[Any]) -> Any:
        if isinstance(parts[0], tuple):
            return tuple(concatenate(stage) for stage in zip(*parts, strict=True))
        return None if parts[0] is None else torch.cat(list(parts))

    return Prediction(*(concatenate(parts) for parts in zip(*outputs, strict=True)))
