"""The page as a folder of static files: nothing to build, nothing from other servers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from camkd.cams import predict
from camkd.data.dataset import Dataset
from camkd.explain.explain import example_rows
from camkd.export.sessions import as_input
from camkd.models.card import title
from camkd.models.eval_mode import eval_mode
from camkd.runs.folder import Run
from camkd.runs.load_model import find_model_folder, load, read_model_info
from camkd.types import InputError
from camkd.utils.files import write_json, write_text

CONTENT, MODEL = "page.json", "model.onnx"
EXAMPLES = 8
MAPS_KEPT = 10
"""Of so many classes, those its teacher finds likeliest, an example brings the teacher's map along."""


def check_folder(folder: Path) -> None:
    """Raise ``InputError`` where ``folder`` holds something else than such a page."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONTENT).exists())):
        raise InputError(f"{str(folder)!r} holds something else than a page of camkd: name a new folder.")


def build(
    folder: Path, model: Path, source: str, teacher: Path | None, pictures: Dataset, runtime: Sequence[Path]
) -> None:
    """Write the page of the exported ``model`` of the run ``source`` into ``folder``; with ``teacher``'s maps."""
    for path, name in ((model, MODEL), *((path, f"runtime/{path.name}") for path in runtime)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(path.read_bytes())
    rows = example_rows(pictures.test, EXAMPLES)
    write_json(folder / CONTENT, {**_words(source, model), "examples": _examples(folder, teacher, pictures, rows)})
    own = resources.files("camkd.export.web") / "static"
    for file in own.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    _list_for_offline_use(folder)


def _words(source: str, model: Path) -> dict[str, Any]:
    said, figures = read_model_info(source).portable(), Run(find_model_folder(source)).read_metrics()
    colours = (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(int)
    return {
        "title": title({"architecture": said.architecture, "data": said.data}),
        "classes": said.classes,
        "size": said.size,
        "params": said.params,
        "bytes": model.stat().st_size,
        "accuracy": figures.get("accuracy"),
        "colours": colours.tolist(),
    }


def _examples(folder: Path, teacher: Path | None, pictures: Dataset, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The first test picture of each class as PNG; what its teacher says of it, where the teacher is at hand."""
    images = pictures.test.images[rows]
    answers = _teachers_answers(load(teacher), images) if teacher else [None] * len(rows)
    found = []
    (folder / "examples").mkdir()
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        name = f"examples/{number}.png"
        Image.fromarray(images[number]).save(folder / name)
        truth = pictures.classes[int(pictures.test.labels[row])]
        found.append({"file": name, "truth": truth, "teacher": answer})
    return found


def _teachers_answers(teacher: nn.Module, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
    with eval_mode(teacher), torch.no_grad():
        answer = predict(teacher, torch.from_numpy(as_input(images)))
    assert answer.cams is not None
    found = []
    for chances, cams in zip(answer.logits.softmax(1), answer.cams, strict=True):
        kept = chances.topk(min(MAPS_KEPT, len(chances))).indices.tolist()
        maps = {str(k): [round(value, 3) for value in cams[k].flatten().tolist()] for k in kept}
        likely = {str(k): round(chances[k].item(), 4) for k in kept}
        found.append({"chances": likely, "grid": list(cams.shape[1:]), "maps": maps})
    return found


def _list_for_offline_use(folder: Path) -> None:
    """Tell the page's service worker which files to keep, and a name for what they are together."""
    worker = folder / "offline.js"
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != worker)
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)).hexdigest()
    files = json.dumps([".", *(path.relative_to(folder).as_posix() for path in paths)])
    text = worker.read_text(encoding="utf-8").replace("[/* files */]", files).replace("/* version */", digest[:16])
    write_text(worker, text)
