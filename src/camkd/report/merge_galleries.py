"""Merge the galleries of several runs into one gallery for the report: each image with the predictions of all runs.

The ``gallery.json`` files of `camkd.report.gallery` are validated, because a run folder may be of unknown origin.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from camkd.report.run_summary import RunSummary
from camkd.utils.plot_style import DIFFERENCE_COLORMAP, EVIDENCE_COLORMAP, color_table
from camkd.utils.units import finite_number

VERSION = 3
"""Format version of ``gallery.json``. A file with another version is not shown. Increment when the format changes."""

MAX_BYTES = 2_300_000
"""Size limit of all thumbnails, maps and predictions in a page."""

_IMAGE_URI = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")

ImageRecord = dict[str, Any]


def merge_galleries(runs: Sequence[RunSummary], main: RunSummary) -> dict[str, Any] | None:
    """Merge the galleries of ``runs`` into the data of the page's script.

    Models are matched across galleries by the checksum of their weights, so an image shows the prediction of a run if
    any gallery holds the prediction. The first gallery is that of ``main``, or else of the first run with a valid
    gallery. If the teacher of the first gallery is not among ``runs``, the teacher gets a column of its own. Galleries
    with other classes than ``main``, or of another dataset than the first gallery, are left out. The last images are
    left out if all images exceed `MAX_BYTES`.

    Args:
        runs: The runs of the report.
        main: The run with the confusion matrix of the report.

    Returns:
        The classes, columns of models, images with predictions and maps, confusion matrix and colormaps. None if no run
        with the classes of ``main`` has a valid gallery.
    """
    main_first = sorted(runs, key=lambda run: run is not main)
    galleries = [gallery for run in main_first if run.classes == main.classes and (gallery := _validate_gallery(run))]
    galleries = [
        gallery for gallery in galleries if gallery["source_fingerprint"] == galleries[0]["source_fingerprint"]
    ]
    if not galleries:
        return None
    columns = _columns(runs, galleries[0])
    teachers = [index for index, column in enumerate(columns) if column["role"] == "teacher"]
    others = [index for index in range(len(columns)) if index not in teachers]
    main_columns = [index for index in others if columns[index]["sha256"] == main.model_info.get("sha256")]
    images = _merge_images(columns, teachers, galleries)
    return {
        "classes": main.classes,
        "columns": [{"name": column["name"], "role": column["role"]} for column in columns],
        "teacher": teachers[0] if teachers else None,
        "main": (main_columns or others or teachers)[0],
        "images": list(_limit_bytes(images, MAX_BYTES)),
        "confusion": main.confusion_cells(),
        "colormaps": {
            "evidence": color_table(EVIDENCE_COLORMAP).tolist(),
            "difference": color_table(DIFFERENCE_COLORMAP).tolist(),
        },
    }


def _columns(runs: Sequence[RunSummary], gallery: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the teachers of ``gallery`` that are not among the runs, then one column per run."""
    columns = [{"name": run.name, "role": run.role, "sha256": run.model_info.get("sha256")} for run in runs]
    checksums = {column["sha256"] for column in columns}
    teachers = [model for model in gallery["models"] if model["title"] == "teacher"]
    extra = [model["sha256"] for model in teachers if model["sha256"] not in checksums]
    return [{"name": "teacher", "role": "teacher", "sha256": checksum} for checksum in extra] + columns


def _merge_images(
    columns: list[dict[str, Any]], teachers: list[int], galleries: Sequence[Mapping[str, Any]]
) -> Iterator[ImageRecord]:
    """Yield every image once, the images of the first gallery first, with a prediction or None for each column."""
    records_by_row: dict[int, list[tuple[Mapping[str, Any], ImageRecord]]] = {}
    for gallery in galleries:
        for record in gallery["images"]:
            records_by_row.setdefault(record["row"], []).append((gallery, record))
    teacher_checksum = columns[teachers[0]]["sha256"] if teachers else None
    for records in records_by_row.values():
        predictions: dict[str, Any] = {}
        for gallery, record in records:
            same_teacher = gallery["models"][0]["sha256"] == teacher_checksum
            for model, prediction in zip(gallery["models"], record["predictions"], strict=True):
                cam_cosine = prediction["cam_cosine"] if same_teacher else None
                merged = {**prediction, "class_ids": record["class_ids"], "cam_cosine": cam_cosine}
                predictions.setdefault(model["sha256"], merged)
        _, first_record = records[0]
        shared = {key: first_record[key] for key in ("name", "label", "thumbnail")}
        yield {**shared, "predictions": [predictions.get(column["sha256"]) for column in columns]}


