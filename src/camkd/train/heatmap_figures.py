"""Heatmap figures during training, as a callback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from camkd.data.dataset import Dataset
from camkd.evaluate import SplitPredictions
from camkd.explain.explain import (
    Explanation,
    ModelMaps,
    draw_explanation,
    example_rows,
    explain_batches,
    predict_images,
)
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback
from camkd.types import Prediction


class HeatmapFigures(Callback):
    """Draw heatmaps of validation images after the first epoch and after every multiple of ``every`` epochs.

    Args:
        run: The run. Figures are written to ``figures/cams-epoch-NNN.png`` in its folder.
        data: The dataset.
        title: Title of the model in training.
        teacher: The teacher's predictions on the validation images, drawn before the model in training, or None.
        every: Number of epochs between two figures; 0 draws no figures.
        listener: The callback that receives `Callback.on_figure`.
    """

    def __init__(
        self,
        run: Run,
        data: Dataset,
        title: str,
        teacher: SplitPredictions | None,
        every: int,
        listener: Callback,
    ) -> None:
        self.run = run
        self.data = data
        self.title = title
        self.teacher = teacher
        self.every = every
        self.listener = listener

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        epoch = row["epoch"]
        if not self.every or (epoch > 1 and epoch % self.every):
            return
        path = self.run.figures_folder / f"cams-epoch-{epoch:03d}.png"
        draw_examples(path, self.data, "val", {self.title: model}, self.teacher)
        self.listener.on_figure(epoch, path)


def draw_examples(
    path: Path, data: Dataset, split: str, models: Mapping[str, nn.Module], teacher: SplitPredictions | None = None
) -> None:
    """Draw heatmaps of the `camkd.explain.explain.example_rows` of a split as a PNG file.

    Args:
        path: The PNG file to write.
        data: The dataset.
        split: Name of the split, ``train``, ``val`` or ``test``.
        models: Models by title. Without a teacher, the maps are of the class that the first model predicts.
        teacher: The teacher's predictions on the split, drawn before the models. The maps are of the class that it
            predicts.
    """
    examples = data.splits[split]
    rows = example_rows(examples)
    images = examples.images[rows]
    if teacher is None:
        explanation = explain_batches(models, [dict.fromkeys(models, images)])
    else:
        class_ids = teacher.class_ids[rows, None]
        predictions = {"teacher": Prediction(teacher.logits[rows], teacher.maps[rows, None])}
        predictions |= {title: predict_images(model, images, classes=class_ids) for title, model in models.items()}
        maps_by_model = {title: ModelMaps.concatenate([prediction]) for title, prediction in predictions.items()}
        explanation = Explanation(class_ids.numpy(), maps_by_model)
    labels = [data.classes[label] for label in examples.labels[rows]]
    draw_explanation(images, explanation, data.classes, path, true_classes=labels)
