"""Run folders as a finished training leaves them, written without training, for the tests of the report."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camkd.report.gallery import quantize_maps
from camkd.runs.per_image import write_per_image

CLASSES = ["cat", "dog", "owl"]
NUM_IMAGES = 40
CHECKSUMS = {role: f"{role:x<64}" for role in ("teacher", "control", "student")}


def confusion_counts(accuracy: float, per_class: int = 1000, classes: int = 3) -> list[list[int]]:
    """Return a confusion matrix in which all errors of a class go to the next class."""
    correct = round(accuracy * per_class)
    table = np.diag([correct] * classes) + np.roll(np.diag([per_class - correct] * classes), 1, axis=1)
    return table.tolist()  # type: ignore[no-any-return]


def metrics_content(accuracy: float, per_class: int = 1000, **extra: Any) -> dict[str, Any]:
    """Return accuracy, confusion matrix and ``extra`` as in ``metrics.json``."""
    return {
        "accuracy": round(accuracy * per_class) / per_class,
        "confusion": confusion_counts(accuracy, per_class),
    } | extra


def per_image_content(accuracy: float, per_class: int = 1000, **columns: float) -> dict[str, NDArray[Any]]:
    """Return the columns of ``per_image.npz`` that belong to `metrics_content`.

    The first images of a class are predicted correctly. Every value of ``columns`` is the mean of a column whose values
    alternate around it by 0.1.
    """
    label = np.repeat(np.arange(3, dtype=np.int32), per_class)
    correct = np.tile(np.arange(per_class) < round(accuracy * per_class), 3)
    alternating = np.where(np.arange(3 * per_class) % 2, 0.1, -0.1)
    return {
        "label": label,
        "predicted": np.where(correct, label, (label + 1) % 3),
        "teacher_predicted": label,
        **{name: np.float32(mean + alternating) for name, mean in columns.items()},
    }


def write_run(folder: Path, metrics: dict[str, Any], classes: list[str] = CLASSES, **model_info: Any) -> Path:
    """Write the files of a run folder without figures and gallery; the last line of the history is incomplete."""
    (folder / "figures").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    info = {"classes": classes, "role": folder.name, "sha256": CHECKSUMS.get(folder.name)} | model_info
    (folder / "model.json").write_text(json.dumps(info), encoding="utf-8")
    rows = [{"epoch": epoch, "val_accuracy": epoch / 10, "train_loss": 2 / epoch} for epoch in (1, 2, 3)]
    text = "\n".join(json.dumps(row) for row in rows) + '\n{"epoch": 4, "val_'
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text("lr: 0.1  # <b>bold</b>\n", encoding="utf-8")
    (folder / "environment.json").write_text('{"torch": "2.13.0", "cpu": {"cores": 2}}', encoding="utf-8")
    return folder


def write_train_folder(root: Path, student: float = 0.89, control: float = 0.85, classes: list[str] = CLASSES) -> Path:
    """Write a folder of ``camkd train`` with a teacher, a control and a student of these accuracies."""
    maps = {
        "cam_cosine": 0.83,
        "cam_cosine_mean_map": 0.41,
        "cam_cosine_center": 0.52,
        "teacher_agreement": 0.9,
    }
    cost = {"params": 271_098, "macs": 40.6e6}
    teacher_metrics = metrics_content(0.95, params=23_500_000, macs=1.3e9)
    write_run(root / "teacher", teacher_metrics, classes, architecture="resnet50")
    write_run(root / "control", metrics_content(control, **cost, cam_cosine=0.62), classes)
    folder = write_run(root / "student", metrics_content(student, **cost, **maps), classes, data="pets")
    write_per_image(root / "control" / "per_image.npz", per_image_content(control, cam_cosine=0.62))
    cosines = {name: mean for name, mean in maps.items() if name.startswith("cam_cosine")}
    write_per_image(folder / "per_image.npz", per_image_content(student, **cosines))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "figures" / "cams.png")
    for epoch in (10, 2):
        Image.fromarray(np.full((4, 4, 3), epoch, np.uint8)).save(folder / "figures" / f"cams-epoch-{epoch}.png")
    return root


# --- galleries


def labels_of(number: int, classes: int = 3) -> dict[str, int]:
    """Return the true class of image ``number`` under ``label``, and the predicted class of every role.

    The teacher is wrong on every fifth image, the student on every fourth, the control on every second.
    """
    label = number % classes
    wrong = (label + 1) % classes
    return {
        "label": label,
        "teacher": wrong if number % 5 == 0 else label,
        "student": wrong if number % 4 == 0 else label,
        "control": wrong if number % 2 == 0 else label,
    }


def cam_cosine_of(number: int) -> float:
    """Return a value that is different for every image, in no order."""
    return (7 * number % NUM_IMAGES) / NUM_IMAGES


def confidence_of(number: int) -> float:
    return 0.5 + (11 * number % NUM_IMAGES) / 100


def maps_of(role: str, number: int, classes: int = 3) -> NDArray[np.float64]:
    """Return different raw maps ``(classes, h, w)`` for every role and image; the teacher's have fewer cells."""
    side = 4 if role == "teacher" else 8
    rng = np.random.default_rng([number, len(role)])
    return rng.normal(size=(classes, side, side))


def prediction_content(role: str, number: int, classes: int = 3) -> dict[str, Any]:
    levels, scales = quantize_maps(maps_of(role, number, classes))
    predicted = labels_of(number, classes)[role]
    confidence = confidence_of(number)
    probabilities = [confidence if k == predicted else (1 - confidence) / (classes - 1) for k in range(classes)]
    content = {
        "predicted": predicted,
        "confidence": confidence,
        "probabilities": probabilities,
        "grid": list(levels.shape[1:]),
        "scales": scales.tolist(),
        "maps": base64.b64encode(levels.tobytes()).decode(),
    }
    return content | ({} if role == "teacher" else {"cam_cosine": cam_cosine_of(number)})


def gallery_content(*roles: str, names: tuple[str, ...] = (), classes: int = 3, **changes: Any) -> dict[str, Any]:
    """Return the content of ``gallery.json`` for these models: `NUM_IMAGES` images of 8 pixels and one gray level."""
    images = [
        {
            "row": number,
            "name": names[number % len(names)] if names else f"test/{number:02d}.png",
            "label": labels_of(number, classes)["label"],
            "thumbnail": thumbnail(number),
            "class_ids": list(range(classes)),
            "predictions": [prediction_content(role, number, classes) for role in roles],
        }
        for number in range(NUM_IMAGES)
    ]
    models = [{"title": role, "sha256": CHECKSUMS[role]} for role in roles]
    return {"version": 3, "source_fingerprint": "f" * 64, "models": models, "images": images} | changes


def thumbnail(number: int) -> str:
    """Return a data URI of an image with the gray level ``5 * number``."""
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 5 * number, np.uint8)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def write_gallery_json(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "gallery.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
