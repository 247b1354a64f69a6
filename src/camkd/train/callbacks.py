"""Callbacks of the training loop."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn


class Callback:
    """Base class of callbacks: every event does nothing. Override the events of interest.

    Example:
        >>> class StopWatch(Callback):
        ...     def on_epoch_end(self, row, model):
        ...         print(row["epoch"], row["seconds"])
        >>> fit(model, data, objective, config, run, callbacks=[StopWatch()])  # doctest: +SKIP
    """

    def on_train_start(self, name: str, total_steps: int, completed_steps: int) -> None:
        """Handle the start of training.

        Args:
            name: name of the run folder.
            total_steps: training steps of the whole run.
            completed_steps: steps completed before an interruption.
        """

    def on_optimizer_step(self, step: int) -> None:
        """Handle an update of the weights. Skipped batches make none.

        Args:
            step: number of training steps so far, from 1.
        """

    def on_batch_end(self, num_images: int) -> None:
        """Handle the end of a training step, also of a skipped one.

        Args:
            num_images: images of the batch, over all processes.
        """

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        """Handle the end of an epoch, after its checkpoint was written.

        Args:
            row: the epoch's line of ``metrics.jsonl``.
            model: the model with averaged weights.
        """

    def on_figure(self, epoch: int, path: Path) -> None:
        """Handle a new heatmap figure.

        Args:
            epoch: the epoch of the model, from 1.
            path: the PNG file.
        """

    def on_message(self, text: str) -> None:
        """Handle a message for the user, one line."""

    def on_train_end(self) -> None:
        """Handle the end of training, also after an interruption or an error."""


class CallbackList(Callback):
    """Pass every event to several callbacks, in order."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    def on_train_start(self, name: str, total_steps: int, completed_steps: int) -> None:
        for callback in self.callbacks:
            callback.on_train_start(name, total_steps, completed_steps)

    def on_optimizer_step(self, step: int) -> None:
        for callback in self.callbacks:
            callback.on_optimizer_step(step)

    def on_batch_end(self, num_images: int) -> None:
        for callback in self.callbacks:
            callback.on_batch_end(num_images)

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        for callback in self.callbacks:
            callback.on_epoch_end(row, model)

    def on_figure(self, epoch: int, path: Path) -> None:
        for callback in self.callbacks:
            callback.on_figure(epoch, path)

    def on_message(self, text: str) -> None:
        for callback in self.callbacks:
            callback.on_message(text)

    def on_train_end(self) -> None:
        for callback in self.callbacks:
            callback.on_train_end()
