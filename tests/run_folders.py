"""Run folders as a finished training leaves them, written without training: for the tests of the report."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camkd.report.gallery import quantised

CLASSES = ["cat", "dog", "owl"]
PICTURES = 40
SHA = {role: f"{role:x<64}" for role in ("teacher", "control", "student")}


def confusion(right: float, n: int = 1000, k: int = 3) -> list[list[int]]:
    hits = round(right * n)
    return [[hits if r == c else (n - hits if c == (r + 1) % k else 0) for c in range(k)] for r in range(k)]


def measured(right: float, n: int = 1000, **more: Any) -> dict[str, Any]:
    return {"accuracy": round(right * n) / n, "confusion": confusion(right, n)} | more


def write_run(folder: Path, metrics: dict[str, Any], classes: list[str] = CLASSES, **model: Any) -> Path:
    (folder / "figures").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    said = {"classes": classes, "role": folder.name, "sha256": SHA.get(folder.name)} | model
    (folder / "model.json").write_text(json.dumps(said), encoding="utf-8")
    lines = [{"epoch": e, "val_accuracy": e / 10, "train_loss": 2 / e} for e in (1, 2, 3)]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"epoch": 4, "val_'
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text("lr: 0.1  # <b>bold</b>\n", encoding="utf-8")
    (folder / "environment.json").write_text('{"torch": "2.13.0", "cpu": {"cores": 2}}', encoding="utf-8")
    return folder


def write_tree(root: Path, student: float = 0.89, control: float = 0.85, classes: list[str] = CLASSES) -> Path:
    maps = {
        "cam_cosine": 0.83,
        "cam_cosine_shuffled": 0.41,
        "cam_cosine_centre": 0.52,
        "teacher_agreement": 0.9,
    }
    write_run(root / "teacher", measured(0.95, params=23_500_000, macs=1.3e9), classes, architecture="resnet50")
    write_run(root / "control", measured(control, params=271_098, macs=40.6e6, cam_cosine=0.62), classes)
    folder = write_run(root / "student", measured(student, params=271_098, macs=40.6e6, **maps), classes, data="pets")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "figures" / "cams.png")
    for epoch in (10, 2):
        Image.fromarray(np.full((4, 4, 3), epoch, np.uint8)).save(folder / "figures" / f"cams-epoch-{epoch}.png")
    return root


# --- galleries


def labels_of(number: int, classes: int = 3) -> dict[str, int]:
    """True class and answers of picture ``number``: the teacher errs on every fifth, the student on every fourth."""
    truth = number % classes
    wrong = (truth + 1) % classes
    return {
        "truth": truth,
        "teacher": wrong if number % 5 == 0 else truth,
        "student": wrong if number % 4 == 0 else truth,
        "control": wrong if number % 2 == 0 else truth,
    }


def likeness_of(number: int) -> float:
    """Different for every picture, in no order."""
    return (7 * number % PICTURES) / PICTURES


def confidence_of(number: int) -> float:
    return 0.5 + (11 * number % PICTURES) / 100


def maps_of(role: str, number: int, classes: int = 3) -> NDArray[np.float64]:
    """Raw maps ``(classes, h, w)``, those of the teacher coarser; each class has its own."""
    side = 4 if role == "teacher" else 8
    rng = np.random.default_rng([number, len(role)])
    return rng.normal(size=(classes, side, side))


def answer(role: str, number: int, classes: int = 3) -> dict[str, Any]:
    levels, scales = quantised(maps_of(role, number, classes))
    label = labels_of(number, classes)[role]
    shares = [
        confidence_of(number) if k == label else (1 - confidence_of(number)) / (classes - 1) for k in range(classes)
    ]
    told = {"label": label, "confidence": confidence_of(number), "shares": shares, "grid": list(levels.shape[1:])}
    told |= {"scales": scales.tolist(), "maps": base64.b64encode(levels.tobytes()).decode()}
    return told | ({} if role == "teacher" else {"likeness": likeness_of(number)})


def gallery(*roles: str, names: tuple[str, ...] = (), classes: int = 3, **changes: Any) -> dict[str, Any]:
    """What ``gallery.json`` of these models holds: ``PICTURES`` flat pictures of 8 pixels."""
    pictures = [
        {
            "row": number,
            "name": names[number % len(names)] if names else f"test/{number:02d}.png",
            "truth": labels_of(number, classes)["truth"],
            "image": picture(number),
            "shown": list(range(classes)),
            "answers": [answer(role, number, classes) for role in roles],
        }
        for number in range(PICTURES)
    ]
    models = [{"title": role, "sha256": SHA[role]} for role in roles]
    return {"version": 1, "open_model_data": "f" * 64, "models": models, "pictures": pictures} | changes


def picture(number: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 5 * number, np.uint8)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def hang(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "gallery.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
