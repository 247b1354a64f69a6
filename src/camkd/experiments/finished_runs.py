"""Workflows for trained models: evaluate a model again, and write heatmaps for image files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from torch import nn

from camkd.data.dataset import Dataset, Progress, derived_fingerprint, fingerprint
from camkd.data.file_names import HUGGING_FACE, escape_name, join_first, quote_names, respelled_names
from camkd.data.files import BadImages
from camkd.data.images import describe_remarks
from camkd.data.sources import SOURCES, open_data
from camkd.data.value_range import FULL_RANGE
from camkd.distill.teacher import choose_teacher, load_teacher
from camkd.evaluate import Evaluation, measure
from camkd.evaluate.calibration import measure_confidence
from camkd.explain.class_names import list_classes
from camkd.explain.explain import explain_batches
from camkd.explain.files import (
    check_figure_size,
    decode_batches,
    find_image_files,
    output_format,
    prediction_records,
    write_figure,
    write_maps,
    write_overlays,
    write_records,
)
from camkd.runs.folder import Run
from camkd.runs.loading import find_model_folder, load, read_model_info
from camkd.runs.relocate import relocated
from camkd.types import InputError
from camkd.utils.devices import pick_device


def reevaluate(
    source: str,
    data: str | None,
    teacher: str | None,
    device: str,
    progress: Progress,
    message: Callable[[str], None],
    bad_images: BadImages | None = None,
) -> Evaluation:
    """Evaluate a trained model on the test images of its own dataset or of another dataset.

    Args:
        source: A run folder or a shipped model.
        data: Another dataset, of which the test split is used, or all images of a folder without splits. None: the
            model's own dataset.
        teacher: Run of a teacher to compare with. None: the teacher of the run, if its weights are found.
        device: Device: auto, cpu, cuda, cuda:1 or mps.
        progress: Callback ``progress(done, total, description)``.
        message: Callback ``message(text)``, for example for a warning that the images have changed since training.
        bad_images: Treatment of unreadable images of a folder. None: as in the training.

    Returns:
        The evaluation, with ``params``, ``macs`` and ``image_size`` of the model among the metrics.

    Raises:
        InputError: If the images are missing, or a class of them is not a class of the model or of the teacher.
    """
    info = read_model_info(source)
    dataset = _open_test_data(source, data, progress, message, bad_images)
    if data is not None:
        count = f"the {len(dataset.test):,} test" if len(dataset.train) else f"all {len(dataset.test):,}"
        message(f"evaluated on {count} images of {data!r}")
    elif dataset.fingerprint != info.data_fingerprint:
        message(
            f"the images in {info.data!r} have changed since {source!r} was trained on them: some of today's test "
            "images may have been training images"
        )
    if data is not None or bad_images is not None:
        for note in dataset.notes:
            message(f"  {note}")
    model = load(source).to(pick_device(device))
    teacher_folder = choose_teacher(info, source, teacher, message)
    teacher_predictions = load_teacher(teacher_folder, dataset, device).test_predictions if teacher_folder else None
    evaluation = measure(model, dataset, teacher_predictions)
    properties = {"params": info.params, "macs": info.macs, "image_size": info.size}
    answers = {} if info.threshold is None else answer_metrics(evaluation, dataset, info.threshold)
    return evaluation._replace(metrics={**evaluation.metrics, **answers, **properties})


ANSWER_METRICS = ("threshold", "coverage", "answered_accuracy")
"""Metrics of models with a confidence threshold."""


def answer_metrics(evaluation: Evaluation, dataset: Dataset, threshold: float) -> dict[str, float]:
    """Return `ANSWER_METRICS`. Without an answer there is no ``answered_accuracy``.

    Args:
        evaluation: Evaluation of a model.
        dataset: The dataset that was evaluated.
        threshold: Confidence below which an answer counts as unsure.
    """
    labels = torch.from_numpy(np.array(dataset.test.labels))
    confidence = measure_confidence(evaluation.predictions.logits, labels, threshold)
    values = {
        "threshold": threshold,
        "coverage": confidence.coverage,
        "answered_accuracy": confidence.answered_accuracy,
    }
    return {name: value for name, value in values.items() if value is not None}


def _open_test_data(
    source: str,
    data: str | None,
    progress: Progress,
    message: Callable[[str], None],
    bad_images: BadImages | None,
) -> Dataset:
    """Open the dataset of `reevaluate`.

    All images of a folder without splits are test images, unless the model was trained on this folder. Then the test
    split of the training is used. It is also used if the training had groups, which decide what is held out.
    """
    if data is None:
        return open_model_data(source, None, progress, message, bad_images)
    open_at_model_size = partial(_open_at_model_size, source, data, progress, bad_images)
    dataset = open_at_model_size(test_only=True)
    options = Run(find_model_folder(source)).config()
    if not len(dataset.train) or options.get("group") or options.get("group_regex"):
        with suppress(InputError):  # a folder that cannot be split for training was not trained on
            split_dataset = open_at_model_size(as_trained=True)
            info = read_model_info(source)
            is_own = _is_same_path(data, info.data) or split_dataset.fingerprint == info.data_fingerprint
            return split_dataset if is_own else dataset
    return dataset


def _is_same_path(data: str, other: str) -> bool:
    return Path(data).expanduser().resolve() == Path(other).expanduser().resolve()


def open_model_data(
    source: str,
    data: str | None,
    progress: Progress,
    message: Callable[[str], None] = lambda text: None,
    bad_images: BadImages | None = None,
) -> Dataset:
    """Open the dataset of a trained model, or another dataset at the model's image size.

    The folder of the model's own dataset may have moved together with the run. It is identified by the fingerprint of
    its images.

    Args:
        source: A run folder or a shipped model.
        data: Another dataset. Its test images are also used for training images if it cannot be divided into splits.
            None: the model's own dataset, with the limits of its run.
        progress: Callback ``progress(done, total, description)``.
        message: Callback ``message(text)`` for a note about a moved folder or about images used twice.
        bad_images: Treatment of unreadable images of a folder. None: as in the training.

    Returns:
        The dataset.

    Raises:
        InputError: If the model's own images are missing, or a class of the images is not a class of the model.
    """
    info = read_model_info(source)
    if data is not None:
        return _open_or_share(source, data, progress, message, bad_images)
    if info.data in SOURCES:
        return _open_at_model_size(source, info.data, progress, bad_images, as_trained=True)
    prefix = HUGGING_FACE if info.data.startswith(HUGGING_FACE) else ""
    location = info.data.removeprefix(prefix)
    recorded = Path(location).expanduser()
    dataset = (
        _open_at_model_size(source, info.data, progress, bad_images, as_trained=True) if recorded.exists() else None
    )
    if dataset is not None and dataset.fingerprint == info.data_fingerprint:
        return dataset
    for folder in relocated(location, find_model_folder(source)):
        if folder == recorded:
            continue
        with suppress(InputError):  # a folder with another content
            moved = _open_at_model_size(source, f"{prefix}{folder}", progress, bad_images, as_trained=True)
            if moved.fingerprint == info.data_fingerprint:
                message(f"the images of {source!r} moved from {info.data!r} to '{prefix}{folder}'")
                return moved
    if dataset is None and prefix:  # the name of a data set on the Hub
        return _open_at_model_size(source, info.data, progress, bad_images, as_trained=True)
    if dataset is None:
        raise InputError(
            f"--data must name the images of {source!r}, got none, and its training images {info.data!r} do not exist. "
            "Give --data their folder."
        )
    return dataset


def _open_or_share(
    source: str, data: str, progress: Progress, message: Callable[[str], None], bad_images: BadImages | None
) -> Dataset:
    """Open another dataset. The test images are also the train images of a folder that cannot be divided into splits.

    Such a folder has images of one class or only a few images, or it has no train folder.
    """
    try:
        return _open_at_model_size(source, data, progress, bad_images)
    except InputError:
        dataset = _open_at_model_size(source, data, progress, bad_images, test_only=True)
        if len(dataset.train):
            raise
    message(
        f"the {len(dataset.test):,} test images of {data!r} are also used as training images, because it has no others"
    )
    return dataset.changed(_share_test_images)


def _share_test_images(dataset: Dataset) -> Dataset:
    splits = {"train": dataset.test, "val": dataset.val, "test": dataset.test}
    return replace(
        dataset,
        train=dataset.test,
        fingerprint=fingerprint(dataset.classes, splits),
        source_fingerprint=derived_fingerprint(dataset.source_fingerprint, {"train": "test"}),
    )


def _open_at_model_size(
    source: str,
    data: str,
    progress: Progress,
    bad_images: BadImages | None,
    *,
    as_trained: bool = False,
    test_only: bool = False,
) -> Dataset:
    """Open a dataset with the model's preprocessing. If ``as_trained``, apply the limits and groups of its run."""
    info = read_model_info(source)
    options = Run(find_model_folder(source)).config()
    has_groups = as_trained or _is_same_path(data, info.data)
    open_scaled = partial(
        open_data,
        data,
        size=info.size,
        fit="crop" if data in SOURCES else info.fit,
        interpolation="bicubic" if data in SOURCES else info.interpolation,
        limit=options.get("limit") if as_trained else None,
        train_limit=options.get("train_limit") if as_trained else None,
        bad_images=bad_images or options.get("bad_images", "fail"),
        test_only=test_only,
        **{name: options.get(name) for name in ("group", "group_regex") if has_groups},
        built_in=as_trained,
        progress=progress,
    )
    dataset = open_scaled(value_range=None if as_trained else info.value_range)
    if dataset.value_range != info.value_range:
        dataset = open_scaled(value_range=info.value_range or FULL_RANGE)
    return _match_classes(dataset, info.classes, source, data)


