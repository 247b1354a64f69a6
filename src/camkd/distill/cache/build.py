"""Build the teacher cache of a run: fast teacher function, record format and key."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camkd.cams import bias, form, predict
from camkd.config import RunConfig, TrainConfig
from camkd.data.augment import get_policy
from camkd.data.dataset import Dataset
from camkd.distill.cache.keys import cache_key
from camkd.distill.cache.records import ALL_CLASSES, RecordFormat
from camkd.distill.cache.records import VERSION as RECORD_VERSION
from camkd.distill.cache.store import Manifest, Store, store_folder
from camkd.distill.cache.teacher_cache import TeacherCache
from camkd.distill.teacher import Teacher
from camkd.models.architecture import architecture_key, library_versions
from camkd.models.fold_batchnorm import fold_batchnorm
from camkd.runs.load_model import read_model_info
from camkd.types import Prediction
from camkd.utils.devices import pick_device, pick_precision

CHUNK = 32
"""Images per forward pass of a teacher on a CPU: their activations stay in its caches."""

OUTPUT_VERSION = 1
"""Increased when the same weights would give other outputs: another ``forward``, other maps, another batch split."""

LARGEST_MAP = 8
"""Default upper limit of the side of cached maps, in cells."""


def build_teacher_cache(teacher: Teacher, data: Dataset, config: RunConfig, *, features: bool = False) -> TeacherCache:
    """Build the cache of a teacher's outputs on the augmented training images of a run.

    Args:
        teacher: the teacher.
        data: the dataset.
        config: the run; augmentation, seed, precision, device and map size are part of the key.
        features: return features too. Features are not cached, so the cache has no store.
    """
    size = int(data.train.images.shape[1])
    teacher_fn = make_teacher_fn(teacher.model, size, config.train, features=features)
    if features:
        return TeacherCache(teacher_fn)
    record_format = record_format_for(teacher.model, size, teacher_fn, config.distill.cache_map_size)
    device = torch.device(pick_device(config.train.device))
    manifest = Manifest(
        teacher=str(teacher.folder.resolve()),
        architecture=read_model_info(teacher.folder).architecture,
        data=data.name,
        augment=config.train.augment,
        augment_seed=config.train.augment_seed,
        precision=pick_precision(config.train.precision, device),
        num_samples=len(data.train),
        record_format=record_format,
    )
    key = cache_key(teacher.model, key_inputs(teacher.model, manifest, data.fingerprint, device))
    return TeacherCache(teacher_fn, Store(store_folder(key), manifest))


def key_inputs(model: nn.Module, manifest: Manifest, data_fingerprint: str, device: torch.device) -> dict[str, Any]:
    """Collect everything that teacher outputs depend on besides the weights, for `cache_key`.

    Args:
        model: the teacher.
        manifest: the description of the store.
        data_fingerprint: fingerprint of the dataset.
        device: the device of the teacher. Its index is not part of the key.

    Returns:
        JSON values under explicit names. Renaming one of these names invalidates every cache.
    """
    record_format = manifest.record_format
    return {
        "architecture": manifest.architecture,
        "layers": architecture_key(model),
        "libraries": library_versions(manifest.architecture),
        "data": data_fingerprint,
        "augmentation": get_policy(manifest.augment).key(),
        "augmentation_seed": manifest.augment_seed,
        "records": {
            "version": RECORD_VERSION,
            "classes": record_format.classes,
            "map": [record_format.height, record_format.width],
            "bias": None if record_format.bias is None else list(record_format.bias),
        },
        "outputs": OUTPUT_VERSION,
        "device": device.type,
        "precision": manifest.precision,
    }


def make_teacher_fn(
    model: nn.Module, size: int, config: TrainConfig, *, features: bool = False
) -> Callable[[Tensor], Prediction]:
    """Make a fast inference function of a frozen network: folded batch normalization, cache-sized chunks.

    Args:
        model: the network.
        size: side of the images in pixels.
        config: device and precision.
        features: return features too. The network then stays unfolded, as folding changes its stages.

    Returns:
        A function from images ``(N, 3, H, W)`` to a `Prediction` in fp32.
    """
    device = torch.device(pick_device(config.device))
    bf16 = pick_precision(config.precision, device) == "bf16"
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    if not features:
        frozen = _fold_if_equivalent(frozen, _probe(model, size))

    def teacher_fn(x: Tensor) -> Prediction:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            chunks = x.split(CHUNK if x.is_cpu else len(x))
            outputs = [predict(frozen, chunk, features=features) for chunk in chunks]
        return _concatenate(outputs).float()

    return teacher_fn


def _fold_if_equivalent(model: nn.Module, probe: Tensor) -> nn.Module:
    """Fold batch normalization, unless tracing loses the layer that the maps are made of."""
    folded = fold_batchnorm(model, probe)
    if form(folded, probe) != form(model, probe):
        return model
    with torch.no_grad():
        logits, maps, *_ = predict(model, probe, classes=1)
        folded_maps = predict(folded, probe, classes=logits.topk(1).indices).cams
    assert maps is not None
    assert folded_maps is not None
    same_shape = maps.shape == folded_maps.shape
    return folded if same_shape and (maps - folded_maps).abs().mean() <= 0.01 * maps.abs().mean() else model


def record_format_for(
    model: nn.Module, size: int, teacher_fn: Callable[[Tensor], Prediction], map_size: int | None
) -> RecordFormat:
    """Choose the encoding of a teacher's outputs.

    Pooling by a whole factor keeps the mean of a map. With a linear head the logits then follow from the maps and are
    not stored.

    Args:
        model: the teacher.
        size: side of the images in pixels.
        teacher_fn: its inference function.
        map_size: side of the cached maps in cells (None: the teacher's own, at most 8); never more than the teacher's.
    """
    probe = _probe(model, size)
    cams = teacher_fn(probe).cams
    offset = bias(model, probe)
    assert cams is not None
    _, classes, *grid = cams.shape
    height, width = (min(cells, LARGEST_MAP if map_size is None else map_size) for cells in grid)
    is_whole_factor = grid[0] % height == grid[1] % width == 0
    logits_follow = offset is not None and is_whole_factor and classes <= ALL_CLASSES
    return RecordFormat(
        classes, height, width, tuple(offset.tolist()) if logits_follow and offset is not None else None
    )


def _probe(model: nn.Module, size: int) -> Tensor:
    """Return two random images on the model's device."""
    device = next(model.parameters()).device
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def _concatenate(outputs: Sequence[Prediction]) -> Prediction:
    """Concatenate the predictions of the chunks of a batch."""

    def concatenate(parts: Sequence[Any]) -> Any:
        if isinstance(parts[0], tuple):
            return tuple(concatenate(stage) for stage in zip(*parts, strict=True))
        return None if parts[0] is None else torch.cat(list(parts))

    return Prediction(*(concatenate(parts) for parts in zip(*outputs, strict=True)))
