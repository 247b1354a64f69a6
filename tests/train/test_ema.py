"""The exponential moving average of the weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from camkd.data.dataset import Dataset
from camkd.train.ema import EMA
from support.training import Recorder, Weights, build_network, copy_weights, equal_weights, fit_network, train_config


def small_model() -> nn.Module:
    """Build a model with weights, floating-point buffers and an integer buffer."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@torch.no_grad()
def change(model: nn.Module) -> None:
    """Add noise to every weight and buffer, and count a batch."""
    for tensor in model.state_dict().values():
        tensor.add_(torch.randn_like(tensor) if tensor.is_floating_point() else 1)


def update(average: Weights, weights: Weights, decay: float) -> Weights:
    """Literal average; integers are copied."""
    return {
        name: decay * average[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }


def assert_close(weights: Weights, expected: Weights) -> None:
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
        else:
            assert torch.equal(weights[name], tensor), name


def test_average_equals_the_literal_formula() -> None:
    """The decay of step ``n`` is ``min(0.5, (1 + n) / (10 + n))``: 2/11, 3/12, ... and 0.5 from step 8 on."""
    model = small_model()
    average = copy.deepcopy(model)
    ema = EMA(average, model, 0.5)
    expected = copy_weights(average)
    for step, decay in enumerate([2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5, 0.5], start=1):
        change(model)
        ema.on_optimizer_step(step)
        expected = update(expected, copy_weights(model), decay)
        assert_close(copy_weights(average), expected)
    assert int(average.state_dict()["1.num_batches_tracked"]) == 10


def test_average_with_decay_zero_is_the_model() -> None:
    model = small_model()
    average = copy.deepcopy(model)
    change(model)
    EMA(average, model, 0.0).on_optimizer_step(100)
    assert equal_weights(copy_weights(average), copy_weights(model))


@pytest.mark.parametrize("event", ["on_batch_end", "on_train_end"])
def test_average_changes_after_an_optimizer_step_only(event: str) -> None:
    model = small_model()
    average = copy.deepcopy(model)
    before = copy_weights(average)
    change(model)
    getattr(EMA(average, model, 0.5), event)(*[24] * (event == "on_batch_end"))
    assert equal_weights(copy_weights(average), before)


def test_average_of_a_run(easy: Dataset, tmp_path: Path) -> None:
    model = build_network()
    expected = copy_weights(model)
    recorder = Recorder(model)
    fit_network(easy, tmp_path, train_config(ema_decay=0.5), model=model, callbacks=[recorder])
    averages = []
    for step, weights in enumerate(recorder.weights, start=1):
        expected = update(expected, weights, min(0.5, (1 + step) / (10 + step)))
        averages.append(expected)
    assert_close(recorder.averages[0], averages[3])
    assert_close(recorder.averages[1], averages[7])
