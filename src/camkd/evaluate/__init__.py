"""A trained model's numbers on the test pictures: right or wrong, like its teacher, faithful to itself."""

from camkd.evaluate.faithfulness import faithfulness
from camkd.evaluate.inference import Examination, examine
from camkd.evaluate.measure import Measurement, chance_of, evaluate, masks_of, measure
from camkd.evaluate.per_image import alarmed, read_pictures, record, write_pictures

__all__ = [
    "Examination",
    "Measurement",
    "alarmed",
    "chance_of",
    "evaluate",
    "examine",
    "faithfulness",
    "masks_of",
    "measure",
    "read_pictures",
    "record",
    "write_pictures",
]
