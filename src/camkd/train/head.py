"""Training of only the last layer of a classifier, on features of the frozen layers before it.

The features of a few views of each training image are computed once and stored (`camkd.train.feature_cache`). The loss
of a linear layer is convex, so L-BFGS finds its minimum in a few seconds. The weight decay is chosen on the validation
images.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams.linear_head import head_inputs, linear_head
from camkd.config import RunConfig
from camkd.data.augment import get_policy, pick_augment
from camkd.data.batches import sequential_batches
from camkd.data.dataset import Dataset, Progress, weights_digest
from camkd.data.views import Views
from camkd.distill.keys import cache_key, key_inputs
from camkd.distill.losses.logits import log_prior
from camkd.evaluate.metrics import accuracy, balanced_accuracy
from camkd.models.example_images import example_images
from camkd.models.fold_batchnorm import fold_batchnorm
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback, CallbackList
from camkd.train.feature_cache import FORMAT, FeatureStore, feature_folder
from camkd.train.stop_signals import stop_signals
from camkd.types import InputError, Interrupted
from camkd.utils.devices import keep_freed_memory, pick_device, pick_precision
from camkd.utils.distributed import run_on_rank0
from camkd.utils.files import write_json
from camkd.utils.units import format_duration, format_quantity

FEATURES_VERSION = 1
"""Version of the features. Increment it when the same network would give other features."""

CPU_BATCH_SIZE = 32
"""Images per forward pass on a CPU, small enough for the activations to stay in the CPU cache."""

WEIGHT_DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Weight decays that are compared on the validation images, the strongest first.

The values are for standardized features. L-BFGS starts from the solution for the previous weight decay.
"""

ITERATIONS = 10
"""Number of iterations of L-BFGS between two checks of convergence."""

MAX_ITERATIONS = 300
"""Maximum number of iterations per weight decay."""

TOLERANCE = 1e-5
"""Relative decrease of the loss in `ITERATIONS` iterations below which L-BFGS stops."""


