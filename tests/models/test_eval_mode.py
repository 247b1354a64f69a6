"""Borrowing a network leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from camkd.models.eval_mode import eval_mode, fp32_dilated_convs


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
    with eval_mode(model):
        assert not any(modes(model))
    assert modes(model) == before


def test_also_after_an_exception() -> None:
    model = network()
    before = modes(model)
    with pytest.raises(RuntimeError), eval_mode(model):
        model.train()(torch.zeros(1, 99, 2, 2))  # does not fit
    assert modes(model) == before


def test_also_one_inside_another_and_a_network_in_evaluation() -> None:
    model = network()
    before = modes(model)
    with eval_mode(model), eval_mode(model):
        pass
    assert modes(model) == before
    with eval_mode(model.eval()):
        assert not any(modes(model))
    assert not any(modes(model))


@pytest.mark.parametrize(("groups", "dilation"), [(48, 2), (48, 3), (4, 2), (48, 1), (1, 2)])
def test_gradients_in_bf16_are_right(groups: int, dilation: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(48, 48, 3, padding=dilation, dilation=dilation, groups=groups)
    x, gradient = torch.randn(8, 48, 32, 32), torch.randn(8, 48, 32, 32)
    exact = torch.autograd.grad(layer.double()(x.double()), layer.weight, gradient.double())[0]
    model = nn.Sequential(layer.float()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with fp32_dilated_convs(model), torch.autocast("cpu", torch.bfloat16):
        seen = model(x.to(memory_format=torch.channels_last))
    seen.backward(gradient.to(seen.dtype))
    assert layer.weight.grad is not None
    assert (layer.weight.grad - exact).norm() < 0.01 * exact.norm()


def test_a_network_computes_in_bf16_again_afterwards() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2, groups=4), nn.Conv2d(4, 4, 1))
    before = {name: vars(module).copy() for name, module in model.named_modules()}
    with pytest.raises(RuntimeError), fp32_dilated_convs(model):
        model(torch.zeros(1, 99, 8, 8))  # does not fit
    assert {name: vars(module) for name, module in model.named_modules()} == before
    with torch.autocast("cpu", torch.bfloat16):
        assert model[0](torch.zeros(1, 4, 8, 8)).dtype == torch.bfloat16
        with fp32_dilated_convs(model):
            assert model[0](torch.zeros(1, 4, 8, 8)).dtype == torch.float32
            assert model(torch.zeros(1, 4, 8, 8)).dtype == torch.bfloat16
