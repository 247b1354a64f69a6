"""Figures of merit: how often a classifier is right, how sure it is, and how alike two stacks of maps are.

Pure functions on tensors. Maps are ``(N, h, w)``: one map a picture, of one class the caller chose (the teacher's
answer). docs/metrics.md lists what a run writes down of them.
"""

from camkd.evaluate.metrics.agreement import by_outcome, derangement, map_likeness, means, outcomes, to_common_grid
from camkd.evaluate.metrics.classification import accuracy, confusion, ece, nll
from camkd.evaluate.metrics.localization import energy_inside, pointing_game
from camkd.evaluate.metrics.map_similarity import cosine, iou_top, pearson, pointing_match, spearman

__all__ = [
    "accuracy",
    "by_outcome",
    "confusion",
    "cosine",
    "derangement",
    "ece",
    "energy_inside",
    "iou_top",
    "map_likeness",
    "means",
    "nll",
    "outcomes",
    "pearson",
    "pointing_game",
    "pointing_match",
    "spearman",
    "to_common_grid",
]
