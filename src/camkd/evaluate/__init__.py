"""A trained model's numbers on the test pictures: right or wrong, like its teacher, faithful to itself."""

from camkd.evaluate.faithfulness import faithfulness
from camkd.evaluate.inference import SplitPredictions, predict_split
from camkd.evaluate.measure import Evaluation, chance_level, evaluate, masks_of, measure
from camkd.evaluate.per_image import disagreeing_maps, per_image_record, read_per_image, write_per_image

__all__ = [
    "Evaluation",
    "SplitPredictions",
    "chance_level",
    "disagreeing_maps",
    "evaluate",
    "faithfulness",
    "masks_of",
    "measure",
    "per_image_record",
    "predict_split",
    "read_per_image",
    "write_per_image",
]
