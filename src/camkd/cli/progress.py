"""Progress on stderr: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import nn

from camkd.cli.streams import StderrConsole
from camkd.train.callbacks import Callback

LINE_INTERVAL = 10.0
"""Seconds between two plain lines of a long job."""


class ProgressReporter(Callback):
    """Context manager that shows messages and the progress of training and other jobs.

    Args:
        quiet: Whether to print nothing, as on ranks other than 0.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = StderrConsole(quiet=quiet)
        self.is_live = self.console.is_terminal
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.task: TaskID | None = None
        self.title = ""
        self.total = 0
        self.done = 0
        self.done_at_start = 0
        self.num_images = 0
        self.started = time.monotonic()
        self.last_line = self.started

    def __enter__(self) -> ProgressReporter:
        if self.is_live:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.is_live:
            self.bar.stop()

    def message(self, text: str) -> None:
        """Print one line."""
        self.console.print_line(text)

    def on_message(self, text: str) -> None:
        self.message(text)

    def progress(self, done: int, total: int, description: str) -> None:
        """Show the progress of a job other than training.

        Args:
            done: Number of completed units of work.
            total: Number of all units of work.
            description: Description of the job. A new description starts a new bar.
        """
        if description != self.title or done < self.done:
            self._start_bar(description, total, 0)
        self.done = done
        self._update_bar("")
        if done >= total:
            self._end_bar()

    def on_train_start(self, name: str, total_steps: int, completed_steps: int) -> None:
        self._start_bar(name, total_steps, completed_steps)

    def on_batch_end(self, num_images: int) -> None:
        self.done += 1
        self.num_images += num_images
        self._update_bar(f"{self.num_images / max(1e-9, time.monotonic() - self.started):,.0f} images/s")

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        parts = [
            f"{self.title}  epoch {row['epoch']}",
            f"validation {row['val_accuracy']:.1%}, balanced {row['val_balanced_accuracy']:.1%}, "
            f"loss {row['val_loss']:.3f}",
            f"training loss {row['train_loss']:.3f}{_format_terms(row['terms'])}",
        ]
        if "val_teacher_agreement" in row:
            parts += [
                f"teacher agreement {row['val_teacher_agreement']:.1%}",
                f"CAM cosine {row['val_cam_cosine']:.2f}",
            ]
        parts += [f"lr {row['lr']:.3g}", f"{row['images_per_second']:,.0f} images/s", f"{self._time_left()} left"]
        self.message("  ".join(parts))
        if self.done >= self.total:
            self._end_bar()

    def _start_bar(self, title: str, total: int, done: int) -> None:
        self._end_bar()
        self.title = title
        self.total = total
        self.done = done
        self.done_at_start = done
        self.num_images = 0
        self.started = time.monotonic()
        self.last_line = self.started
        if self.is_live:
            self.task = self.bar.add_task(title, total=total, completed=done, detail="")

    def _update_bar(self, detail: str) -> None:
        if self.is_live and self.task is not None:
            self.bar.update(self.task, completed=self.done, detail=detail)
        elif time.monotonic() - self.last_line >= LINE_INTERVAL:
            self.last_line = time.monotonic()
            self.message(f"{self.title}  {self.done:,} of {self.total:,}  {detail}  {self._time_left()} left")

    def _time_left(self) -> str:
        """Estimate the time left, as minutes and seconds."""
        completed = self.done - self.done_at_start
        seconds = (time.monotonic() - self.started) / completed * (self.total - self.done) if completed else 0.0
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

    def _end_bar(self) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None


def _format_terms(means: dict[str, float]) -> str:
    """Format several loss terms as `` (ce 1.203, cam 0.412)``, and a single term as an empty string."""
    return f" ({', '.join(f'{name} {mean:.3f}' for name, mean in means.items())})" if len(means) > 1 else ""
