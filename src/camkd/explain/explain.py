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
from camkd.data.dataset import Split, turns
from camkd.explain.plots import Column, heatmaps
from camkd.models.eval_mode import evaluating
from camkd.types import Prediction


class Look(NamedTuple):
    """What a model says of ``N`` pictures: each class's probability, and its maps of the ``k`` classes shown."""

    probabilities: NDArray[np.float32]  # (N, K)
    maps: NDArray[np.float32]  # (N, k, h, w)


class Looks(NamedTuple):
    """What models say, by title, and of which classes ``(N, k)`` their maps are."""

    shown: NDArray[np.int64]
    by: dict[str, Look]


def look(
    models: Mapping[str, nn.Module],
    batches: Iterable[NDArray[np.uint8]],
    *,
    top: int = 1,
    method: str = "cam",
    layers: Mapping[str, str] | None = None,
) -> Looks:
    """Ask each model about pictures ``(N, H, W, 3)`` uint8, batch by batch, for maps of the same classes.

    Those are, of each picture, the ``top`` classes that are likeliest to the first model. ``models`` by title, and
    of which of its ``layers`` a title's maps are.
    """
    shown: list[Tensor] = []
    found: dict[str, list[Prediction]] = {title: [] for title in models}
    for images in batches:
        which: Tensor | int = top
        for title, model in models.items():
            answer = ask(model, images, method=method, layer=(layers or {}).get(title), classes=which)
            assert answer.shown is not None
            which = answer.shown
            found[title].append(answer)
        assert isinstance(which, Tensor)
        shown.append(which)
    return Looks(torch.cat(shown).numpy(), {title: _joined(answers) for title, answers in found.items()})


def _joined(answers: Sequence[Prediction]) -> Look:
    maps = [answer.cams for answer in answers if answer.cams is not None]
    return Look(torch.cat([answer.logits.softmax(1) for answer in answers]).numpy(), torch.cat(maps).numpy())


def explain(
    images: NDArray[np.uint8],
    models: Mapping[str, nn.Module],
    classes: Sequence[str],
    path: Path,
    truths: Sequence[str] | None = None,
) -> None:
    """Draw each model's map over each picture, of the class that the first model predicts, and save it as PNG."""
    draw(images, look(models, [images]), classes, path, truths=truths)


def draw(
    images: NDArray[np.uint8],
    looks: Looks,
    classes: Sequence[str],
    path: Path,
    *,
    truths: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Save pictures ``(N, H, W, 3)`` and maps side by side as PNG (`camkd.explain.plots.heatmaps`).

    Under a map stands its model's answer and how sure it is of it; where several classes are shown, the map's own.
    """
    shown = looks.shown
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


def _column(title: str, one: Look, labels: NDArray[np.int64], rank: int, classes: Sequence[str]) -> Column:
    sure = np.take_along_axis(one.probabilities, labels[:, None], 1)[:, 0]
    return Column(title, one.maps[:, rank], [classes[k] for k in labels], sure.tolist())


def specimens(split: Split, count: int = 8) -> NDArray[np.int64]:
    """The first picture of each class, then the second, ``count`` in all: chosen without looking at any answer."""
    return turns(split.labels)[:count]


def ask(model: nn.Module, images: NDArray[np.uint8], **how: Any) -> Prediction:
    """What `camkd.predict` says of ``images (N, H, W, 3)`` uint8, on the host; ``how`` is passed on."""
    device = next(model.parameters()).device
    x = torch.from_numpy(images.copy()).to(device).permute(0, 3, 1, 2).float() / 255
    with evaluating(model), torch.no_grad():
        return predict(model, x, **how).to(torch.device("cpu"))
