"""The loop: what decides a run, that it can be cut anywhere, and that it leaves teacher and test pictures alone."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import signal
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from camkd.cams import predict, resize
from camkd.config import TrainConfig
from camkd.data.dataset import Dataset
from camkd.distill.cache import TeacherCache
from camkd.distill.losses.logits import CrossEntropy
from camkd.distill.objective import Objective, WeightedTerm, parse_objective
from camkd.distill.teacher import TeacherTargets
from camkd.evaluate import predict_split
from camkd.evaluate.metrics import cosine
from camkd.models import build
from camkd.models.eval_mode import eval_mode
from camkd.runs.folder import Run
from camkd.train import validation as referee
from camkd.train.callbacks import Callback
from camkd.train.loop import Interrupted, _connected, _optimizer, fit
from camkd.train.schedule import Schedule
from camkd.train.validation import Validator
from camkd.types import InputError, Prediction
from stopping import Stop

PLAIN = parse_objective("plain")
Weights = dict[str, Tensor]


def settings(**changes: Any) -> TrainConfig:
    values = {"epochs": 2, "batch_size": 24, "lr": 0.4, "precision": "fp32", "device": "cpu", **changes}
    return TrainConfig(**values)


@dataclass
class Seen(Callback):
    """Everything a run told its watch, and the weights after each step."""

    model: nn.Module | None = None
    sizes: list[int] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    averages: list[Weights] = field(default_factory=list)
    started: tuple[str, int, int] = ("", 0, 0)

    def start(self, name: str, steps: int, done: int) -> None:
        self.started = (name, steps, done)

    def step(self, pictures: int) -> None:
        self.sizes.append(pictures)
        if self.model is not None:
            self.weights.append(copied(self.model))

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        self.rows.append(row)
        self.averages.append(copied(model))


class Asked(TeacherCache):
    """A teacher that notes what it is asked."""

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[tuple[int, Tensor, Tensor]] = []

        def answer(x: Tensor) -> Prediction:
            with eval_mode(model), torch.no_grad():
                return predict(model, x, features=True)

        super().__init__(answer)

    def compute(self, epoch: int, samples: Tensor, x: Tensor) -> Prediction:
        self.calls.append((epoch, samples.clone(), x.clone()))
        return super().compute(epoch, samples, x)


def copied(model: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


def shown(teacher: nn.Module, data: Dataset) -> TeacherTargets:
    """What a teacher says of the validation pictures."""
    said = predict_split(teacher, data.val)
    return TeacherTargets(said.class_ids, said.maps)


def network(seed: int = 0, name: str = "resnet8") -> nn.Module:
    return build(name, 3, 16, seed)


def fitted(
    data: Dataset,
    folder: Path,
    config: TrainConfig | None = None,
    goal: Objective = PLAIN,
    seed: int = 0,
    watch: Callback | None = None,
    resume: bool = False,
    teacher: nn.Module | None = None,
    ask: TeacherCache | None = None,
) -> tuple[Weights, list[dict[str, Any]]]:
    """The weights and the history of a run."""
    run = Run(folder)
    best = fit(
        network(seed),
        data,
        goal,
        config or settings(),
        run,
        resume=resume,
        watch=watch,
        teacher=None if teacher is None else shown(teacher, data),
        knowledge=ask,
    )
    return copied(best), run.read_history()


@pytest.fixture(scope="module")
def whole(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Weights, list[dict[str, Any]]]:
    """A run of two epochs of four steps that nothing disturbed."""
    return fitted(easy, tmp_path_factory.mktemp("whole"))


def test_learns_easy_classes(easy: Dataset, tmp_path: Path) -> None:
    seen = Seen()
    fitted(easy, tmp_path, settings(epochs=4), watch=seen)
    assert seen.rows[-1]["train_loss"] < seen.rows[0]["train_loss"] / 2
    assert seen.rows[-1]["val_accuracy"] >= 0.9
    assert seen.started == (tmp_path.name, 16, 0)
    assert [row["epoch"] for row in seen.rows] == [1, 2, 3, 4]
    assert seen.rows == Run(tmp_path).read_history()


# --- what decides a run


def test_same_seeds_give_the_same_bits(easy: Dataset, tmp_path: Path, whole: Any) -> None:
    weights, rows = fitted(easy, tmp_path)
    assert same(weights, whole[0])
    assert timeless(rows) == timeless(whole[1])


def test_model_seed_changes_the_weights_and_not_the_batches(easy: Dataset, tmp_path: Path) -> None:
    one, other = Asked(network(9)), Asked(network(9))
    ours, _ = fitted(easy, tmp_path / "a", goal=parse_objective("kd"), seed=1, ask=one)
    theirs, _ = fitted(easy, tmp_path / "b", settings(seed=2), goal=parse_objective("kd"), seed=2, ask=other)
    assert not torch.equal(ours["conv1.weight"], theirs["conv1.weight"])
    assert len(one.calls) == len(other.calls) == 8
    for mine, yours in zip(one.calls, other.calls, strict=True):
        assert mine[0] == yours[0]
        assert torch.equal(mine[1], yours[1])
        assert torch.equal(mine[2], yours[2])


def test_view_seed_changes_order_and_views_alone(easy: Dataset, tmp_path: Path) -> None:
    one, other = Asked(network(9)), Asked(network(9))
    fitted(easy, tmp_path / "a", settings(epochs=1), parse_objective("kd"), ask=one)
    fitted(easy, tmp_path / "b", settings(epochs=1, augment_seed=1), parse_objective("kd"), ask=other)
    ours, theirs = (torch.cat([samples for _, samples, _ in asked.calls]) for asked in (one, other))
    assert not torch.equal(ours, theirs)
    mine, yours = (torch.cat([x for _, _, x in asked.calls]) for asked in (one, other))
    changed = (mine[ours.argsort()] != yours[theirs.argsort()]).flatten(1).any(1)
    assert changed.float().mean() > 0.5
    assert same(copied(network(0)), copied(network(0)))


@pytest.mark.parametrize("batch_size", [7, 24, 40, 96, 1000])
def test_every_picture_once_an_epoch_in_batches_of_nearly_one_size(
    easy: Dataset, tmp_path: Path, batch_size: int
) -> None:
    asked, seen = Asked(network(9)), Seen()
    fitted(easy, tmp_path, settings(batch_size=batch_size), parse_objective("kd"), watch=seen, ask=asked)
    orders = []
    for epoch in (0, 1):
        samples = [batch for number, batch, _ in asked.calls if number == epoch]
        orders.append(torch.cat(samples).tolist())
        assert sorted(orders[-1]) == list(range(96))
        assert max(map(len, samples)) - min(map(len, samples)) <= 1
        assert len(samples) == max(1, round(96 / batch_size))
    assert orders[0] != orders[1]
    assert seen.sizes == [len(samples) for _, samples, _ in asked.calls]


# --- stopping and going on


@pytest.mark.parametrize("step", [1, 2, 4, 5, 8])
def test_interrupted_run_goes_on_to_the_same_bits(easy: Dataset, tmp_path: Path, whole: Any, step: int) -> None:
    with pytest.raises(Interrupted, match=tmp_path.name):
        fitted(easy, tmp_path, watch=Stop(step))
    run = Run(tmp_path)
    assert run.checkpoints
    assert [row["epoch"] for row in run.read_history()] == [1] * (step > 4)
    seen = Seen()
    weights, rows = fitted(easy, tmp_path, resume=True, watch=seen)
    assert seen.started == (tmp_path.name, 8, step)
    assert len(seen.sizes) == 8 - step
    assert same(weights, whole[0])
    assert timeless(rows) == timeless(whole[1])
    assert [row["epoch"] for row in rows] == [1, 2]


def test_interrupted_at_every_step(easy: Dataset, tmp_path: Path, whole: Any) -> None:
    for done in range(8):
        with pytest.raises(Interrupted):
            fitted(easy, tmp_path, watch=Stop(1), resume=done > 0)
    weights, rows = fitted(easy, tmp_path, resume=True)
    assert same(weights, whole[0])
    assert timeless(rows) == timeless(whole[1])


def test_checkpoints_of_another_network_are_refused_and_stay(easy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fitted(easy, tmp_path, watch=Stop(3))
    before = sorted((tmp_path / "checkpoints").iterdir())
    with pytest.raises(InputError, match=r"are not of the run that its config\.yaml describes: bring back those"):
        fit(network(name="cam-net"), easy, PLAIN, settings(), Run(tmp_path), resume=True)
    assert sorted((tmp_path / "checkpoints").iterdir()) == before


def test_termination_is_an_interruption_too(easy: Dataset, tmp_path: Path, whole: Any) -> None:
    with pytest.raises(Interrupted):
        fitted(easy, tmp_path, watch=Stop(3, signal.SIGTERM))
    weights, _ = fitted(easy, tmp_path, resume=True)
    assert same(weights, whole[0])


def test_interrupted_after_the_last_step(easy: Dataset, tmp_path: Path, whole: Any) -> None:
    class Late(Callback):
        def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
            if row["epoch"] == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        fitted(easy, tmp_path, watch=Late())
    seen = Seen()
    weights, rows = fitted(easy, tmp_path, resume=True, watch=seen)
    assert seen.sizes == []
    assert same(weights, whole[0])
    assert timeless(rows) == timeless(whole[1])


def test_interruption_with_mixed_pictures_and_a_teacher(easy: Dataset, tmp_path: Path) -> None:
    goal, config, teacher = (
        parse_objective("ce=0.1,kd=0.9,cam=1:schedule=decay"),
        settings(views="strong", epochs=1),
        network(9),
    )
    parts: dict[str, Any] = {"config": config, "goal": goal, "teacher": teacher}
    weights, rows = fitted(easy, tmp_path / "whole", ask=Asked(teacher), **parts)
    with pytest.raises(Interrupted):
        fitted(easy, tmp_path / "cut", ask=Asked(teacher), watch=Stop(2), **parts)
    asked = Asked(teacher)
    again, rows_again = fitted(easy, tmp_path / "cut", ask=asked, resume=True, **parts)
    assert len(asked.calls) == 2
    assert same(weights, again)
    assert timeless(rows) == timeless(rows_again)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_interruption_with_terms_that_have_weights(easy: Dataset, tmp_path: Path, step: int) -> None:
    """One that learns from the second step on, one until the last."""
    goal, config = parse_objective("ce=1,review=1:schedule=ramp,hint=10:schedule=decay"), settings(epochs=1)
    teacher = network(9, "cam-net")
    weights, rows = fitted(easy, tmp_path / "whole", config, goal, ask=Asked(teacher))
    with pytest.raises(Interrupted):
        fitted(easy, tmp_path / "cut", config, goal, ask=Asked(teacher), watch=Stop(step))
    again, rows_again = fitted(easy, tmp_path / "cut", config, goal, ask=Asked(teacher), resume=True)
    assert same(weights, again)
    assert timeless(rows) == timeless(rows_again)
    assert rows[0]["terms"].keys() == {"ce", "review", "hint"}


def test_interruption_of_a_network_that_draws_random_numbers(easy: Dataset, tmp_path: Path) -> None:
    def dropping(folder: Path, seed: int, watch: Callback | None = None, resume: bool = False) -> Weights:
        model = network()
        model.fc = nn.Sequential(nn.Dropout(), model.fc)  # type: ignore[arg-type]
        torch.manual_seed(seed)
        return copied(fit(model, easy, PLAIN, settings(epochs=1), Run(folder), watch=watch, resume=resume))

    weights = dropping(tmp_path / "whole", 1)
    with pytest.raises(Interrupted):
        dropping(tmp_path / "cut", 1, Stop(2))
    assert same(dropping(tmp_path / "cut", 2, resume=True), weights)
    assert not same(dropping(tmp_path / "other", 2), weights)


# --- terms with weights of their own


def learnt(run: Run) -> Weights:
    weights: Weights = run.checkpoints.load()[0]["terms"]
    return weights


def test_terms_learn_beside_the_student_from_the_models_seed(easy: Dataset, tmp_path: Path) -> None:
    goal, teacher = parse_objective("ce=1,hint=10"), network(9, "cam-net")
    found = {}
    for name, epochs, seed in (("one", 1, 0), ("two", 2, 0), ("again", 1, 0), ("other", 1, 5)):
        fitted(easy, tmp_path / name, settings(epochs=epochs, seed=seed), goal, ask=Asked(teacher))
        found[name] = learnt(Run(tmp_path / name))
    assert found["one"]["0.regressor.weight"].shape == (64, 32, 1, 1)
    assert same(found["one"], found["again"])
    assert not same(found["one"], found["two"])
    assert not same(found["one"], found["other"])
    rows = Run(tmp_path / "two").read_history()
    assert rows[1]["terms"]["hint"] < rows[0]["terms"]["hint"]


def test_a_term_without_weight_in_the_sum_leaves_everything_as_it_is(easy: Dataset, tmp_path: Path, whole: Any) -> None:
    """Neither the student's first weights, nor the random numbers, nor its optimiser see that there are more."""
    teacher, random, model = network(9, "cam-net"), torch.get_rng_state(), network()
    model.train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    goal = parse_objective("ce=1,hint=0,review=0")
    weights, _ = fitted(easy, tmp_path, goal=goal, ask=Asked(teacher))
    assert same(weights, whole[0])
    assert torch.equal(torch.get_rng_state(), random)
    x = torch.rand(2, 3, 16, 16)
    before = copied(model)
    ready = _connected(goal, model, Asked(teacher), x, 0)
    assert [module.training for module in model.modules()] == modes
    assert same(copied(model), before)
    assert all(module.training for module in ready.modules())
    kept = learnt(Run(tmp_path))
    assert same(kept, dict(ready.modules().state_dict()))


