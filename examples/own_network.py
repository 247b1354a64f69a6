"""Distill a network of your own.

    python examples/own_network.py

Any ``nn.Module`` from images ``(N, 3, H, W)``, RGB in 0..1, to logits ``(N, K)`` can be a student. If the
module ends in global average pooling and a linear layer, like the network of this example, its class activation maps
are exact. Otherwise camkd finds the last layer with a spatial output, and the maps are gradient-based.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.sources import open_data
from camkd.distill.objective import parse_objective
from camkd.distill.teacher import load_teacher
from camkd.evaluate import measure
from camkd.experiments.pipeline import prepare_teacher, train_run
from camkd.runs.folder import Run
from camkd.runs.resume import Resume
from camkd.train.loop import fit


def block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build a sequence of convolution with stride 2, batch normalization and ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def network(classes: int) -> nn.Module:
    """Build a student of 20,000 parameters."""
    return nn.Sequential(block(3, 32), block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main(data: str = "shapes", out: str = "runs/examples/own-network", epochs: int = 8) -> dict[str, float]:
    """Train a built-in teacher, then the student without and with the teacher. Return both test accuracies."""
    folder = Path(out)
    dataset = open_data(data)
    config = RunConfig(DataConfig(data), TrainConfig(epochs=epochs, figure_every=0), DistillConfig(method="cam-kd"))

    teacher_config = replace(config, model="resnet20", role="teacher")
    train_run(folder / "teacher", teacher_config, dataset, resume=Resume())
    teacher = load_teacher(folder / "teacher", dataset, config.train.device)
    teacher_with_cache, config = prepare_teacher(teacher, config)  # teacher outputs are cached on disk

    accuracies = {}
    for method in ("plain", "cam-kd"):
        torch.manual_seed(0)
        student = network(len(dataset.classes))
        objective = parse_objective(method)
        cache = teacher_with_cache.cache if objective.needs_teacher else None
        run = Run(folder / method)
        best = fit(student, dataset, objective, config.train, run, teacher=teacher.val_predictions, cache=cache)
        metrics = measure(best, dataset, teacher.test_predictions).metrics
        print(f"{method}: accuracy {metrics['accuracy']:.1%}, CAM cosine to the teacher {metrics['cam_cosine']:.2f}")
        accuracies[method] = metrics["accuracy"]
    return accuracies


if __name__ == "__main__":
    main()
