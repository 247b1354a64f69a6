"""What decides the rest of a run: weights, their average, the optimiser, and how far it has come."""

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
    """Everything that decides the rest of a run."""

    model: nn.Module
    average: nn.Module
    terms: nn.ModuleList  # those of the objective that have weights
    optimizer: torch.optim.Optimizer
    precision: str
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)  # of this epoch: the loss ("") and each term
    counts: dict[str, int] = field(default_factory=dict)  # the pictures of each sum
    best: float = -1.0
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def save(self, run: Run) -> None:
        """Keep the state, and the best weights in a file of their own; of several processes the first does."""
        if process_group().rank > 0:
            return
        state = {
            **{name: getattr(self, name).state_dict() for name in self._parts()},
            **{name: getattr(self, name) for name in self._plain()},
            "random": torch.get_rng_state(),
            **({"random_cuda": torch.cuda.get_rng_state(self._device)} if self._device.type == "cuda" else {}),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        run.checkpoints.save(self.step, state, (self.best_epoch, self.best_weights) if self.best_weights else None)

    def load(self, run: Run) -> list[str]:
        """Go back to the newest state that is whole, with its number of threads, on which the bits depend.

        Returns what a person should know of that.
        """
        state, best = run_on_rank0(run.checkpoints.load)
        try:
            for name in self._parts():
                getattr(self, name).load_state_dict(state[name])
            for name in self._plain():
                setattr(self, name, state[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"the checkpoints in {run.folder} are not of the run that its config.yaml describes: bring back "
                "those that belong there, or delete them to begin anew."
            ) from error
        self.best_weights, notes = best or {}, []
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda" and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], self._device)
        if state["threads"] != torch.get_num_threads():
            notes.append(f"going on with {state['threads']} threads, as the run was begun")
            torch.set_num_threads(state["threads"])
        if state["torch"] != str(torch.__version__):
            notes.append(f"begun with torch {state['torch']}, going on with {torch.__version__}: not to the same bits")
        return notes

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @staticmethod
    def _parts() -> tuple[str, ...]:
        return ("model", "average", "terms", "optimizer")

    @staticmethod
    def _plain() -> tuple[str, ...]:
        return ("precision", "epoch", "batch", "step", "seconds", "sums", "counts", "best", "best_epoch", "rows")
