"""Temporary changes of a model: evaluation mode, and fp32 for dilated convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from camkd.models.eval_mode import eval_mode, fp32_dilated_convs


def network() -> nn.Module:
    """Build a network in training mode with a frozen batch normalization."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout()), nn.ReLU())
    model.train()
    model[1][0].eval()  # type: ignore[index]
    return model


def module_modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_eval_mode_restores_the_mode_of_each_module() -> None:
    model = network()
    before = module_modes(model)
    assert len(set(before)) == 2
    with eval_mode(model):
        assert not any(module_modes(model))
    assert module_modes(model) == before


def test_eval_mode_restores_modes_after_an_exception() -> None:
    model = network()
    before = module_modes(model)
    with pytest.raises(RuntimeError), eval_mode(model):
        model.train()(torch.zeros(1, 99, 2, 2))  # wrong number of channels
    assert module_modes(model) == before


def test_eval_mode_can_be_nested_and_applied_to_a_network_in_evaluation_mode() -> None:
    model = network()
    before = module_modes(model)
    with eval_mode(model), eval_mode(model):
        pass
    assert module_modes(model) == before
    with eval_mode(model.eval()):
        assert not any(module_modes(model))
    assert not any(module_modes(model))


@pytest.mark.parametrize(("groups", "dilation"), [(48, 2), (48, 3), (4, 2), (48, 1), (1, 2)])
def test_weight_gradients_under_bf16_autocast_equal_those_in_float64(groups: int, dilation: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(48, 48, 3, padding=dilation, dilation=dilation, groups=groups)
    x = torch.randn(8, 48, 32, 32)
    gradient = torch.randn(8, 48, 32, 32)
    expected = torch.autograd.grad(layer.double()(x.double()), layer.weight, gradient.double())[0]
    model = nn.Sequential(layer.float()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with fp32_dilated_convs(model), torch.autocast("cpu", torch.bfloat16):
        output = model(x.to(memory_format=torch.channels_last))
    output.backward(gradient.to(output.dtype))
    assert layer.weight.grad is not None
    assert (layer.weight.grad - expected).norm() < 0.01 * expected.norm()


def test_fp32_dilated_convs_restores_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2, groups=4), nn.Conv2d(4, 4, 1))
    before = {name: vars(module).copy() for name, module in model.named_modules()}
    with pytest.raises(RuntimeError), fp32_dilated_convs(model):
        model(torch.zeros(1, 99, 8, 8))  # wrong number of channels
    assert {name: vars(module) for name, module in model.named_modules()} == before
    with torch.autocast("cpu", torch.bfloat16):
        assert model[0](torch.zeros(1, 4, 8, 8)).dtype == torch.bfloat16
        with fp32_dilated_convs(model):
            assert model[0](torch.zeros(1, 4, 8, 8)).dtype == torch.float32
            assert model(torch.zeros(1, 4, 8, 8)).dtype == torch.bfloat16
