"""The training loop: one for teachers, undistilled students and distilled ones."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.config import TrainConfig, resolve_optimizer
from camkd.data.augment import Batch, Views, batch_count, epoch_order
from camkd.data.dataset import Dataset
from camkd.distill.cache import TeacherCache
from camkd.distill.objective import Objective
from camkd.distill.teacher import TeacherTargets
from camkd.models.eval_mode import dilated_in_fp32, eval_mode
from camkd.models.sync_batchnorm import sync_batchnorm
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback
from camkd.train.ema import EMA
from camkd.train.schedule import Schedule
from camkd.train.state import TrainState
from camkd.train.validation import Validator
from camkd.types import Prediction
from camkd.utils.devices import keep_freed_memory, pick_device, pick_precision
from camkd.utils.distributed import all_gather, all_reduce_gradients, all_reduce_sum, process_group


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved in the folder it names, and resuming goes on from there."""


def fit(
    model: nn.Module,
    data: Dataset,
    objective: Objective,
    config: TrainConfig,
    run: Run,
    *,
    teacher: TeacherTargets | None = None,
    knowledge: TeacherCache | None = None,
    resume: bool = False,
    watch: Callback | None = None,
) -> nn.Module:
    """Train ``model`` and return its averaged weights of the epoch with the best validation accuracy.

    ``knowledge`` answers for the teacher in training, ``teacher`` is what it said of the validation pictures. Terms
    with weights of their own get them from ``config.seed``, learn beside the model and end with the run. The optimiser
    ``auto`` is what ``model.default_optimizer`` says, "sgd" or "adamw", and SGD where it says nothing. Writes
    ``metrics.jsonl`` and a checkpoint after each epoch. Raises ``Interrupted`` after SIGINT or SIGTERM, with the state
    saved; ``FloatingPointError`` where loss or gradient is no longer finite, unless such batches are passed over, with
    the last finite state kept.
    """
    device, watch = torch.device(pick_device(config.device)), watch or Callback()
    config = replace(config, **resolve_optimizer(config, getattr(model, "default_optimizer", "sgd"))._asdict())
    keep_freed_memory()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).requires_grad_(False)
    views = Views(data.train, len(data.classes), config.augment, config.augment_seed, device)
    if objective.has_adapters:
        assert knowledge is not None
        objective = _connected(objective, model, knowledge, views[0, torch.arange(min(2, len(views)))].x, config.seed)
    terms = objective.modules()
    optimizer, precision = _optimizer([model, *terms], config), pick_precision(config.precision, device)
    state = TrainState(model, average, terms, optimizer, precision)
    if resume:
        for note in state.load(run):
            watch.note(note)
    bf16 = state.precision == "bf16"
    schedule = Schedule(config, batch_count(len(views), config.batch_size))
    follow = EMA(average, model)
    referee = Validator(data, device, bf16, teacher)
    with _stop_requests() as stop, dilated_in_fp32(model), sync_batchnorm(model):
        watch.start(run.folder.name, schedule.steps, state.step)
        while state.epoch < config.epochs:
            started = time.perf_counter()
            model.train()
            view = state.epoch % (config.augment_epochs or config.epochs)
            order = epoch_order(len(views), config.augment_seed, state.epoch, config.batch_size)[state.batch :]
            for size, batch, known in _lessons(views, knowledge, view, order):
                before = _buffers(model, terms) if config.on_nan == "skip" else []
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    answer = _answer(model, batch.x, objective.needs)
                told = None if known is None else _together(known)
                done = state.step / schedule.steps
                loss, means = objective(_together(answer.float()), told, all_gather(batch.labels), done)
                try:
                    _update(state, loss, schedule, config)
                except FloatingPointError as error:
                    if config.on_nan == "stop":
                        raise
                    watch.note(f"{error}; the batch is passed over")
                    _restore(model, terms, before)
                else:
                    follow(min(config.ema_decay, (1 + state.step) / (10 + state.step)))
                    _accumulate(state, loss, means, size)
                watch.step(size)
                if _anywhere(stop, device):
                    state.seconds += time.perf_counter() - started
                    _check_state(state)
                    state.save(run)
                    raise Interrupted(str(run.folder))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            state.seconds += time.perf_counter() - started
            _end_epoch(state, referee, schedule, len(views))
            if process_group().rank == 0:
                run.write_history(state.rows)
            state.save(run)
            watch.epoch(state.rows[-1], state.average)
            if _anywhere(stop, device):  # it came after the last step
                raise Interrupted(str(run.folder))
    state.average.load_state_dict(state.best_weights)
    return state.average.eval()


def _lessons(
    views: Views, knowledge: TeacherCache | None, view: int, order: Sequence[Tensor]
) -> Iterator[tuple[int, Batch, Prediction | None]]:
    """The size of each batch of the epoch, this process's share of it, and what the teacher says of that."""
    for batch in order:
        samples = process_group().shard(batch)
        seen = views[view, samples]
        if knowledge is None:
            yield len(batch), seen, None
        else:
            known = knowledge.get(view, samples)
            told = knowledge.compute(view, samples, seen.x) if known is None else known.to(seen.x.device)
            yield len(batch), seen, told