def _limit_bytes(images: Iterator[ImageRecord], max_bytes: int) -> Iterator[ImageRecord]:
    """Yield images while their JSON fits in ``max_bytes``."""
    remaining = max_bytes
    for image in images:
        remaining -= len(json.dumps(image))
        if remaining < 0:
            return
        yield image


# --- validation


def _validate_gallery(run: RunSummary) -> dict[str, Any] | None:
    """Return the gallery of ``run``, or None if it is invalid or has no image."""
    try:
        gallery = run.gallery
        models = [{key: _validate_text(model[key]) for key in ("title", "sha256")} for model in gallery["models"]]
        images = [_validate_image(record, len(models), len(run.classes)) for record in gallery["images"]]
        if gallery["version"] != VERSION or not models or not images:
            return None
        return {"models": models, "images": images, "source_fingerprint": gallery["source_fingerprint"]}
    except (KeyError, TypeError, ValueError, OverflowError):  # OverflowError: an integer of infinity
        return None


def _validate_image(record: Mapping[str, Any], num_models: int, num_classes: int) -> ImageRecord:
    class_ids = [_validate_class(class_id, num_classes) for class_id in record["class_ids"]]
    predictions = [_validate_prediction(prediction, class_ids, num_classes) for prediction in record["predictions"]]
    if len(predictions) != num_models:
        raise ValueError(f"predictions must have one entry per model ({num_models}), got {len(predictions)}.")
    if not _IMAGE_URI.fullmatch(record["thumbnail"]):
        raise ValueError(f"thumbnail must be a data URI of an image, got {record['thumbnail'][:40]!r}.")
    name = record.get("name")
    return {
        "row": int(record["row"]),
        "name": None if name is None else _validate_text(name),
        "label": _validate_class(record["label"], num_classes),
        "thumbnail": record["thumbnail"],
        "class_ids": class_ids,
        "predictions": predictions,
    }


def _validate_prediction(prediction: Mapping[str, Any], class_ids: list[int], num_classes: int) -> dict[str, Any]:
    height, width = (int(side) for side in prediction["grid"])
    probabilities = [_validate_number(value) for value in prediction["probabilities"]]
    scales = [_validate_number(value) for value in prediction["scales"]]
    levels = base64.b64decode(prediction["maps"], validate=True)
    if not len(class_ids) == len(probabilities) == len(scales):
        raise ValueError(
            f"probabilities and scales must have {len(class_ids)} numbers, one per class, got {len(probabilities)} and "
            f"{len(scales)}."
        )
    if len(levels) != len(class_ids) * height * width:
        raise ValueError(f"maps must have {height} x {width} bytes per class, got {len(levels)} bytes.")
    cam_cosine = prediction.get("cam_cosine")
    return {
        "predicted": _validate_class(prediction["predicted"], num_classes),
        "confidence": _validate_number(prediction["confidence"]),
        "cam_cosine": None if cam_cosine is None else _validate_number(cam_cosine),
        "grid": [height, width],
        "maps": prediction["maps"],
        "probabilities": probabilities,
        "scales": scales,
    }


def _validate_number(value: Any) -> float:
    number = finite_number(value)
    if number is None:
        raise ValueError(f"value must be a finite number, got {value!r}.")
    return number


def _validate_class(class_id: Any, num_classes: int) -> int:
    if not isinstance(class_id, int) or not 0 <= class_id < num_classes:
        raise ValueError(f"class must be an index below {num_classes}, got {class_id!r}.")
    return class_id


def _validate_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"value must be text, got {value!r}.")
    return value
