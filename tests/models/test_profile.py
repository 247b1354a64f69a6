"""Model costs against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from camkd.models import build
from camkd.models.profile import profile, profile_model
from camkd.types import InputError


class PooledNet(nn.Module):
    """Layers, then global average pooling."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


def test_convolutions_and_linear_layers_equal_counts_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),  # 4x4 cells x 4 outputs x 27 inputs
        nn.BatchNorm2d(4),  # no multiply-accumulates
        nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False),  # 4x4 x 8 x 18
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # 4x4 x 8 x 9
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),  # 40
    )
    params = (4 * 27 + 4) + 2 * 4 + 8 * 18 + (8 * 9 + 8) + (8 * 5 + 5)
    assert profile(model, 8)[:2] == (params, 16 * 4 * 27 + 16 * 8 * 18 + 16 * 8 * 9 + 40)


def test_layer_called_twice_counts_twice_and_its_parameters_once() -> None:
    layer = nn.Conv2d(3, 3, 1, bias=False)
    assert profile(PooledNet(layer, nn.ReLU(), layer), 5)[:2] == (9, 2 * 25 * 9)


def test_linear_layer_on_tokens_counts_for_every_token() -> None:
    class TokenNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(2).transpose(1, 2)).mean(1)

    assert profile(TokenNet(), 4)[:2] == (28, 16 * 21)


def resnet_macs(blocks: int, classes: int) -> int:
    """Count a CIFAR ResNet on 32x32 images: stem, 3 stages of ``2 blocks`` convolutions, 2 shortcuts, classifier."""
    total = 32 * 32 * 16 * 27
    side = 32
    inputs = 16
    for width in (16, 32, 64):
        side = side if width == 16 else side // 2
        shortcut = 0 if width == inputs else side * side * width * inputs
        total += side * side * width * 9 * (inputs + (2 * blocks - 1) * width) + shortcut
        inputs = width
    return total + 64 * classes


@pytest.mark.parametrize(("name", "blocks"), [("resnet8", 1), ("resnet20", 3)])
def test_cifar_resnets_equal_counts_by_hand(name: str, blocks: int) -> None:
    assert profile(build(name, 10, 32), 32).macs == resnet_macs(blocks, 10)


def test_resnet50_has_the_cost_that_torchvision_states() -> None:
    """25.6 million parameters and 4.09 billion multiply-accumulates; on the meta device nothing is computed."""
    with torch.device("meta"):
        model = build("resnet50", 1000, 224)
    assert profile(model, 224)[:2] == (25_557_032, 4_089_184_256)


def test_modes_hooks_and_running_statistics_are_unchanged() -> None:
    model = PooledNet(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).train()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    profile(model, 4)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.layers.append(nn.Conv2d(5, 1, 1))  # wrong number of channels
    with pytest.raises(RuntimeError):
        profile(model, 4)
    assert [module.training for module in model.layers][:3] == [True, False, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_network_in_float64_is_profiled() -> None:
    assert profile(PooledNet(nn.Conv2d(3, 2, 1)).double(), 3)[:2] == (8, 9 * 6)


def test_map_size_is_that_of_the_last_convolution() -> None:
    model = PooledNet(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 2, 1))
    assert profile(model, 8).map_size == (4, 4)


def test_message_for_images_that_are_too_small() -> None:
    with pytest.raises(InputError) as error:
        profile_model("five-by-five", PooledNet(nn.Conv2d(3, 2, 5)), 4)
    assert str(error.value) == (
        "`--size` must be large enough for the layers of five-by-five, got 4 x 4 pixels. Choose a larger size."
    )