@pytest.mark.parametrize("method", ["fitnet", "at", "sp", "rkd", "reviewkd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_methods_on_features_train_with_mixed_pictures(
    easy: Dataset, tmp_path: Path, method: str, precision: str
) -> None:
    config = settings(epochs=1, views="strong", precision=precision)
    student = build("resnet8", 3, 16, 0)
    best = fit(student, easy, parse_objective(method), config, Run(tmp_path), knowledge=Asked(network(9, "cam-net")))
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in best.parameters())
    terms = Run(tmp_path).read_history()[0]["terms"]
    assert set(terms) == set(parse_objective(method).terms)
    assert all(math.isfinite(value) for value in terms.values())


@pytest.mark.parametrize("ends", ["well", "interrupted", "broken"])
def test_signal_handlers_come_back(easy: Dataset, tmp_path: Path, ends: str) -> None:
    def mine(number: int, frame: object) -> None: ...

    class Break(Callback):
        def step(self, pictures: int) -> None:
            assert signal.getsignal(signal.SIGINT) is not mine
            raise RuntimeError("broken")

    watch = {"well": Callback(), "interrupted": Stop(1), "broken": Break()}[ends]
    before = {number: signal.signal(number, mine) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if ends == "well":
            fitted(easy, tmp_path, settings(epochs=1), watch=watch)
        else:
            with pytest.raises((Interrupted, RuntimeError)):
                fitted(easy, tmp_path, settings(epochs=1), watch=watch)
        assert signal.getsignal(signal.SIGINT) is mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_runs_in_any_thread(easy: Dataset, tmp_path: Path, whole: Any) -> None:
    results: list[Weights] = []
    thread = threading.Thread(target=lambda: results.append(fitted(easy, tmp_path)[0]))
    thread.start()
    thread.join()
    assert len(results) == 1
    assert same(results[0], whole[0])


# --- the update


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimizer_is_the_one_named_and_spares_biases(name: Literal["sgd", "adamw"]) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    twin = copy.deepcopy(model)
    config = settings(optimizer=name, lr=0.01, weight_decay=0.3)
    ours = _optimizer([model], config)
    groups = [
        {"params": [layer.weight for layer in twin], "weight_decay": 0.3},
        {"params": [layer.bias for layer in twin], "weight_decay": 0.0},
    ]
    theirs: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=0.01)
    if name == "sgd":
        theirs = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)
    for step in range(3):
        x = torch.rand(4, 3, generator=torch.Generator().manual_seed(step))
        for network, optimizer in ((model, ours), (twin, theirs)):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    for mine, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize(("name", "own", "other"), [("cam-net", "adamw", "sgd"), ("resnet8", "sgd", "adamw")])
