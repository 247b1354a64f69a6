"""The training loop: one for teachers, undistilled students and distilled ones."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.config import TrainConfig
from camkd.data.store import Dataset
from camkd.data.views import Views
from camkd.devices import pick_device, pick_precision
from camkd.objectives import Objective
from camkd.referee import Referee
from camkd.runs import Run
from camkd.types import Prediction

Ask = Callable[[int, Tensor, Tensor], Prediction]
"""``ask(epoch, samples, x)``: the teacher's answer for the views ``x`` of ``samples``."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved in the folder it names, and resuming goes on from there."""


class Watch:
    """Looks on while a run trains; this one does nothing. Override what you want to see."""

    def start(self, name: str, steps: int, done: int) -> None:
        """``steps`` training steps lie ahead, of which ``done`` were made before an interruption."""

    def step(self, pictures: int) -> None:
        """A step over ``pictures`` pictures was made."""

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """An epoch ended: its line of ``metrics.jsonl`` and the (averaged) model."""


@dataclass
class _State:
    """Everything that decides the rest of a run."""

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    best: float = -1.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            **{name: getattr(self, name) for name in self._plain()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        for name in self._plain():
            setattr(self, name, state[name])

    @staticmethod
    def _plain() -> tuple[str, ...]:
        return ("epoch", "batch", "step", "seconds", "sums", "best", "best_weights", "rows")


def fit(
    model: nn.Module,
    data: Dataset,
    objective: Objective,
    config: TrainConfig,
    run: Run,
    *,
    teacher: nn.Module | None = None,
    ask: Ask | None = None,
    resume: bool = False,
    watch: Watch | None = None,
) -> nn.Module:
    """Train ``model`` and return its averaged weights of the epoch with the best validation accuracy.

    ``ask`` answers for the teacher in training, ``teacher`` is compared with on the validation pictures. Writes
    ``metrics.jsonl`` and a checkpoint after each epoch. Raises ``Interrupted`` after SIGINT or SIGTERM, with the state
    saved; ``FloatingPointError`` where the loss is no longer finite.
    """
    device, watch = torch.device(pick_device(config.device)), watch or Watch()
    bf16 = pick_precision(config.precision, device) == "bf16"
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = _State(model, copy.deepcopy(model).requires_grad_(False), _optimizer(model, config))
    if resume:
        state.load_state_dict(run.load_checkpoint())
    views = Views(data.train.images, data.train.labels, len(data.classes), config.views, config.view_seed, device)
    batches = max(1, round(len(views) / config.batch_size))
    schedule = Schedule(config, batches)
    referee = Referee(data, device, bf16, teacher)
    with _stop_requests() as stop:
        watch.start(run.folder.name, schedule.steps, state.step)
        while state.epoch < config.epochs:
            started = time.perf_counter()
            model.train()
            view = state.epoch % (config.view_epochs or config.epochs)
            for samples in _order(len(views), config.view_seed, state.epoch, batches)[state.batch :]:
                batch = views[view, samples]
                known = ask(view, samples, batch.x) if ask else None
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    answer = _answer(model, batch.x, objective.needs)
                loss, means = objective(answer.float(), known, batch.labels, state.step / schedule.steps)
                _update(state, loss, schedule, config)
                _accumulate(state, loss, means, len(samples))
                watch.step(len(samples))
                if stop:
                    state.seconds += time.perf_counter() - started
                    run.save_checkpoint(state.state_dict())
                    raise Interrupted(str(run.folder))
            state.seconds += time.perf_counter() - started
            _end_epoch(state, referee, schedule)
            run.write_history(state.rows)
            run.save_checkpoint(state.state_dict())
            watch.epoch(state.rows[-1], state.average)
            if stop:  # it came after the last step; before any other the loop above would have seen it
                raise Interrupted(str(run.folder))
    state.average.load_state_dict(state.best_weights)
    return state.average.eval()


class Schedule:
    """Linear warm-up, then a cosine to zero: the learning rate at each step."""

    def __init__(self, config: TrainConfig, batches: int) -> None:
        self.steps = config.epochs * batches
        self.peak = config.lr * config.batch_size / 128
        self.rise = max(1, round(config.warmup * self.steps))

    def __call__(self, step: int) -> float:
        if step < self.rise:
            return self.peak * (step + 1) / self.rise
        return self.peak * 0.5 * (1 + math.cos(math.pi * (step - self.rise) / max(1, self.steps - self.rise)))


def _answer(model: nn.Module, x: Tensor, needs: frozenset[str]) -> Prediction:
    """Ask for no more than the objective reads."""
    if needs <= {"logits"}:
        return Prediction(model(x))
    return predict(model, x, features="features" in needs)


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels, none on biases and normalisation."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=True)


def _order(count: int, seed: int, epoch: int, batches: int) -> tuple[Tensor, ...]:
    """The epoch's batches: all samples once, in an order that depends on (view seed, epoch) alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).tensor_split(batches)


def _update(state: _State, loss: Tensor, schedule: Schedule, config: TrainConfig) -> None:
    if not math.isfinite(float(loss.detach())):
        raise FloatingPointError(
            f"the loss is {float(loss.detach())} in epoch {state.epoch + 1}, batch {state.batch + 1}: lower --lr."
        )
    for group in state.optimizer.param_groups:
        group["lr"] = schedule(state.step)
    state.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    state.optimizer.step()
    state.step += 1
    state.batch += 1
    _average(state.average, state.model, min(config.ema, (1 + state.step) / (10 + state.step)))


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights and statistics a step of ``1 - decay`` towards the model's."""
    ours, theirs = list(average.state_dict().values()), list(model.state_dict().values())
    floating = [i for i, tensor in enumerate(ours) if tensor.is_floating_point()]
    torch._foreach_lerp_([ours[i] for i in floating], [theirs[i] for i in floating], 1 - decay)
    for i in set(range(len(ours))) - set(floating):
        ours[i].copy_(theirs[i])


def _accumulate(state: _State, loss: Tensor, means: dict[str, Tensor], pictures: int) -> None:
    for name, value in {"": loss.detach(), **means}.items():
        state.sums[name] = state.sums.get(name, 0.0) + float(value) * pictures
    state.sums["pictures"] = state.sums.get("pictures", 0) + pictures


def _end_epoch(state: _State, referee: Referee, schedule: Schedule) -> None:
    pictures = state.sums.pop("pictures")
    loss = state.sums.pop("") / pictures
    judged = referee(state.average)
    state.rows.append(
        {
            "epoch": state.epoch + 1,
            "train_loss": loss,
            "terms": {name: value / pictures for name, value in state.sums.items()},
            "lr": schedule(state.step - 1),
            **judged,
            "images_per_second": pictures / state.seconds,
            "seconds": state.seconds,
        }
    )
    if judged["val_accuracy"] >= state.best:
        state.best = judged["val_accuracy"]
        state.best_weights = {name: tensor.clone() for name, tensor in state.average.state_dict().items()}
    state.epoch, state.batch, state.seconds, state.sums = state.epoch + 1, 0, 0.0, {}


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying from them; the loop looks after each step.

    Only a main thread may do so; elsewhere nothing is collected.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = {
        number: signal.signal(number, lambda received, frame: seen.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
