"""The training loop of teachers, controls and distilled students."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.cams.head_detection import check_logits, check_not_probabilities
from camkd.config import Select, TrainConfig, best_epoch, resolve_optimizer
from camkd.data.augment import pick_augment
from camkd.data.batches import SampleBatch, batch_count
from camkd.data.dataset import UNLABELED, Dataset
from camkd.data.training_batches import epoch_size, training_batches
from camkd.data.views import Batch, Views
from camkd.distill.cache import TeacherCache
from camkd.distill.losses.logits import log_prior
from camkd.distill.objective import Objective
from camkd.evaluate import SplitPredictions
from camkd.models.eval_mode import eval_mode, fp32_dilated_convs
from camkd.models.sync_batchnorm import sync_batchnorm
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback, CallbackList
from camkd.train.ema import EMA
from camkd.train.schedule import Schedule
from camkd.train.state import TrainState
from camkd.train.stop_signals import stop_signals
from camkd.train.validation import Validator
from camkd.types import InputError, Interrupted, Prediction
from camkd.utils.devices import keep_freed_memory, pick_device, pick_precision
from camkd.utils.distributed import StopFlag, all_gather, all_reduce_gradients, process_group


def fit(
    model: nn.Module,
    data: Dataset,
    objective: Objective,
    config: TrainConfig,
    run: Run,
    *,
    teacher: SplitPredictions | None = None,
    cache: TeacherCache | None = None,
    initial: Mapping[str, Any] | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> nn.Module:
    """Train a model and return its averaged weights of the epoch that ``config.select`` chooses on validation images.

    ``model`` is trained in place. ``metrics.jsonl`` and a checkpoint are written after each epoch. Loss terms with
    weights of their own are initialized from ``config.seed``, trained together with the model, and left out of the
    result.

    Args:
        model: Any classifier from images ``(N, 3, H, W)``, RGB in 0..1, to logits ``(N, K)``. If ``config.optimizer``
            is ``auto``, the optimizer is ``model.default_optimizer``, or ``sgd`` if the model lacks this attribute.
        data: The dataset.
        objective: The loss.
        config: The training settings.
        run: The run folder.
        teacher: The teacher's predictions on the validation images. If given, two more validation metrics are computed.
        cache: The teacher's outputs on the training images, required if the objective needs a teacher.
        initial: Row of ``metrics.jsonl`` for the initial weights, as epoch 0. If given, the initial weights are
            returned if no epoch improves them. Ignored if ``resume`` is set.
        resume: Whether to continue from the newest intact checkpoint of the run.
        callbacks: Callbacks, called in order.

    Returns:
        A copy of the model with averaged weights, in eval mode. Of equally good epochs, the latest counts.

    Raises:
        Interrupted: If SIGINT or SIGTERM is received. The state is saved first.
        FloatingPointError: If a loss or gradient is not finite and ``config.on_nan`` is ``stop``, if all batches of an
            epoch were skipped, or if a weight or a validation metric is not finite. The last checkpoint is kept.
        InputError: If ``resume`` is set and there is no intact checkpoint of this run. If the model does not return one
            logit per class, or the images or labels of the training split are invalid.

    Example:
        >>> data = open_data("shapes")  # doctest: +SKIP
        >>> model = fit(build("cam-net", 10, 32), data, parse_objective("plain"), TrainConfig(), Run(Path("runs/a")))
        ... # doctest: +SKIP
    """
    device = torch.device(pick_device(config.device))
    settings = resolve_optimizer(config, getattr(model, "default_optimizer", "sgd"))
    config = replace(config, augment=pick_augment(config.augment, data), **settings._asdict())
    keep_freed_memory()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).requires_grad_(False)
    views = Views(data.train, len(data.classes), config.augment, config.augment_seed, device)
    if config.balance == "logits":
        objective = objective.adjust_logits(log_prior(views.labels[views.labels != UNLABELED], len(data.classes)))
    precision = pick_precision(config.precision, device)
    _check_outputs(model, views, len(data.classes), precision)
    if objective.needs_adapters:
        assert cache is not None
        objective = _build_adapters(objective, model, cache, views, config.seed)
    terms = objective.modules()
    state = TrainState(model, average, terms, _build_optimizer([model, *terms], config), precision)
    events = CallbackList([EMA(average, model, config.ema_decay), *callbacks])
    if resume:
        for message in state.load(run):
            events.on_message(message)
    elif initial is not None:
        _add_row(state, dict(initial), config.select)
    num_samples = epoch_size(data.train.labels, config)
    schedule = Schedule(config, batch_count(num_samples, config.batch_size))
    validator = Validator(data, device, state.precision == "bf16", teacher)
    trainer = _Trainer(state, objective, config, schedule, events, views, cache)
    try:
        with stop_signals() as signals, fp32_dilated_convs(model), sync_batchnorm(model):
            stop = StopFlag(lambda: bool(signals))
            events.on_train_start(run.folder.name, schedule.total_steps, state.step)
            while state.epoch < config.epochs:
                if trainer.train_epoch(stop):
                    _check_state(state)
                    state.save(run)
                    raise Interrupted(str(run.folder))
                _end_epoch(state, validator, schedule, num_samples, config.select)
                if process_group().rank == 0:
                    run.write_history(state.rows)
                state.save(run)
                events.on_epoch_end(state.rows[-1], state.average)
                if stop.wait():
                    raise Interrupted(str(run.folder))
    finally:
        events.on_train_end()
    state.average.load_state_dict(state.best_weights)
    return state.average.eval()


@dataclass
class _Trainer:
    """Trainer of one epoch at a time."""

    state: TrainState
    objective: Objective
    config: TrainConfig
    schedule: Schedule
    events: Callback
    views: Views
    cache: TeacherCache | None

    def train_epoch(self, stop: StopFlag) -> bool:
        """Train the rest of the current epoch.

        Returns:
            Whether training must stop because a process received a signal.
        """
        state = self.state
        started = time.perf_counter()
        state.model.train()
        batches = training_batches(self.views.split.labels, self.config, state.epoch)
        for size, batch, targets in _iter_batches(self.views, self.cache, batches[state.batch :]):
            self.train_step(size, batch, targets)
            self.events.on_batch_end(size)
            if stop.poll():
                state.seconds += time.perf_counter() - started
                return True
        if self.views.device.type == "cuda":
            torch.cuda.synchronize(self.views.device)
        state.seconds += time.perf_counter() - started
        return False

    def train_step(self, size: int, batch: Batch, targets: Prediction | None) -> None:
        """Make one training step on a batch of ``size`` images, of which ``batch`` is this process's shard."""
        state = self.state
        skips_nan = self.config.on_nan == "skip"
        buffers = _clone_buffers(state.model, state.terms) if skips_nan else []
        device_type = self.views.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=state.precision == "bf16"):
            prediction = _forward(state.model, batch.x, self.objective.needs)
        sizes = process_group().shard_sizes(size)
        student = _all_gather_prediction(prediction.float(), sizes)
        teacher = None if targets is None else _all_gather_prediction(targets, sizes)
        progress = state.step / self.schedule.total_steps
        labels = all_gather(batch.labels, sizes)
        weights = None if batch.weights is None else all_gather(batch.weights, sizes)
        loss, means = self.objective(student, teacher, labels, progress, weights)
        try:
            _update(state, loss, self.schedule, self.config)
        except FloatingPointError as error:
            if not skips_nan:
                raise
            self.events.on_message(f"{error} The batch is skipped.")
            _restore_buffers(state.model, state.terms, buffers)
        else:
            self.events.on_optimizer_step(state.step)
            _accumulate(state, loss, means, size)


