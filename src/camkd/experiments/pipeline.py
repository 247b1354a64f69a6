"""Training of one network: checks, preparation of its teacher, training, evaluation and figures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from camkd.config import (
    AUTO,
    CRITERIA,
    RunConfig,
    TrainConfig,
    best_epoch,
    check_ranges,
    epochs_in_budget,
    is_fine_tuned,
    num_augmented_epochs,
    resolve_optimizer,
)
from camkd.data.augment import check_augment, pick_augment
from camkd.data.batches import batch_count
from camkd.data.dataset import CHUNK_BYTES, UNLABELED, Dataset, max_rows, weights_digest
from camkd.data.training_batches import epoch_size
from camkd.distill.cache import TeacherCache
from camkd.distill.cache.build import build_teacher_cache
from camkd.distill.cache.store import store_folder
from camkd.distill.objective import Objective, format_objective, parse_objective
from camkd.distill.teacher import Teacher
from camkd.evaluate import measure
from camkd.experiments.planning import (
    check_network,
)
from camkd.experiments.start_network import (
    check_start,
    start_files,
    start_network,
)
from camkd.models import build, default_optimizer, model_factory
from camkd.models.io import ModelInfo, save
from camkd.models.profile import profile_model
from camkd.report.gallery import GalleryModel, select_images, write_gallery
from camkd.runs.folder import Run
from camkd.runs.loading import read_model_info
from camkd.runs.per_image import write_per_image
from camkd.runs.resume import Resume, lock_run, start_or_resume
from camkd.train.callbacks import Callback, CallbackList
from camkd.train.head import find_head, fit_head
from camkd.train.heatmap_figures import HeatmapFigures, draw_examples
from camkd.train.loop import fit
from camkd.train.tensorboard import FOLDER as TENSORBOARD_FOLDER
from camkd.train.tensorboard import TensorBoardCallback, check_tensorboard
from camkd.train.trackers import TRACKERS, check_tracker
from camkd.train.validation import Validator
from camkd.types import InputError
from camkd.utils.devices import describe_device, pick_device, pick_precision
from camkd.utils.distributed import process_group, run_on_rank0
from camkd.utils.files import check_writable, write_json
from camkd.utils.units import format_quantity, parse_quantity


class TeacherWithCache(NamedTuple):
    """The teacher of a run, and the cache of its outputs if the loss needs them.

    A control has a teacher without a cache: the control is compared with the teacher, but trained without it.

    Attributes:
        teacher: The teacher.
        cache: Cache of the teacher's outputs. None if the loss needs no teacher.
    """

    teacher: Teacher
    cache: TeacherCache | None = None


def check_config(config: RunConfig, teacher_epochs: int | None = None, teacher_size: int | None = None) -> None:
    """Check a configuration before the dataset is opened. The teacher is not checked.

    Args:
        config: Configuration of the run.
        teacher_epochs: Epochs of a teacher that is trained first.
        teacher_size: Side of the images of a teacher that is trained first.

    Raises:
        InputError: If the model, method, augmentation or device is unknown or not available, a number is out of range,
            or TensorBoard or a tracker is requested but not installed.
    """
    model_factory(config.model)
    objective = build_objective(config)
    if (objective.needs_adapters or objective.needs_other_images) and config.train.batch_size < 2:
        raise InputError(
            f"batch_size must be 2 or more for {config.method}, got {config.train.batch_size}. Choose a larger number."
        )
    if config.train.balance == "logits" and not objective.has_cross_entropy:
        raise InputError(
            f"balance must be none or sampler for {config.method}, which has no cross-entropy, got logits. Choose "
            "another --balance, or a method with the term ce."
        )
    check_augment(config.train.augment)
    ranges = {
        **asdict(config.train),
        **asdict(config.distill),
        **asdict(config.teacher),
        "teacher_epochs": teacher_epochs,
        "teacher_size": teacher_size,
    }
    if config.role == "teacher":
        check_start(config)
        ranges["epochs"] = config.train.epochs or None  # weights may be used as they are
    check_ranges(ranges)
    parse_quantity(config.distill.cache_budget, "cache_budget", "B")
    pick_device(config.train.device)
    if config.train.tensorboard:
        check_tensorboard()
    if config.train.track is not None:
        check_tracker(config.train.track)


def check_outputs(config: RunConfig, folder: Path, *run_folders: Path) -> None:
    """Check before any work that the files of a command can be written.

    Args:
        config: Configuration of the run. The folder of the teacher cache is checked if the method uses the cache.
        folder: Folder of the command, for the report.
        run_folders: Folders of the runs.

    Raises:
        InputError: If a folder is a file or cannot be written.
    """
    for run_folder in dict.fromkeys((folder, *run_folders)):
        subfolders = (run_folder / name for name in ("checkpoints", "figures", TENSORBOARD_FOLDER))
        for path in (run_folder, *(path for path in subfolders if path.exists())):
            check_writable(path, "Choose another --out.")
    report_file = folder / "report.html"
    if report_file.is_dir():
        raise InputError(f"{report_file} must be a file, got a folder. Remove it, or choose another --out.")
    objective = build_objective(config)
    uses_cache = objective.needs_teacher and "features" not in objective.needs
    if uses_cache and parse_quantity(config.distill.cache_budget, "cache_budget", "B"):
        check_writable(store_folder(""), "Set CAMKD_CACHE to a writable folder, or add --cache-budget 0.")


def check_shared_optimizer(config: TrainConfig, *models: str) -> None:
    """Check that a given learning rate or weight decay is for one optimizer.

    Args:
        config: Training configuration of the models.
        models: Model names.

    Raises:
        InputError: If ``lr`` or ``weight_decay`` is given, and the models are trained with different optimizers.
    """
    settings = [resolve_optimizer(config, default_optimizer(model)) for model in models]
    for name in ("lr", "weight_decay"):
        value = getattr(config, name)
        if value is not None and len({setting.optimizer for setting in settings}) > 1:
            optimizers = " and ".join(
                f"{model} ({setting.optimizer})" for model, setting in zip(models, settings, strict=True)
            )
            raise InputError(
                f"{name} must be for one optimizer, got {value} for {optimizers}. Add --optimizer, or train the models "
                "one by one."
            )


def build_objective(config: RunConfig) -> Objective:
    """Build the objective of a run from its method and its label smoothing."""
    return parse_objective(config.method, label_smoothing=config.train.label_smoothing)


def train_run(
    folder: Path,
    config: RunConfig,
    data: Dataset,
    teacher_with_cache: TeacherWithCache | None = None,
    *,
    resume: Resume | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train and evaluate one network, and draw its heatmaps. A finished run is not trained again.

    Args:
        folder: The run folder, for all files of the run.
        config: Configuration of the run.
        data: The dataset of ``config.data``.
        teacher_with_cache: The teacher and the cache of its outputs, from `prepare_teacher`. None for a teacher run.
        resume: Permission to continue a run in ``folder``. None: the folder must be new.
        callbacks: Callbacks that are called after the built-in callbacks for figures, TensorBoard and trackers.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: If the folder holds another run, holds any run and ``resume`` is None, or is in use by another
            process. If a batch has fewer images than there are processes.
        Interrupted: If the process receives SIGINT or SIGTERM. The state is saved.
        FloatingPointError: If the training diverges.

    Example:
        >>> config = RunConfig(DataConfig("shapes"), TrainConfig(epochs=5), model="resnet8", role="teacher")
        ... # doctest: +SKIP
        >>> train_run(Path("runs/teacher"), config, open_dataset(config.data))["accuracy"]  # doctest: +SKIP
        0.93
    """
    run = Run(folder)
    teacher = teacher_with_cache.teacher if teacher_with_cache else None
    objective = build_objective(config)
    if not objective.needs_teacher:  # nothing is to be trained on images without labels
        data = data.labeled
        config = replace(config, data=replace(config.data, unlabeled=None))
    config = _resolve(config, data, teacher)
    _check_shards(config.train, epoch_size(data.train.labels, config.train))
    message = CallbackList(callbacks).on_message
    model = None
    if not run.config():
        check_network(config.model, data)
        model = start_network(config, data, message)
        if config.role == "teacher" and config.teacher.train != "all":
            find_head(model, config.model, data.size)
    with ExitStack() as stack:

        def start() -> tuple[bool, dict[str, Any]]:
            stack.enter_context(lock_run(run))
            has_checkpoint = start_or_resume(run, config, provenance(config, data, teacher, objective), resume)
            return has_checkpoint, run.read_metrics() if run.finished else {}

        has_checkpoint, metrics = run_on_rank0(start)
        if metrics:
            CallbackList(callbacks).on_message(f"{folder} is a finished run: nothing is left to train")
            return metrics
        size = data.size
        if has_checkpoint:
            model = build(config.model, len(data.classes), size, config.train.seed, pretrained=False)
        elif model is None:
            model = start_network(config, data, message)
        if not model.has_pretrained_normalization:
            model.set_normalization(*channel_statistics(data.labeled.train.images))
        cost = profile_model(config.model, model, size)
        all_callbacks = _with_built_in(callbacks, run, config, data, teacher)
        stack.callback(lambda: CallbackList(all_callbacks).on_run_end(metrics or None))
        best = _train(
            model,
            data,
            config,
            run,
            teacher_with_cache,
            resume=has_checkpoint,
            callbacks=all_callbacks,
        )
        info = ModelInfo(
            architecture=config.model,
            classes=data.classes,
            size=size,
            params=cost.params,
            macs=cost.macs,
            role=config.role,
            method=config.method,
            data=config.data.data,
            data_fingerprint=data.labeled.fingerprint,
            seed=config.train.seed,
            source_fingerprint=data.labeled.source_fingerprint,
            teacher=config.distill.teacher if teacher else None,
            value_range=data.value_range,
            fit=config.data.fit,
            interpolation=config.data.interpolation,
        )

        def finish() -> dict[str, Any]:
            run.remove_calibration()
            save(best, folder, info)
            cache = teacher_with_cache.cache if teacher_with_cache else None
            unlabeled = _count_unlabeled(data, cache) if data.labeled_part and cache else {}
            return evaluate_and_save(run, data, best, teacher, unlabeled)

        metrics = run_on_rank0(finish)
    return metrics


