"""Distil a network of your own, one that camkd has never heard of.

    python examples/own_network.py

Any ``nn.Module`` that takes pictures ``(N, 3, H, W)``, RGB in 0..1, and returns logits will do. Where it ends in a
global average and a linear layer, as most do, its maps are exact; else camkd finds its last spatial layer and takes
gradients.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from camkd.config import DataConfig, DistillConfig, TrainConfig
from camkd.data.sources import open_data
from camkd.distill.objective import parse_objective
from camkd.distill.teacher import load_teacher
from camkd.evaluate import measure
from camkd.experiments.pipeline import prepare_teacher_cache, train_run
from camkd.runs.folder import Run
from camkd.train.loop import fit


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution to half the resolution, batch normalisation, rectifier."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def network(classes: int) -> nn.Module:
    """A student of 24 thousand parameters."""
    return nn.Sequential(block(3, 32), block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main(pictures: str = "shapes", folder: str = "runs/examples/own-network", epochs: int = 8) -> dict[str, float]:
    """Train a teacher by name, then the network without it and with it. Returns both test accuracies."""
    data, config = open_data(pictures), TrainConfig(epochs=epochs, figure_every=0)

    place = Path(folder) / "teacher"
    train_run(
        place,
        data,
        "resnet20",
        "teacher",
        (DataConfig(pictures), config),
        DistillConfig("plain"),
        resume=place.exists(),
    )
    teacher = load_teacher(place, data, config.device)
    knowledge, config = prepare_teacher_cache(
        teacher, data, config, DistillConfig("cam-kd")
    )  # asked once, kept on disk

    found = {}
    for method in ("plain", "cam-kd"):
        torch.manual_seed(0)
        student, run = network(len(data.classes)), Run(Path(folder) / method)
        known = knowledge if method == "cam-kd" else None
        best = fit(student, data, parse_objective(method), config, run, teacher=teacher.val_targets, knowledge=known)
        figures = measure(best, data, teacher.test_predictions).metrics
        print(f"{method}: {figures['accuracy']:.1%} right, looks like its teacher: {figures['cam_cosine']:.2f}")
        found[method] = figures["accuracy"]
    return found


if __name__ == "__main__":
    main()
