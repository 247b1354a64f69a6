"""Metrics of classifiers and of class activation maps.

All functions are pure. Maps are ``(N, h, w)``: one map per image, of one class that the caller chooses, for example the
class that the teacher predicts. docs/metrics.md lists the metrics that a run stores in ``metrics.json``.
"""

from camkd.evaluate.metrics.agreement import (
    derangement,
    image_independent_maps,
    map_similarities,
    mean_maps_of_others,
    means,
    means_by_outcome,
    outcome_masks,
    to_common_grid,
)
from camkd.evaluate.metrics.classification import (
    BalancedAccuracy,
    accuracy,
    balanced_accuracy,
    confusion_matrix,
    ece,
    macro_f1,
    mean_recall,
    nll,
)
from camkd.evaluate.metrics.localization import energy_inside, pointing_game
from camkd.evaluate.metrics.map_similarity import cosine, iou_top, pearson, pointing_match, spearman

__all__ = [
    "BalancedAccuracy",
    "accuracy",
    "balanced_accuracy",
    "confusion_matrix",
    "cosine",
    "derangement",
    "ece",
    "energy_inside",
    "image_independent_maps",
    "iou_top",
    "macro_f1",
    "map_similarities",
    "mean_maps_of_others",
    "mean_recall",
    "means",
    "means_by_outcome",
    "nll",
    "outcome_masks",
    "pearson",
    "pointing_game",
    "pointing_match",
    "spearman",
    "to_common_grid",
]