def test_a_network_brings_its_own_optimizer(easy: Dataset, tmp_path: Path, name: str, own: str, other: str) -> None:
    """Auto is the one that is named, with its learning rate and weight decay, and not the other."""
    weights = {
        named: copied(
            fit(network(name=name), easy, PLAIN, settings(epochs=1, optimizer=named, lr=None), Run(tmp_path / named))
        )
        for named in ("auto", own, other)
    }
    assert same(weights["auto"], weights[own])
    assert not same(weights["auto"], weights[other])


def test_schedule_closed_form() -> None:
    rate = Schedule(settings(epochs=10, lr=0.3, batch_size=64, warmup=0.25), 20)
    peak = 0.3 * 64 / 128
    assert rate.steps == 200
    assert [rate(step) for step in range(50)] == pytest.approx([peak * (step + 1) / 50 for step in range(50)])
    assert rate(50) == pytest.approx(peak)
    assert rate(125) == pytest.approx(peak / 2)
    after = [rate(step) for step in range(50, 200)]
    assert after == sorted(after, reverse=True)
    assert 0 < after[-1] < peak * 1e-3
    assert rate(80) + rate(170) == pytest.approx(peak)  # a cosine is odd about its middle
    assert Schedule(settings(lr=0.3, batch_size=128), 5)(3) == pytest.approx(
        4 * Schedule(settings(lr=0.3, batch_size=32), 5)(3)
    )


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_schedule_without_one_of_its_parts(warmup: float) -> None:
    rate = Schedule(settings(epochs=1, warmup=warmup, batch_size=128, lr=1.0), 10)
    rates = [rate(step) for step in range(10)]
    assert max(rates) == pytest.approx(1.0)
    assert all(0 < value <= 1 for value in rates)
    assert rates == sorted(rates, reverse=warmup == 0.0)