def _iter_batches(
    views: Views, cache: TeacherCache | None, batches: Sequence[SampleBatch]
) -> Iterator[tuple[int, Batch, Prediction | None]]:
    """Yield the size of each batch, this process's shard of the batch, and the teacher's outputs on the shard."""
    for indices, epochs in batches:
        shard = process_group().shard(indices)
        if isinstance(epochs, Tensor):
            epochs = process_group().shard(epochs)
        batch = views[epochs, shard]
        outputs = None if cache is None else cache.outputs(epochs, shard, batch.x)
        yield len(indices), batch, outputs


def _all_gather_prediction(prediction: Prediction, sizes: Sequence[int]) -> Prediction:
    """Concatenate the predictions of all processes for their shards of a batch."""
    if process_group().world_size == 1:
        return prediction

    def gather(part: Tensor | None) -> Tensor | None:
        return None if part is None else all_gather(part, sizes)

    features = prediction.features
    return Prediction(
        all_gather(prediction.logits, sizes),
        gather(prediction.cams),
        None if features is None else tuple(all_gather(stage, sizes) for stage in features),
        gather(prediction.class_ids),
    )


def _check_outputs(model: nn.Module, views: Views, num_classes: int, precision: str) -> None:
    """Check the outputs of a model for two images: one logit per class, and no probabilities."""
    x = views[0, torch.arange(min(2, len(views)))].x
    with eval_mode(model), torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(x)
    check_logits(model, logits)
    check_not_probabilities(model, logits)
    if logits.shape[1] != num_classes:
        raise InputError(
            f"{type(model).__name__} must return {num_classes} logits, one for each class of the data, got "
            f"{logits.shape[1]}. Build it with {num_classes} classes."
        )


