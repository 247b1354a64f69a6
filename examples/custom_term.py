"""Train with your own loss term: here, the distance between the centers of mass of the student's and teacher's maps.

    python examples/custom_term.py

A term is a frozen dataclass whose fields are its settings. ``needs`` names the fields of a prediction that the term
reads. ``term(student, teacher, labels)`` returns one number per image. After ``TERMS["center"] = CenterDistance``, a
method can combine the term with others, as in ``ce=0.1,kd=0.9,center=5:sharpness=2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.sources import open_data
from camkd.distill.losses.registry import TERMS
from camkd.experiments.teacher_student import train_all
from camkd.runs.resume import Resume
from camkd.types import Prediction


def centers_of_mass(maps: Tensor, sharpness: float) -> Tensor:
    """Compute the center of mass of each map.

    The mass of a cell is ``softmax(sharpness z)`` over the cells, with ``z`` the map divided by its standard deviation.

    Args:
        maps: Maps ``(N, K, h, w)``.
        sharpness: Factor before the softmax.

    Returns:
        Row and column ``(N, K, 2)``, each in 0..1.
    """
    height, width = maps.shape[2:]
    z = maps.flatten(2) / (maps.flatten(2).std(2, keepdim=True) + 1e-6)
    mass = (sharpness * z).softmax(2).view_as(maps)
    row = (mass.sum(3) * torch.linspace(0, 1, height, device=maps.device)).sum(2)
    column = (mass.sum(2) * torch.linspace(0, 1, width, device=maps.device)).sum(2)
    return torch.stack([row, column], 2)


@dataclass(frozen=True)
class CenterDistance:
    """``mean_k || center(student[k]) - center(teacher[k]) ||^2``, independent of the maps' resolution and scale."""

    sharpness: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"cams"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        assert teacher.cams is not None
        assert student.cams is not None
        student_centers = centers_of_mass(student.cams, self.sharpness)
        teacher_centers = centers_of_mass(teacher.cams.to(student.cams), self.sharpness)
        return (student_centers - teacher_centers).square().sum(2).mean(1)


def main(data: str = "shapes", out: str = "runs/examples/custom-term", epochs: int = 8) -> dict[str, float]:
    """Train a teacher, a control, and a student with the new term. Return the test accuracies."""
    TERMS["center"] = CenterDistance
    distill = DistillConfig(teacher="resnet20", method="ce=0.1,kd=0.9,center=5:sharpness=2")
    config = RunConfig(DataConfig(data), TrainConfig(epochs=epochs, figure_every=0), distill, model="resnet8")
    metrics = train_all(Path(out), config, open_data(data), resume=Resume())  # continues an interrupted run
    for role, values in metrics.items():
        print(f"{role}: accuracy {values['accuracy']:.1%}")
    return {role: values["accuracy"] for role, values in metrics.items()}


if __name__ == "__main__":
    main()