class LabeledFeatures(NamedTuple):
    """Features and their labels.

    Attributes:
        features: Features ``(N, D)``.
        labels: Class indices ``(N,)``, or label probabilities ``(N, K)``.
        weights: Weights of the samples in the cross-entropy ``(N,)``. None: all count equally.
    """

    features: Tensor
    labels: Tensor
    weights: Tensor | None = None

    def cross_entropy(self, logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Compute the weighted mean of the cross-entropy of logits ``(N, K)``."""
        if self.weights is None:
            return F.cross_entropy(logits, self.labels, label_smoothing=label_smoothing)
        losses = F.cross_entropy(logits, self.labels, reduction="none", label_smoothing=label_smoothing)
        return self.weights @ losses / self.weights.sum()


class Solution(NamedTuple):
    """Minimum of the loss of a linear layer.

    Attributes:
        weight: Weight ``(K, D)``.
        bias: Bias ``(K,)``.
        loss: Cross-entropy on the training features, without the weight decay.
        iterations: Number of iterations of L-BFGS.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    iterations: int


def fit_head(
    model: nn.Module, data: Dataset, config: RunConfig, run: Run, callbacks: Sequence[Callback] = ()
) -> nn.Module:
    """Train the last layer of a model on features of its frozen layers, and write ``metrics.jsonl`` and ``head.json``.

    The first view of an image is the image itself, further views are augmented. The weight decay with the lowest loss
    on the validation images is chosen. ``config.train.balance`` applies: ``sampler`` gives the classes equal weights,
    ``logits`` adjusts the logits in the loss. ``metrics.jsonl`` gets one line, for the chosen weight decay: epoch 1, or
    epoch 0 if all layers are trained afterwards. ``head.json`` lists all weight decays.

    Args:
        model: A classifier whose logits are a linear layer of one feature vector per image.
        data: The dataset.
        config: Configuration of the run. With ``--train head``, a given ``config.train.weight_decay`` replaces
            `WEIGHT_DECAYS`. With ``--train head,all`` it is used only when all layers are trained.
        run: The run folder.
        callbacks: Callbacks, called in order.

    Returns:
        The model with the trained head, in eval mode.

    Raises:
        Interrupted: If SIGINT or SIGTERM is received. The features so far are stored.
        InputError: If the model does not end in a linear layer with a bias, or if the disk has no space for the
            features.
        FloatingPointError: If a feature is not finite.

    Example:
        >>> config = RunConfig(DataConfig("pets"), teacher=TeacherConfig(train="head"))       # doctest: +SKIP
        >>> model = build("timm:resnet18.a1_in1k", 37, 224)                                   # doctest: +SKIP
        >>> model = fit_head(model, open_dataset(config.data), config, Run(Path("runs/pets")))  # doctest: +SKIP
    """
    config = replace(config, train=replace(config.train, augment=pick_augment(config.train.augment, data)))
    device = torch.device(pick_device(config.train.device))
    keep_freed_memory()
    model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    layer = find_head(model, config.model, data.size)
    events = CallbackList(callbacks)

    def solve() -> tuple[Tensor, Tensor, dict[str, Any]]:
        started = time.perf_counter()
        train, val = _load_features(model, data, config, run, events)
        features_seconds = time.perf_counter() - started
        adjustment = None
        if config.train.balance == "logits":
            labels = torch.from_numpy(np.array(data.train.labels)).to(device)
            adjustment = log_prior(labels, len(data.classes))
        weight, bias, summary = _choose_weight_decay(train, val, adjustment, len(data.classes), config)
        seconds = time.perf_counter() - started
        row = {
            "epoch": 1 if config.teacher.train == "head" else 0,
            "train_loss": summary["train_loss"],
            "terms": {"ce": summary["train_loss"]},
            "lr": 1.0,
            **{name: summary[name] for name in ("val_accuracy", "val_loss", "val_balanced_accuracy")},
            "images_per_second": len(data.train) / seconds,
            "seconds": seconds,
        }
        run.write_history([row])
        write_json(
            run.folder / "head.json", {"views": _num_views(config), "features_seconds": features_seconds, **summary}
        )
        grid = ", ".join(format(entry["weight_decay"], "g") for entry in summary["candidates"])
        events.on_message(
            f"head: weight decay {summary['weight_decay']:g}, chosen from {grid}; the features took "
            f"{format_duration(features_seconds)}, the head {format_duration(seconds - features_seconds)}"
        )
        return weight, bias, row

    try:
        weight, bias, row = run_on_rank0(solve)
        with torch.no_grad():
            layer.weight.copy_(weight.view_as(layer.weight))
            assert layer.bias is not None
            layer.bias.copy_(bias)
        if row["epoch"]:
            events.on_epoch_end(row, model)
    finally:
        events.on_train_end()
    return model


def find_head(model: nn.Module, name: str, size: int) -> nn.Linear | nn.Conv2d:
    """Return the last layer of a classifier, which `fit_head` trains.

    Args:
        model: The classifier.
        name: Name of the network.
        size: Side of the images in pixels.

    Raises:
        InputError: If the model does not end in a linear layer with a bias.
    """
    _, layer = linear_head(model, example_images(size, next(model.parameters()).device))
    if layer.bias is None:
        raise InputError(
            f"the last layer of {name} must have a bias, got none. Choose another network, or --train all."
        )
    return layer


def minimize(
    data: LabeledFeatures,
    weight_decay: float,
    start: tuple[Tensor, Tensor],
    label_smoothing: float = 0.0,
    adjustment: Tensor | None = None,
) -> Solution:
    """Minimize the mean cross-entropy of a linear layer plus ``weight_decay / 2 * |weight|^2`` by L-BFGS.

    Args:
        data: Features ``(N, D)``, labels, and weights of the samples.
        weight_decay: Weight decay of the weight; the bias has none.
        start: Weight ``(K, D)`` and bias ``(K,)`` to start from.
        label_smoothing: Label smoothing of the cross-entropy.
        adjustment: Logit adjustment ``(K,)`` that the cross-entropy adds to the logits. None: no adjustment.

    Returns:
        The solution. L-BFGS stops when `ITERATIONS` iterations decrease the loss by less than the fraction `TOLERANCE`,
        or after `MAX_ITERATIONS` iterations.

    Example:
        >>> data = LabeledFeatures(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]))
        >>> solution = minimize(data, 0.1, (torch.zeros(2, 1), torch.zeros(2)))
        >>> bool(solution.weight[1] > solution.weight[0])
        True
    """
    weight, bias = (tensor.clone().requires_grad_() for tensor in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe", tolerance_change=0.0
    )

    def cross_entropy() -> Tensor:
        logits = F.linear(data.features, weight, bias)
        return data.cross_entropy(logits if adjustment is None else logits + adjustment, label_smoothing)

    def closure() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            total = cross_entropy() + 0.5 * weight_decay * weight.square().sum()
            total.backward()
        return float(total.detach())

    previous = math.inf
    total = closure()
    iterations = 0
    while iterations < MAX_ITERATIONS and previous - total > TOLERANCE * abs(total):
        optimizer.step(closure)
        previous, total = total, closure()
        iterations += ITERATIONS
    with torch.no_grad():
        return Solution(weight.detach(), bias.detach(), float(cross_entropy()), iterations)


@dataclass(frozen=True)
class Standardization:
    """Mean and standard deviation of each feature. Constant features get a standard deviation of one.

    Args:
        mean: Mean of each feature ``(D,)``.
        std: Standard deviation of each feature ``(D,)``.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standardization:
        """Compute mean and standard deviation of features ``(N, D)``."""
        std, mean = torch.std_mean(features, 0, correction=0)
        return cls(mean, torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std)))

    def apply(self, features: Tensor) -> Tensor:
        """Return features with mean zero and standard deviation one."""
        return (features - self.mean) / self.std

    def unapply(self, solution: Solution) -> tuple[Tensor, Tensor]:
        """Return the weight and bias that give the same logits for features that are not standardized."""
        weight = solution.weight / self.std
        return weight, solution.bias - weight @ self.mean


def _choose_weight_decay(
    train: LabeledFeatures, val: LabeledFeatures, adjustment: Tensor | None, classes: int, config: RunConfig
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Minimize the loss for each weight decay, and choose the weight decay with the lowest validation loss.

    With few validation images, the loss varies less than the accuracy. It also depends on the scale of the logits,
    which matters in distillation. The loss is the one that is minimized, without label smoothing: with ``balance``
    ``sampler`` each class has the same weight, as in an epoch with equally many samples of each class, and with
    ``logits`` the logits are adjusted.

    Returns:
        Weight, bias, and the content of ``head.json``.
    """
    standardization = Standardization.of(train.features)
    train, val = (split._replace(features=standardization.apply(split.features)) for split in (train, val))
    given = config.train.weight_decay
    width = train.features.shape[1]
    start = train.features.new_zeros(classes, width), train.features.new_zeros(classes)
    val_losses = []
    solutions = []
    candidates = []
    for weight_decay in WEIGHT_DECAYS if given is None or config.teacher.train != "head" else (given,):
        solution = minimize(train, weight_decay, start, config.train.label_smoothing, adjustment)
        start = solution.weight, solution.bias
        logits = F.linear(val.features, *start)
        solutions.append(solution)
        val_losses.append(float(val.cross_entropy(logits if adjustment is None else logits + adjustment)))
        candidates.append(
            {
                "weight_decay": weight_decay,
                "iterations": solution.iterations,
                "train_loss": solution.loss,
                "val_accuracy": accuracy(logits, val.labels),
                "val_loss": float(F.cross_entropy(logits, val.labels)),
                "val_balanced_accuracy": balanced_accuracy(logits.argmax(1), val.labels).value,
            }
        )
    index = val_losses.index(min(val_losses))
    weight, bias = standardization.unapply(solutions[index])
    return weight, bias, {**candidates[index], "candidates": candidates}


def _num_views(config: RunConfig) -> int:
    """Return the number of views per training image: 1 without augmentation, because all views would be equal."""
    return config.teacher.head_views if config.train.augment != "none" else 1


def _load_features(
    model: nn.Module, data: Dataset, config: RunConfig, run: Run, events: Callback
) -> tuple[LabeledFeatures, LabeledFeatures]:
    """Compute missing features, and read those of the training views and of the validation images from the store."""
    device = torch.device(pick_device(config.train.device))
    classes = len(data.classes)
    feature_fn, width = make_feature_fn(model, data.size, config, device)
    mixes = bool(get_policy(config.train.augment).mix)
    description = _key_inputs(model, data, config, device)
    folder = feature_folder(cache_key(_without_head(model, data), description))
    store = FeatureStore(folder, description, width, classes if mixes else 0)
    store.mark_used()
    plain, augmented, val = (
        Views(split, classes, policy, config.train.augment_seed, device)
        for split, policy in ((data.train, "none"), (data.train, config.train.augment), (data.val, "none"))
    )
    jobs: list[tuple[str, int, int, Views]] = [("train", 0, 0, plain)]  # split, view, epoch, views
    jobs += [("train", view, view - 1, augmented) for view in range(1, _num_views(config))]
    jobs.append(("val", 0, 0, val))
    batches = [
        (job, rows)
        for job in jobs
        for rows in sequential_batches(job[3].split, CPU_BATCH_SIZE if device.type == "cpu" else None)
    ]
    missing = [(job, rows) for job, rows in batches if store.missing(job[0], job[1], rows.numpy(), len(job[3])).any()]
    count = sum(len(views) for *_, views in jobs)
    events.on_message(
        f"features: {len(plain):,} training images, views per image: {_num_views(config)}, {width:,} features per "
        f"view, {format_quantity(count * store.dtype.itemsize)} in {store.folder}"
    )
    with stop_signals() as signals:
        events.on_train_start(run.folder.name, len(batches), len(batches) - len(missing))
        for (split, view, epoch, views), rows in missing:
            batch = views[epoch, rows]
            targets = None
            if mixes:
                labels = batch.labels if batch.weights is None else batch.weights
                targets = labels if labels.ndim == 2 else F.one_hot(batch.labels, classes).float()
                if batch.weights is not None and labels.ndim == 1:
                    targets = targets * batch.weights[:, None]
            store.write(split, view, rows.numpy(), len(views), feature_fn(batch.x), targets)
            events.on_batch_end(len(rows))
            if signals:
                raise Interrupted(str(run.folder))
    features: dict[str, list[Tensor]] = {"train": [], "val": []}
    labels_of: dict[str, list[Tensor]] = {"train": [], "val": []}
    for split, view, _, views in jobs:
        stored, targets = store.read(split, view, len(views))
        features[split].append(stored)
        labels_of[split].append(views.labels.cpu() if targets is None or split == "val" else targets)
    train_set, val_set = (
        LabeledFeatures(
            torch.cat(features[split]).to(device),
            torch.cat(labels_of[split]).to(device),
            _sample_weights(views.labels, len(features[split])) if config.train.balance == "sampler" else None,
        )
        for split, views in (("train", plain), ("val", val))
    )
    if plain.weights is None:
        return train_set, val_set
    labels = train_set.labels
    if mixes:
        weights = labels.sum(1)
        labels = labels / weights.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    else:
        weights = plain.weights.repeat(_num_views(config))
    if train_set.weights is not None:
        weights = weights * train_set.weights
    return train_set._replace(labels=labels, weights=weights), val_set


def _sample_weights(labels: Tensor, num_views: int) -> Tensor:
    """Return weights of the views of all samples, with which every class has the same sum and the total is 1.

    Args:
        labels: Class of each sample ``(N,)``. The views of mixed images count for the class of their first image.
        num_views: Number of views of each sample.

    Returns:
        Weights ``(num_views * N,)``, view by view.
    """
    weights = 1 / labels.bincount()[labels].float()
    return (weights / weights.sum() / num_views).repeat(num_views)


def plain_features(model: nn.Module, data: Dataset, config: RunConfig, progress: Progress) -> dict[str, Tensor]:
    """Compute the features of all images, without augmentation. They are stored, and read if they are stored already.

    Args:
        model: A classifier whose logits are a linear layer of one feature vector per image.
        data: The dataset, at the image size of the model.
        config: Configuration with the name of the network, the device and the precision.
        progress: Progress callback.

    Returns:
        Features ``(n, D)`` of each split, on the device of the model.

    Raises:
        InputError: If the model does not end in a linear layer, or if the disk has no space for the features.
        FloatingPointError: If a feature is not finite.

    Example:
        >>> features = plain_features(model, data, config, no_progress)["test"]               # doctest: +SKIP
    """
    config = replace(config, train=replace(config.train, augment="none"))
    device = torch.device(pick_device(config.train.device))
    model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    feature_fn, width = make_feature_fn(model, data.size, config, device)
    description = _key_inputs(model, data, config, device)
    store = FeatureStore(feature_folder(cache_key(_without_head(model, data), description)), description, width)
    total = sum(map(len, data.splits.values()))
    done = 0
    features = {}
    for name, split in data.splits.items():
        views = Views(split, len(data.classes), "none", 0, device)
        for rows in sequential_batches(split, CPU_BATCH_SIZE if device.type == "cpu" else None) if len(split) else ():
            if store.missing(name, 0, rows.numpy(), len(split)).any():
                store.write(name, 0, rows.numpy(), len(split), feature_fn(views[0, rows].x))
            done += len(rows)
            progress(done, total, "computing features")
        features[name] = store.read(name, 0, len(split))[0] if len(split) else torch.empty(0, width)
    return {name: values.to(device) for name, values in features.items()}


def make_feature_fn(
    model: nn.Module, size: int, config: RunConfig, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], int]:
    """Create the function that computes the inputs of a model's head, with folded batch normalization.

    Args:
        model: The model, on ``device``. The function uses a frozen copy.
        size: Side of the images in pixels.
        config: Configuration with the precision.
        device: Device of the model.

    Returns:
        A function from images ``(N, 3, H, W)`` to features ``(N, D)`` in fp32, and the number ``D`` of features.
    """
    images = example_images(size, device)
    name, layer = linear_head(model, images)
    frozen = fold_batchnorm(model, images)
    modules = dict(frozen.named_modules())
    if name not in modules:  # tracing has replaced the layer
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
        modules = dict(frozen.named_modules())
    head = modules[name]
    bf16 = pick_precision(config.train.precision, device) == "bf16"

    def feature_fn(x: Tensor) -> Tensor:
        outputs = []
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            for chunk in x.split(CPU_BATCH_SIZE if x.is_cpu else len(x)):
                with head_inputs(head) as inputs:
                    frozen(chunk)
                outputs.append(inputs[0].float())
        features = torch.cat(outputs)
        if not bool(features.isfinite().all()):
            raise FloatingPointError("Features must be finite, got NaN or infinity. Add --precision fp32.")
        return features

    return feature_fn, int(layer.weight.shape[1])


def _without_head(model: nn.Module, data: Dataset) -> nn.Module:
    """Return a copy with a zero head, so that the cache key does not depend on the head, as features do not."""
    copied = copy.deepcopy(model)
    _, layer = linear_head(copied, example_images(data.size, next(model.parameters()).device))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    return copied


def _key_inputs(model: nn.Module, data: Dataset, config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Collect what features depend on besides the weights. Views are left out: each view has a file of its own."""
    digest = weights_digest(data.train)  # part of the labels of mixed views
    return {
        **key_inputs(model, config.model, data, data.size, config.data.interpolation, device),
        "kind": "features",
        "version": FEATURES_VERSION,
        "format": FORMAT,
        "augmentation": get_policy(config.train.augment).key(),
        **({"sample_weights": digest} if get_policy(config.train.augment).mix and digest else {}),
        "augmentation_seed": config.train.augment_seed,
        "precision": pick_precision(config.train.precision, device),
    }
