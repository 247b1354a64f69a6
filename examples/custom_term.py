"""Teach with a term of your own: here, that both maps have their centre of mass in the same place.

    python examples/custom_term.py

A term is a frozen dataclass; its fields are its settings, ``needs`` says what it reads of both answers, and calling it
gives one number a picture. Registered under a name it mixes with all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from camkd.config import DataConfig, DistillConfig, TrainConfig
from camkd.data.sources import open_data
from camkd.distill.losses.registry import TERMS
from camkd.experiments.pipeline import train_all
from camkd.types import Prediction


def centres(maps: Tensor, sharpness: float) -> Tensor:
    """Where each map ``(N, K, h, w)`` has its weight: ``(N, K, 2)``, in 0..1 of height and width.

    The weights are ``softmax(sharpness z)`` over the places, ``z`` the map divided by its standard deviation.
    """
    height, width = maps.shape[2:]
    z = maps.flatten(2) / (maps.flatten(2).std(2, keepdim=True) + 1e-6)
    weights = (sharpness * z).softmax(2).view_as(maps)
    rows = (weights.sum(3) * torch.linspace(0, 1, height, device=maps.device)).sum(2)
    columns = (weights.sum(2) * torch.linspace(0, 1, width, device=maps.device)).sum(2)
    return torch.stack([rows, columns], 2)


@dataclass(frozen=True)
class Centre:
    """``mean_k || centre(student[k]) - centre(teacher[k]) ||^2``: indifferent to the maps' sizes and scales."""

    sharpness: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"cams"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        assert student.cams is not None
        assert teacher.cams is not None
        apart = centres(student.cams, self.sharpness) - centres(teacher.cams.to(student.cams), self.sharpness)
        return apart.square().sum(2).mean(1)


def main(pictures: str = "shapes", folder: str = "runs/examples/custom-term", epochs: int = 8) -> dict[str, float]:
    """A teacher, a control and a student taught by logits and centres. Returns the test accuracies."""
    TERMS["centre"] = Centre
    configs = (DataConfig(pictures), TrainConfig(epochs=epochs, figure_every=0))
    lesson = DistillConfig("ce=0.1,kd=0.9,centre=5:sharpness=2")
    out, data = Path(folder), open_data(pictures)
    found = train_all(out, data, "resnet20", "resnet8", configs, lesson, resume=out.exists())
    for role, figures in found.items():
        print(f"{role}: {figures['accuracy']:.1%} right")
    return {role: figures["accuracy"] for role, figures in found.items()}


if __name__ == "__main__":
    main()
