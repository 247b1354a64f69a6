"""Per-image record of an evaluation, and the maps in it that disagree with the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from camkd.evaluate.inference import SplitPredictions
from camkd.evaluate.metrics import cosine, derangement, image_independent_maps, iou_top, to_common_grid
from camkd.types import CHANCE_LEVELS, SHUFFLED


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
        - ``cam_cosine_center``, ``cam_cosine_mean_map``, ``cam_cosine_shuffled``: cosine similarity of the teacher's
          map and a map that does not depend on the image, float32, if a teacher is given. The maps are those of
          `image_independent_maps`, and the model's map of another image, chosen by `derangement`. For a single image,
          only ``cam_cosine_center`` exists.
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
        baselines = image_independent_maps(teacher_maps, teacher.class_ids)
        if len(labels) > 1:
            baselines[SHUFFLED] = student_maps[derangement(len(labels))]
        for level, baseline in baselines.items():
            columns[level.key("cam_cosine")] = cosine(baseline, teacher_maps).float()
    record: dict[str, NDArray[Any]] = {name: column.numpy() for name, column in columns.items()}
    if names is not None:
        record["name"] = np.array(names)
    return record


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


def disagreement(per_image: Mapping[str, NDArray[Any]], level: float) -> dict[str, float]:
    """Compute the share of `disagreeing_maps` among the images with the teacher's prediction, and its chance levels.

    Args:
        per_image: A `per_image_record` with a teacher.
        level: Chance level of ``cam_cosine``, for example from `camkd.evaluate.chance_level`.

    Returns:
        ``cam_disagreement``; and ``cam_disagreement_center``, ``cam_disagreement_mean_map`` and
        ``cam_disagreement_shuffled``, the share if the maps of the chance level take the place of the model's maps.
        Empty if no image has the teacher's prediction.

    Example:
        >>> per_image = {"predicted": np.array([0, 1]), "teacher_predicted": np.array([0, 1])}
        >>> per_image |= {"cam_cosine": np.array([0.9, 0.2]), "cam_cosine_shuffled": np.array([0.4, 0.3])}
        >>> disagreement(per_image, level=0.5)
        {'cam_disagreement': 0.5, 'cam_disagreement_shuffled': 1.0}
    """
    agree = per_image["predicted"] == per_image["teacher_predicted"]
    if not agree.any():
        return {}
    columns = {"cam_disagreement": "cam_cosine"}
    columns |= {chance.key("cam_disagreement"): chance.key("cam_cosine") for chance in CHANCE_LEVELS}
    return {
        name: float((per_image[column][agree] <= level).mean())
        for name, column in columns.items()
        if column in per_image
    }
