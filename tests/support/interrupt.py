"""Interrupt a training run at a step or at the end of an epoch."""

from __future__ import annotations

import os
import signal
from typing import Any

from torch import nn

from camkd.train.callbacks import Callback


class InterruptAt(Callback):
    """Send this process a signal, and count the steps.

    Args:
        step: Number of the step, from 1, at whose end the signal is sent; 0 sends no signal.
        number: The signal.
        epoch: Number of the epoch, from 1, at whose end the signal is sent, after the checkpoint; 0 sends no signal.
    """

    def __init__(self, step: int = 0, number: int = signal.SIGINT, *, epoch: int = 0) -> None:
        self.step = step
        self.number = number
        self.epoch = epoch
        self.count = 0

    def on_batch_end(self, num_images: int) -> None:
        self.count += 1
        if self.count == self.step:
            os.kill(os.getpid(), self.number)

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        if row["epoch"] == self.epoch:
            os.kill(os.getpid(), self.number)


class Messages(Callback):
    """Collect messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_message(self, text: str) -> None:
        self.texts.append(text)
