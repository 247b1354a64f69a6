"""Metrics of a model on the test split, as stored in ``metrics.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camkd.cams import center_prior
from camkd.data.dataset import Dataset, Split
from camkd.evaluate.faithfulness import faithfulness
from camkd.evaluate.inference import SplitPredictions, predict_split
from camkd.evaluate.metrics import (
    accuracy,
    confusion_matrix,
    ece,
    energy_inside,
    macro_f1,
    map_similarities,
    mean_recall,
    means,
    means_by_outcome,
    nll,
    outcome_masks,
    pointing_game,
)
from camkd.evaluate.per_image import disagreement, per_image_record
from camkd.types import CENTER, CHANCE_LEVELS, UNIFORM, InputError
from camkd.utils.intervals import wilson_interval

MAX_CONFUSION_CLASSES = 1000
"""Largest number of classes with a confusion matrix. A matrix of 10,000 classes would hold 100 million numbers."""


class Evaluation(NamedTuple):
    """Evaluation of a model on a test split."""

    metrics: dict[str, Any]
    """The values of ``metrics.json``, listed in docs/metrics.md."""
    per_image: dict[str, NDArray[Any]]
    """One row per image, see `per_image_record`."""
    predictions: SplitPredictions
    """Logits and maps of the model."""


def measure(model: nn.Module, data: Dataset, teacher: SplitPredictions | None) -> Evaluation:
    """Evaluate a model on the test split, including agreement with its teacher and faithfulness of its maps.

    Args:
        model: A classifier.
        data: The dataset; only its test split and class names are used.
        teacher: Predictions of the teacher for ``data.test``. With a teacher, the model's maps are of the classes of
            the teacher's maps. If None, the model's maps are of the classes that the model predicts, and the metrics
            that compare with a teacher are absent.

    Returns:
        The metrics, one row per image, and the predictions. Keys are documented in docs/metrics.md.

    Raises:
        InputError: If the model has no layer with a spatial output or another number of classes than the data, or if
            stored images fail their checksums.

    Example:
        >>> data = open_data("cifar10")  # doctest: +SKIP
        >>> teacher = predict_split(camkd.load("runs/teacher"), data.test)  # doctest: +SKIP
        >>> evaluation = measure(camkd.load("runs/student"), data, teacher)  # doctest: +SKIP
        >>> evaluation.metrics["accuracy"], evaluation.metrics["cam_cosine"]  # doctest: +SKIP
        (0.912, 0.88)
    """
    predictions = predict_split(model, data.test, teacher.class_ids if teacher else None)
    if predictions.logits.shape[1] != len(data.classes):
        raise InputError(
            f"the model must have the {len(data.classes)} classes of the data, got {predictions.logits.shape[1]} "
            "outputs. Evaluate it on data of its own classes."
        )
    labels = torch.from_numpy(np.array(data.test.labels))
    per_image = per_image_record(predictions, labels, teacher, data.test.names)
    metrics = compute_metrics(predictions, labels, data.classes, teacher, object_masks(data.test))
    if teacher is not None:
        metrics |= disagreement(per_image, chance_level(metrics))
    metrics |= faithfulness(model, data.test)
    metrics["test_images"] = len(data.test)
    return Evaluation(metrics, per_image, predictions)


def chance_level(metrics: Mapping[str, Any]) -> float:
    """Return the highest chance level of ``cam_cosine`` in ``metrics``.

    Args:
        metrics: Values of ``metrics.json``, with ``cam_cosine_center``, ``cam_cosine_mean_map`` or both.

    Returns:
        The largest of the stored chance levels.

    Raises:
        ValueError: If ``metrics`` has no chance level of ``cam_cosine``.

    Example:
        >>> chance_level({"cam_cosine": 0.9, "cam_cosine_center": 0.4, "cam_cosine_mean_map": 0.6})
        0.6
    """
    keys = [level.key("cam_cosine") for level in CHANCE_LEVELS]
    return max(float(metrics[key]) for key in keys if key in metrics)


def object_masks(split: Split) -> Tensor | None:
    """Return the object masks of a split as a tensor ``(N, H, W)`` bool, or None if the split has no masks."""
    return None if split.masks is None else torch.from_numpy(np.array(split.masks))


def compute_metrics(
    predictions: SplitPredictions,
    labels: Tensor,
    classes: tuple[str, ...],
    teacher: SplitPredictions | None,
    masks: Tensor | None = None,
) -> dict[str, Any]:
    """Compute the metrics that follow from predictions, without running the model.

    Args:
        predictions: Predictions of the model for ``N`` images. With a teacher, the maps must be of the teacher's
            ``class_ids``, because maps are compared class by class.
        labels: True classes ``(N,)``.
        classes: Class names.
        teacher: Predictions of the teacher for the same images, or None.
        masks: Object masks ``(N, H, W)`` bool, or None. The mask of an image without mask is False everywhere.

    Returns:
        Metrics by name. A metric that does not apply is absent, for example the recall of a class without images, a
        confusion matrix of more than `MAX_CONFUSION_CLASSES` classes, localization without masks, or agreement without
        a teacher.

    Example:
        >>> predictions = SplitPredictions(torch.eye(2), torch.rand(2, 4, 4), torch.tensor([0, 1]), "exact")
        >>> metrics = compute_metrics(predictions, torch.tensor([0, 0]), ("cat", "dog"), None)
        >>> metrics["accuracy"], metrics["confusion"], metrics["per_class"]["cat"]["recall"]
        (0.5, [[1, 1], [0, 0]], 0.5)
    """
    predicted = predictions.logits.argmax(1)
    correct = labels[predicted == labels].bincount(minlength=len(classes))
    totals = labels.bincount(minlength=len(classes))
    per_class = _per_class(classes, correct.tolist(), totals.tolist())
    metrics: dict[str, Any] = {
        "accuracy": accuracy(predictions.logits, labels),
        "balanced_accuracy": mean_recall(correct, totals),
        "macro_f1": macro_f1(predicted, labels),
        "min_recall": min(entry["recall"] for entry in per_class.values()),
        "ece": ece(predictions.logits, labels),
        "nll": nll(predictions.logits, labels),
        "cam_form": predictions.form,
        "per_class": per_class,
    }
    if len(classes) <= MAX_CONFUSION_CLASSES:
        metrics["confusion"] = confusion_matrix(predicted, labels, len(classes)).tolist()
    if masks is not None and masks.any():
        has_mask = masks.flatten(1).any(1)
        metrics |= _localization_metrics(predictions.maps[has_mask], masks[has_mask])
        metrics["mask_images"] = int(has_mask.sum())
    if teacher is not None:
        assert torch.equal(predictions.class_ids, teacher.class_ids), "maps of different classes cannot be compared"
        teacher_predicted = teacher.logits.argmax(1)
        similarities = map_similarities(predictions.maps, teacher.maps, teacher.class_ids)
        metrics["teacher_accuracy"] = accuracy(teacher.logits, labels)
        metrics["teacher_agreement"] = accuracy(predictions.logits, teacher_predicted)
        metrics |= means(similarities)
        metrics["by_outcome"] = means_by_outcome(similarities, outcome_masks(predicted, teacher_predicted, labels))
    return metrics


def _per_class(classes: tuple[str, ...], correct: list[int], totals: list[int]) -> dict[str, dict[str, float]]:
    """Return the recall of each class with images, its 95 % interval, and the number of images."""
    entries = {}
    for name, successes, count in zip(classes, correct, totals, strict=True):
        if count:
            low, high = wilson_interval(successes, count)
            entries[name] = {"recall": successes / count, "low": low, "high": high, "images": count}
    return entries


def _localization_metrics(maps: Tensor, masks: Tensor) -> dict[str, float]:
    """Compute the overlap of maps and masks, with a uniform map and a Gaussian at the center as chance levels."""
    center = center_prior(*maps.shape[1:]).expand_as(maps)
    object_share = masks.double().mean().item()
    metrics = {}
    for name, metric in {"cam_inside": energy_inside, "cam_pointing_game": pointing_game}.items():
        metrics[name] = metric(maps, masks).double().mean().item()
        metrics[UNIFORM.key(name)] = object_share
        metrics[CENTER.key(name)] = metric(center, masks).double().mean().item()
    return metrics