def _train(
    model: nn.Module,
    data: Dataset,
    config: RunConfig,
    run: Run,
    teacher_with_cache: TeacherWithCache | None,
    *,
    resume: bool,
    callbacks: Sequence[Callback],
) -> nn.Module:
    """Train the layers that the configuration names, and return the model to evaluate."""
    device = torch.device(pick_device(config.train.device))
    layers = config.teacher.train if config.role == "teacher" else "all"
    if layers != "all" and not resume:
        model = fit_head(model, data, config, run, callbacks)
    if layers == "head" or config.train.epochs == 0:
        return model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]
    initial = None
    if is_fine_tuned(config) and not resume:
        initial = run.read_history()[0] if layers == "head,all" else _validate(model, data, device)
        CallbackList(callbacks).on_message(
            f"epoch 0 (initial weights): validation {initial['val_accuracy']:.1%}, loss {initial['val_loss']:.3f}"
        )
    return fit(
        model,
        data,
        build_objective(config),
        config.train,
        run,
        teacher=teacher_with_cache.teacher.val_predictions if teacher_with_cache else None,
        cache=teacher_with_cache.cache if teacher_with_cache else None,
        initial=initial,
        resume=resume,
        callbacks=callbacks,
    )


def _validate(model: nn.Module, data: Dataset, device: torch.device) -> dict[str, Any]:
    """Return the row of ``metrics.jsonl`` for the initial weights of a model."""
    started = time.perf_counter()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    metrics = Validator(data, device, bf16=False, teacher=None)(model)
    return {"epoch": 0, **metrics, "seconds": time.perf_counter() - started}