def test_history_tells_the_rate_and_the_mean_of_the_terms(easy: Dataset, tmp_path: Path) -> None:
    losses: list[tuple[float, int]] = []

    @dataclass(frozen=True)
    class Spy(CrossEntropy):
        def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
            values = super().__call__(student, teacher, labels)
            losses.append((float(values.detach().mean()), len(labels)))
            return values

    config = settings(batch_size=20)  # 96 = 20 + 19 + 19 + 19 + 19
    _, rows = fitted(easy, tmp_path, config, Objective({"ce": WeightedTerm(Spy(), 3.0)}))
    rate = Schedule(config, 5)
    for epoch, row in enumerate(rows):
        part = losses[5 * epoch : 5 * epoch + 5]
        assert row["terms"]["ce"] == pytest.approx(sum(value * count for value, count in part) / 96, rel=1e-5)
        assert row["train_loss"] == pytest.approx(3 * row["terms"]["ce"], rel=1e-5)
        assert row["lr"] == pytest.approx(rate(5 * epoch + 4))


@pytest.mark.parametrize("cut", [0, 5, 6, 7])
def test_a_term_whose_schedule_ends_within_an_epoch_is_divided_by_the_pictures_it_had(
    easy: Dataset, tmp_path: Path, cut: int
) -> None:
    """The mean of a constant is that constant, also where the run was stopped meanwhile."""
    goal = Objective(
        {
            "ce": WeightedTerm(CrossEntropy()),
            "early": WeightedTerm(Constant(0.5), schedule="early"),
            "ramp": WeightedTerm(Constant(0.25), schedule="ramp"),
        }
    )
    config = settings(epochs=4, batch_size=20)  # 20 steps of unequal batches: early are 6, in the second epoch one
    if cut:
        with pytest.raises(Interrupted):
            fitted(easy, tmp_path, config, goal, watch=Stop(cut))
    _, rows = fitted(easy, tmp_path, config, goal, resume=bool(cut))
    assert [row["terms"].get("early") for row in rows] == [0.5, 0.5, None, None]
    assert [row["terms"]["ramp"] for row in rows] == [0.25] * 4


