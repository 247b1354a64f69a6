"""The gallery of a run: selected test images with the predictions and maps of several models, for the report.

``gallery.json`` holds the thumbnail and the true class of each image. For each image and model it holds the predicted
class, the confidence, probabilities and maps. A map is stored in 8 bits with one scale:
``map = scale * (level - 128) / 127``. `camkd.report.merge_galleries` reads the file without torch.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from camkd.cams import resize
from camkd.data.dataset import Dataset, Split
from camkd.evaluate import SplitPredictions
from camkd.evaluate.metrics import cosine, to_common_grid
from camkd.explain.explain import predict_images
from camkd.report.merge_galleries import VERSION
from camkd.types import InputError, Prediction
from camkd.utils.files import load_json, write_text

MAX_IMAGES = 240
"""Default number of images in a gallery."""

MAX_BYTES = 2_000_000
"""Size limit of ``gallery.json``."""

MAX_ALL_CLASSES = 20
"""Largest number of classes of a dataset for which the maps of all classes are stored."""

MAX_STORED_CLASSES = 10
"""Number of maps stored per image and model for datasets of more than `MAX_ALL_CLASSES` classes."""

THUMBNAIL_SIDE = 96
"""Largest side of a thumbnail in pixels."""

UNSCALED_SIDE = 64
"""Largest side in pixels of an image that is stored losslessly at its own size."""

MAX_GRID = 16
"""Largest number of cells per side of a stored map."""

BATCH_SIZE = 16
"""Number of images predicted at a time; small because the maps of all classes take more memory than the images."""


class GalleryModel(NamedTuple):
    """A model of a gallery.

    Attributes:
        model: The model.
        sha256: Checksum of its weights, which identifies the model across galleries.
        test: The test images at the image size of the model.
    """

    model: nn.Module
    sha256: str
    test: Split


def select_images(
    labels: Tensor, student: SplitPredictions, teacher: SplitPredictions | None = None, count: int = MAX_IMAGES
) -> list[int]:
    """Select test images for the gallery. Equal predictions and maps give equal selections.

    The images are taken in turn from the following groups; without a teacher, only groups 2 and 3 exist.

    1. Images on which student and teacher predict the same class, lowest CAM cosine first, at most ``count // 6``.
    2. Correct predictions: one image of each class from the most to the least frequent, then a second image, ...
    3. Wrong predictions: one image of each confusion from the most to the least frequent, then a second image, ...
    4. Images that the student predicts correctly and the teacher does not, at most ``count // 10``.

    Within a class or confusion, images are taken in the order of the test split.

    Args:
        labels: True classes ``(N,)``.
        student: Predictions of the evaluated model.
        teacher: Predictions of its teacher, or None.
        count: Largest number of images.

    Returns:
        At most ``count`` distinct rows of the test split.

    Example:
        >>> rows = select_images(labels, student, teacher)                                   # doctest: +SKIP
    """
    predicted = student.logits.argmax(1)
    correct = predicted == labels
    queues = [_round_robin_by_cell(labels, predicted, correct), _round_robin_by_cell(labels, predicted, ~correct)]
    if teacher is not None:
        teacher_predicted = teacher.logits.argmax(1)
        agreeing = torch.nonzero(predicted == teacher_predicted).flatten()
        similarity = cosine(*to_common_grid(student.maps[agreeing], teacher.maps[agreeing]))
        queues.insert(0, agreeing[similarity.argsort(stable=True)][: count // 6].tolist())
        queues.append(torch.nonzero(correct & (teacher_predicted != labels)).flatten()[: count // 10].tolist())
    rows = dict.fromkeys(row for row in chain(*zip_longest(*queues)) if row is not None)
    return list(rows)[:count]


def write_gallery(path: Path, data: Dataset, models: Mapping[str, GalleryModel], rows: Sequence[int]) -> None:
    """Predict the selected test images with every model and write ``gallery.json`` atomically.

    Args:
        path: The file to write.
        data: The dataset, for the thumbnails.
        models: Models by title. A model titled ``teacher`` must be the first. The file then holds the CAM cosine of
            the teacher's map and the map of every other model, for the class that the teacher predicts.
        rows: Rows of the test split. The last images are left out if the file would exceed `MAX_BYTES`.
    """
    content: dict[str, Any] = {
        "version": VERSION,
        "source_fingerprint": data.labeled.source_fingerprint,
        "models": [{"title": title, "sha256": entry.sha256} for title, entry in models.items()],
        "images": [],
    }
    remaining = MAX_BYTES - len(json.dumps(content))
    for record in _image_records(data, models, rows):
        remaining -= len(json.dumps(record)) + 2
        if remaining < 0:
            break
        content["images"].append(record)
    write_text(path, json.dumps(content, allow_nan=False) + "\n")


def gallery_rows(path: Path) -> list[int]:
    """Read the rows of the test split from a gallery file.

    Args:
        path: The file ``gallery.json``.

    Returns:
        Rows of the test split, empty if the file does not exist.

    Raises:
        InputError: If the file is corrupt.
    """
    if not path.exists():
        return []
    try:
        return [int(record["row"]) for record in load_json(path.read_text(encoding="utf-8"))["images"]]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path} must be a gallery, got a corrupt file ({error}). Delete metrics.json beside it and start the run "
            "again with --resume; both files are then rewritten without training."
        ) from error


def _round_robin_by_cell(labels: Tensor, predicted: Tensor, mask: Tensor) -> list[int]:
    """Order the rows where ``mask`` is true: one per confusion matrix cell, largest cell first, then a second, ..."""
    cells: dict[tuple[int, int], list[int]] = {}
    for row in torch.nonzero(mask).flatten().tolist():
        cells.setdefault((int(labels[row]), int(predicted[row])), []).append(row)
    largest_first = [cells[cell] for cell in sorted(cells, key=lambda cell: (-len(cells[cell]), cell))]
    return [row for turn in zip_longest(*largest_first) for row in turn if row is not None]


def _image_records(data: Dataset, models: Mapping[str, GalleryModel], rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        by_model = [_predict_each(entry.model, entry.test.images[batch]) for entry in models.values()]
        for row, predictions in zip(batch, zip(*by_model, strict=True), strict=True):
            yield _image_record(data, row, predictions, has_teacher="teacher" in models)


def _predict_each(model: nn.Module, images: NDArray[np.uint8]) -> list[Prediction]:
    """Predict each image: ``logits (K,)`` and ``cams (K, h, w)`` of at most `MAX_GRID` cells per side."""
    prediction = predict_images(model, images).float()
    assert prediction.cams is not None
    height, width = prediction.cams.shape[2:]
    maps = resize(prediction.cams, (min(MAX_GRID, height), min(MAX_GRID, width)))
    return [Prediction(*pair) for pair in zip(prediction.logits, maps, strict=True)]


def _image_record(data: Dataset, row: int, predictions: Sequence[Prediction], has_teacher: bool) -> dict[str, Any]:
    predicted = [int(prediction.logits.argmax()) for prediction in predictions]
    label = int(data.test.labels[row])
    class_ids = _stored_classes([label, *predicted], predictions[0].logits)
    records = [_prediction_record(*pair, class_ids) for pair in zip(predictions, predicted, strict=True)]
    if has_teacher:
        maps = [prediction.cams[predicted[0]][None] for prediction in predictions if prediction.cams is not None]
        for record, model_map in zip(records[1:], maps[1:], strict=True):
            record["cam_cosine"] = _round_significant(float(cosine(*to_common_grid(model_map, maps[0]))))
    return {
        "row": row,
        "name": data.test.names[row] if data.test.names else None,
        "label": label,
        "thumbnail": _thumbnail(data.test.images[row]),
        "class_ids": class_ids,
        "predictions": records,
    }


def _stored_classes(required: Iterable[int], logits: Tensor) -> list[int]:
    """Return the classes with stored maps: all classes, or the required classes and then the most probable classes."""
    if len(logits) <= MAX_ALL_CLASSES:
        return list(range(len(logits)))
    most_probable = logits.topk(MAX_STORED_CLASSES).indices.tolist()
    return list(dict.fromkeys([*required, *most_probable]))[:MAX_STORED_CLASSES]


def _prediction_record(prediction: Prediction, predicted: int, class_ids: list[int]) -> dict[str, Any]:
    probabilities = prediction.logits.softmax(0)
    assert prediction.cams is not None
    levels, scales = quantize_maps(prediction.cams[class_ids].numpy())
    return {
        "predicted": predicted,
        "confidence": _round_significant(float(probabilities[predicted])),
        "probabilities": [_round_significant(value) for value in probabilities[class_ids].tolist()],
        "grid": list(levels.shape[1:]),
        "scales": [_round_significant(scale) for scale in scales.tolist()],
        "maps": base64.b64encode(levels.tobytes()).decode(),
    }


def quantize_maps(maps: NDArray[np.floating[Any]]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Quantize maps to 8 bits, with an error of at most half a level, ``scale / 254``.

    Args:
        maps: Maps ``(k, h, w)``; values that are not finite count as zero.

    Returns:
        Levels ``(k, h, w)`` from 1 to 255 with zero at 128, and scales ``(k,)``, the largest magnitude of each map.

    Example:
        >>> levels, scales = quantize_maps(np.array([[[-2.0, 0.0, 1.0]]]))
        >>> levels.tolist(), scales.tolist()
        ([[[1, 128, 192]]], [2.0])
    """
    values = np.nan_to_num(np.asarray(maps, np.float64), posinf=0, neginf=0)
    scales = np.abs(values).max((1, 2))
    shares = values / np.where(scales > 0, scales, 1)[:, None, None]
    return (np.floor(127 * shares + 0.5) + 128).astype(np.uint8), scales


def _thumbnail(pixels: NDArray[np.uint8]) -> str:
    """Return an image as data URI: PNG up to `UNSCALED_SIDE` pixels, else JPEG of at most `THUMBNAIL_SIDE` pixels."""
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    if max(image.size) <= UNSCALED_SIDE:
        image.save(stream, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        image.save(stream, "JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _round_significant(number: float) -> float:
    return float(f"{number:.4g}")
