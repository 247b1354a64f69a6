"""Find, load and check trained teachers."""

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
from camkd.runs.loading import find_model_folder, load, read_model_info
from camkd.types import InputError
from camkd.utils.devices import pick_device


class TeacherTargets(NamedTuple):
    """A teacher's predictions for ``N`` validation images, with which the student's predictions are compared.

    Attributes:
        class_ids: Predicted classes, ``(N,)``.
        maps: Class activation maps of these classes, ``(N, h, w)``.
    """

    class_ids: Tensor
    maps: Tensor


@dataclass(frozen=True)
class Teacher:
    """A trained, frozen network to distill from, with the splits it is evaluated on.

    Args:
        model: The network in evaluation mode, without gradients.
        folder: Run folder of the teacher.
        val: Validation split of the dataset.
        test: Test split of the dataset.
    """

    model: nn.Module
    folder: Path
    val: Split
    test: Split

    @cached_property
    def val_targets(self) -> TeacherTargets:
        """Targets on the validation images, computed on first use."""
        predictions = predict_split(self.model, self.val)
        return TeacherTargets(predictions.class_ids, predictions.maps)

    @cached_property
    def test_predictions(self) -> SplitPredictions:
        """Predictions on the test images, computed on first use."""
        return predict_split(self.model, self.test)

    def check_accuracy(self) -> float:
        """Check that the teacher is better than always predicting the most frequent class.

        A teacher whose weights, normalization or class order do not fit these images fails the check. The lower bound
        of the accuracy is the share of the most frequent class plus two standard errors of this share. The bound is at
        most 1, so a teacher without errors passes.

        Returns:
            The validation accuracy in 0..1.

        Raises:
            InputError: If the validation accuracy is below the bound.
        """
        labels = torch.from_numpy(np.array(self.val.labels))
        accuracy = float((self.val_targets.class_ids == labels).double().mean())
        chance = float(labels.bincount().max()) / len(labels)
        bound = min(1.0, chance + 2 * math.sqrt(chance * (1 - chance) / len(labels)))
        if accuracy < bound:
            more_images = " More validation images lower the bound." if accuracy > chance else ""
            raise InputError(
                f"The teacher in {self.folder} must predict at least {bound:.1%} of the {len(labels):,} validation "
                f"images correctly, got {accuracy:.1%}. The most frequent class alone gives {chance:.1%}. Check that "
                f"the teacher was trained for long enough, on similar images, or give another --teacher.{more_images}"
            )
        return accuracy


def find_teacher(name: str, data: str) -> Path:
    """Find the run folder of a trained teacher.

    Args:
        name: A run folder, a folder of ``camkd train``, or the name of a model. A model name stands for the run in its
            default folder under ``runs/``, or else for a shipped model.
        data: Name or folder of the dataset, as in ``--data``.

    Returns:
        The folder of the trained model.

    Raises:
        InputError: If there is no such run. For a model name, the message contains the command that trains the model.
    """
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


def load_teacher(folder: Path, data: Dataset, device: str) -> Teacher:
    """Load and freeze a teacher, and check that its classes and image size fit the dataset.

    Args:
        folder: The teacher's run folder.
        data: The dataset.
        device: Device: auto, cpu, cuda, cuda:1 or mps.

    Returns:
        The teacher, without gradients.

    Raises:
        InputError: If the teacher's classes or image size differ from those of the dataset.
    """
    info = read_model_info(folder)
    size = data.train.images.shape[1]
    if info.classes != data.classes:
        raise InputError(
            f"The classes of the teacher in {folder} must be {format_names(data.classes)}, those of the dataset, got "
            f"{format_names(info.classes)}. Train a teacher on these images."
        )
    if info.size != size:
        raise InputError(
            f"The image size must be {info.size}, that of the teacher in {folder}, got {size}. Add --size {info.size}."
        )
    model = load(folder).requires_grad_(False).to(pick_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(model, folder, data.val, data.test)


def format_names(names: tuple[str, ...]) -> str:
    """Format class names: at most five of the names, and the number of all names.

    Example:
        >>> format_names(("cat", "dog"))
        'cat, dog (2)'
    """
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ({len(names)})"