def test_average_is_the_literal_loop(easy: Dataset, tmp_path: Path) -> None:
    model = network()
    average, seen = copied(model), Seen(model)
    fit(model, easy, PLAIN, settings(ema=0.5), Run(tmp_path), watch=seen)
    for step, weights in enumerate(seen.weights, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * tensor
            else:
                average[name] = tensor
    assert any(not tensor.is_floating_point() for tensor in average.values())
    for name, tensor in seen.averages[-1].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, average[name], rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(tensor, average[name])


@dataclass(frozen=True)
class Constant:
    """The same number for each picture."""

    needs = frozenset({"logits"})
    needs_teacher = False
    value: float

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        return student.logits[:, 0] * 0 + self.value


@dataclass(frozen=True)
class Scaled:
    """A sum of logits times ``factor``: gradients of any size, none with 0."""

    needs = frozenset({"logits"})
    needs_teacher = False
    factor: float = 0.0

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        return self.factor * student.logits[:, 0]


def test_weight_decay_leaves_biases_and_normalisation(easy: Dataset, tmp_path: Path) -> None:
    model = network()
    before, seen = copied(model), Seen(model)
    config = settings(epochs=1, batch_size=96, weight_decay=0.1, lr=0.5, warmup=0.0)
    fit(model, easy, Objective({"none": WeightedTerm(Scaled(0.0))}), config, Run(tmp_path), watch=seen)
    shrunk = 1 - Schedule(config, 1)(0) * 1.9 * 0.1  # Nesterov's first step: gradient + 0.9 gradient
    names = [name for name, _ in model.named_parameters()]
    assert {before[name].ndim for name in names} == {1, 2, 4}
    for name in names:
        factor = shrunk if before[name].ndim > 1 else 1.0
        torch.testing.assert_close(seen.weights[0][name], factor * before[name])


def test_clip_bounds_the_update(easy: Dataset, tmp_path: Path) -> None:
    model = network()
    before, seen = copied(model), Seen(model)
    config = settings(epochs=1, batch_size=96, weight_decay=0.0, lr=0.1, warmup=0.0, clip=0.25)
    fit(model, easy, Objective({"steep": WeightedTerm(Scaled(1e4))}), config, Run(tmp_path), watch=seen)
    moved = [(seen.weights[0][name] - before[name]).square().sum() for name, _ in model.named_parameters()]
    assert float(torch.stack(moved).sum().sqrt()) == pytest.approx(Schedule(config, 1)(0) * 1.9 * 0.25, rel=1e-3)


@pytest.mark.fault("a loss or gradient that is not finite")
def test_loss_that_is_not_finite_stops_the_run(easy: Dataset, tmp_path: Path) -> None:
    calls = 0

    @dataclass(frozen=True)
    class Bursts(CrossEntropy):
        def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return super().__call__(student, teacher, labels) * (math.inf if calls == 7 else 1.0)

    seen = Seen()
    with pytest.raises(FloatingPointError, match="inf in epoch 2, batch 3"):
        fitted(easy, tmp_path, goal=Objective({"ce": WeightedTerm(Bursts())}), watch=seen)
    assert len(seen.sizes) == 6
    kept, best = Run(tmp_path).checkpoints.load()
    assert best is not None
    assert (kept["epoch"], kept["step"]) == (1, 4)
    assert all(tensor.isfinite().all() for tensor in best.values())
    assert [row["epoch"] for row in Run(tmp_path).read_history()] == [1]
    json.dumps(Run(tmp_path).read_history(), allow_nan=False)


def test_student_trains_in_training_mode_in_every_epoch(easy: Dataset, tmp_path: Path) -> None:
    model, teacher = network(), network(9)
    fit(
        model,
        easy,
        parse_objective("cam-kd"),
        settings(),
        Run(tmp_path),
        teacher=shown(teacher, easy),
        knowledge=Asked(teacher),
    )
    tracked = [int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert tracked
    assert set(tracked) == {8}


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(easy: Dataset, tmp_path: Path) -> None:
    model, kinds = network(), set()
    hook = model.conv1.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    best = fit(model, easy, PLAIN, settings(epochs=1, precision="bf16"), Run(tmp_path))
    hook.remove()
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in best.parameters()} == {torch.float32}


# --- what it leaves alone, and what it returns


def test_teacher_is_left_as_it_was(easy: Dataset, tmp_path: Path) -> None:
    teacher = network(9)
    teacher.train()
    teacher.layer1.eval()
    before, modes = copied(teacher), [module.training for module in teacher.modules()]
    fit(
        network(),
        easy,
        parse_objective("cam-kd"),
        settings(epochs=1),
        Run(tmp_path),
        teacher=shown(teacher, easy),
        knowledge=Asked(teacher),
    )
    assert same(copied(teacher), before)
    assert [module.training for module in teacher.modules()] == modes
    assert all(p.grad is None for p in teacher.parameters())


def test_test_pictures_are_never_touched(easy: Dataset, tmp_path: Path) -> None:
    class Forbidden:
        def __getattr__(self, name: str) -> Any:
            pytest.fail(f"fit looked at test.{name}")

        def __len__(self) -> int:
            pytest.fail("fit counted the test pictures")

    teacher = network(9)
    data = replace(easy, test=Forbidden())
    fitted(data, tmp_path, settings(epochs=1), parse_objective("cam-kd"), teacher=teacher, ask=Asked(teacher))


@pytest.mark.parametrize(("scores", "chosen"), [([0.5, 0.9, 0.9, 0.7], 3), ([0.9, 0.2, 0.3, 0.4], 1)])
def test_returns_the_best_epoch_the_later_of_two(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], chosen: int
) -> None:
    judged = iter(scores)
    monkeypatch.setattr(Validator, "__call__", lambda self, model: {"val_accuracy": next(judged), "val_loss": 1.0})
    seen = Seen()
    weights, _ = fitted(easy, tmp_path, settings(epochs=4), watch=seen)
    assert same(weights, seen.averages[chosen - 1])
    assert not same(weights, seen.averages[chosen])


