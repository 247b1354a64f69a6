"""Training of the last layer on stored features, against independent references."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from scipy.optimize import minimize as scipy_minimize
from torch import nn

from camkd.cams.linear_head import linear_head
from camkd.config import Balance, DataConfig, RunConfig, TeacherConfig, TrainConfig
from camkd.data.dataset import Dataset
from camkd.data.views import Views
from camkd.distill.losses.logits import log_prior
from camkd.models import build
from camkd.runs.folder import Run
from camkd.train import head as head_module
from camkd.train.head import LabeledFeatures, _sample_weights, fit_head, make_feature_fn, minimize
from camkd.types import InputError, Interrupted
from support.interrupt import InterruptAt, Messages

CPU = torch.device("cpu")
TRAIN = TrainConfig(augment="light", precision="fp32", device="cpu", figure_every=0)


def run_config(views: int = 2, model: str = "resnet8", **train: Any) -> RunConfig:
    return RunConfig(
        DataConfig("easy"),
        replace(TRAIN, **train),
        model=model,
        role="teacher",
        teacher=TeacherConfig(train="head", head_views=views),
    )


def random_features(count: int, width: int, classes: int) -> LabeledFeatures:
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return LabeledFeatures(centers[labels] + 1.5 * noise, labels)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight_decay", [0.3, 0.01])
def test_solution_is_the_minimum_that_scipy_finds(smoothing: float, weight_decay: float) -> None:
    data = random_features(200, 5, 3)
    x, labels = data.features.numpy(), data.labels.numpy()
    targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3

    def objective(values: np.ndarray) -> float:
        weight, bias = values[:15].reshape(3, 5), values[15:]
        logits = x @ weight.T + bias
        shifted = logits - logits.max(1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return float(-(targets * log_probabilities).sum(1).mean() + weight_decay / 2 * (weight**2).sum())

    expected = scipy_minimize(objective, np.zeros(18), method="BFGS", options={"gtol": 1e-8})
    start = torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    solution = minimize(data, weight_decay, start, smoothing)
    weight = torch.from_numpy(expected.x[:15].reshape(3, 5))
    torch.testing.assert_close(solution.weight, weight, atol=2e-3, rtol=0)
    found = np.concatenate([solution.weight.flatten().numpy(), solution.bias.numpy()])
    assert objective(found) == pytest.approx(expected.fun, rel=2e-5)


@pytest.mark.parametrize("balance", ["sampler", "logits"])
def test_solution_for_unbalanced_classes_is_the_minimum_that_scipy_finds(balance: str) -> None:
    """Sampler: every class has the same weight. Logits: the cross-entropy adds the logarithm of the class shares."""
    data = random_features(200, 5, 3)
    rows = torch.cat([(data.labels == k).nonzero()[:, 0][:count] for k, count in enumerate((40, 12, 3))])
    data = LabeledFeatures(data.features[rows], data.labels[rows])
    x, labels = data.features.numpy(), data.labels.numpy()
    counts = np.bincount(labels)
    sample_weights = {"sampler": 1 / (3 * counts[labels]), "logits": np.full(len(x), 1 / len(x))}[balance]
    adjustment = {"sampler": np.zeros(3), "logits": np.log(counts / len(x))}[balance]

    def objective(values: np.ndarray) -> float:
        weight, bias = values[:15].reshape(3, 5), values[15:]
        logits = x @ weight.T + bias + adjustment
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(x)), labels]
        return float(sample_weights @ losses + 0.1 / 2 * (weight**2).sum())

    expected = scipy_minimize(objective, np.zeros(18), method="BFGS", options={"gtol": 1e-8})
    start = torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    if balance == "sampler":
        solution = minimize(data._replace(weights=_sample_weights(data.labels, 1).double()), 0.1, start)
    else:
        solution = minimize(data, 0.1, start, adjustment=log_prior(data.labels, 3).double())
    torch.testing.assert_close(solution.weight, torch.from_numpy(expected.x[:15].reshape(3, 5)), atol=5e-3, rtol=0)


def test_sample_weights_of_several_views() -> None:
    weights = _sample_weights(torch.tensor([0, 0, 0, 1]), 2)
    assert weights.tolist() == pytest.approx([1 / 12, 1 / 12, 1 / 12, 1 / 4] * 2)


@pytest.mark.parametrize("augment", ["light", "strong"])
@pytest.mark.parametrize("balance", ["sampler", "logits"])
def test_head_of_unbalanced_classes(easy: Dataset, tmp_path: Path, balance: Balance, augment: str) -> None:
    """The biases of a head for images of a rare class are higher than without balancing, also with mixed labels."""
    rows = np.concatenate([np.flatnonzero(easy.train.labels == k)[:count] for k, count in enumerate((30, 30, 3))])
    data = replace(easy, train=easy.train.take(rows))
    shares = {}
    for name in ("none", balance):
        model = build("resnet8", 3, 16)
        config = run_config(views=2, augment=augment)
        config = replace(config, train=replace(config.train, balance=name))
        trained = fit_head(model, data, config, Run(tmp_path / name))
        batch = Views(data.val, 3, "none", 0, CPU)[0, torch.arange(len(data.val))]
        with torch.no_grad():
            shares[name] = float(trained(batch.x).softmax(1)[:, 2].mean())
    assert shares[balance] > shares["none"]


def test_probabilities_as_labels_equal_indices() -> None:
    data = random_features(60, 4, 3)
    start = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    one_hot = data._replace(labels=nn.functional.one_hot(data.labels, 3).double())
    torch.testing.assert_close(minimize(one_hot, 0.1, start).weight, minimize(data, 0.1, start).weight)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_whole_weights_equal_repeated_samples(smoothing: float) -> None:
    data = random_features(60, 4, 3)
    start = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    counts = torch.arange(60) % 4  # some are 0
    rows = torch.arange(60).repeat_interleave(counts)
    repeated = LabeledFeatures(data.features[rows], data.labels[rows])
    weighted = data._replace(weights=counts.double())
    expected, solution = (minimize(samples, 0.1, start, smoothing) for samples in (repeated, weighted))
    torch.testing.assert_close(solution.weight, expected.weight, atol=1e-3, rtol=0)
    assert solution.loss == pytest.approx(expected.loss, rel=1e-4)


class MlpHead(nn.Module):
    """A hidden layer after the average, so that maps are not exact."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.hidden = nn.Linear(6, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.hidden(self.conv(x).relu().mean((2, 3))).relu())