def _resolve(config: RunConfig, data: Dataset, teacher: Teacher | None) -> RunConfig:
    """Resolve the optimizer settings, the augmentation and the path of the teacher's run folder.

    The weight decay of a head that is trained alone stays None if it is chosen on the validation images.
    """
    settings = resolve_optimizer(config.train, default_optimizer(config.model), fine_tune=is_fine_tuned(config))
    if config.role == "teacher" and config.teacher.train == "head":
        settings = settings._replace(weight_decay=config.train.weight_decay)  # type: ignore[arg-type]
    train = replace(config.train, augment=pick_augment(config.train.augment, data), **settings._asdict())
    distill = replace(config.distill, teacher=str(teacher.folder.resolve())) if teacher else config.distill
    return replace(config, train=train, distill=distill)


def _check_shards(config: TrainConfig, num_images: int) -> None:
    """Check that every process gets an image of every training batch."""
    world_size = process_group().world_size
    smallest_batch = num_images // batch_count(num_images, config.batch_size)
    if smallest_batch < world_size:
        raise InputError(
            f"Every batch must have {world_size} images or more, one per process, got {smallest_batch}. "
            "Choose a larger --batch-size, or start fewer processes."
        )


def _with_built_in(
    callbacks: Sequence[Callback], run: Run, config: RunConfig, data: Dataset, teacher: Teacher | None
) -> list[Callback]:
    """Put the built-in callbacks for figures, TensorBoard and trackers before ``callbacks``. Only rank 0 has them."""
    built_in: list[Callback] = []

    def open_built_in() -> None:
        if config.train.tensorboard:
            built_in.append(TensorBoardCallback(run.folder))
        if config.train.track is not None:
            built_in.append(TRACKERS[config.train.track](run, config, CallbackList(callbacks).on_message))

    run_on_rank0(open_built_in)
    if process_group().rank > 0:
        return list(callbacks)
    listeners = [*built_in, *callbacks]
    teacher_predictions = teacher.val_predictions if teacher else None
    figures = HeatmapFigures(
        run, data, config.role, teacher_predictions, config.train.figure_every, listener=CallbackList(listeners)
    )
    return [figures, *listeners]


