"""A run on TensorBoard (an extra): the scalars of every epoch, and the maps that are drawn while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from camkd.train.callbacks import Callback
from camkd.types import InputError

FOLDER = "tensorboard"
"""Where in a run's folder the event files are: ``tensorboard --logdir RUN`` finds them."""


def check_tensorboard() -> None:
    """Raise ``InputError`` where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard needs an extra that is not installed: pip install 'camkd[tensorboard]', or leave it out."
        )


@contextmanager
def watched(run: Path, wanted: bool, inner: Callback) -> Iterator[Callback]:
    """``inner``, and if ``wanted`` event files in the folder ``run`` beside it.

    >>> with watched(Path("runs/mine/student"), True, Watch()) as watch:                 # doctest: +SKIP
    ...     fit(model, data, objective, config, run, watch=watch)
    """
    if not wanted:
        yield inner
        return
    board = _Board(run / FOLDER, inner)
    try:
        yield board
    finally:
        board.writer.close()


class _Board(Callback):
    """Writes event files, and passes everything on."""

    def __init__(self, folder: Path, inner: Callback) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports tensorboard, which takes a second

        self.writer, self.inner = SummaryWriter(str(folder)), inner
        self.note, self.start, self.step = inner.note, inner.start, inner.step  # type: ignore[method-assign]

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        for name, value in _scalars(row):
            self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()
        self.inner.epoch(row, model)

    def drawn(self, epoch: int, path: Path) -> None:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self.writer.add_image("maps", pixels, epoch, dataformats="HWC")
        self.inner.drawn(epoch, path)


def _scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line of ``metrics.jsonl`` by name, those inside it as ``terms/cam``."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif name != "epoch":
            yield prefix + name, float(value)
