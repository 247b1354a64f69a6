"""Log the training of a network with a callback of your own.

    python examples/custom_callback.py

A callback overrides the events of interest of `camkd.train.callbacks.Callback`. The base class documents all events.
Figures, TensorBoard, the progress bar and the averaged weights are callbacks too.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from torch import nn

from camkd.config import DataConfig, RunConfig, TrainConfig
from camkd.data.sources import open_data
from camkd.experiments.pipeline import train_run
from camkd.runs.resume import Resume
from camkd.train.callbacks import Callback

COLUMNS = ("epoch", "lr", "train_loss", "val_loss", "val_accuracy")


class CSVLogger(Callback):
    """Append a row per epoch to a CSV file, and print each new best validation accuracy.

    In a run of several processes, pass the logger on rank 0 only.

    Args:
        path: The CSV file. A resumed run appends to the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = 0.0

    def on_train_start(self, name: str, total_steps: int, completed_steps: int) -> None:
        if completed_steps == 0:
            self._write_row("w", COLUMNS)

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        self._write_row("a", [row[column] for column in COLUMNS])
        if row["val_accuracy"] > self.best:
            self.best = row["val_accuracy"]
            print(f"epoch {row['epoch']}: best validation accuracy so far, {self.best:.1%}")

    def _write_row(self, mode: str, cells: Any) -> None:
        with self.path.open(mode, encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(cells)


def main(data: str = "shapes", out: str = "runs/examples/custom-callback", epochs: int = 5) -> Path:
    """Train a ResNet-8 with the callback. Return the CSV file."""
    folder = Path(out)
    config = RunConfig(DataConfig(data), TrainConfig(epochs=epochs, figure_every=0), model="resnet8", role="teacher")
    logger = CSVLogger(folder / "epochs.csv")
    train_run(folder, config, open_data(data), resume=Resume(), callbacks=[logger])
    print(f"rows: {logger.path}")
    return logger.path


if __name__ == "__main__":
    main()
