"""The figures of ``metrics.json`` that come from the test pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camkd.cams import centre_prior
from camkd.data.dataset import Dataset, Split
from camkd.evaluate.faithfulness import faithfulness
from camkd.evaluate.inference import SplitPredictions, predict_split
from camkd.evaluate.metrics import (
    accuracy,
    by_outcome,
    confusion,
    ece,
    energy_inside,
    map_likeness,
    means,
    nll,
    outcomes,
    pointing_game,
)
from camkd.evaluate.per_image import disagreeing_maps, per_image_record


class Evaluation(NamedTuple):
    """Metrics of a test split, one record per image (`per_image_record`) and the predictions."""

    metrics: dict[str, Any]
    per_image: dict[str, NDArray[Any]]
    predictions: SplitPredictions


def measure(model: nn.Module, data: Dataset, teacher: SplitPredictions | None) -> Evaluation:
    """Measure ``model`` on the test pictures, and beside its ``teacher`` where there is one."""
    own = predict_split(model, data.test, teacher.class_ids if teacher else None)
    labels = torch.from_numpy(np.array(data.test.labels))
    pictures = per_image_record(own, labels, teacher, data.test.names)
    figures = evaluate(own, labels, data.classes, teacher, masks_of(data.test))
    if teacher is not None and (same := pictures["predicted"] == pictures["teacher_predicted"]).any():
        figures["cam_disagreement"] = len(disagreeing_maps(pictures, chance_level(figures))) / int(same.sum())
    figures |= {**faithfulness(model, data.test), "test_images": len(data.test)}
    return Evaluation(figures, pictures, own)


def chance_level(figures: Mapping[str, Any]) -> float:
    """The ``cam_cosine`` of one who does not look where the teacher looks: the higher of its chance levels."""
    return max(float(figures[name]) for name in ("cam_cosine_centre", "cam_cosine_shuffled") if name in figures)


MOST_CLASSES = 1000
"""Of more classes no confusion matrix is kept: of 10,000 it has a hundred million numbers."""


def masks_of(split: Split) -> Tensor | None:
    """Where the objects are, ``(N, H, W) bool``, if the source knows."""
    return None if split.masks is None else torch.from_numpy(np.array(split.masks))


def evaluate(
    own: SplitPredictions,
    labels: Tensor,
    names: tuple[str, ...],
    teacher: SplitPredictions | None,
    masks: Tensor | None = None,
) -> dict[str, Any]:
    """The figures that follow from a model's answers; ``masks (N, H, W)`` say where the object is.

    ``own`` has to show the classes the teacher predicts where there is a teacher: maps are compared class by class.
    """
    predicted = own.logits.argmax(1)
    right, totals = (rows.bincount(minlength=len(names)) for rows in (labels[predicted == labels], labels))
    figures: dict[str, Any] = {
        "accuracy": accuracy(own.logits, labels),
        "ece": ece(own.logits, labels),
        "nll": nll(own.logits, labels),
        "cam_form": own.form,
        "per_class": {
            name: share for name, share, n in zip(names, (right / totals).tolist(), totals.tolist(), strict=True) if n
        },
    }
    if len(names) <= MOST_CLASSES:
        figures["confusion"] = confusion(predicted, labels, len(names)).tolist()
    if masks is not None:
        figures |= _on_objects(own.maps, masks)
    if teacher is not None:
        assert torch.equal(own.class_ids, teacher.class_ids), "maps of different classes cannot be compared"
        theirs = teacher.logits.argmax(1)
        likeness = map_likeness(own.maps, teacher.maps)
        figures["teacher_accuracy"] = accuracy(teacher.logits, labels)
        figures["teacher_agreement"] = accuracy(own.logits, theirs)
        figures |= means(likeness)
        figures["by_outcome"] = by_outcome(likeness, outcomes(predicted, theirs, labels))
    return figures


def _on_objects(maps: Tensor, masks: Tensor) -> dict[str, float]:
    """Where the maps lie, beside one who looks anywhere (``_chance``) and one who looks at the middle (``_centre``)."""
    centre = centre_prior(*maps.shape[1:]).expand_as(maps)
    share = masks.double().mean().item()
    games = {"cam_inside": energy_inside, "cam_pointing_game": pointing_game}
    return {
        name + suffix: value
        for name, game in games.items()
        for suffix, value in (
            ("", game(maps, masks).double().mean().item()),
            ("_chance", share),
            ("_centre", game(centre, masks).double().mean().item()),
        )
    }