def _match_classes(dataset: Dataset, classes: tuple[str, ...], source: str, data: str) -> Dataset:
    """Change the labels of a dataset to those of a model with the same or more classes, matched by name."""
    if dataset.classes == classes:
        return dataset
    index = {normalize("NFC", name): label for label, name in enumerate(classes)}
    additional = [name for name in dataset.classes if normalize("NFC", name) not in index]
    if additional:
        respelled = respelled_names(additional, index)
        advice = f"Rename {join_first(respelled)}" if respelled else "Give images of the model's classes"
        raise InputError(
            f"the classes of {data!r} must be classes of {source!r} ({list_classes(classes)}), got "
            f"{quote_names(additional)}. {advice}."
        )
    labels = [index[normalize("NFC", name)] for name in dataset.classes]
    return dataset.changed(partial(_relabel, classes=classes, labels=labels))


def _relabel(dataset: Dataset, classes: tuple[str, ...], labels: list[int]) -> Dataset:
    """Change label ``i`` to ``labels[i]``, an index into ``classes``."""
    new_labels = np.array(labels)
    train, val, test = (replace(split, labels=new_labels[split.labels]) for split in dataset.splits.values())
    notes = dataset.notes
    if absent := [name for label, name in enumerate(classes) if label not in labels]:
        notes += (
            f"there are no images of {len(absent):,} of the model's {len(classes):,} classes: {quote_names(absent)}",
        )
    return replace(
        dataset,
        classes=classes,
        train=train,
        val=val,
        test=test,
        fingerprint=fingerprint(classes, {"train": train, "val": val, "test": test}),
        source_fingerprint=derived_fingerprint(
            dataset.source_fingerprint, {"classes": list(classes), "labels": labels}
        ),
        notes=notes,
    )


