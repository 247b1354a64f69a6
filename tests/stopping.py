"""Interrupting a run at a step, for the tests that it goes on."""

from __future__ import annotations

import os
import signal

from camkd.train.callbacks import Callback


class Stop(Callback):
    """Sends this process a signal at one step, counted from 1."""

    def __init__(self, at: int, number: int = signal.SIGINT) -> None:
        self.left, self.number = at, number

    def step(self, pictures: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
