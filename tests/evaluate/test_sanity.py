"""Model parameter randomization test."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from camkd.cams import predict
from camkd.data.dataset import Dataset
from camkd.evaluate import predict_split
from camkd.evaluate.metrics import spearman
from camkd.evaluate.sanity import DRAWS, randomize_parameters, sanity
from camkd.models import build
from support.evaluation_inputs import sensitive_network


def equal_parameters(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_randomize_parameters_permutes_within_each_parameter() -> None:
    model = build("resnet8", 3, 16, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    randomized = randomize_parameters(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for (name, original), permuted in zip(model.named_parameters(), randomized.parameters(), strict=True):
        assert torch.equal(original.flatten().sort().values, permuted.flatten().sort().values), name
        assert original.unique().numel() < 3 or not torch.equal(original, permuted), name
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), randomized.buffers(), strict=True))


def test_randomize_parameters_is_a_function_of_the_seed() -> None:
    model = build("resnet8", 3, 16, seed=1)
    assert equal_parameters(randomize_parameters(model), randomize_parameters(model))
    assert not equal_parameters(randomize_parameters(model), randomize_parameters(model, seed=1))


def test_sanity_is_the_rank_correlation_with_maps_of_the_randomized_copy(easy: Dataset) -> None:
    model = sensitive_network()
    predictions = predict_split(model, easy.test)
    x = torch.from_numpy(easy.test.images.copy()).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        cams = predict(randomize_parameters(model, 3), x).cams
    assert cams is not None
    expected = spearman(predictions.maps, cams[torch.arange(24), predictions.class_ids]).mean().item()
    assert sanity(model, easy.test, predictions, draws=1, seed=3) == pytest.approx(expected, abs=1e-5)
    assert abs(expected) < 0.9


def test_sanity_is_the_mean_of_its_draws(easy: Dataset) -> None:
    model = sensitive_network()
    predictions = predict_split(model, easy.test)
    draws = []
    for seed in range(DRAWS + 1):
        value = sanity(model, easy.test, predictions, draws=1, seed=seed)
        assert value is not None
        draws.append(value)
    assert sanity(model, easy.test, predictions) == pytest.approx(sum(draws[:DRAWS]) / DRAWS)
    assert sanity(model, easy.test, predictions, draws=3, seed=1) == pytest.approx(sum(draws[1:4]) / 3)
    assert max(draws) - min(draws) > 0.05, "a single draw is a noisy estimate"


def test_draws_that_overflow_are_left_out(easy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sensitive_network()
    predictions = predict_split(model, easy.test)

    def overflow_at_first(model: nn.Module, seed: int) -> nn.Module:
        randomized = randomize_parameters(model, seed)
        if seed == 0:
            with torch.no_grad():
                for parameter in randomized.parameters():
                    parameter.fill_(1e38)
        return randomized

    monkeypatch.setattr("camkd.evaluate.sanity.randomize_parameters", overflow_at_first)
    second = sanity(model, easy.test, predictions, draws=1, seed=1)
    assert second is not None
    assert sanity(model, easy.test, predictions, draws=2) == second


def test_maps_independent_of_the_weights_score_one(easy: Dataset) -> None:
    model = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        model[1].weight.fill_(0.5)  # permutation has no effect
    assert sanity(model, easy.test, predict_split(model, easy.test)) == pytest.approx(1)


def test_sanity_is_none_if_the_randomized_copy_overflows(easy: Dataset) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    predictions = predict_split(model, easy.test)
    with torch.no_grad():
        model[0].weight.fill_(1e38)
    assert sanity(model, easy.test, predictions) is None
