"""Where models look: their maps of the same classes over the same pictures, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camkd.cams import predict
from camkd.data.dataset import Split, round_robin
from camkd.explain.plots import Column, heatmaps
from camkd.models.eval_mode import eval_mode
from camkd.types import Prediction


class ModelMaps(NamedTuple):
    """What a model says of ``N`` pictures: each class's probability, and its maps of the ``k`` classes shown."""

    probabilities: NDArray[np.float32]  # (N, K)
    maps: NDArray[np.float32]  # (N, k, h, w)


class Explanation(NamedTuple):
    """What models say, by title, and of which classes ``(N, k)`` their maps are."""

    class_ids: NDArray[np.int64]
    by: dict[str, ModelMaps]


def explain_batches(
    models: Mapping[str, nn.Module],
    batches: Iterable[NDArray[np.uint8]],
    *,
    top: int = 1,
    method: str = "cam",
    layers: Mapping[str, str] | None = None,
) -> Explanation:
    """Ask each model about pictures ``(N, H, W, 3)`` uint8, batch by batch, for maps of the same classes.

    Those are, of each picture, the ``top`` classes that are likeliest to the first model. ``models`` by title, and
    of which of its ``layers`` a title's maps are.
    """
    shown: list[Tensor] = []
    found: dict[str, list[Prediction]] = {title: [] for title in models}
    for images in batches:
        which: Tensor | int = top
        for title, model in models.items():
            answer = predict_images(model, images, method=method, layer=(layers or {}).get(title), classes=which)
            assert answer.class_ids is not None
            which = answer.class_ids
            found[title].append(answer)
        assert isinstance(which, Tensor)
        shown.append(which)
    return Explanation(torch.cat(shown).numpy(), {title: _joined(answers) for title, answers in found.items()})


def _joined(answers: Sequence[Prediction]) -> ModelMaps:
    maps = [answer.cams for answer in answers if answer.cams is not None]
    return ModelMaps(torch.cat([answer.logits.softmax(1) for answer in answers]).numpy(), torch.cat(maps).numpy())


def draw_heatmaps(
    images: NDArray[np.uint8],
    models: Mapping[str, nn.Module],
    classes: Sequence[str],
    path: Path,
    truths: Sequence[str] | None = None,
) -> None:
    """Draw each model's map over each picture, of the class that the first model predicts, and save it as PNG."""
    draw_explanation(images, explain_batches(models, [images]), classes, path, truths=truths)


def draw_explanation(
    images: NDArray[np.uint8],
    looks: Explanation,
    classes: Sequence[str],
    path: Path,
    *,
    truths: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Save pictures ``(N, H, W, 3)`` and maps side by side as PNG (`camkd.explain.plots.heatmaps`).

    Under a map stands its model's answer and how sure it is of it; where several classes are shown, the map's own.
    """
    shown = looks.class_ids
    if shown.shape[1] == 1:
        columns = [_column(title, one, one.probabilities.argmax(1), 0, classes) for title, one in looks.by.items()]
        said = [classes[k] for k in shown[:, 0]]
        heatmaps(images, columns, path, shown=said, truths=truths, names=names)
        return
    columns = [
        _column(title, one, shown[:, rank], rank, classes)
        for rank in range(shown.shape[1])
        for title, one in looks.by.items()
    ]
    heatmaps(images, columns, path, names=names, blocks=1)


def _column(title: str, one: ModelMaps, labels: NDArray[np.int64], rank: int, classes: Sequence[str]) -> Column:
    sure = np.take_along_axis(one.probabilities, labels[:, None], 1)[:, 0]
    return Column(title, one.maps[:, rank], [classes[k] for k in labels], sure.tolist())


def example_rows(split: Split, count: int = 8) -> NDArray[np.int64]:
    """The first picture of each class, then the second, ``count`` in all: chosen without looking at any answer."""
    return round_robin(split.labels)[:count]


def predict_images(model: nn.Module, images: NDArray[np.uint8], **how: Any) -> Prediction:
    """What `camkd.predict` says of ``images (N, H, W, 3)`` uint8, on the host; ``how`` is passed on."""
    device = next(model.parameters()).device
    x = torch.from_numpy(images.copy()).to(device).permute(0, 3, 1, 2).float() / 255
    with eval_mode(model), torch.no_grad():
        return predict(model, x, **how).to(torch.device("cpu"))
