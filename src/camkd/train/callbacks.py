"""Callbacks of the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from camkd.utils.units import finite_number


class Callback:
    """Base class of callbacks. All methods do nothing; a subclass overrides the methods of the events of interest.

    Example:
        >>> class StopWatch(Callback):
        ...     def on_epoch_end(self, row, model):
        ...         print(row["epoch"], row["seconds"])
        >>> fit(model, data, objective, config, run, callbacks=[StopWatch()])  # doctest: +SKIP
    """

    def on_train_start(self, name: str, total_steps: int, completed_steps: int) -> None:
        """Handle the start of training.

        Args:
            name: Name of the run folder.
            total_steps: Number of training steps of the whole run.
            completed_steps: Number of steps completed before the run was resumed, 0 for a new run.
        """

    def on_optimizer_step(self, step: int) -> None:
        """Handle an update of the weights.

        A batch that is skipped because its loss or gradient is not finite (``on_nan="skip"``) makes no update.

        Args:
            step: Number of training steps so far, from 1, skipped batches included.
        """

    def on_batch_end(self, num_images: int) -> None:
        """Handle the end of a training step, also if the batch was skipped.

        Args:
            num_images: Number of images in the batch, over all processes.
        """

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        """Handle the end of an epoch, after its checkpoint was written.

        Args:
            row: The epoch's line of ``metrics.jsonl``.
            model: The model with averaged weights.
        """

    def on_figure(self, epoch: int, path: Path) -> None:
        """Handle a new heatmap figure.

        Args:
            epoch: Number of epochs the model in the figure was trained.
            path: The PNG file.
        """

    def on_message(self, text: str) -> None:
        """Handle a one-line message for the user."""

    def on_train_end(self) -> None:
        """Handle the end of training, also after an interruption or an error."""

    def on_run_end(self, metrics: dict[str, Any] | None) -> None:
        """Handle the end of a run, after the evaluation on the test images.

        Args:
            metrics: Content of ``metrics.json``; None after an interruption or an error.
        """


class CallbackList(Callback):
    """Pass every event to several callbacks, in order.

    Args:
        callbacks: The callbacks, in order.
    """

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
        with ExitStack() as stack:  # every callback gets the event, even if an earlier callback raises an error
            for callback in reversed(self.callbacks):
                stack.callback(callback.on_train_end)

    def on_run_end(self, metrics: dict[str, Any] | None) -> None:
        with ExitStack() as stack:
            for callback in reversed(self.callbacks):
                stack.callback(callback.on_run_end, metrics)


def scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield name and value of each finite number in a row of ``metrics.jsonl`` except the epoch.

    >>> dict(scalars({"epoch": 3, "val_loss": 0.5, "terms": {"ce": 0.25}, "note": "text"}))
    {'val_loss': 0.5, 'terms/ce': 0.25}
    """
    for name, value in row.items():
        number = finite_number(value)
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif name != "epoch" and number is not None:
            yield prefix + name, number
