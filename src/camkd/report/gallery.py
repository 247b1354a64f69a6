"""The gallery of a run: a few test pictures with every model's answers and maps, small enough to lie in a page.

``gallery.json`` holds thumbnails, true classes, and for each model its label, its confidence and its maps, in 8 bits
with a scale each: ``map = scale (level - 128) / 127``. `camkd.report.merge_galleries` reads it, without torch.
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
from camkd.data.dataset import Dataset
from camkd.evaluate import SplitPredictions
from camkd.evaluate.metrics import cosine, to_common_grid
from camkd.explain.explain import predict_images
from camkd.report.merge_galleries import VERSION
from camkd.types import InputError, Prediction
from camkd.utils.files import load_json, write_text

PICTURES = 240
BYTES = 2_000_000  # of the file, whatever the pictures and however many classes
ALL_CLASSES, LIKELIEST = 20, 10
"""Up to so many classes the maps of all are kept; beyond, those of the true, the answered and the likeliest ones."""

SIDE, EXACT_SIDE = 96, 64
"""Pixels a side: of a thumbnail, and of a picture that is kept as it is."""

GRID = 16  # cells a side of the largest map kept
BATCH = 16  # all classes' maps of a picture are larger than the picture


class GalleryModel(NamedTuple):
    """A model in a gallery and the checksum of its weights, by which a report knows it again."""

    model: nn.Module
    sha256: str


def select_images(
    labels: Tensor, own: SplitPredictions, teacher: SplitPredictions | None = None, count: int = PICTURES
) -> list[int]:
    """Rows of at most ``count`` test pictures that a person wants to see, the same ones for the same answers.

    In turn one of each, until there are enough: where student and teacher agree on the label and least on the region;
    right answers, class after class; wrong answers, from the commonest confusion to the rarest, then a second one of
    each; and those that only the student got right. Within a class or a confusion the first of the test pictures come
    first, whatever the maps look like. ``labels (N,)`` are the true classes.

    >>> rows = choose(labels, own, teacher)                                              # doctest: +SKIP
    """
    answers = own.logits.argmax(1)
    right = answers == labels
    queues = [_by_cell(labels, answers, right), _by_cell(labels, answers, ~right)]
    if teacher is not None:
        theirs = teacher.logits.argmax(1)
        agree = torch.nonzero(answers == theirs).flatten()
        alike = cosine(*to_common_grid(own.maps[agree], teacher.maps[agree]))
        queues.insert(0, agree[alike.argsort(stable=True)][: count // 6].tolist())
        queues.append(torch.nonzero(right & (theirs != labels)).flatten()[: count // 10].tolist())
    wanted = dict.fromkeys(row for row in chain(*zip_longest(*queues)) if row is not None)
    return list(wanted)[:count]


def write_gallery(path: Path, data: Dataset, exhibits: Mapping[str, GalleryModel], rows: Sequence[int]) -> None:
    """Ask every model about the test pictures ``rows`` and write what they say to ``path``, whole or not at all.

    ``exhibits`` by title, the teacher first where there is one: likeness is to its map, of the class that it answers.
    Pictures at the end of ``rows`` are left out where the file would pass ``BYTES``.
    """
    content: dict[str, Any] = {
        "version": VERSION,
        "open_model_data": data.fingerprint,
        "models": [{"title": title, "sha256": exhibit.sha256} for title, exhibit in exhibits.items()],
        "pictures": [],
    }
    room = BYTES - len(json.dumps(content))
    for picture in _pictures(data, exhibits, rows):
        room -= len(json.dumps(picture)) + 2
        if room < 0:
            break
        content["pictures"].append(picture)
    write_text(path, json.dumps(content, allow_nan=False) + "\n")


def gallery_rows(path: Path) -> list[int]:
    """Which test pictures a gallery of ours shows; none where there is no such file."""
    if not path.exists():
        return []
    try:
        return [int(picture["row"]) for picture in load_json(path.read_text(encoding="utf-8"))["pictures"]]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path} is damaged ({error}): delete metrics.json beside it and start the run again with --resume, which "
            "writes both anew without training."
        ) from error


def _by_cell(labels: Tensor, answers: Tensor, wanted: Tensor) -> list[int]:
    """Rows where ``wanted``: one of each (truth, answer), the fullest first, then a second one of each, ..."""
    cells: dict[tuple[int, int], list[int]] = {}
    for row in torch.nonzero(wanted).flatten().tolist():
        cells.setdefault((int(labels[row]), int(answers[row])), []).append(row)
    fullest_first = [cells[cell] for cell in sorted(cells, key=lambda cell: (-len(cells[cell]), cell))]
    return [row for rank in zip_longest(*fullest_first) for row in rank if row is not None]


def _pictures(data: Dataset, exhibits: Mapping[str, GalleryModel], rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        answers = [_ask(exhibit.model, data.test.images[some]) for exhibit in exhibits.values()]
        for row, told in zip(some, zip(*answers, strict=True), strict=True):
            yield _picture(data, row, told, "teacher" in exhibits)


def _ask(model: nn.Module, images: NDArray[np.uint8]) -> list[Prediction]:
    """The answer to each picture by itself: ``logits (K,)`` and ``cams (K, h, w)`` of at most GRID cells a side."""
    answer = predict_images(model, images).float()
    assert answer.cams is not None
    maps = resize(answer.cams, (min(GRID, answer.cams.shape[2]), min(GRID, answer.cams.shape[3])))
    return [Prediction(*pair) for pair in zip(answer.logits, maps, strict=True)]


def _picture(data: Dataset, row: int, answers: Sequence[Prediction], taught: bool) -> dict[str, Any]:
    labels = [int(answer.logits.argmax()) for answer in answers]
    truth = int(data.test.labels[row])
    shown = _shown([truth, *labels], answers[0].logits)
    told = [_answer(answer, label, shown) for answer, label in zip(answers, labels, strict=True)]
    if taught:
        maps = [answer.cams[labels[0]][None] for answer in answers if answer.cams is not None]
        for one, mine in zip(told[1:], maps[1:], strict=True):
            one["likeness"] = _short(float(cosine(*to_common_grid(mine, maps[0]))))
    return {
        "row": row,
        "name": data.test.names[row] if data.test.names else None,
        "truth": truth,
        "image": _thumbnail(data.test.images[row]),
        "shown": shown,
        "answers": told,
    }


def _shown(wanted: Iterable[int], logits: Tensor) -> list[int]:
    """The classes whose maps are kept."""
    if len(logits) <= ALL_CLASSES:
        return list(range(len(logits)))
    likeliest = logits.topk(LIKELIEST).indices.tolist()
    return list(dict.fromkeys([*wanted, *likeliest]))[:LIKELIEST]


def _answer(answer: Prediction, label: int, shown: list[int]) -> dict[str, Any]:
    shares = answer.logits.softmax(0)
    assert answer.cams is not None
    levels, scales = quantised(answer.cams[shown].numpy())
    return {
        "label": label,
        "confidence": _short(float(shares[label])),
        "shares": [_short(share) for share in shares[shown].tolist()],
        "grid": list(levels.shape[1:]),
        "scales": [_short(scale) for scale in scales.tolist()],
        "maps": base64.b64encode(levels.tobytes()).decode(),
    }


def quantised(maps: NDArray[np.floating[Any]]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Maps ``(k, h, w)`` as levels 1 to 255, zero at 128, and the scale of each ``(k,)``: its largest magnitude.

    What is not finite counts as zero. Off by at most half a level, ``scale / 254``.

    >>> levels, scales = quantised(np.array([[[-2.0, 0.0, 1.0]]]))
    >>> levels.tolist(), scales.tolist()
    ([[[1, 128, 192]]], [2.0])
    """
    whole = np.nan_to_num(np.asarray(maps, np.float64), posinf=0, neginf=0)
    scales = np.abs(whole).max((1, 2))
    shares = whole / np.where(scales > 0, scales, 1)[:, None, None]
    return (np.floor(127 * shares + 0.5) + 128).astype(np.uint8), scales


def _thumbnail(image: NDArray[np.uint8]) -> str:
    """A picture as data URI: small ones as they are, large ones made small."""
    picture, stream = Image.fromarray(image), io.BytesIO()
    if max(picture.size) <= EXACT_SIDE:
        picture.save(stream, "PNG", optimize=True)
        kind = "png"
    else:
        picture.thumbnail((SIDE, SIDE))
        picture.save(stream, "JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _short(number: float) -> float:
    return float(f"{number:.4g}")