def test_returned_model_is_ready_to_use(easy: Dataset, tmp_path: Path) -> None:
    best = fit(network(), easy, PLAIN, settings(epochs=1), Run(tmp_path))
    assert not any(module.training for module in best.modules())


def test_referee_is_the_literal_loop(easy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referee, "EVALUATION_BATCH", 7)  # 24 = 7 + 7 + 7 + 3
    student, teacher = network(3, "cam-net").eval(), network(4).eval()
    found = Validator(easy, torch.device("cpu"), False, shown(teacher, easy))(student)
    right, losses, agree, alike = [], [], [], []
    for image, label in zip(easy.val.images, easy.val.labels, strict=True):
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            ours, theirs = predict(student, x), predict(teacher, x)
        right.append(int(ours.logits.argmax()) == label)
        losses.append(-float(ours.logits.log_softmax(1)[0, label]))
        said = int(theirs.logits.argmax())
        agree.append(int(ours.logits.argmax()) == said)
        assert ours.cams is not None
        assert theirs.cams is not None
        grid = max(ours.cams.shape[2:], theirs.cams.shape[2:])
        pair = (resize(cams[:, said], grid) for cams in (ours.cams, theirs.cams))
        alike.append(float(cosine(*pair)))
    expected = {"val_accuracy": right, "val_loss": losses, "val_teacher_agreement": agree, "val_cam_cosine": alike}
    assert found == pytest.approx({name: sum(values) / 24 for name, values in expected.items()}, rel=1e-3, abs=1e-5)


