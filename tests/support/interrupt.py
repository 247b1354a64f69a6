"""Interrupt a training run at a step."""

from __future__ import annotations

import os
import signal

from camkd.train.callbacks import Callback


class InterruptAt(Callback):
    """Send this process a signal at a step, and count the steps.

    Args:
        step: the step, from 1; 0 sends no signal.
        number: the signal.
    """

    def __init__(self, step: int = 0, number: int = signal.SIGINT) -> None:
        self.step = step
        self.number = number
        self.count = 0

    def on_batch_end(self, num_images: int) -> None:
        self.count += 1
        if self.count == self.step:
            os.kill(os.getpid(), self.number)


class Messages(Callback):
    """Collect messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_message(self, text: str) -> None:
        self.texts.append(text)
