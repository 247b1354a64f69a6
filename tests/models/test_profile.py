"""Costs against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from camkd.models import build
from camkd.models.profile import profile


class Pooled(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


def test_layers_counted_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),  # 4x4 cells x 4 outputs x 27 inputs
        nn.BatchNorm2d(4),  # free
        nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False),  # 4x4 x 8 x 18
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # 4x4 x 8 x 9
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),  # 40
    )
    params = (4 * 27 + 4) + 2 * 4 + 8 * 18 + (8 * 9 + 8) + (8 * 5 + 5)
    assert profile(model, 8)[:2] == (params, 16 * 4 * 27 + 16 * 8 * 18 + 16 * 8 * 9 + 40)


def test_a_layer_used_twice_is_counted_twice_and_its_parameters_once() -> None:
    layer = nn.Conv2d(3, 3, 1, bias=False)
    assert profile(Pooled(layer, nn.ReLU(), layer), 5)[:2] == (9, 2 * 25 * 9)


def test_a_linear_layer_on_every_cell_is_counted_for_every_cell() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(2).transpose(1, 2)).mean(1)

    assert profile(Tokens(), 4)[:2] == (28, 16 * 21)


def resnet_macs(blocks: int, classes: int) -> int:
    """A CIFAR ResNet on 32x32 pictures: stem, three stages of ``2 blocks`` convolutions, two shortcuts, classifier."""
    total = 32 * 32 * 16 * 27
    side, inputs = 32, 16
    for width in (16, 32, 64):
        side = side if width == 16 else side // 2
        shortcut = 0 if width == inputs else side * side * width * inputs
        total += side * side * width * 9 * (inputs + (2 * blocks - 1) * width) + shortcut
        inputs = width
    return total + 64 * classes


@pytest.mark.parametrize(("name", "blocks"), [("resnet8", 1), ("resnet20", 3)])
def test_cifar_resnets_by_hand(name: str, blocks: int) -> None:
    assert profile(build(name, 10, 32), 32).macs == resnet_macs(blocks, 10)


def test_resnet50_has_the_4_09_billion_of_the_literature() -> None:
    """Parameters and multiply-accumulates as torchvision states them; no arithmetic is done."""
    with torch.device("meta"):
        model = build("resnet50", 1000, 224)
    assert profile(model, 224)[:2] == (25_557_032, 4_089_184_256)


def test_modes_hooks_and_statistics_are_as_before() -> None:
    model = Pooled(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).train()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    profile(model, 4)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.layers.append(nn.Conv2d(5, 1, 1))  # does not fit
    with pytest.raises(RuntimeError):
        profile(model, 4)
    assert [module.training for module in model.layers][:3] == [True, False, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_of_doubles_is_profiled_as_well() -> None:
    assert profile(Pooled(nn.Conv2d(3, 2, 1)).double(), 3)[:2] == (8, 9 * 6)
