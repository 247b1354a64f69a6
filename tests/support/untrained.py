"""Run folders of networks with random weights, as teachers that need no training."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from camkd.data.dataset import Dataset
from camkd.models import build
from camkd.models.io import ModelInfo, save


def save_untrained(
    folder: Path, name: str, data: Dataset, size: int = 16, *, role: str = "teacher", random_batchnorm: bool = False
) -> Path:
    """Save a network with random weights as a run folder.

    Args:
        folder: The run folder.
        name: Name of the network.
        data: The dataset.
        size: Side of the images in pixels.
        role: Role of the run.
        random_batchnorm: Whether to draw the parameters and statistics of batch normalization at random too.

    Returns:
        The run folder.
    """
    model = build(name, len(data.classes), size, seed=3)
    if random_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    model.set_normalization([0.3, 0.3, 0.3], [0.2, 0.2, 0.2])
    info = ModelInfo(name, data.classes, size, 0, 0, role, "plain", data.name, data.fingerprint, 3)
    save(model, folder, info)
    return folder
