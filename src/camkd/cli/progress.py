"""What a person sees while things go on: a progress bar on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import nn

from camkd.train.callbacks import Callback

EVERY = 10.0  # seconds between two plain lines of a long job


class ProgressReporter(Callback):
    """Shows the progress of decoding and training; use it as a context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.live = self.console.is_terminal
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True)
        self.task: TaskID | None = None
        self.title = ""
        self.total = self.done = self.first = self.pictures = 0
        self.begun = self.said = time.monotonic()

    def __enter__(self) -> ProgressReporter:
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.bar.stop()

    def message(self, text: str) -> None:
        """One line for a person."""
        self.console.print(text, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self.message(text)

    def progress(self, done: int, total: int, what: str) -> None:
        """The callback of the data sources."""
        if what != self.title or done < self.done:
            self._begin(what, total, 0)
        self.done = done
        self._show("")
        if done >= total:
            self._end()

    def start(self, name: str, steps: int, done: int) -> None:
        self._begin(name, steps, done)

    def step(self, pictures: int) -> None:
        self.done += 1
        self.pictures += pictures
        self._show(f"{self.pictures / max(1e-9, time.monotonic() - self.begun):,.0f} pictures/s")

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        parts = [
            f"{self.title}  epoch {row['epoch']}",
            f"validation {row['val_accuracy']:.1%}, loss {row['val_loss']:.3f}",
            f"training loss {row['train_loss']:.3f}{_terms(row['terms'])}",
        ]
        if "val_teacher_agreement" in row:
            parts += [
                f"agrees with its teacher {row['val_teacher_agreement']:.1%}",
                f"map cosine {row['val_cam_cosine']:.2f}",
            ]
        parts += [f"lr {row['lr']:.3g}", f"{row['images_per_second']:,.0f} pictures/s", f"{self._left()} left"]
        self.message("  ".join(parts))
        if self.done >= self.total:
            self._end()

    def _begin(self, title: str, total: int, done: int) -> None:
        self._end()
        self.title, self.total, self.done, self.pictures = title, total, done, 0
        self.begun = self.said = time.monotonic()
        self.first = done
        if self.live:
            self.task = self.bar.add_task(title, total=total, completed=done, note="")

    def _show(self, note: str) -> None:
        if self.live and self.task is not None:
            self.bar.update(self.task, completed=self.done, note=note)
        elif time.monotonic() - self.said >= EVERY:
            self.said = time.monotonic()
            self.message(f"{self.title}  {self.done:,} of {self.total:,}  {note}  {self._left()} left")

    def _left(self) -> str:
        made = self.done - self.first
        seconds = (time.monotonic() - self.begun) / made * (self.total - self.done) if made else 0.0
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

    def _end(self) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None


def _terms(means: dict[str, float]) -> str:
    """`` (ce 1.203, cam 0.412)`` where an objective has several terms."""
    return f" ({', '.join(f'{name} {mean:.3f}' for name, mean in means.items())})" if len(means) > 1 else ""