# --- batches that cannot be learnt from


@dataclass(frozen=True)
class Spoilt(CrossEntropy):
    """Cross-entropy whose loss, or whose gradient alone, is not finite at the given calls, counted from 1."""

    calls: list[int] = field(default_factory=list)
    at: tuple[int, ...] = ()
    gradient: bool = False

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        self.calls.append(len(labels))
        loss = super().__call__(student, teacher, labels)
        if len(self.calls) not in self.at:
            return loss
        return loss + (student.logits[:, 0] * 0).sqrt() if self.gradient else loss * math.nan


@pytest.mark.fault("a loss or gradient that is not finite")
@pytest.mark.parametrize("gradient", [False, True])
def test_a_batch_that_is_not_finite_is_passed_over(easy: Dataset, tmp_path: Path, gradient: bool) -> None:
    goal = Objective({"ce": WeightedTerm(Spoilt(at=(3, 6), gradient=gradient))})
    said: list[str] = []
    seen = Seen()
    seen.note = said.append  # type: ignore[method-assign]
    weights, rows = fitted(easy, tmp_path, settings(on_nan="skip"), goal, watch=seen)
    what = r"the norm of the gradient is (nan|inf)" if gradient else "the loss is nan"
    assert [bool(re.match(f"{what} in epoch {epoch}, batch {batch}: .* passed over", line))
            for (epoch, batch), line in zip(((1, 3), (2, 2)), said, strict=True)] == [True, True]  # fmt: skip
    assert [row["skipped_samples"] for row in rows] == [24, 24]
    assert all(math.isfinite(row["train_loss"]) for row in rows)
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.fault("a loss or gradient that is not finite")
@pytest.mark.parametrize("gradient", [False, True])
def test_what_is_passed_over_leaves_no_trace(easy: Dataset, tmp_path: Path, gradient: bool) -> None:
    """Weights and running statistics after the spoilt batch are those before it."""
    model = network()
    seen = Seen(model)
    goal = Objective({"ce": WeightedTerm(Spoilt(at=(2,), gradient=gradient))})
    fit(model, easy, goal, settings(epochs=1, on_nan="skip"), Run(tmp_path), watch=seen)
    assert same(seen.weights[0], seen.weights[1])
    assert not same(seen.weights[1], seen.weights[2])


