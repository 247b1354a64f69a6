"""Heatmap figures during training, as a callback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from camkd.data.dataset import Dataset
from camkd.explain.explain import draw_heatmaps, example_rows
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback


class HeatmapFigures(Callback):
    """Draw heatmaps of validation images after the first epoch and after every multiple of ``every`` epochs.

    Args:
        run: The run. Figures are written to ``figures/cams-epoch-NNN.png`` in its folder.
        data: The dataset.
        title: Title of the model in training.
        other_models: Models by title, drawn before the model in training.
        every: Number of epochs between two figures; 0 draws no figures.
        listener: The callback that receives `Callback.on_figure`.
    """

    def __init__(
        self,
        run: Run,
        data: Dataset,
        title: str,
        other_models: Mapping[str, nn.Module],
        every: int,
        listener: Callback,
    ) -> None:
        self.run = run
        self.data = data
        self.title = title
        self.other_models = dict(other_models)
        self.every = every
        self.listener = listener

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        epoch = row["epoch"]
        if not self.every or (epoch > 1 and epoch % self.every):
            return
        path = self.run.figures_folder / f"cams-epoch-{epoch:03d}.png"
        draw_examples(path, self.data, "val", {**self.other_models, self.title: model})
        self.listener.on_figure(epoch, path)


def draw_examples(path: Path, data: Dataset, split: str, models: Mapping[str, nn.Module]) -> None:
    """Draw heatmaps of the `camkd.explain.explain.example_rows` of a split as a PNG file.

    Args:
        path: The PNG file to write.
        data: The dataset.
        split: Name of the split, ``train``, ``val`` or ``test``.
        models: Models by title. The maps are of the class that the first model predicts.
    """
    images = data.splits[split]
    rows = example_rows(images)
    labels = [data.classes[label] for label in images.labels[rows]]
    draw_heatmaps(images.images[rows], models, data.classes, path, labels)
