"""TensorBoard logging as a callback: scalars of every epoch and heatmap figures. Needs ``camkd[tensorboard]``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from camkd.train.callbacks import Callback, scalars
from camkd.types import InputError

FOLDER = "tensorboard"
"""Subfolder of a run with the event files. ``tensorboard --logdir RUN`` shows them."""


def check_tensorboard() -> None:
    """Raise ``InputError`` if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard needs a package that is not installed. Run pip install 'camkd[tensorboard]', or leave the "
            "option out."
        )


class TensorBoardCallback(Callback):
    """Write the scalars of every epoch and each heatmap figure as TensorBoard events.

    Args:
        run_folder: The run folder. Events are written to its subfolder ``tensorboard``.

    Example:
        >>> fit(model, data, objective, config, run, callbacks=[TensorBoardCallback(run.folder)])  # doctest: +SKIP
    """

    def __init__(self, run_folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.writer = SummaryWriter(str(run_folder / FOLDER))

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        for name, value in scalars(row):
            self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def on_figure(self, epoch: int, path: Path) -> None:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.writer.add_image("maps", pixels, epoch, dataformats="HWC")

    def on_train_end(self) -> None:
        self.writer.close()