class ConvHead(nn.Module):
    """A 1x1 convolution before the average."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(x).relu()).mean((2, 3))


class NoHead(nn.Module):
    """The output of the linear layer is normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(self.last(self.conv(x).relu().mean((2, 3))), (3,))


class TwoHeads(NoHead):
    """The logits are the mean of two layers, as in a transformer with a distillation token."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x).relu().mean((2, 3))
        return (self.last(features) + self.other(features)) / 2


@pytest.mark.parametrize("make", [MlpHead, ConvHead])
def test_head_is_the_last_linear_layer(make: type[nn.Module]) -> None:
    model = make()
    x = torch.rand(2, 3, 16, 16)
    name, layer = linear_head(model, x)
    assert (name, layer) == ("last", model.last)
    feature_fn, width = make_feature_fn(model, 16, run_config(), CPU)
    with torch.no_grad():
        logits = nn.functional.linear(feature_fn(x), layer.weight.flatten(1), layer.bias)
        torch.testing.assert_close(logits, model.eval()(x))
    assert width == layer.weight.shape[1]


@pytest.mark.parametrize("make", [NoHead, TwoHeads])
def test_other_heads_are_refused(make: type[nn.Module]) -> None:
    with pytest.raises(InputError, match=make.__name__):
        linear_head(make(), torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize("name", ["resnet8", "cam-net", "resnet50-mlp"])
def test_only_the_head_changes_and_fits_the_images(name: str, easy: Dataset, tmp_path: Path) -> None:
    model = build(name, 3, 16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    head, _ = linear_head(model, torch.rand(2, 3, 16, 16))
    run = Run(tmp_path / "run")
    trained = fit_head(model, easy, run_config(model=name), run)
    changed = {key for key, value in trained.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{head}.weight", f"{head}.bias"}
    assert not trained.training
    (row,) = run.read_history()
    views = Views(easy.val, 3, "none", 0, CPU)
    batch = views[0, torch.arange(len(views))]
    with torch.no_grad():
        logits = trained(batch.x)
    assert row["val_accuracy"] == pytest.approx(float((logits.argmax(1) == batch.labels).double().mean()))
    balanced = sklearn.metrics.balanced_accuracy_score(batch.labels, logits.argmax(1))
    assert row["val_balanced_accuracy"] == pytest.approx(balanced)
    assert row["val_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, batch.labels)), rel=1e-2)


@pytest.mark.parametrize("augment", ["light", "strong"])  # strong mixes images
def test_images_of_weight_0_do_not_change_the_head(easy: Dataset, tmp_path: Path, augment: str) -> None:
    """Every second image gets a wrong label."""
    is_wrong = np.arange(len(easy.train)) % 2 == 1
    labels = np.where(is_wrong, (easy.train.labels + 1) % 3, easy.train.labels)
    accuracies = {}
    for name, weights in (("ignored", np.where(is_wrong, 0, 2).astype(np.float32)), ("counted", None)):
        data = replace(easy, train=replace(easy.train, labels=labels, weights=weights))
        run = Run(tmp_path / name)
        fit_head(build("resnet8", 3, 16), data, run_config(views=2, augment=augment), run)
        accuracies[name] = run.read_history()[0]["val_accuracy"]
    assert accuracies["ignored"] > 0.95
    assert accuracies["counted"] < 0.8


def test_features_are_those_of_the_images_and_of_their_augmented_views(easy: Dataset, tmp_path: Path) -> None:
    model = build("resnet8", 3, 16)
    config = run_config(views=3, augment="light")
    train, val = head_module._load_features(model.eval(), easy, config, Run(tmp_path / "run"), Messages())
    with torch.no_grad():
        for view, (policy, epoch) in enumerate([("none", 0), ("light", 0), ("light", 1)]):
            views = Views(easy.train, 3, policy, 0, CPU)
            for index in (0, 17, 95):
                pooled: list[torch.Tensor] = []
                hook = model.fc.register_forward_pre_hook(lambda module, args, pooled=pooled: pooled.append(args[0]))
                model(views[epoch, torch.tensor([index])].x)
                hook.remove()
                row = view * len(easy.train) + index
                torch.testing.assert_close(train.features[row], pooled[0][0], atol=2e-3, rtol=2e-3)
                assert train.labels[row] == easy.train.labels[index]
    assert len(val.features) == len(easy.val)


def test_mixed_views_keep_their_label_probabilities(easy: Dataset, tmp_path: Path) -> None:
    model = build("resnet8", 3, 16).eval()
    config = run_config(views=2, augment="strong")
    first, _ = head_module._load_features(model, easy, config, Run(tmp_path / "run"), Messages())
    again, _ = head_module._load_features(model, easy, config, Run(tmp_path / "run"), Messages())
    expected = Views(easy.train, 3, "strong", 0, CPU)[0, torch.arange(len(easy.train))].labels
    torch.testing.assert_close(first.labels[len(easy.train) :], expected)
    assert torch.equal(first.labels, again.labels)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches whose features are computed."""
    sizes: list[int] = []
    original = head_module.make_feature_fn

    def counted(*arguments: Any) -> Any:
        function, width = original(*arguments)

        def feature_fn(x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return function(x)

        return feature_fn, width

    monkeypatch.setattr(head_module, "make_feature_fn", counted)
    return sizes


def test_features_are_computed_once_and_more_views_add_to_them(easy: Dataset, tmp_path: Path, calls: list[int]) -> None:
    first = fit_head(build("resnet8", 3, 16), easy, run_config(views=2), Run(tmp_path / "a"))
    assert sum(calls) == 2 * len(easy.train) + len(easy.val)
    calls.clear()
    again = fit_head(build("resnet8", 3, 16), easy, run_config(views=2), Run(tmp_path / "b"))
    assert calls == []
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    fit_head(build("resnet8", 3, 16), easy, run_config(views=3), Run(tmp_path / "c"))
    assert sum(calls) == len(easy.train)


@pytest.mark.parametrize(
    "change",
    ["weights", "normalization", "augment", "augment_seed", "data"],
)
def test_other_inputs_have_other_features(change: str, easy: Dataset, tmp_path: Path, calls: list[int]) -> None:
    fit_head(build("resnet8", 3, 16), easy, run_config(), Run(tmp_path / "a"))
    calls.clear()
    model, data, config = build("resnet8", 3, 16), easy, run_config()
    if change == "weights":
        model = build("resnet8", 3, 16, seed=1)
    elif change == "normalization":
        model.set_normalization([0.1] * 3, [0.2] * 3)
    elif change == "data":
        data = replace(easy, source_fingerprint="e" * 64)
    else:
        config = run_config(**{change: {"augment": "strong", "augment_seed": 1}[change]})
    fit_head(model, data, config, Run(tmp_path / "b"))
    assert sum(calls) == 2 * len(easy.train) + len(easy.val)


def test_head_has_no_influence_on_the_features(easy: Dataset, tmp_path: Path, calls: list[int]) -> None:
    fit_head(build("resnet8", 3, 16), easy, run_config(), Run(tmp_path / "a"))
    calls.clear()
    model = build("resnet8", 3, 16)
    nn.init.ones_(model.fc.weight)
    fit_head(model, easy, run_config(weight_decay=0.1), Run(tmp_path / "b"))
    assert calls == []


def test_an_interruption_keeps_the_features_so_far(easy: Dataset, tmp_path: Path, calls: list[int]) -> None:
    expected = fit_head(build("resnet8", 3, 16), easy, run_config(), Run(tmp_path / "a"))
    total = sum(calls)
    for path in (tmp_path / "cache" / "features").glob("*/*.bin"):
        path.unlink()
    calls.clear()
    with pytest.raises(Interrupted):
        fit_head(build("resnet8", 3, 16), easy, run_config(), Run(tmp_path / "b"), [InterruptAt(3)])
    done = sum(calls)
    assert 0 < done < total
    assert not Run(tmp_path / "b").history_file.exists()
    resumed = fit_head(build("resnet8", 3, 16), easy, run_config(), Run(tmp_path / "b"))
    assert sum(calls) == total
    assert torch.equal(resumed.fc.weight, expected.fc.weight)


def test_a_flipped_bit_and_a_truncated_file_are_computed_again(easy: Dataset, tmp_path: Path, calls: list[int]) -> None:
    expected = fit_head(build("resnet8", 3, 16), easy, run_config(), Run(tmp_path / "a"))
    path = next((tmp_path / "cache" / "features").glob("*/train-0001.bin"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content[: -len(content) // 10])
    calls.clear()
    again = fit_head(build("resnet8", 3, 16), easy, run_config(), Run(tmp_path / "b"))
    assert 0 < sum(calls) < len(easy.train)
    assert torch.equal(again.fc.weight, expected.fc.weight)


def test_weight_decay_has_the_lowest_validation_loss_of_the_grid(easy: Dataset, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    fit_head(build("resnet8", 3, 16), easy, run_config(), run)
    summary = json.loads((run.folder / "head.json").read_text(encoding="utf-8"))
    losses = {entry["weight_decay"]: entry["val_loss"] for entry in summary["candidates"]}
    assert len(losses) == len(head_module.WEIGHT_DECAYS)
    assert losses[summary["weight_decay"]] == min(losses.values())
    fit_head(build("resnet8", 3, 16), easy, run_config(weight_decay=0.07), run)
    summary = json.loads((run.folder / "head.json").read_text(encoding="utf-8"))
    assert [entry["weight_decay"] for entry in summary["candidates"]] == [0.07]


def test_a_constant_feature_does_not_disturb(easy: Dataset, tmp_path: Path) -> None:
    model = build("resnet8", 3, 16)
    model.fc = nn.Linear(model.fc.in_features, 3)
    with torch.no_grad():
        last_norm = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)][-1]
        last_norm.weight[0] = 0.0
        last_norm.bias[0] = -1e4
    trained = fit_head(model, easy, run_config(), Run(tmp_path / "run"))
    assert all(math.isfinite(value) for value in trained.fc.bias.tolist())
