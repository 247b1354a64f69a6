"""Before the first epoch: the default teacher, a check that a network fits the images, and an estimate of the time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams import predict
from camkd.config import AUTO, RunConfig, TrainConfig, num_augmented_epochs
from camkd.data.augment import pick_augment
from camkd.data.dataset import Dataset
from camkd.data.views import Views
from camkd.distill.cache.build import make_teacher_fn
from camkd.distill.objective import parse_objective
from camkd.evaluate.faithfulness import FORWARD_PASSES_PER_IMAGE, IMPUTATIONS_PER_IMAGE, default_sample_size
from camkd.evaluate.road import FRACTIONS, impute
from camkd.models import build, model_factory
from camkd.models.eval_mode import eval_mode
from camkd.models.profile import profile, profile_model
from camkd.runs.folder import Run
from camkd.utils.devices import keep_freed_memory, pick_device, pick_precision
from camkd.utils.units import format_duration

DEFAULT_TEACHERS = ("wrn-16-4", "resnet20", "resnet8")
"""Default teachers, the most accurate and most expensive one first."""

MAX_CPU_MACS = 400_000_000
"""Largest number of multiply-accumulates per image of the default teacher on a CPU, except for the smallest network."""

SECONDS_PER_STEP = 0.3
"""Approximate time of a measured step."""

WARMUP_IMAGES = 8
"""Number of images of the first two steps. The time of the second determines the size of the measured steps."""


class Rates(NamedTuple):
    """Speed of a network in images per second.

    Attributes:
        training: Forward pass, backward pass and weight update, including the augmented views.
        validation: Forward pass in the precision of the training.
        evaluation: Forward pass in fp32.
        imputation: Imputation of removed pixels, see `camkd.evaluate.road`.
    """

    training: float
    validation: float
    evaluation: float
    imputation: float


def default_teacher(num_classes: int, size: int, device: str) -> str:
    """Return the default teacher network for a dataset and a device.

    Args:
        num_classes: Number of classes.
        size: Side of the images in pixels.
        device: Device: auto, cpu, cuda, cuda:1 or mps.

    Returns:
        On a GPU the first network of `DEFAULT_TEACHERS`. On a CPU the first one with at most `MAX_CPU_MACS`
        multiply-accumulates per image, or else the last one.

    Example:
        >>> default_teacher(10, 32, "cpu"), default_teacher(10, 64, "cpu")
        ('wrn-16-4', 'resnet20')
    """
    if torch.device(pick_device(device)).type != "cpu":
        return DEFAULT_TEACHERS[0]
    for name in DEFAULT_TEACHERS[:-1]:
        with torch.device("meta"):  # shapes only: no memory, no computation
            if profile(model_factory(name)(num_classes, size), size).macs <= MAX_CPU_MACS:
                return name
    return DEFAULT_TEACHERS[-1]


def resolve_network(name: str, data: Dataset, device: str, folder: Path | None) -> str:
    """Replace the name ``auto`` of a teacher network by that of the run in ``folder``, else by `default_teacher`.

    Args:
        name: Name of the network, or ``auto``.
        data: The dataset.
        device: Device: auto, cpu, cuda, cuda:1 or mps.
        folder: Run folder of the teacher, or None. A resumed run keeps its network.

    Returns:
        Name of the network.
    """
    if name != AUTO:
        return name
    stored: str | None = None if folder is None else Run(folder).config().get("model")
    return stored or default_teacher(len(data.classes), data.size, device)


def check_network(name: str, data: Dataset) -> None:
    """Check that a network fits the images and has a class activation map, before anything is trained or written.

    Args:
        name: Name of the network.
        data: The dataset.

    Raises:
        InputError: If the images are too small for the network, or if the network has no layer with a map.
    """
    size = data.size
    model = build(name, len(data.classes), size, pretrained=False)
    profile_model(name, model, size)
    with eval_mode(model), torch.no_grad():
        predict(model, torch.full((2, 3, size, size), 0.5))


def measure_rates(name: str, data: Dataset, config: TrainConfig, *, trains: bool = True) -> Rates:
    """Measure the speed of an untrained network on this machine, in about two seconds.

    Args:
        name: Name of the network.
        data: The dataset.
        config: Training settings, with device, precision and augmentation.
        trains: Whether to measure training. Otherwise its speed is infinite.

    Returns:
        The speed. The random state is unchanged.
    """
    device = torch.device(pick_device(config.device))
    size = data.size
    keep_freed_memory()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = build(name, len(data.classes), size, pretrained=False)
        model.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        augment = pick_augment(config.augment, data)
        views = Views(data.train, len(data.classes), augment, config.augment_seed, device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        bf16 = pick_precision(config.precision, device) == "bf16"

        def train(rows: Tensor) -> None:
            batch = views[0, rows]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(batch.x)
            F.cross_entropy(logits.float(), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        training = _images_per_second(train, len(views), config.batch_size, device) if trains else math.inf
        validation = inference_rate(model, data.size, config)
        evaluation = inference_rate(model, data.size, replace(config, precision="fp32"))
        return Rates(training, validation, evaluation, _imputation_rate(data.size, device))


def inference_rate(model: nn.Module, size: int, config: TrainConfig) -> float:
    """Measure the speed of a network with its maps, as it runs as a teacher for the cache.

    Args:
        model: The network.
        size: Side of the random images in pixels.
        config: Training settings, with device and precision.

    Returns:
        Images per second.
    """
    device = torch.device(pick_device(config.device))
    teacher_fn = make_teacher_fn(model, size, config)
    images = torch.rand(config.batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.to(device, memory_format=torch.channels_last)
    return _images_per_second(lambda rows: teacher_fn(images[: len(rows)]), len(images), config.batch_size, device)


def _imputation_rate(size: int, device: torch.device) -> float:
    """Measure how many images per second have the removed pixels imputed, for the mean of `FRACTIONS`."""
    count = 4
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    columns = torch.arange(size, device=device) < size * sum(FRACTIONS) / len(FRACTIONS)
    removed = columns.expand(count, size, size)
    return _images_per_second(lambda rows: impute(images[: len(rows)], removed[: len(rows)]), count, count, device)


def _images_per_second(
    step: Callable[[Tensor], object], num_images: int, batch_size: int, device: torch.device
) -> float:
    """Time a step: twice on a few images, then on as many images as `SECONDS_PER_STEP` allows."""

    def seconds(count: int) -> float:
        start = time.perf_counter()
        step(torch.arange(count))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    max_count = min(batch_size, num_images)
    count = min(WARMUP_IMAGES, max_count)
    seconds(count)  # the first step allocates memory
    count = min(max(count, int(count * SECONDS_PER_STEP / seconds(count))), max_count)
    seconds(count)
    return count / min(seconds(count), seconds(count))


def training_seconds(data: Dataset, rates: Rates, epochs: int) -> float:
    """Estimate the time of a run: its epochs with their validation, and the evaluation on the test images.

    Args:
        data: The dataset.
        rates: Speed of the network.
        epochs: Number of epochs.

    Returns:
        The time in seconds.
    """
    sample_size = default_sample_size(data.test)
    num_evaluated = len(data.test) + FORWARD_PASSES_PER_IMAGE * sample_size
    num_imputed = IMPUTATIONS_PER_IMAGE * sample_size
    return (
        epochs * (len(data.train) / rates.training + len(data.val) / rates.validation)
        + num_evaluated / rates.evaluation
        + num_imputed / rates.imputation
    )


def teacher_output_seconds(data: Dataset, rate: float, augmented_epochs: int) -> float:
    """Estimate the time in which a teacher computes its outputs for the training, validation and test images.

    Args:
        data: The dataset.
        rate: Images per second of the teacher.
        augmented_epochs: Number of augmented epochs to compute.

    Returns:
        The time in seconds.
    """
    return (augmented_epochs * len(data.train) + len(data.val) + len(data.test)) / rate


def describe_times(seconds: Mapping[str, float]) -> str:
    """Describe estimated times in one line.

    Args:
        seconds: Estimated seconds by name of the run.

    Returns:
        The line.

    Example:
        >>> describe_times({"control": 75.0, "student": 75.0}).replace(chr(160), " ")
        'estimated time on this machine: control 1 min 15 s, student 1 min 15 s, together 2 min 30 s'
    """
    parts = [f"{name} {format_duration(value)}" for name, value in seconds.items()]
    if len(parts) > 1:
        parts.append(f"together {format_duration(sum(seconds.values()))}")
    return f"estimated time on this machine: {', '.join(parts)}"


def estimate_run(config: RunConfig, data: Dataset) -> float:
    """Estimate the time of a run without its teacher. Raises what `check_network` raises.

    Args:
        config: Configuration of the run.
        data: The dataset.

    Returns:
        The time in seconds.
    """
    check_network(config.model, data)
    layers = config.teacher.train if config.role == "teacher" else "all"
    trains_all = layers != "head" and config.train.epochs > 0
    rates = measure_rates(config.model, data, config.train, trains=trains_all)
    seconds = training_seconds(data, rates, config.train.epochs if trains_all else 0)
    if layers == "all":
        return seconds
    return seconds + (config.teacher.head_views * len(data.train) + len(data.val)) / rates.validation


def estimate_distillation(teacher: nn.Module, teacher_size: int, config: RunConfig, data: Dataset) -> dict[str, float]:
    """Estimate the time in seconds of a student, and of the teacher's outputs if the loss needs them.

    Outputs that the cache contains already are not subtracted.

    Args:
        teacher: The teacher, on the device of ``config``.
        teacher_size: Side of the teacher's images in pixels.
        config: Configuration of the student.
        data: The dataset.

    Returns:
        Seconds by name of the part.
    """
    seconds = {"student": estimate_run(config, data)}
    if parse_objective(config.method).needs_teacher:
        rate = inference_rate(teacher, teacher_size, config.train)
        seconds["teacher outputs"] = teacher_output_seconds(data, rate, num_augmented_epochs(config.train))
    return seconds