def explain_files(
    source: str,
    images: Sequence[str],
    out: Path,
    teacher: str | None,
    progress: Progress,
    message: Callable[[str], None],
    *,
    method: str = "cam",
    layer: str | None = None,
    top: int = 1,
    against: Sequence[str] = (),
    bad_images: BadImages = "skip",
    device: str = "auto",
) -> dict[str, Any]:
    """Write the heatmaps of a model, and of its teacher if there is one, for image files.

    Args:
        source: A model, as `camkd.load` accepts it.
        images: Image files, or folders of images.
        out: ``.png``: a figure. ``.npz`` or ``.json``: predictions and maps as numbers. No suffix: a folder with an
            overlay per image, without teacher.
        teacher: Run of the teacher. None: the teacher of the run, if its weights are found.
        progress: Callback ``progress(done, total, description)``.
        message: Callback ``message(text)``, for example for a note that the teacher is left out.
        method: Name of a map method in `camkd.cams.MAP_METHODS`.
        layer: Dotted name of the model's layer that the maps are computed from. None: found automatically.
        top: Number of classes per image: the most probable classes of the teacher if it is shown, else of the model.
            Classes in ``against`` are not counted.
        against: Names of the classes that every map is contrasted with.
        bad_images: ``skip`` leaves out unreadable images if another image is readable, ``fail`` raises an error.
        device: Device: auto, cpu, cuda, cuda:1 or mps.

    Returns:
        The names of all classes of the model under ``classes``, of the contrast under ``against``,
        `camkd.explain.files.prediction_records` of the images under ``images``, the paths of the other files in the
        folders under ``skipped``, and the reasons of unreadable images by path under ``unreadable``.

    Raises:
        InputError: If ``top`` is below 1 or exceeds the number of classes, ``against`` names another or every class, no
            image can be read, ``out`` has another suffix, or ``teacher`` does not fit the model.
    """
    file_format = output_format(out)
    paths, skipped = find_image_files(images)
    model = load(source).to(pick_device(device))
    info = model.info
    assert info is not None
    against_ids = _class_indices(against, info.classes, source)
    num_candidates = len(info.classes) - len(against_ids)
    if not 1 <= top <= num_candidates:
        outside = " outside of --against" if against else ""
        raise InputError(
            f"--top must be 1 to {num_candidates}, the number of classes of {source!r}{outside}, got {top}. "
            "Choose a number in this range."
        )
    teacher_folder = choose_teacher(info, source, teacher, message)
    title = "model" if teacher_folder and info.role == "teacher" else info.role
    models: dict[str, nn.Module] = {title: model}
    preprocessings = {title: info.preprocessing}
    if teacher_folder and file_format != "folder":
        models = {"teacher": load(teacher_folder).to(pick_device(device)), **models}
        preprocessings = {"teacher": read_model_info(teacher_folder).preprocessing, **preprocessings}
    if file_format == "png":
        check_figure_size(len(paths), top * len(models))
    unreadable: dict[Path, str] = {}
    remarks: dict[Path, list[str]] = {}
    explanation = explain_batches(
        models,
        decode_batches(paths, preprocessings, progress, unreadable if bad_images == "skip" else None, remarks),
        top=top,
        method=method,
        layers={title: layer} if layer else None,
        against=against_ids,
    )
    for note in describe_remarks({escape_name(str(path)): remarks[path] for path in remarks}):
        message(note)
    paths = [path for path in paths if path not in unreadable]
    thresholds = {title: getattr(entry, "info", info).threshold for title, entry in models.items()}
    maps_by_model = {
        title: maps._replace(threshold=thresholds[title] or 0.0) for title, maps in explanation.maps_by_model.items()
    }
    explanation = explanation._replace(maps_by_model=maps_by_model)
    if file_format == "folder":
        write_overlays(out, paths, explanation.maps_by_model[title].maps, progress, info.preprocessing)
    elif file_format == "png":
        write_figure(out, paths, explanation, info.classes, info.preprocessing)
    else:
        write = {"npz": write_maps, "json": write_records}[file_format]
        write(out, paths, explanation, info.classes)
    return {
        "classes": list(info.classes),
        "against": [info.classes[k] for k in against_ids],
        "images": prediction_records(paths, explanation, info.classes),
        "skipped": [str(path) for path in skipped],
        "unreadable": {str(path): reason for path, reason in unreadable.items()},
    }


def _class_indices(names: Sequence[str], classes: tuple[str, ...], source: str) -> list[int]:
    """Return the indices of the classes of ``--against``, without duplicates."""
    for name in names:
        if name not in classes:
            raise InputError(
                f"--against must be classes of {source!r}, got {name!r}. Choose from {list_classes(classes)}."
            )
    indices = [classes.index(name) for name in dict.fromkeys(names)]
    if indices and len(indices) == len(classes):
        raise InputError(
            f"--against must leave out at least one class of {source!r}, got all {len(classes)}. Remove a class."
        )
    return indices