def _build_adapters(objective: Objective, model: nn.Module, cache: TeacherCache, views: Views, seed: int) -> Objective:
    """Build the adapters of the objective's terms for the feature shapes of both networks, initialized from ``seed``.

    The global random state is restored.
    """
    rows = torch.arange(min(2, len(views)))
    x = views[0, rows].x
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        objective = objective.build_adapters(_forward(model, x, objective.needs), cache.predict(0, rows, x))
    objective.modules().to(x.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return objective


def _forward(model: nn.Module, x: Tensor, needs: frozenset[str]) -> Prediction:
    """Compute only the outputs that the objective needs."""
    if needs <= {"logits"}:
        return Prediction(model(x))
    return predict(model, x, features="features" in needs)


def _build_optimizer(modules: Iterable[nn.Module], config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimizer, with weight decay on matrices and kernels only.

    Each module has its own parameter groups, because a fused step needs gradients for all parameters of a group or for
    none.
    """
    name, lr, weight_decay = resolve_optimizer(config)
    groups: list[dict[str, Any]] = []
    for module in modules:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups += [
            {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
            {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=True)


def _update(state: TrainState, loss: Tensor, schedule: Schedule, config: TrainConfig) -> None:
    """Make an optimizer step.

    Loss and gradient are checked on the CPU, and with ``on_nan=skip`` on every device. On a GPU with ``on_nan=stop``, a
    check would make the host wait at every step. There, `_check_state` finds non-finite values before a state is saved.

    Raises:
        FloatingPointError: If a check finds a loss or gradient that is not finite. No weight has changed.
    """
    location = f"epoch {state.epoch + 1}, batch {state.batch + 1}"
    checks = loss.is_cpu or config.on_nan == "skip"
    for group in state.optimizer.param_groups:
        group["lr"] = schedule(state.step)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = None
    state.step += 1
    state.batch += 1
    if checks:
        _check_finite(loss.detach(), "loss", location)
    (loss / process_group().world_size).backward()  # every process has the whole loss, and gradients are summed
    all_reduce_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip)
    if checks:
        _check_finite(norm.detach(), "gradient norm", location)
    state.optimizer.step()


def _check_finite(value: Tensor | float, name: str, location: str) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(f"The {name} must be finite, got {float(value)} in {location}. Lower --lr.")


def _check_state(state: TrainState) -> None:
    """Raise ``FloatingPointError`` if a sum of the epoch or a trained weight is not finite, before it is saved."""
    location = f"epoch {state.epoch + 1}"
    for name, total in state.sums.items():
        _check_finite(total, name or "loss", location)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    if not torch.stack([parameter.isfinite().all() for parameter in parameters]).all():
        raise FloatingPointError(f"All weights must be finite, got NaN or infinity in {location}. Lower --lr.")


def _clone_buffers(*modules: nn.Module) -> list[Tensor]:
    """Copy all buffers, such as running statistics."""
    return [buffer.clone() for module in modules for buffer in module.buffers()]


def _restore_buffers(model: nn.Module, terms: nn.Module, buffers: Sequence[Tensor]) -> None:
    for buffer, saved in zip((*model.buffers(), *terms.buffers()), buffers, strict=True):
        buffer.copy_(saved)


def _accumulate(state: TrainState, loss: Tensor, means: dict[str, Tensor], num_images: int) -> None:
    """Add the loss and the terms to the sums of the epoch, on the device of the loss.

    A term's schedule may leave the term out of some batches, so each sum has its own count of images.
    """
    for name, mean in {"": loss.detach(), **means}.items():
        value = mean * num_images
        state.sums[name] = state.sums[name].to(value) + value if name in state.sums else value
        state.counts[name] = state.counts.get(name, 0) + num_images


def _end_epoch(state: TrainState, validator: Validator, schedule: Schedule, num_images: int, select: Select) -> None:
    """Validate the averaged model, append the epoch's metrics and keep the best weights."""
    _check_state(state)
    location = f"epoch {state.epoch + 1}"
    sums = {name: float(value) for name, value in state.sums.items()}
    loss = sums.pop("", math.nan)  # NaN if all batches were skipped
    num_trained = state.counts.get("", 0)
    _check_finite(loss, "loss", location)
    metrics = validator(state.average)
    for name, value in metrics.items():
        _check_finite(value, name, location)
    _add_row(
        state,
        {
            "epoch": state.epoch + 1,
            "train_loss": loss / num_trained,
            "terms": {name: value / state.counts[name] for name, value in sums.items()},
            "lr": schedule(state.step - 1),
            **metrics,
            "images_per_second": num_images / state.seconds,
            "seconds": state.seconds,
            **({"skipped_samples": num_images - num_trained} if num_trained < num_images else {}),
        },
        select,
    )
    state.epoch += 1
    state.batch = 0
    state.seconds = 0.0
    state.sums = {}
    state.counts = {}


def _add_row(state: TrainState, row: dict[str, Any], select: Select) -> None:
    """Append the metrics of an epoch, and keep the averaged weights if they are the best so far."""
    state.rows.append(row)
    if best_epoch(state.rows, select) is row:
        state.best_epoch = row["epoch"]
        state.best_weights = {name: tensor.clone() for name, tensor in state.average.state_dict().items()}
