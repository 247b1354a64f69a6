"""Rows of the result table: label, format and definition of each metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from camkd.utils.units import format_count, format_duration, format_percent

DASH = "–"
"""Text of a missing value."""


class MetricSpec(NamedTuple):
    """Row of the result table.

    Attributes:
        key: Key in ``metrics.json`` or ``model.json``. The chance levels of the metric are shown in small print.
        label: Name of the row.
        format: Function that formats a value.
        note: Definition of the metric, shown as a footnote.
        optional: Whether the row is left out if no run has a value.
    """

    key: str
    label: str
    format: Callable[[float], str]
    note: str
    optional: bool = False


RECALL = "recall:"
"""Prefix of the recall of a class, in thresholds and comparisons."""


def class_recalls(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the recall of each class as ``recall:CLASS``, a number by name as the other metrics.

    >>> class_recalls({"accuracy": 0.5, "per_class": {"cat": {"recall": 0.25, "low": 0.1, "high": 0.5, "images": 8}}})
    {'recall:cat': 0.25}
    """
    entries = metrics.get("per_class", {}).items()
    return {f"{RECALL}{name}": entry["recall"] for name, entry in entries if isinstance(entry, dict)}


def _format_decimal(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")


def _format_pixels(value: float) -> str:
    return f"{value:.0f} px"


def _format_integer(number: float) -> str:
    return f"{number:,.0f}"


METRICS = (
    MetricSpec(
        "accuracy",
        "Accuracy",
        format_percent,
        "Top-1 accuracy on the test images. Higher is better.",
    ),
    MetricSpec(
        "balanced_accuracy",
        "Balanced accuracy",
        format_percent,
        "Mean recall of the classes: every class counts the same, whatever its number of images. Classes without test "
        "images do not count. Higher is better.",
        optional=True,
    ),
    MetricSpec(
        "macro_f1",
        "Macro-F1",
        format_percent,
        "Mean over the classes of F1, the harmonic mean of precision and recall. Higher is better.",
        optional=True,
    ),
    MetricSpec(
        "min_recall",
        "Lowest recall",
        format_percent,
        "Recall of the class with the lowest recall: the share of its test images that are predicted correctly.",
        optional=True,
    ),
    MetricSpec(
        "val_accuracy",
        "Validation accuracy",
        format_percent,
        "Top-1 accuracy on the validation images, which are held out of training.",
    ),
    MetricSpec(
        "val_balanced_accuracy",
        "Balanced validation accuracy",
        format_percent,
        "Mean recall of the classes on the validation images.",
        optional=True,
    ),
    MetricSpec(
        "ece",
        "Calibration error",
        _format_decimal,
        "Expected calibration error (15 bins, Guo et al. 2017). Lower is better.",
    ),
    MetricSpec(
        "nll",
        "Log-loss",
        _format_decimal,
        "Mean negative log-likelihood of the true class, in nats. Lower is better.",
    ),
    MetricSpec(
        "coverage",
        "Answered images",
        format_percent,
        "Share of test images with a confidence at or above the threshold of camkd calibrate.",
        optional=True,
    ),
    MetricSpec(
        "answered_accuracy",
        "Precision of the answers",
        format_percent,
        "Accuracy on the answered images.",
        optional=True,
    ),
    MetricSpec(
        "teacher_agreement",
        "Agreement with teacher",
        format_percent,
        "Share of test images with the teacher's predicted class, right or wrong.",
    ),
    MetricSpec(
        "cam_cosine",
        "CAM cosine",
        _format_decimal,
        "Cosine similarity of the model's and the teacher's class activation map. Both maps are of the class that the "
        "teacher predicts, positive evidence only. 1 means the same map up to scale. Small print: chance levels, the "
        "cosine of the teacher's map and a map that does not depend on the image: a Gaussian in the center, or the "
        "teacher's mean map of the other images of the class.",
    ),
    MetricSpec(
        "cam_pearson",
        "CAM Pearson",
        _format_decimal,
        "Pearson correlation of the two maps, evidence against the class included. 1 means the same map up to scale "
        "and offset.",
    ),
    MetricSpec(
        "cam_iou",
        "CAM overlap",
        _format_decimal,
        "Intersection over union of the strongest 20 % of cells of the two maps. 1 means the same locations.",
    ),
    MetricSpec(
        "cam_disagreement",
        "CAM disagreement",
        format_percent,
        "Share of images with a CAM cosine no higher than chance, among the images with the teacher's predicted class. "
        "Lower is better. Small print: the share for maps that do not depend on the image, and for the model's map of "
        "another image. 'camkd evaluate RUN --list-disagreements 20' lists the images.",
        optional=True,
    ),
    MetricSpec(
        "cam_inside",
        "CAM energy on the object",
        format_percent,
        "Share of the map's positive evidence inside the object mask (energy-based pointing game, Wang et al. 2020). "
        "Computed on the test images with a mask. Small print: a Gaussian in the center of the image, and a uniform "
        "map, which scores the object's share of the image.",
        optional=True,
    ),
    MetricSpec(
        "cam_pointing_game",
        "Pointing game",
        format_percent,
        "Share of images with the center of the map's strongest cell inside the object mask (Zhang et al. 2016, "
        "without tolerance).",
        optional=True,
    ),
    MetricSpec(
        "mask_images",
        "Images with a mask",
        _format_integer,
        "Number of test images with an object mask, on which the two metrics above are computed.",
        optional=True,
    ),
    MetricSpec(
        "insertion",
        "Insertion",
        _format_decimal,
        "Mean probability of the predicted class while the pixels of a blurred image are restored, the map's strongest "
        "first (RISE, Petsiuk et al. 2018). Higher means a more faithful map. Small print: the pixel order of "
        "another image's map.",
        optional=True,
    ),
    MetricSpec(
        "deletion",
        "Deletion",
        _format_decimal,
        "Mean probability of the predicted class while pixels are replaced by the mean color, the map's strongest "
        "first (RISE). Lower means a more faithful map.",
        optional=True,
    ),
    MetricSpec(
        "road",
        "ROAD",
        _format_decimal,
        "Probability of the predicted class after removing the map's weakest pixels minus the probability after "
        "removing its strongest, divided by 2. Removed pixels are imputed from their neighbors (Rong et al. 2022). "
        "Higher means a more faithful map.",
        optional=True,
    ),
    MetricSpec(
        "randomized_spearman",
        "Weight randomization",
        _format_decimal,
        "Rank correlation of the model's map with the map of a copy with shuffled weights (Adebayo et al. 2018). Near "
        "0 means that the map depends on the learned weights.",
        optional=True,
    ),
    MetricSpec("params", "Parameters", format_count, "Number of learned parameters."),
    MetricSpec("image_size", "Image size", _format_pixels, "Side of the network's images.", optional=True),
    MetricSpec("macs", "MACs", format_count, "Multiply-accumulate operations per image."),
    MetricSpec("epochs", "Epochs", _format_integer, "Passes over the training images."),
    MetricSpec(
        "augment_epochs",
        "Augmented epochs",
        _format_integer,
        "Number of epochs with different augmented views. It is below the number of epochs if views are repeated, "
        "because the cache budget is full or --augment-epochs is set.",
    ),
    MetricSpec(
        "seconds",
        "Training time",
        format_duration,
        "Wall-clock time of training on the machine listed under Configuration.",
    ),
    MetricSpec(
        "images_per_second",
        "Images per second",
        _format_integer,
        "Training throughput on the machine listed under Configuration.",
    ),
)
"""Rows of the result table, in order."""
