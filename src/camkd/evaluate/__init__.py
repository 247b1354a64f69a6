"""Evaluation of a trained model on test images: metrics, agreement with a teacher, faithfulness of the maps."""

from camkd.evaluate.faithfulness import faithfulness
from camkd.evaluate.inference import SplitPredictions, predict_split
from camkd.evaluate.measure import Evaluation, chance_level, compute_metrics, measure, object_masks
from camkd.evaluate.per_image import disagreeing_maps, disagreement, per_image_record

__all__ = [
    "Evaluation",
    "SplitPredictions",
    "chance_level",
    "compute_metrics",
    "disagreeing_maps",
    "disagreement",
    "faithfulness",
    "measure",
    "object_masks",
    "per_image_record",
    "predict_split",
]
