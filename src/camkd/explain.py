"""Where models look: their maps of the same class over the same pictures, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camkd.cams import predict
from camkd.data.pictures import decode
from camkd.data.store import Split
from camkd.figures import Column, heatmaps
from camkd.models.modes import evaluating
from camkd.types import InputError, Prediction


def explain(
    images: NDArray[np.uint8],
    models: Mapping[str, nn.Module],
    classes: Sequence[str],
    path: Path,
    truths: Sequence[str] | None = None,
    *,
    method: str = "cam",
    layers: Mapping[str, str] | None = None,
) -> list[dict[str, object]]:
    """Draw each model's map over each picture, of the class that the first model predicts, and save it as PNG.

    ``images (N, H, W, 3)`` uint8; ``models`` by title, and of which of its ``layers`` a title's map is. Returns each
    model's prediction and confidence a picture.
    """
    shown: Tensor | None = None
    columns = []
    for title, model in models.items():
        which = 1 if shown is None else shown  # of the first model: those that it predicts
        answer = ask(model, images, method=method, layer=(layers or {}).get(title), classes=which)
        confidence, label = answer.logits.softmax(1).max(1)
        assert answer.cams is not None and answer.shown is not None
        shown = answer.shown
        maps = answer.cams[:, 0].numpy()
        columns.append(Column(title, maps, [classes[i] for i in label.tolist()], confidence.tolist()))
    assert shown is not None
    heatmaps(images, columns, path, shown=[classes[i] for i in shown[:, 0].tolist()], truths=truths)
    return [
        {c.title: {"class": c.answers[i], "confidence": c.confidences[i]} for c in columns} for i in range(len(images))
    ]


def read_pictures(paths: Sequence[str | Path], size: int) -> NDArray[np.uint8]:
    """Decode picture files to ``(N, size, size, 3)``. Raises ``InputError`` naming the first that cannot be read."""
    images = []
    for path in paths:
        try:
            images.append(decode(Path(path), size))
        except ValueError as error:
            raise InputError(f"{str(path)!r} cannot be read as a picture: {error}.") from error
    return np.stack(images)


def specimens(split: Split, count: int = 8) -> NDArray[np.int64]:
    """The first picture of each class, class after class, ``count`` in all: chosen without looking at any answer."""
    rows: list[int] = []
    for rank in range(count):
        for label in np.unique(split.labels):
            places = np.flatnonzero(split.labels == label)
            if rank < len(places) and len(rows) < count:
                rows.append(int(places[rank]))
    return np.array(rows)


def ask(model: nn.Module, images: NDArray[np.uint8], **how: Any) -> Prediction:
    """What `camkd.predict` says of ``images (N, H, W, 3)`` uint8, on the host; ``how`` is passed on."""
    device = next(model.parameters()).device
    x = torch.from_numpy(images.copy()).to(device).permute(0, 3, 1, 2).float() / 255
    with evaluating(model), torch.no_grad():
        return predict(model, x, **how).to(torch.device("cpu"))