def evaluate_and_save(
    run: Run, data: Dataset, model: nn.Module, teacher: Teacher | None, more_metrics: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Evaluate a trained network on the test images, and write metrics, per-image records, heatmaps and gallery.

    Args:
        run: The run folder, with the saved model.
        data: The dataset.
        model: The trained network.
        teacher: The teacher to compare with, or None.
        more_metrics: Further entries of ``metrics.json``.

    Returns:
        The content of ``metrics.json``.
    """
    info = read_model_info(run.folder)
    history = run.read_history()
    teacher_predictions = teacher.test_predictions if teacher else None
    evaluation = measure(model, data, teacher_predictions)
    best = best_epoch(history, run.config().get("select", TrainConfig.select))
    validation = _validate(model, data, next(model.parameters()).device) if best is None else best
    epochs = run.completed_epochs()
    seconds = sum(row["seconds"] for row in history)
    training_seconds = sum(row["seconds"] for row in history if row["epoch"])
    num_samples = sum(row["images_per_second"] * row["seconds"] for row in history if row["epoch"])
    metrics = {
        **evaluation.metrics,
        **{key: validation[key] for criterion in CRITERIA.values() if (key := criterion.key) in validation},
        "best_epoch": None if best is None else best["epoch"],
        "params": info.params,
        "macs": info.macs,
        "image_size": info.size,
        **(more_metrics or {}),
        "epochs": epochs,
        "augment_epochs": min(run.config().get("augment_epochs") or epochs, epochs),
        "seconds": seconds,
        "images_per_second": num_samples / training_seconds if epochs else None,
    }
    gallery_models = {info.role: GalleryModel(model, info.sha256, data.test)}
    if teacher:
        gallery_models = {"teacher": gallery_teacher(teacher), **gallery_models}
    draw_examples(run.figures_folder / "cams.png", data, "test", {info.role: model}, teacher_predictions)
    labels = torch.from_numpy(np.array(data.test.labels))
    rows = select_images(labels, evaluation.predictions, teacher_predictions)
    write_gallery(run.gallery_file, data, gallery_models, rows)
    write_per_image(run.per_image_file, evaluation.per_image)
    write_json(run.metrics_file, metrics)
    return metrics


def _count_unlabeled(data: Dataset, cache: TeacherCache) -> dict[str, Any]:
    """Count the unlabeled images, and those of their first cached views that the teacher predicts as each class."""
    rows = np.flatnonzero(data.train.labels == UNLABELED)
    counts = np.zeros(len(data.classes), np.int64)
    for row in rows:
        outputs = cache.get(0, torch.tensor([row]))
        if outputs is not None:
            counts[int(outputs.logits.argmax())] += 1
    predictions = dict(zip(data.classes, counts.tolist(), strict=True))
    return {"unlabeled_images": len(rows), "unlabeled_predictions": predictions}


def prepare_teacher(
    teacher: Teacher, config: RunConfig, callbacks: Sequence[Callback] = ()
) -> tuple[TeacherWithCache, RunConfig]:
    """Prepare the teacher of a run: if the loss needs the teacher, check its accuracy and open the cache.

    Args:
        teacher: The teacher.
        config: Configuration of the run.
        callbacks: Callbacks that receive messages about the cache.

    Returns:
        The teacher with the cache of its outputs, and the configuration with at most as many augmented epochs as the
        cache budget allows. The cache is None if the loss needs no teacher. It has no store if the loss needs features,
        or if the budget is smaller than one epoch.

    Raises:
        InputError: If the loss needs the teacher, the teacher is no better than guessing, and
            ``config.distill.weak_teacher`` is ``reject``.
    """
    objective = build_objective(config)
    message = CallbackList(callbacks).on_message
    if not objective.needs_teacher:
        return TeacherWithCache(teacher), config
    message(f"teacher: {teacher.check_accuracy(config.distill.weak_teacher)}")
    cache = build_teacher_cache(teacher, config, features="features" in objective.needs)
    store = cache.store
    if store is None:
        message(f"{config.method} needs the teacher's features, which are not cached: the teacher runs at every step")
        return TeacherWithCache(teacher, cache), config
    epochs = epochs_in_budget(config, store.epoch_bytes)
    budget = f"the cache budget of {config.distill.cache_budget}"
    if not epochs:
        message(f"the teacher runs at every step: {budget} is less than {format_quantity(store.epoch_bytes)} per epoch")
        uncached = TeacherCache(cache.teacher_fn, record_format=store.record_format, render=cache.render)
        return TeacherWithCache(teacher, uncached), config
    started = sum(epoch < epochs for epoch in store.epochs())
    message(
        f"teacher cache: {epochs} augmented epochs, {format_quantity(store.epoch_bytes * epochs)} in {store.folder}; "
        f"{started} of them exist"
    )
    if epochs < num_augmented_epochs(config.train):
        message(f"the augmented epochs repeat after {epochs} epochs, which is the number that fits into {budget}")
        config = replace(config, train=replace(config.train, augment_epochs=epochs))
    return TeacherWithCache(teacher, cache), config


def resolve_settings(config: RunConfig, data: Dataset, *folders: Path, callbacks: Sequence[Callback] = ()) -> RunConfig:
    """Resolve the augmentation, the precision and the number of augmented epochs, so that they stay the same on resume.

    Settings that ``config`` sets explicitly are kept.

    Args:
        config: Configuration of the run.
        data: The dataset of ``config.data``.
        folders: Run folders. The values of the first existing run are used. The number of augmented epochs is not taken
            from teacher runs.
        callbacks: Callbacks that receive a message about the device.

    Returns:
        The configuration. If no run has a precision, the precision is chosen for the device. If no run has an
        augmentation, it is chosen for the dataset. If no run has a number of augmented epochs, ``augment_epochs`` stays
        None.
    """
    train = config.train
    for stored in (Run(folder).config() for folder in folders):
        if train.precision == "auto":
            train = replace(train, precision=stored.get("precision", "auto"))
        if train.augment == AUTO:
            train = replace(train, augment=stored.get("augment", AUTO))
        if train.augment_epochs is None and "student" in stored:  # the control repeats epochs as the student does
            train = replace(train, augment_epochs=stored.get("augment_epochs"))
    train = replace(train, augment=pick_augment(train.augment, data))
    return resolve_precision(replace(config, train=train), callbacks)


def resolve_precision(config: RunConfig, callbacks: Sequence[Callback] = ()) -> RunConfig:
    """Resolve the precision for the device.

    Args:
        config: Configuration of the run.
        callbacks: Callbacks that receive a message about the device.

    Returns:
        The configuration with the resolved precision.
    """
    precision = config.train.precision
    device = torch.device(pick_device(config.train.device))
    CallbackList(callbacks).on_message(f"device: {describe_device(precision, device)}")
    precision = run_on_rank0(lambda: pick_precision(precision, device))
    return replace(config, train=replace(config.train, precision=precision))


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation of each color channel.

    Args:
        images: ``(N, H, W, 3)`` uint8.

    Returns:
        Means and standard deviations of pixel values in 0..1. A standard deviation is at least 0.001.
    """
    counts = np.zeros((3, 256), np.int64)
    rows = max_rows(CHUNK_BYTES // 16, images)
    for start in range(0, len(images), rows):
        for channel, values in enumerate(images[start : start + rows].reshape(-1, 3).T):
            counts[channel] += np.bincount(values, minlength=256)
    values = np.arange(256) / 255
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    deviation = np.sqrt(np.maximum(shares @ values**2 - mean**2, 1e-6))
    return mean.tolist(), deviation.tolist()


def provenance(config: RunConfig, data: Dataset, teacher: Teacher | None, objective: Objective) -> dict[str, Any]:
    """Describe the inputs of a run by content, for example by hashes of images and teacher.

    Args:
        config: Configuration of the run.
        data: The dataset.
        teacher: The teacher, or None.
        objective: The objective.

    Returns:
        The inputs, for ``environment.json``.
    """
    return {
        "role": config.role,
        "data_fingerprint": data.labeled.fingerprint,
        "source_fingerprint": data.labeled.source_fingerprint,
        **({"unlabeled_fingerprint": data.fingerprint} if data.labeled_part else {}),
        "sample_weights": weights_digest(data.labeled.train),
        "teacher_weights": read_model_info(teacher.folder).sha256 if teacher else None,
        "terms": format_objective(objective, label_smoothing=config.train.label_smoothing),
        "classes": list(data.classes),
        "size": data.size,
        "value_range": data.value_range,
        **(start_files(config) if config.role == "teacher" else {}),
    }


def gallery_teacher(teacher: Teacher) -> GalleryModel:
    """Return the entry of a teacher in the gallery, with its test images."""
    return GalleryModel(teacher.model, read_model_info(teacher.folder).sha256, teacher.data.test)