@pytest.mark.fault("a loss or gradient that is not finite")
def test_a_gradient_that_is_not_finite_stops_the_run(easy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"norm of the gradient is (nan|inf) in epoch 1, batch 4"):
        fitted(easy, tmp_path, goal=Objective({"ce": WeightedTerm(Spoilt(at=(4,), gradient=True))}))


class Spoils(Stop):
    """Spoils a weight after one step, as a gradient does that nobody looked at, and sends a signal then if told so."""

    def __init__(self, model: nn.Module, at: int, stops: bool) -> None:
        super().__init__(at)
        self.model, self.stops = model, stops

    def step(self, pictures: int) -> None:
        if self.left == 1:
            next(self.model.parameters()).data[0] = math.nan
        if self.stops:
            super().step(pictures)
        else:
            self.left -= 1


@pytest.mark.fault("a loss or gradient that is not finite")
@pytest.mark.parametrize(("at", "stops"), [(8, False), (8, True), (6, True)])
def test_a_state_that_is_not_finite_is_never_kept(
    easy: Dataset, tmp_path: Path, whole: Any, at: int, stops: bool
) -> None:
    """Neither at the end of an epoch nor where the run is asked to stop; it goes on from the one before."""
    model = network()
    with pytest.raises(FloatingPointError, match="a weight is not finite in epoch 2: lower --lr"):
        fit(model, easy, PLAIN, settings(), Run(tmp_path), watch=Spoils(model, at, stops))
    kept, _ = Run(tmp_path).checkpoints.load()
    assert (kept["epoch"], kept["step"]) == (1, 4)
    assert [row["epoch"] for row in Run(tmp_path).read_history()] == [1]
    weights, _ = fitted(easy, tmp_path, resume=True)
    assert same(weights, whole[0])


@pytest.mark.fault("a loss or gradient that is not finite")
@pytest.mark.parametrize("stops", [False, True])
def test_sums_of_an_epoch_that_are_not_finite_stop_the_run(easy: Dataset, tmp_path: Path, stops: bool) -> None:
    """A number that is finite, and three batches of it are not."""
    goal = Objective({"ce": WeightedTerm(CrossEntropy()), "huge": WeightedTerm(Constant(1e37), 1e-37)})
    with pytest.raises(FloatingPointError, match="the huge is inf in epoch 1: lower --lr"):
        fitted(easy, tmp_path, goal=goal, watch=Stop(3 if stops else -1))
    assert not Run(tmp_path).checkpoints
    assert Run(tmp_path).read_history() == []


@pytest.mark.fault("a loss or gradient that is not finite")
def test_an_epoch_of_nothing_but_such_batches_stops_the_run(easy: Dataset, tmp_path: Path) -> None:
    goal = Objective({"ce": WeightedTerm(Spoilt(at=tuple(range(5, 9))))})
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 2"):
        fitted(easy, tmp_path, settings(on_nan="skip"), goal)
    assert [row["epoch"] for row in Run(tmp_path).read_history()] == [1]


# --- going on elsewhere


def test_a_run_goes_on_with_the_threads_it_was_begun_with(easy: Dataset, tmp_path: Path, whole: Any) -> None:
    with pytest.raises(Interrupted):
        fitted(easy, tmp_path, watch=Stop(3))
    before, said, seen = torch.get_num_threads(), [], Seen()
    seen.note = said.append  # type: ignore[method-assign]
    torch.set_num_threads(before + 1)
    try:
        weights, _ = fitted(easy, tmp_path, resume=True, watch=seen)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
    assert said == [f"going on with {before} threads, as the run was begun"]
    assert same(weights, whole[0])