def _together(said: Prediction) -> Prediction:
    """The whole batch's answers out of all processes' shares."""
    if process_group().world_size == 1:
        return said
    stages = None if said.features is None else tuple(map(all_gather, said.features))
    cams, shown = (None if part is None else all_gather(part) for part in (said.cams, said.class_ids))
    return Prediction(all_gather(said.logits), cams, stages, shown)


def _connected(objective: Objective, model: nn.Module, knowledge: TeacherCache, x: Tensor, seed: int) -> Objective:
    """The objective with the weights of its terms made, for networks that answer as these do to ``x``.

    The global random state is left as it was.
    """
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        connected = objective.build_adapters(_answer(model, x, objective.needs), knowledge.teacher(x))
    connected.modules().to(x.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return connected


def _answer(model: nn.Module, x: Tensor, needs: frozenset[str]) -> Prediction:
    """Ask for no more than the objective reads."""
    if needs <= {"logits"}:
        return Prediction(model(x))
    return predict(model, x, features="features" in needs)


def _optimizer(modules: Iterable[nn.Module], config: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels, none on biases and normalisation.

    Each module has groups of its own: the fused step wants all of a group to have had a gradient, or none.
    """
    (name, lr, weight_decay), groups = resolve_optimizer(config), []
    for module in modules:
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups += [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=True)


def _update(state: TrainState, loss: Tensor, schedule: Schedule, config: TrainConfig) -> None:
    """Make one step. Raises ``FloatingPointError`` and changes no weight where loss or gradient is not finite.

    That is so on the CPU, and where such batches are to be passed over. The host would have to wait for any other
    device: there `_check_state` finds it, before a state is kept.
    """
    where, looks = f"epoch {state.epoch + 1}, batch {state.batch + 1}", loss.is_cpu or config.on_nan == "skip"
    for group in state.optimizer.param_groups:
        group["lr"] = schedule(state.step)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = None
    state.step += 1
    state.batch += 1
    if looks:
        _check(loss.detach(), "loss", where)
    (
        loss / process_group().world_size
    ).backward()  # each process has the whole loss, and all their gradients are added up
    all_reduce_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip)
    if looks:
        _check(norm.detach(), "norm of the gradient", where)
    state.optimizer.step()


def _check(value: Tensor | float, name: str, where: str) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(f"the {name} is {float(value)} in {where}: lower --lr")


def _check_state(state: TrainState) -> None:
    """Raise ``FloatingPointError`` where a sum of this epoch or a weight is not finite: such a state is not kept."""
    where = f"epoch {state.epoch + 1}"
    for name, total in state.sums.items():
        _check(total, name or "loss", where)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    if not torch.stack([parameter.isfinite().all() for parameter in parameters]).all():
        raise FloatingPointError(f"a weight is not finite in {where}: lower --lr")


def _buffers(*modules: nn.Module) -> list[Tensor]:
    """Copies of all running statistics and the like."""
    return [buffer.clone() for module in modules for buffer in module.buffers()]


def _restore(model: nn.Module, terms: nn.Module, before: Sequence[Tensor]) -> None:
    for buffer, kept in zip((*model.buffers(), *terms.buffers()), before, strict=True):
        buffer.copy_(kept)


def _accumulate(state: TrainState, loss: Tensor, means: dict[str, Tensor], pictures: int) -> None:
    """Add up where the numbers are, so that nobody waits for them; a schedule may leave a term out of some batches."""
    for name, mean in {"": loss.detach(), **means}.items():
        value = mean * pictures
        state.sums[name] = state.sums[name].to(value) + value if name in state.sums else value
        state.counts[name] = state.counts.get(name, 0) + pictures


def _end_epoch(state: TrainState, referee: Validator, schedule: Schedule, pictures: int) -> None:
    _check_state(state)
    sums = {name: float(value) for name, value in state.sums.items()}
    loss, learnt = sums.pop("", math.nan), state.counts.get("", 0)
    _check(loss, "loss", f"epoch {state.epoch + 1}")  # no sum, no number: all batches were passed over
    judged = referee(state.average)
    for name, value in judged.items():
        _check(value, name, f"epoch {state.epoch + 1}")
    state.rows.append(
        {
            "epoch": state.epoch + 1,
            "train_loss": loss / learnt,
            "terms": {name: value / state.counts[name] for name, value in sums.items()},
            "lr": schedule(state.step - 1),
            **judged,
            "images_per_second": pictures / state.seconds,
            "seconds": state.seconds,
            **({"skipped_samples": pictures - learnt} if learnt < pictures else {}),
        }
    )
    if judged["val_accuracy"] >= state.best:
        state.best, state.best_epoch = judged["val_accuracy"], state.epoch + 1
        state.best_weights = {name: tensor.clone() for name, tensor in state.average.state_dict().items()}
    state.epoch, state.batch, state.seconds, state.sums, state.counts = state.epoch + 1, 0, 0.0, {}, {}


def _anywhere(stop: Sequence[int], device: torch.device) -> bool:
    """Whether any process was asked to stop: they stop after the same step."""
    return (
        bool(stop) if process_group().world_size == 1 else bool(all_reduce_sum(torch.tensor(len(stop), device=device)))
    )


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
