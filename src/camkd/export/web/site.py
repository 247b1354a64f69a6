"""Web page of a model as a folder of static files: no build step, and no files from other servers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camkd.data.dataset import Dataset
from camkd.explain.explain import example_rows, predict_images
from camkd.export.web.runtime import FILES, PACKAGE
from camkd.models.card import title
from camkd.runs.folder import Run
from camkd.runs.loading import find_model_folder, load, read_model_info
from camkd.types import InputError
from camkd.utils.files import load_json, write_json, write_text
from camkd.utils.plot_style import EVIDENCE_COLORMAP, color_table

CONFIG_FILE, MODEL_FILE, SERVICE_WORKER = "page.json", "model.onnx", "offline.js"

NUM_EXAMPLES = 8
"""Number of test images on the page."""

NUM_TEACHER_MAPS = 10
"""Number of the teacher's maps per example, for the classes with the highest probabilities."""


def check_folder(folder: Path) -> None:
    """Raise ``InputError`` if ``folder`` is a file or holds files other than a page."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONFIG_FILE).exists())):
        raise InputError(f"--web must be a new folder or a page of camkd, got {str(folder)!r}. Choose a new folder.")


def build(
    folder: Path, model: Path, source: str, teacher: Path | None, dataset: Dataset, runtime: Sequence[Path]
) -> None:
    """Write the page of a model.

    Args:
        folder: An empty folder.
        model: The exported file.
        source: The run, or the name of the shipped model, that the file was exported from.
        teacher: Run of the teacher, whose maps of the examples are part of the page. None: no teacher maps.
        dataset: Dataset of the model. The examples are test images.
        runtime: Files of onnxruntime-web.
    """
    runtime_folder = f"runtime/{PACKAGE.partition('@')[2]}"
    (folder / MODEL_FILE).write_bytes(model.read_bytes())
    (folder / runtime_folder).mkdir(parents=True)
    for path in runtime:
        (folder / runtime_folder / path.name).write_bytes(path.read_bytes())
    for static_file in (resources.files("camkd.export.web") / "static").iterdir():
        (folder / static_file.name).write_bytes(static_file.read_bytes())
    config = {
        **_page_config(source, model),
        "runtime": runtime_folder,
        "examples": _write_examples(folder, teacher, dataset),
    }
    version = _content_digest(folder, config)
    write_json(folder / CONFIG_FILE, {**config, "version": version})
    _complete_service_worker(folder, version)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the description of a page, ``page.json``.

    Args:
        folder: Folder of the page.

    Raises:
        InputError: If the folder holds no page.
    """
    try:
        config = load_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not {"classes", "runtime", "examples"} <= config.keys():
            raise ValueError("entries are missing")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} must be a page of camkd, got none. Write one with 'camkd export RUN --web {folder}'."
        ) from error
    return config


def page_files(folder: Path) -> list[str]:
    """Return the files of a page, relative to its folder. Other files in the folder are left out.

    Args:
        folder: Folder of the page.

    Raises:
        InputError: If the folder holds no page, or a file of the page is missing.
    """
    config = read_config(folder)
    static_files = sorted(file.name for file in (resources.files("camkd.export.web") / "static").iterdir())
    runtime = [f"{config['runtime']}/{name}" for name in FILES]
    names = [CONFIG_FILE, MODEL_FILE, *static_files, *runtime, *(example["file"] for example in config["examples"])]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} must be a complete page, got none of the file {missing[0]}. Export the page again.")
    return names


def _page_config(source: str, model: Path) -> dict[str, Any]:
    """Return the content of ``page.json`` without the examples."""
    info = read_model_info(source).portable()
    metrics = Run(find_model_folder(source)).read_metrics()
    return {
        "title": title({"architecture": info.architecture, "data": info.data}),
        "classes": info.classes,
        "size": info.size,
        "fit": info.fit,
        "interpolation": info.interpolation,
        "value_range": info.value_range,
        "params": info.params,
        "bytes": model.stat().st_size,
        "accuracy": metrics.get("accuracy"),
        "threshold": info.threshold,
        "colormap": color_table(EVIDENCE_COLORMAP).tolist(),
    }


def _write_examples(folder: Path, teacher: Path | None, dataset: Dataset) -> list[dict[str, Any]]:
    """Write example test images as PNG, and return their file names, true classes and teacher predictions."""
    rows = example_rows(dataset.test, NUM_EXAMPLES)
    images = dataset.test.images[rows]
    predictions = _teacher_predictions(teacher, dataset, rows) if teacher else [None] * len(rows)
    examples = []
    (folder / "examples").mkdir()
    for index, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
        name = f"examples/{index}.png"
        Image.fromarray(images[index]).save(folder / name)
        true_class = dataset.classes[int(dataset.test.labels[row])]
        examples.append({"file": name, "true_class": true_class, "teacher": prediction})
    return examples


def _teacher_predictions(teacher: Path, dataset: Dataset, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the probabilities and maps of the `NUM_TEACHER_MAPS` most probable classes of test images."""
    info = read_model_info(teacher)
    images = dataset.at_size(info.size, info.interpolation).test.images[rows]
    prediction = predict_images(load(teacher), images)
    assert prediction.cams is not None
    entries = []
    for probabilities, cams in zip(prediction.logits.softmax(1), prediction.cams, strict=True):
        top = probabilities.topk(min(NUM_TEACHER_MAPS, len(probabilities))).indices.tolist()
        entries.append(
            {
                "probabilities": {str(k): round(probabilities[k].item(), 4) for k in top},
                "grid": list(cams.shape[1:]),
                "maps": {str(k): [round(value, 3) for value in cams[k].flatten().tolist()] for k in top},
            }
        )
    return entries


def _content_digest(folder: Path, config: dict[str, Any]) -> str:
    """Return a digest of a page's files and configuration. Equal pages have equal digests."""
    contents = [path.read_bytes() for path in _files(folder)] + [json.dumps(config, sort_keys=True).encode()]
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()[:16]


def _complete_service_worker(folder: Path, version: str) -> None:
    """Insert the version of the page, and the list of files to cache, into the service worker."""
    worker = folder / SERVICE_WORKER
    paths = [path.relative_to(folder).as_posix() for path in _files(folder) if path != worker]
    text = worker.read_text(encoding="utf-8").replace("[/* files */]", json.dumps([".", *paths]))
    write_text(worker, text.replace("/* version */", version))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
