"""Borrowing a network leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from camkd.models.modes import evaluating


def network() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout()), nn.ReLU())
    model.train()
    model[1][0].eval()  # type: ignore[index]  # frozen normalisation inside a network in training
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_each_module_gets_its_own_mode_back() -> None:
    model = network()
    before = modes(model)
    assert len(set(before)) == 2
    with evaluating(model):
        assert not any(modes(model))
    assert modes(model) == before


def test_also_after_an_exception() -> None:
    model = network()
    before = modes(model)
    with pytest.raises(RuntimeError), evaluating(model):
        model.train()(torch.zeros(1, 99, 2, 2))  # does not fit
    assert modes(model) == before


def test_also_one_inside_another_and_a_network_in_evaluation() -> None:
    model = network()
    before = modes(model)
    with evaluating(model), evaluating(model):
        pass
    assert modes(model) == before
    with evaluating(model.eval()):
        assert not any(modes(model))
    assert not any(modes(model))
