"""Training state: everything that determines the rest of a run, and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from camkd.runs.folder import Run
from camkd.types import InputError
from camkd.utils.distributed import process_group, run_on_rank0


@dataclass
class TrainState:
    """Everything that determines the rest of a run.

    Args:
        model: The model in training.
        average: The model with averaged weights.
        terms: The loss terms that have weights of their own.
        optimizer: The optimizer of the weights of ``model`` and ``terms``.
        precision: ``fp32`` or ``bf16``.
        epoch: Number of completed epochs.
        batch: Number of completed batches of the current epoch, skipped batches included.
        step: Number of completed training steps, skipped batches included.
        seconds: Training time of the current epoch in seconds.
        sums: Sums over the images of the current epoch, of the loss under ``""`` and of each term by name.
        counts: Number of images in each sum.
        best_epoch: Epoch of ``best_weights`` by `camkd.config.best_epoch`, 0 before the first epoch ends.
        best_weights: State dict of ``average`` after ``best_epoch``.
        rows: The lines of ``metrics.jsonl``.
    """

    model: nn.Module
    average: nn.Module
    terms: nn.ModuleList
    optimizer: torch.optim.Optimizer
    precision: str
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def save(self, run: Run) -> None:
        """Write a checkpoint, with the best weights in a file of their own. Only rank 0 writes."""
        if process_group().rank > 0:
            return
        state = {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "terms": self.terms.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision,
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.sums,
            "counts": self.counts,
            "best_epoch": self.best_epoch,
            "rows": self.rows,
            "random": torch.get_rng_state(),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        if self._device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self._device)
        best = (self.best_epoch, self.best_weights) if self.best_weights else None
        run.checkpoints.save(self.step, state, best)

    def load(self, run: Run) -> list[str]:
        """Restore the newest intact checkpoint, the random state and the number of threads, which affects rounding.

        Args:
            run: The run whose checkpoint is loaded.

        Returns:
            Messages for the user about a changed number of threads or a different version of torch.

        Raises:
            InputError: If there is no intact checkpoint, or the checkpoint belongs to another run.
        """
        state, best = run_on_rank0(run.checkpoints.load)
        if state.get("format", 1) != FORMAT:
            raise InputError(
                f"The checkpoint format in {run.folder} must be {FORMAT}, got {state['format']}. Resume with the "
                "version of camkd that wrote it, or delete the checkpoints to start again."
            )
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.terms.load_state_dict(state["terms"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.precision = state["precision"]
            self.epoch = state["epoch"]
            self.batch = state["batch"]
            self.step = state["step"]
            self.seconds = state["seconds"]
            self.sums = state["sums"]
            self.counts = state["counts"]
            self.best_epoch = state["best_epoch"]
            self.rows = state["rows"]
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"The checkpoints in {run.folder} must belong to the run in its config.yaml, got those of another run. "
                "Restore the right ones, or delete them to start again."
            ) from error
        self.best_weights = best or {}
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda" and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], self._device)
        messages = []
        if state["threads"] != torch.get_num_threads():
            messages.append(f"resuming with {state['threads']} threads, the number that the run was started with")
            torch.set_num_threads(state["threads"])
        if state["torch"] != str(torch.__version__):
            messages.append(
                f"started with torch {state['torch']}, resuming with {torch.__version__}: "
                "results may differ in the last bits"
            )
        return messages

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


FORMAT = 1
"""Version of the checkpoint's content. Increment when a key of the checkpoint or its meaning changes."""
