"""Find, load and check trained teachers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from camkd.config import AUTO, WeakTeacher
from camkd.data.dataset import Dataset
from camkd.data.sources import SOURCES
from camkd.distill.keys import cache_key, key_inputs
from camkd.distill.predictions import cached_predictions
from camkd.evaluate import SplitPredictions, predict_split
from camkd.evaluate.metrics import balanced_accuracy
from camkd.models import is_model_name
from camkd.models.io import INFO_FILE, ModelInfo
from camkd.runs.folder import Run, default_run_folder
from camkd.runs.loading import find_model_folder, find_run_folder, load, read_model_info, shipped_models
from camkd.runs.relocate import relocated
from camkd.types import InputError, Interpolation
from camkd.utils.devices import pick_device

ROUNDING = 1e-9
"""Largest difference of two balanced accuracies that counts as equal."""


@dataclass(frozen=True)
class Teacher:
    """A trained, frozen network to distill from, and the dataset at its image size.

    Args:
        model: The network in evaluation mode, without gradients.
        folder: Run folder of the teacher.
        architecture: Name of the network.
        size: Side of the teacher's images in pixels.
        interpolation: Filter that resizes the teacher's images.
        student_data: The dataset at the image size of the student.
    """

    model: nn.Module
    folder: Path
    architecture: str
    size: int
    interpolation: Interpolation
    student_data: Dataset

    @cached_property
    def data(self) -> Dataset:
        """The dataset at the image size of the teacher, opened on first use.

        Raises:
            InputError: If the images exist at the size of the student only.
        """
        return self.student_data.at_size(self.size, self.interpolation)

    @cached_property
    def val_predictions(self) -> SplitPredictions:
        """Predictions on the validation images, computed or read from the cache on first use."""
        return self._predict("val")

    @cached_property
    def test_predictions(self) -> SplitPredictions:
        """Predictions on the test images, computed or read from the cache on first use."""
        return self._predict("test")

    def _predict(self, split: str) -> SplitPredictions:
        device = next(self.model.parameters()).device
        inputs = key_inputs(
            self.model, self.architecture, self.student_data.labeled, self.size, self.interpolation, device
        )
        key = cache_key(self.model, {**inputs, "split": split})
        return cached_predictions(key, lambda: predict_split(self.model, self.data.splits[split]))

    def check_accuracy(self, weak_teacher: WeakTeacher = "reject") -> str:
        """Check that the teacher is better than guessing, per class.

        A teacher whose weights, normalization or class order do not fit these images fails the check. The check uses
        the balanced accuracy on the validation images, which is the mean of the accuracies per class. This accuracy
        must be above the chance level, the balanced accuracy of a constant prediction, by at least two standard errors.
        The standard error is that of a teacher with the same predictions in random order
        (`camkd.evaluate.metrics.balanced_accuracy`). The bound is at most 1, so a teacher without errors passes. A
        constant prediction fails, however frequent its class is. With validation images of a single class, every
        teacher passes, because no difference can be measured.

        Args:
            weak_teacher: Treatment of a teacher that fails the check: ``reject`` raises an error, ``accept`` does not.

        Returns:
            Description of the validation accuracy, and of the failed check.

        Raises:
            InputError: If the teacher fails the check and ``weak_teacher`` is ``reject``.
        """
        labels = torch.from_numpy(np.array(self.student_data.val.labels))
        predicted = self.val_predictions.class_ids
        accuracy = float((predicted == labels).double().mean())
        balanced = balanced_accuracy(predicted, labels)
        bound = min(1.0, balanced.chance + 2 * balanced.standard_error)
        text = f"validation accuracy {accuracy:.1%}"
        above_chance = balanced.value > balanced.chance + ROUNDING
        if len(labels.unique()) == 1:
            return f"{text}, which cannot be compared with guessing: all validation images are of one class"
        if accuracy == 1 or (above_chance and balanced.value >= bound - ROUNDING):
            return text
        if weak_teacher == "accept":
            return f"{text}, no better than guessing: balanced accuracy {balanced.value:.1%}, bound {bound:.1%}"
        more_images = " More validation images lower the bound." if above_chance else ""
        raise InputError(
            f"The teacher in {self.folder} must have a balanced accuracy above {balanced.chance:.1%}, that of "
            f"guessing, and of at least {bound:.1%} on the {len(labels):,} validation images, got "
            f"{balanced.value:.1%} (accuracy {accuracy:.1%}). Check that the teacher was trained for long enough, on "
            f"similar images, give another --teacher, or add --weak-teacher accept.{more_images}"
        )


def find_teacher(name: str, data: str) -> Path:
    """Find the run folder of a trained teacher.

    Args:
        name: A run folder, a folder of ``camkd train``, or the name of a model. A model name stands for the run in its
            default folder under ``runs/``, or else for a shipped model. ``auto`` stands for the only teacher in the
            default folders of the dataset.
        data: Name or folder of the dataset, as in ``--data``.

    Returns:
        The folder of the trained model.

    Raises:
        InputError: If there is no such run. For a model name, the message contains the command that trains the model.
    """
    if name == AUTO:
        return _find_only_teacher(data)
    default = default_run_folder(data, "teacher", name)
    for folder in (Path(name), Path(name) / "teacher", default):
        if (folder / INFO_FILE).exists():
            return folder
    if is_model_name(name):
        raise InputError(
            f"--teacher must be a trained model, got {name!r}, which has no run for {data!r} in {default}. "
            f"Train the teacher with 'camkd teacher --data {data} --model {name}', "
            "or set --teacher to the folder of a trained model."
        )
    return find_model_folder(name)


def _find_only_teacher(data: str) -> Path:
    """Return the only trained teacher in the default folders of a dataset."""
    pattern = default_run_folder(data, "teacher", "*")
    folders = [folder for folder in sorted(pattern.parent.glob(pattern.name)) if (folder / INFO_FILE).exists()]
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise InputError(
            f"--teacher must be a trained model, got none, and there is no teacher for {data!r} in {pattern}. "
            f"Train a teacher with 'camkd teacher --data {data}', or set --teacher to the folder of a trained model."
        )
    raise InputError(
        f"--teacher must be one trained model, got none, and there are {len(folders)} teachers for {data!r}. "
        f"Set --teacher to one of {', '.join(map(str, folders))}."
    )


def check_default_teacher(name: str, folder: Path, data: str, source_fingerprint: str) -> None:
    """Check that a teacher that was found by the name of its model was trained on these images.

    The name of a default folder contains the name of the dataset only, so two datasets of the same name share a folder.
    A teacher that is given by its folder is not checked. For a built-in dataset, ``limit`` and ``train_limit`` may
    differ from those of the teacher.

    Args:
        name: The value of ``--teacher``.
        folder: The folder that `find_teacher` returned.
        data: Name or folder of the dataset, as in ``--data``.
        source_fingerprint: Source fingerprint of the dataset.

    Raises:
        InputError: If the teacher was trained on other images, or on a folder with other limits.
    """
    if name != AUTO and folder != default_run_folder(data, "teacher", name):
        return
    info = read_model_info(folder)
    if info.source_fingerprint != source_fingerprint and not (data in SOURCES and info.data == data):
        raise InputError(
            f"The teacher in {folder}, a default folder, must be trained on the images of {data!r}, got "
            f"other images ({info.data!r}), or another --limit or --train-limit. Set --teacher {folder} to use it "
            "anyway, or train another teacher."
        )


def choose_teacher(
    info: ModelInfo, source: str | Path, given: str | None, message: Callable[[str], None]
) -> Path | None:
    """Choose the teacher to compare a trained model with: a given teacher, else the teacher of the model's run.

    The teacher of the run is identified by the checksum of its weights. It may have moved together with the run.

    Args:
        info: Description of the model.
        source: The model, as `camkd.load` accepts it.
        given: The value of ``--teacher``, or None.
        message: Callback ``message(text)`` for a note that the teacher is left out or has other weights.

    Returns:
        The teacher's run folder. None if the model has no teacher, or if no folder contains the teacher's weights.

    Raises:
        InputError: If there is no ``given`` teacher, or it has other classes or another fit than the model.
    """
    run_folder = find_run_folder(source)
    checksum = Run(run_folder).provenance().get("teacher_weights") if run_folder else None
    if given is not None:
        return _check_given_teacher(info, source, given, checksum, message)
    if info.teacher is None or run_folder is None:
        return None
    folders = (*relocated(info.teacher, run_folder), run_folder.parent / "teacher", *shipped_models().values())
    teachers = [folder for folder in folders if (folder / INFO_FILE).exists()]
    for folder in teachers:
        if checksum is not None and _checksum(folder) == checksum:
            return folder
    if checksum is None:
        reason = f"the checksum of its weights is missing in {run_folder / 'environment.json'}"
    elif Path(info.teacher) in teachers:
        reason = f"{info.teacher} has other weights now"
    else:
        reason = f"{info.teacher} does not exist"
    message(f"the teacher of {str(source)!r} is left out: {reason}. Set --teacher to compare with a teacher")
    return None


def _check_given_teacher(
    info: ModelInfo, source: str | Path, given: str, checksum: str | None, message: Callable[[str], None]
) -> Path:
    """Find the given teacher and check that it fits the model. Send a message if the model had another teacher."""
    folder = find_teacher(given, info.data)
    check_default_teacher(given, folder, info.data, info.source_fingerprint)
    teacher_info = read_model_info(folder)
    if (teacher_info.classes, teacher_info.fit) != (info.classes, info.fit):
        raise InputError(
            f"--teacher must have the classes and the fit of the model, {format_names(info.classes)} and {info.fit}, "
            f"got {str(folder)!r} with {format_names(teacher_info.classes)} and {teacher_info.fit}. Choose another run."
        )
    if checksum is not None and teacher_info.sha256 != checksum:
        message(f"the teacher in {folder} has other weights than the teacher that {str(source)!r} was trained with")
    return folder


def _checksum(folder: Path) -> str | None:
    """Return the checksum of a model's weights. None if the model info is corrupt."""
    try:
        return read_model_info(folder).sha256
    except InputError:
        return None


