"""Per-image record of an evaluation: computation, storage, and search for maps that disagree with the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from camkd.evaluate.inference import SplitPredictions
from camkd.evaluate.metrics import cosine, iou_top, to_common_grid
from camkd.types import InputError
from camkd.utils.files import atomic_write


def per_image_record(
    predictions: SplitPredictions, labels: Tensor, teacher: SplitPredictions | None, names: tuple[str, ...] | None
) -> dict[str, NDArray[Any]]:
    """Tabulate predictions, one row per image in the order of the split.

    Args:
        predictions: Predictions of the model for ``N`` images.
        labels: True classes ``(N,)``.
        teacher: Predictions of the teacher, with maps of the same classes, or None.
        names: File name of each image, or None if the images do not come from files.

    Returns:
        Arrays ``(N,)`` by the name of the column.

        - ``label``: true class, int32.
        - ``predicted``: class that the model predicts, int32.
        - ``confidence``: probability of the predicted class, float32.
        - ``teacher_predicted``, ``teacher_confidence``: prediction and confidence of the teacher, if given.
        - ``cam_cosine``, ``cam_iou``: similarity of the model's and the teacher's map, float32, if a teacher is given.
        - ``name``: file name, if given.
    """
    confidence, predicted = predictions.logits.float().softmax(1).max(1)
    columns = {"label": labels.int(), "predicted": predicted.int(), "confidence": confidence}
    if teacher is not None:
        teacher_confidence, teacher_predicted = teacher.logits.float().softmax(1).max(1)
        student_maps, teacher_maps = to_common_grid(predictions.maps, teacher.maps)
        columns |= {
            "teacher_predicted": teacher_predicted.int(),
            "teacher_confidence": teacher_confidence,
            "cam_cosine": cosine(student_maps, teacher_maps).float(),
            "cam_iou": iou_top(student_maps, teacher_maps).float(),
        }
    record: dict[str, NDArray[Any]] = {name: column.numpy() for name, column in columns.items()}
    if names is not None:
        record["name"] = np.array(names)
    return record


def write_per_image(path: Path, per_image: Mapping[str, NDArray[Any]]) -> None:
    """Write a `per_image_record` to a compressed ``.npz`` file, atomically. Equal records give equal bytes.

    Args:
        path: The file to write.
        per_image: Arrays by column.

    Raises:
        ValueError: If an array holds Python objects, which would need pickle.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **per_image)


def read_per_image(path: Path) -> dict[str, NDArray[Any]]:
    """Read a file written by `write_per_image`, without unpickling.

    Args:
        path: The file to read.

    Returns:
        Arrays by column.

    Raises:
        InputError: If the file is missing or damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # zipfile, zlib and NumPy each raise their own exceptions for a damaged file
        raise InputError(
            f"{path} must be a readable .npz file, got a damaged file ({error}). Delete metrics.json beside it and "
            "start the run again with --resume; both files are then rewritten without training."
        ) from error


def disagreeing_maps(per_image: Mapping[str, NDArray[Any]], level: float) -> NDArray[np.int64]:
    """Find images with the teacher's prediction and a map that is no more similar to the teacher's map than chance.

    Args:
        per_image: A `per_image_record` with a teacher.
        level: Chance level of ``cam_cosine``, for example from `camkd.evaluate.chance_level`.

    Returns:
        Rows with equal predictions and ``cam_cosine <= level``, int64 ``(n,)``, in ascending order of ``cam_cosine``.
        Rows of equal ``cam_cosine`` are in ascending order.

    Example:
        >>> per_image = {"predicted": np.array([0, 1]), "teacher_predicted": np.array([0, 1])}
        >>> disagreeing_maps({**per_image, "cam_cosine": np.array([0.9, 0.2])}, level=0.5).tolist()
        [1]
    """
    similarity = per_image["cam_cosine"]
    rows = np.flatnonzero((per_image["predicted"] == per_image["teacher_predicted"]) & (similarity <= level))
    return rows[np.argsort(similarity[rows], kind="stable")]
