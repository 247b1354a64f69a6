"""The training loop: updates, determinism, interruption and resume, loss terms with weights, and non-finite values."""

from __future__ import annotations

import copy
import json
import math
import signal
import threading
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.config import CRITERIA, Select
from camkd.data.batches import epoch_order
from camkd.data.dataset import Dataset
from camkd.data.views import Views
from camkd.distill.cache import Manifest, RecordFormat, Store, TeacherCache
from camkd.distill.losses.logits import CrossEntropy
from camkd.distill.objective import Objective, WeightedTerm, parse_objective
from camkd.models.eval_mode import eval_mode
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback
from camkd.train.loop import fit
from camkd.train.schedule import Schedule
from camkd.train.validation import Validator
from camkd.types import Interrupted, Prediction
from support.interrupt import InterruptAt, Messages
from support.training import (
    PLAIN,
    ConstantTerm,
    FitResult,
    LogitTerm,
    NonFiniteTerm,
    Recorder,
    RecordingCache,
    Weights,
    build_network,
    copy_weights,
    equal_weights,
    fit_network,
    single_term,
    train_config,
    without_times,
)

KD = parse_objective("kd")
ONE_EPOCH = train_config(epochs=1)


def test_training_learns_separable_classes(easy: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    fit_network(easy, tmp_path, train_config(epochs=4), callbacks=[recorder])
    assert recorder.rows[-1]["train_loss"] < recorder.rows[0]["train_loss"] / 2
    assert recorder.rows[-1]["val_accuracy"] >= 0.9
    assert [row["epoch"] for row in recorder.rows] == [1, 2, 3, 4]
    assert recorder.rows == Run(tmp_path).read_history()


# --- batches and seeds


def test_same_seeds_give_the_same_bits(easy: Dataset, tmp_path: Path, reference: FitResult) -> None:
    weights, rows = fit_network(easy, tmp_path)
    assert equal_weights(weights, reference.weights)
    assert without_times(rows) == without_times(reference.rows)


def test_model_seed_does_not_change_the_batches(easy: Dataset, tmp_path: Path) -> None:
    calls = {}
    for seed in (1, 2):
        cache = RecordingCache(build_network(9))
        config = replace(ONE_EPOCH, seed=seed)
        fit_network(easy, tmp_path / str(seed), config, KD, model=build_network(seed), cache=cache)
        calls[seed] = cache.calls
    assert len(calls[1]) == len(calls[2]) == 4
    for (epoch, samples, x), (other_epoch, other_samples, other_x) in zip(calls[1], calls[2], strict=True):
        assert epoch == other_epoch
        assert torch.equal(samples, other_samples)
        assert torch.equal(x, other_x)


@pytest.mark.slow
def test_augment_seed_changes_order_and_augmentation(easy: Dataset, tmp_path: Path) -> None:
    orders = []
    views = []
    for seed in (0, 1):
        cache = RecordingCache(build_network(9))
        fit_network(easy, tmp_path / str(seed), replace(ONE_EPOCH, augment_seed=seed), KD, cache=cache)
        orders.append(torch.cat([samples for _, samples, _ in cache.calls]))
        views.append(torch.cat([x for _, _, x in cache.calls])[orders[-1].argsort()])
    assert not torch.equal(orders[0], orders[1])
    changed = (views[0] != views[1]).flatten(1).any(1)
    assert changed.float().mean() > 0.5


@pytest.mark.parametrize(("batch_size", "steps"), [(7, 14), (24, 4), (40, 2), (96, 1), (1000, 1)])
def test_every_epoch_has_every_image_once_in_batches_of_equal_size(
    easy: Dataset, tmp_path: Path, batch_size: int, steps: int
) -> None:
    cache = RecordingCache(build_network(9))
    recorder = Recorder()
    fit_network(easy, tmp_path, train_config(batch_size=batch_size), KD, cache=cache, callbacks=[recorder])
    orders = []
    for epoch in (0, 1):
        batches = [samples for number, samples, _ in cache.calls if number == epoch]
        orders.append(torch.cat(batches).tolist())
        assert sorted(orders[-1]) == list(range(96))
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
        assert len(batches) == steps
    assert orders[0] != orders[1]
    assert recorder.sizes == [len(samples) for _, samples, _ in cache.calls]


# --- optimizer steps


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_equals_a_literal_loop(easy: Dataset, tmp_path: Path, optimizer: Literal["sgd", "adamw"]) -> None:
    """Optimizer by name, weight decay without biases and normalization, gradient clipping, schedule, order, views."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, 2, bias=False)
    model = nn.Sequential(
        convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    copied = copy.deepcopy(model)
    config = train_config(optimizer=optimizer, lr=0.05, weight_decay=0.3, grad_clip=0.2)
    recorder = Recorder(model)
    fit(model, easy, PLAIN, config, Run(tmp_path), callbacks=[recorder])

    groups = [
        {"params": [parameter for parameter in copied.parameters() if parameter.ndim > 1], "weight_decay": 0.3},
        {"params": [parameter for parameter in copied.parameters() if parameter.ndim == 1], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    literal = sgd if optimizer == "sgd" else torch.optim.AdamW(groups, lr=0.05)
    views = Views(easy.train, 3, "light", 0, torch.device("cpu"))
    batches = [(epoch, samples) for epoch in (0, 1) for samples in epoch_order(96, 0, epoch, 24)]
    num_clipped = 0
    for step, (batch, weights) in enumerate(zip(batches, recorder.weights, strict=True)):
        x, labels, _ = views[batch]
        for group in literal.param_groups:
            group["lr"] = Schedule(config, 4)(step)
        literal.zero_grad()
        nn.functional.cross_entropy(copied(x), labels).backward()
        num_clipped += int(nn.utils.clip_grad_norm_(copied.parameters(), 0.2) > 0.2)
        literal.step()
        for name, expected in copied.state_dict().items():
            torch.testing.assert_close(weights[name], expected, rtol=1e-4, atol=1e-5, msg=f"{name}, step {step}")
    assert num_clipped


@pytest.mark.parametrize(("name", "default", "other"), [("cam-net", "adamw", "sgd"), ("resnet8", "sgd", "adamw")])
@pytest.mark.slow
def test_auto_is_the_default_optimizer_of_the_network(
    easy: Dataset, tmp_path: Path, name: str, default: str, other: str
) -> None:
    """``auto`` selects the optimizer with its learning rate and weight decay."""
    weights = {}
    for optimizer in ("auto", default, other):
        config = replace(ONE_EPOCH, optimizer=optimizer, lr=None)
        weights[optimizer] = fit_network(easy, tmp_path / optimizer, config, model=build_network(name=name)).weights
    assert equal_weights(weights["auto"], weights[default])
    assert not equal_weights(weights["auto"], weights[other])


def test_weight_decay_spares_biases_and_normalization(easy: Dataset, tmp_path: Path) -> None:
    model = build_network()
    before = copy_weights(model)
    recorder = Recorder(model)
    config = replace(ONE_EPOCH, batch_size=96, weight_decay=0.1, lr=0.5, warmup_fraction=0.0)
    fit_network(easy, tmp_path, config, single_term(LogitTerm(0.0)), model=model, callbacks=[recorder])
    decayed = 1 - Schedule(config, 1)(0) * 1.9 * 0.1  # first step of Nesterov: gradient + 0.9 gradient
    names = [name for name, _ in model.named_parameters()]
    assert {before[name].ndim for name in names} == {1, 2, 4}
    for name in names:
        factor = decayed if before[name].ndim > 1 else 1.0
        torch.testing.assert_close(recorder.weights[0][name], factor * before[name])


def test_grad_clip_bounds_the_update(easy: Dataset, tmp_path: Path) -> None:
    model = build_network()
    before = copy_weights(model)
    recorder = Recorder(model)
    config = replace(ONE_EPOCH, batch_size=96, weight_decay=0.0, lr=0.1, warmup_fraction=0.0, grad_clip=0.25)
    fit_network(easy, tmp_path, config, single_term(LogitTerm(1e4)), model=model, callbacks=[recorder])
    squares = [(recorder.weights[0][name] - before[name]).square().sum() for name, _ in model.named_parameters()]
    assert float(torch.stack(squares).sum().sqrt()) == pytest.approx(Schedule(config, 1)(0) * 1.9 * 0.25, rel=1e-3)


def test_student_is_in_training_mode_in_every_epoch(easy: Dataset, tmp_path: Path) -> None:
    model = build_network()
    teacher = build_network(9)
    objective = parse_objective("cam-kd")
    fit_network(easy, tmp_path, objective=objective, model=model, teacher=teacher, cache=RecordingCache(teacher))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {8}


def test_bf16_forward_keeps_fp32_weights(easy: Dataset, tmp_path: Path) -> None:
    model = build_network()
    dtypes = set()
    hook = model.conv1.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    average = fit(model, easy, PLAIN, replace(ONE_EPOCH, precision="bf16"), Run(tmp_path))
    hook.remove()
    assert dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in average.parameters()} == {torch.float32}


# --- history


def test_history_has_learning_rate_and_means_of_the_terms(easy: Dataset, tmp_path: Path) -> None:
    losses: list[tuple[float, int]] = []

    @dataclass(frozen=True)
    class RecordedLoss(CrossEntropy):
        def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
            values = super().__call__(student, teacher, labels)
            losses.append((float(values.detach().mean()), len(labels)))
            return values

    config = train_config(batch_size=20)  # 96 = 20 + 19 + 19 + 19 + 19
    _, rows = fit_network(easy, tmp_path, config, Objective({"ce": WeightedTerm(RecordedLoss(), 3.0)}))
    schedule = Schedule(config, 5)
    for epoch, row in enumerate(rows):
        batches = losses[5 * epoch : 5 * epoch + 5]
        assert row["terms"]["ce"] == pytest.approx(sum(mean * size for mean, size in batches) / 96, rel=1e-5)
        assert row["train_loss"] == pytest.approx(3 * row["terms"]["ce"], rel=1e-5)
        assert row["lr"] == pytest.approx(schedule(5 * epoch + 4))


@pytest.mark.parametrize("interrupt", [0, 5, 6, 7])
def test_mean_of_a_scheduled_term_is_over_its_own_images(easy: Dataset, tmp_path: Path, interrupt: int) -> None:
    """The mean of a constant is the constant, also after an interruption within an epoch."""
    objective = Objective(
        {
            "ce": WeightedTerm(CrossEntropy()),
            "early": WeightedTerm(ConstantTerm(0.5), schedule="early"),
            "ramp": WeightedTerm(ConstantTerm(0.25), schedule="ramp"),
        }
    )
    config = train_config(epochs=4, batch_size=20)  # early: 6 of 20 steps of unequal size, one of them in epoch 2
    if interrupt:
        with pytest.raises(Interrupted):
            fit_network(easy, tmp_path, config, objective, callbacks=[InterruptAt(interrupt)])
    _, rows = fit_network(easy, tmp_path, config, objective, resume=bool(interrupt))
    assert [row["terms"].get("early") for row in rows] == [0.5, 0.5, None, None]
    assert [row["terms"]["ramp"] for row in rows] == [0.25] * 4


# --- interruption and resume


@pytest.mark.parametrize("step", [1, 2, 4, 5, 8])
def test_interrupted_run_resumes_to_the_same_bits(
    easy: Dataset, tmp_path: Path, reference: FitResult, step: int
) -> None:
    with pytest.raises(Interrupted, match=tmp_path.name):
        fit_network(easy, tmp_path, callbacks=[InterruptAt(step)])
    assert Run(tmp_path).checkpoints
    assert [row["epoch"] for row in Run(tmp_path).read_history()] == [1] * (step > 4)
    recorder = Recorder()
    weights, rows = fit_network(easy, tmp_path, resume=True, callbacks=[recorder])
    assert recorder.started == (tmp_path.name, 8, step)
    assert len(recorder.sizes) == 8 - step
    assert equal_weights(weights, reference.weights)
    assert without_times(rows) == without_times(reference.rows)
    assert [row["epoch"] for row in rows] == [1, 2]


@pytest.mark.slow
def test_run_can_be_interrupted_at_every_step(easy: Dataset, tmp_path: Path, reference: FitResult) -> None:
    for completed_steps in range(8):
        with pytest.raises(Interrupted):
            fit_network(easy, tmp_path, resume=completed_steps > 0, callbacks=[InterruptAt(1)])
    weights, rows = fit_network(easy, tmp_path, resume=True)
    assert equal_weights(weights, reference.weights)
    assert without_times(rows) == without_times(reference.rows)


def test_sigterm_interrupts_too(easy: Dataset, tmp_path: Path, reference: FitResult) -> None:
    with pytest.raises(Interrupted):
        fit_network(easy, tmp_path, callbacks=[InterruptAt(3, signal.SIGTERM)])
    assert equal_weights(fit_network(easy, tmp_path, resume=True).weights, reference.weights)


def test_interruption_after_the_last_checkpoint(easy: Dataset, tmp_path: Path, reference: FitResult) -> None:
    with pytest.raises(Interrupted):
        fit_network(easy, tmp_path, callbacks=[InterruptAt(epoch=2)])
    recorder = Recorder()
    weights, rows = fit_network(easy, tmp_path, resume=True, callbacks=[recorder])
    assert recorder.sizes == []
    assert equal_weights(weights, reference.weights)
    assert without_times(rows) == without_times(reference.rows)


def test_resume_with_mixed_images_and_a_teacher(easy: Dataset, tmp_path: Path) -> None:
    teacher = build_network(9)
    caches = []

    def train(folder: str, **options: Any) -> FitResult:
        caches.append(RecordingCache(teacher))
        objective = parse_objective("ce=0.1,kd=0.9,cam=1:schedule=decay")
        config = replace(ONE_EPOCH, augment="strong")
        return fit_network(easy, tmp_path / folder, config, objective, teacher=teacher, cache=caches[-1], **options)

    weights, rows = train("whole")
    with pytest.raises(Interrupted):
        train("interrupted", callbacks=[InterruptAt(2)])
    resumed_weights, resumed_rows = train("interrupted", resume=True)
    assert [len(cache.calls) for cache in caches] == [4, 2, 2]
    assert equal_weights(weights, resumed_weights)
    assert without_times(rows) == without_times(resumed_rows)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.slow
def test_resume_with_terms_that_have_weights(easy: Dataset, tmp_path: Path, step: int) -> None:
    """The weights of ``review`` have a gradient from the second step on."""
    objective = parse_objective("ce=1,review=1:schedule=ramp,hint=10:schedule=decay")
    teacher = build_network(9, "cam-net")

    def train(folder: str, **options: Any) -> FitResult:
        return fit_network(easy, tmp_path / folder, ONE_EPOCH, objective, cache=RecordingCache(teacher), **options)

    weights, rows = train("whole")
    with pytest.raises(Interrupted):
        train("interrupted", callbacks=[InterruptAt(step)])
    resumed_weights, resumed_rows = train("interrupted", resume=True)
    assert equal_weights(weights, resumed_weights)
    assert without_times(rows) == without_times(resumed_rows)
    assert rows[0]["terms"].keys() == {"ce", "review", "hint"}


def test_resume_with_dropout(easy: Dataset, tmp_path: Path) -> None:
    """The random state is a part of the checkpoint."""

    def train(folder: str, seed: int, **options: Any) -> Weights:
        model = build_network()
        model.fc = nn.Sequential(nn.Dropout(), model.fc)  # type: ignore[arg-type]
        torch.manual_seed(seed)
        return fit_network(easy, tmp_path / folder, ONE_EPOCH, model=model, **options).weights

    weights = train("whole", 1)
    with pytest.raises(Interrupted):
        train("interrupted", 1, callbacks=[InterruptAt(2)])
    assert equal_weights(train("interrupted", 2, resume=True), weights)
    assert not equal_weights(train("other", 2), weights)


class Failure(Callback):
    """Raise an error at the end of the first batch."""

    def on_batch_end(self, num_images: int) -> None:
        raise RuntimeError("failed on purpose")


@pytest.mark.parametrize(
    ("callback", "error"), [(Callback(), None), (InterruptAt(1), Interrupted), (Failure(), RuntimeError)]
)
def test_signal_handlers_are_restored(
    easy: Dataset, tmp_path: Path, callback: Callback, error: type[BaseException] | None
) -> None:
    def handler(number: int, frame: object) -> None: ...

    class HandlerIsReplaced(Callback):
        def on_batch_end(self, num_images: int) -> None:
            assert signal.getsignal(signal.SIGINT) is not handler

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if error is None:
            fit_network(easy, tmp_path, ONE_EPOCH, callbacks=[HandlerIsReplaced(), callback])
        else:
            with pytest.raises(error):
                fit_network(easy, tmp_path, ONE_EPOCH, callbacks=[HandlerIsReplaced(), callback])
        assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        for number, original in before.items():
            signal.signal(number, original)


def test_training_works_outside_the_main_thread(easy: Dataset, tmp_path: Path, reference: FitResult) -> None:
    results: list[FitResult] = []
    thread = threading.Thread(target=lambda: results.append(fit_network(easy, tmp_path)))
    thread.start()
    thread.join()
    assert len(results) == 1
    assert equal_weights(results[0].weights, reference.weights)


# --- loss terms with weights


def saved_terms(folder: Path) -> Weights:
    """Return the weights of the loss terms in the newest checkpoint."""
    weights: Weights = Run(folder).checkpoints.load()[0]["terms"]
    return weights


@pytest.mark.slow
def test_weights_of_terms_are_trained_and_depend_on_the_seed(easy: Dataset, tmp_path: Path) -> None:
    objective = parse_objective("ce=1,hint=10")
    teacher = build_network(9, "cam-net")
    terms = {}
    for name, epochs, seed in (("one", 1, 0), ("two", 2, 0), ("again", 1, 0), ("other", 1, 5)):
        config = train_config(epochs=epochs, seed=seed)
        fit_network(easy, tmp_path / name, config, objective, cache=RecordingCache(teacher))
        terms[name] = saved_terms(tmp_path / name)
    assert terms["one"]["0.regressor.weight"].shape == (64, 32, 1, 1)
    assert equal_weights(terms["one"], terms["again"])
    assert not equal_weights(terms["one"], terms["two"])
    assert not equal_weights(terms["one"], terms["other"])
    rows = Run(tmp_path / "two").read_history()
    assert rows[1]["terms"]["hint"] < rows[0]["terms"]["hint"]


def test_term_with_weight_zero_changes_nothing(easy: Dataset, tmp_path: Path, reference: FitResult) -> None:
    """The student's weights, its modes, the random state and the optimizer are those of a run without the term."""
    objective = parse_objective("ce=1,hint=0,review=0")
    cache = RecordingCache(build_network(9, "cam-net"))
    model = build_network()
    model.train()
    model.layer1.eval()
    initial_weights = copy_weights(model)
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()

    class ModelIsUnchanged(Callback):
        def on_train_start(self, name: str, total_steps: int, completed_steps: int) -> None:
            assert equal_weights(copy_weights(model), initial_weights)
            assert [module.training for module in model.modules()] == modes

    weights, _ = fit_network(easy, tmp_path, None, objective, model=model, cache=cache, callbacks=[ModelIsUnchanged()])
    assert equal_weights(weights, reference.weights)
    assert torch.equal(torch.get_rng_state(), random_state)

    x = torch.rand(2, 3, 16, 16)
    network = build_network()
    with eval_mode(network), torch.no_grad():
        student = predict(network, x, features=True)
    torch.manual_seed(0)
    terms = objective.build_adapters(student, cache.teacher_fn(x)).modules()
    assert all(module.training for module in terms.modules())
    assert equal_weights(saved_terms(tmp_path), dict(terms.state_dict()))


@pytest.mark.parametrize("method", ["fitnet", "at", "sp", "rkd", "reviewkd"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.slow
def test_methods_on_features_train_with_mixed_images(
    easy: Dataset, tmp_path: Path, method: str, precision: Literal["bf16", "fp32"]
) -> None:
    config = replace(ONE_EPOCH, augment="strong", precision=precision)
    objective = parse_objective(method)
    cache = RecordingCache(build_network(9, "cam-net"))
    weights, rows = fit_network(easy, tmp_path, config, objective, cache=cache)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}
    assert rows[0]["terms"].keys() == objective.terms.keys()
    assert all(math.isfinite(value) for value in rows[0]["terms"].values())


# --- inputs and result


def test_teacher_is_unchanged(easy: Dataset, tmp_path: Path) -> None:
    teacher = build_network(9)
    teacher.train()
    teacher.layer1.eval()
    before = copy_weights(teacher)
    modes = [module.training for module in teacher.modules()]
    objective = parse_objective("cam-kd")
    fit_network(easy, tmp_path, ONE_EPOCH, objective, teacher=teacher, cache=RecordingCache(teacher))
    assert equal_weights(copy_weights(teacher), before)
    assert [module.training for module in teacher.modules()] == modes
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_test_images_are_not_read(easy: Dataset, tmp_path: Path) -> None:
    class Unreadable:
        def __getattr__(self, name: str) -> Any:
            pytest.fail(f"fit read test.{name}")

        def __len__(self) -> int:
            pytest.fail("fit counted the test images")

    teacher = build_network(9)
    data = replace(easy, test=Unreadable())
    fit_network(data, tmp_path, ONE_EPOCH, parse_objective("cam-kd"), teacher=teacher, cache=RecordingCache(teacher))


@pytest.mark.parametrize(
    ("select", "values", "best"),
    [
        ("accuracy", [0.5, 0.9, 0.9, 0.7], 3),
        ("accuracy", [0.9, 0.2, 0.3, 0.4], 1),
        ("balanced_accuracy", [0.5, 0.9, 0.9, 0.7], 3),
        ("nll", [0.5, 0.1, 0.1, 0.7], 3),
        ("nll", [0.5, 0.9, 0.9, 0.7], 1),
    ],
)
def test_result_is_of_the_best_epoch(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: Select, values: list[float], best: int
) -> None:
    """Of two equally good epochs, the later one is the best. The other metrics have no influence."""
    remaining = iter(values)
    others = count()

    def validate(self: Validator, model: nn.Module) -> dict[str, float]:
        metrics = {criterion.key: criterion.sign * float(next(others)) for criterion in CRITERIA.values()}
        return {**metrics, CRITERIA[select].key: next(remaining)}

    monkeypatch.setattr(Validator, "__call__", validate)
    recorder = Recorder()
    config = train_config(epochs=4, batch_size=48, select=select)
    weights, _ = fit_network(easy, tmp_path, config, callbacks=[recorder])
    assert equal_weights(weights, recorder.averages[best - 1])
    assert not equal_weights(weights, recorder.averages[best])


@pytest.mark.parametrize("best", [0, 2])
def test_initial_weights_are_returned_if_no_epoch_improves_them(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    values = iter([0.5, 0.7, 0.6])
    monkeypatch.setattr(Validator, "__call__", lambda self, model: {"val_accuracy": next(values), "val_loss": 1.0})
    model, recorder, run = build_network(), Recorder(), Run(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    initial = {"epoch": 0, "val_accuracy": {0: 0.71, 2: 0.69}[best], "val_loss": 1.0, "seconds": 0.0}
    config = train_config(epochs=3, batch_size=48)
    result = fit(model, easy, PLAIN, config, run, initial=initial, callbacks=[recorder])
    expected = before if best == 0 else recorder.averages[best - 1]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.state_dict().items())
    assert [row["epoch"] for row in run.read_history()] == [0, 1, 2, 3]
    assert [row["epoch"] for row in recorder.rows] == [1, 2, 3]
    assert run.completed_epochs() == 3
    assert run.checkpoints.load()[0]["best_epoch"] == best


def test_result_is_in_evaluation_mode(easy: Dataset, tmp_path: Path) -> None:
    average = fit(build_network(), easy, PLAIN, ONE_EPOCH, Run(tmp_path))
    assert not any(module.training for module in average.modules())


# --- unbalanced classes


@pytest.fixture
def unbalanced(easy: Dataset) -> Dataset:
    rows = np.concatenate([np.flatnonzero(easy.train.labels == k)[:count] for k, count in enumerate((32, 12, 4))])
    return replace(easy, train=easy.train.take(rows))


def store_cache(teacher: nn.Module, folder: Path, num_samples: int) -> TeacherCache:
    def teacher_fn(x: Tensor) -> Prediction:
        with eval_mode(teacher), torch.no_grad():
            return predict(teacher, x)

    record_format = RecordFormat(3, 4, 4)
    manifest = Manifest("runs/teacher", "resnet8", "easy", "strong", 0, "fp32", num_samples, record_format)
    return TeacherCache(teacher_fn, Store(folder, manifest))


def test_sampler_trains_on_equally_many_images_of_each_class(unbalanced: Dataset, tmp_path: Path) -> None:
    labels: list[Tensor] = []

    @dataclass(frozen=True)
    class RecordingTerm(CrossEntropy):
        def __call__(self, student: Prediction, teacher: Prediction | None, batch_labels: Tensor) -> Tensor:
            labels.append(batch_labels)
            return super().__call__(student, teacher, batch_labels)

    config = train_config(epochs=1, balance="sampler", augment="light")
    fit_network(unbalanced, tmp_path, config, single_term(RecordingTerm()))
    assert torch.cat(labels).bincount().tolist() == [16, 16, 16]


def test_cached_outputs_with_the_sampler(unbalanced: Dataset, tmp_path: Path) -> None:
    """A run that fills the cache ends with the same bits as one that reads it, and as an interrupted run."""
    teacher = build_network(9)
    config = train_config(epochs=3, balance="sampler", augment="strong", augment_epochs=2)
    outputs = {}
    for name in ("fill", "read", "resume"):
        cache = store_cache(teacher, tmp_path / "store", len(unbalanced.train))
        if name == "resume":
            with pytest.raises(Interrupted):
                fit_network(unbalanced, tmp_path / name, config, KD, cache=cache, callbacks=[InterruptAt(3)])
        outputs[name] = fit_network(unbalanced, tmp_path / name, config, KD, cache=cache, resume=name == "resume")
        assert (cache.num_computed > 0) == (name == "fill")
    for name in ("read", "resume"):
        assert equal_weights(outputs["fill"].weights, outputs[name].weights)
    assert without_times(outputs["fill"].rows) == without_times(outputs["read"].rows)


def test_balance_by_logits_trains_with_the_adjusted_objective(unbalanced: Dataset, tmp_path: Path) -> None:
    prior = torch.tensor([32 / 48, 12 / 48, 4 / 48]).log()
    weights, rows = fit_network(unbalanced, tmp_path / "a", train_config(balance="logits"))
    expected, _ = fit_network(unbalanced, tmp_path / "b", train_config(), PLAIN.adjust_logits(prior))
    plain, _ = fit_network(unbalanced, tmp_path / "c", train_config())
    assert equal_weights(weights, expected)
    assert not equal_weights(weights, plain)
    assert rows[0]["terms"].keys() == {"ce"}


# --- values that are not finite


@pytest.mark.fault("non-finite loss or gradient")
def test_loss_that_is_not_finite_stops_the_run(easy: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(FloatingPointError) as caught:
        fit_network(
            easy, tmp_path, objective=single_term(NonFiniteTerm(batches=(7,), value=math.inf)), callbacks=[recorder]
        )
    assert str(caught.value) == "The loss must be finite, got inf in epoch 2, batch 3. Lower --lr."
    assert len(recorder.sizes) == 6
    state, best_weights = Run(tmp_path).checkpoints.load()
    assert best_weights is not None
    assert (state["epoch"], state["step"]) == (1, 4)
    assert all(tensor.isfinite().all() for tensor in best_weights.values())
    assert [row["epoch"] for row in Run(tmp_path).read_history()] == [1]
    json.dumps(Run(tmp_path).read_history(), allow_nan=False)


@pytest.mark.fault("non-finite loss or gradient")
def test_gradient_that_is_not_finite_stops_the_run(easy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"gradient norm must be finite, got (nan|inf) in epoch 1, batch 4"):
        fit_network(easy, tmp_path, objective=single_term(NonFiniteTerm(batches=(4,), value=None)))


@pytest.mark.fault("non-finite loss or gradient")
@pytest.mark.parametrize(("value", "name"), [(math.nan, "loss"), (None, "gradient norm")])
def test_batch_that_is_not_finite_is_skipped(easy: Dataset, tmp_path: Path, value: float | None, name: str) -> None:
    messages = Messages()
    objective = single_term(NonFiniteTerm(batches=(3, 6), value=value))
    weights, rows = fit_network(easy, tmp_path, train_config(on_nan="skip"), objective, callbacks=[messages])
    assert len(messages.texts) == 2
    for text, location in zip(messages.texts, ("epoch 1, batch 3", "epoch 2, batch 2"), strict=True):
        assert text.startswith(f"The {name} must be finite, got ")
        assert location in text
        assert text.endswith("Lower --lr. The batch is skipped.")
    assert [row["skipped_samples"] for row in rows] == [24, 24]
    assert all(math.isfinite(row["train_loss"]) for row in rows)
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.fault("non-finite loss or gradient")
@pytest.mark.parametrize("value", [math.nan, None])
def test_skipped_batch_changes_no_weight_and_no_buffer(easy: Dataset, tmp_path: Path, value: float | None) -> None:
    model = build_network()
    recorder = Recorder(model)
    objective = single_term(NonFiniteTerm(batches=(2,), value=value))
    fit_network(easy, tmp_path, replace(ONE_EPOCH, on_nan="skip"), objective, model=model, callbacks=[recorder])
    assert equal_weights(recorder.weights[0], recorder.weights[1])
    assert not equal_weights(recorder.weights[1], recorder.weights[2])


class CorruptWeight(Callback):
    """Set a weight to NaN at a step, as an unchecked gradient would."""

    def __init__(self, model: nn.Module, step: int) -> None:
        self.model = model
        self.step = step
        self.count = 0

    def on_batch_end(self, num_images: int) -> None:
        self.count += 1
        if self.count == self.step:
            next(self.model.parameters()).data[0] = math.nan


@pytest.mark.fault("non-finite loss or gradient")
@pytest.mark.parametrize(("step", "interrupt"), [(8, 0), (8, 8), (6, 6)])
def test_state_that_is_not_finite_is_not_saved(
    easy: Dataset, tmp_path: Path, reference: FitResult, step: int, interrupt: int
) -> None:
    """Cases: the end of an epoch, and an interruption. The run resumes from the previous checkpoint."""
    model = build_network()
    callbacks = [CorruptWeight(model, step), InterruptAt(interrupt)]
    with pytest.raises(FloatingPointError, match=r"weights must be finite.* in epoch 2\. Lower --lr\."):
        fit_network(easy, tmp_path, model=model, callbacks=callbacks)
    state, _ = Run(tmp_path).checkpoints.load()
    assert (state["epoch"], state["step"]) == (1, 4)
    assert [row["epoch"] for row in Run(tmp_path).read_history()] == [1]
    assert equal_weights(fit_network(easy, tmp_path, resume=True).weights, reference.weights)


@pytest.mark.fault("non-finite loss or gradient")
@pytest.mark.parametrize("interrupt", [0, 3])
def test_sum_of_an_epoch_that_is_not_finite_stops_the_run(easy: Dataset, tmp_path: Path, interrupt: int) -> None:
    """The value of a term is finite in each batch, but the sum over a few batches is not."""
    objective = Objective({"ce": WeightedTerm(CrossEntropy()), "huge": WeightedTerm(ConstantTerm(1e37), 1e-37)})
    with pytest.raises(FloatingPointError, match="The huge must be finite, got inf in epoch 1"):
        fit_network(easy, tmp_path, objective=objective, callbacks=[InterruptAt(interrupt)])
    assert not Run(tmp_path).checkpoints
    assert Run(tmp_path).read_history() == []


@pytest.mark.fault("non-finite loss or gradient")
def test_epoch_of_skipped_batches_stops_the_run(easy: Dataset, tmp_path: Path) -> None:
    objective = single_term(NonFiniteTerm(batches=(5, 6, 7, 8)))
    with pytest.raises(FloatingPointError, match="The loss must be finite, got nan in epoch 2"):
        fit_network(easy, tmp_path, train_config(on_nan="skip"), objective)
    assert [row["epoch"] for row in Run(tmp_path).read_history()] == [1]