def load_teacher(folder: Path, data: Dataset, device: str) -> Teacher:
    """Load and freeze a teacher, and check that its classes are those of the dataset.

    The teacher may have another image size than the dataset.

    Args:
        folder: The teacher's run folder.
        data: The dataset at the image size of the student.
        device: Device: auto, cpu, cuda, cuda:1 or mps.

    Returns:
        The teacher, without gradients.

    Raises:
        InputError: If the teacher's classes or fit differ from those of the dataset, or if the images do not exist at
            the size of the teacher.
    """
    info = read_model_info(folder)
    if info.classes != data.classes:
        raise InputError(
            f"The classes of the teacher in {folder} must be {format_names(data.classes)}, those of the dataset, got "
            f"{format_names(info.classes)}. Train a teacher on these images."
        )
    if info.size != data.size and data.open_at is None:
        raise InputError(
            f"The image size must be {info.size}, that of the teacher in {folder}, got {data.size}. Use images of this "
            "size, or a dataset of `camkd.data.open_data`."
        )
    if data.fit not in (None, info.fit):
        raise InputError(
            f"fit must be {info.fit}, that of the teacher in {folder}, got {data.fit}. Add --fit {info.fit}."
        )
    model = load(folder).requires_grad_(False).to(pick_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(model, folder, info.architecture, info.size, info.interpolation, data)


def format_names(names: tuple[str, ...]) -> str:
    """Format class names for a message.

    Args:
        names: Names of all classes.

    Returns:
        At most five of the names, and the number of all names.

    Example:
        >>> format_names(("cat", "dog"))
        'cat, dog (2)'
    """
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ({len(names)})"
