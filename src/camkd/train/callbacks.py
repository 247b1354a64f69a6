"""Callbacks of the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn


class Callback:
    """Looks on while a run trains; this one does nothing. Override what you want to see."""

    def note(self, text: str) -> None:
        """One line a person should know."""

    def start(self, name: str, steps: int, done: int) -> None:
        """``steps`` training steps lie ahead, of which ``done`` were made before an interruption."""

    def step(self, pictures: int) -> None:
        """A step over ``pictures`` pictures was made."""

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """An epoch ended: its line of ``metrics.jsonl`` and the (averaged) model."""

    def drawn(self, epoch: int, path: Path) -> None:
        """The model's maps after ``epoch`` were drawn, into the PNG ``path``."""
