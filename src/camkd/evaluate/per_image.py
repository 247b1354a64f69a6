"""What is known of each test picture, as a file; and the alarm: the teacher's answers without the teacher's reasons."""

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
    own: SplitPredictions, labels: Tensor, teacher: SplitPredictions | None, names: tuple[str, ...] | None
) -> dict[str, NDArray[Any]]:
    """One row a test picture, in the order of the split; each value is an array ``(N,)``.

    ``label``, ``predicted`` (classes, int32) and ``confidence`` (the predicted class's probability, float32); with a
    teacher ``teacher_predicted``, ``teacher_confidence``, and ``cam_cosine`` and ``cam_iou`` of the two maps of the
    class the teacher predicts (float32); ``name``, the file it came from, where the source has files.
    """
    confidence, predicted = own.logits.float().softmax(1).max(1)
    columns = {"label": labels.int(), "predicted": predicted.int(), "confidence": confidence}
    if teacher is not None:
        confidence, predicted = teacher.logits.float().softmax(1).max(1)
        maps = to_common_grid(own.maps, teacher.maps)
        columns |= {"teacher_predicted": predicted.int(), "teacher_confidence": confidence}
        columns |= {"cam_cosine": cosine(*maps).float(), "cam_iou": iou_top(*maps).float()}
    found: dict[str, NDArray[Any]] = {name: column.numpy() for name, column in columns.items()}
    return found if names is None else {**found, "name": np.array(names)}


def write_per_image(path: Path, pictures: Mapping[str, NDArray[Any]]) -> None:
    """Write `record` to ``path`` (``.npz``), compressed, whole or not at all; the same rows give the same bytes."""
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **pictures)


def read_per_image(path: Path) -> dict[str, NDArray[Any]]:
    """What `write_per_image` wrote; nothing is unpickled. Raises ``InputError`` where it is damaged."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # zip, deflate and numpy have one each for every way in which a file may be damaged
        raise InputError(
            f"{path} is damaged ({error}): delete metrics.json beside it and start the run again with --resume, which "
            "writes both anew without training."
        ) from error


def disagreeing_maps(pictures: Mapping[str, NDArray[Any]], level: float) -> NDArray[np.int64]:
    """The rows of `record` with the teacher's answer and a map no more like the teacher's than ``level``.

    Least alike first (``cam_cosine``), of equals the earlier picture.
    """
    alike = pictures["cam_cosine"]
    rows = np.flatnonzero((pictures["predicted"] == pictures["teacher_predicted"]) & (alike <= level))
    return rows[np.argsort(alike[rows], kind="stable")]
