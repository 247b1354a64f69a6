"""Folding of batch normalization: equal outputs, and the original network is unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from camkd.cams import form, predict
from camkd.models import MODELS, build
from camkd.models.fold_batchnorm import fold_batchnorm

CLASSES, SIZE = 5, 8


def images(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def randomize_norms(model: nn.Module) -> nn.Module:
    """Randomize statistics, scales and shifts of batch normalization, and return the model in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is not None and module.running_var is not None:
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.2)
                nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def num_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def assert_close(actual: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert 0 < scale < 1e4
    torch.testing.assert_close(actual / scale, expected / scale, rtol=1e-4, atol=2e-5)


REMAINING_NORMS = {"wrn-16-4": 5 + 1}
"""Number of batch normalizations that are not folded, because they precede a convolution."""
NETWORKS_WITHOUT_BATCHNORM = {"cam-net", "cam-net-lite"}
"""At the side of these images, `SIZE`."""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_folded_networks_have_equal_logits_and_maps(name: str) -> None:
    model = randomize_norms(build(name, CLASSES, SIZE, seed=2))
    x = images()
    folded = fold_batchnorm(model, x)
    assert num_norms(folded) == REMAINING_NORMS.get(name, 0)
    assert (num_norms(model) == 0) == (name in NETWORKS_WITHOUT_BATCHNORM)
    assert form(folded, x) == form(model, x)
    with torch.no_grad():
        prediction = predict(folded, x)
        expected = predict(model, x)
    assert_close(prediction.logits, expected.logits)
    assert prediction.cams is not None
    assert expected.cams is not None
    assert_close(prediction.cams, expected.cams)


def test_folded_network_is_equal_on_other_images_and_other_sizes() -> None:
    model = randomize_norms(build("resnet8", CLASSES, 16))
    folded = fold_batchnorm(model, images(2))
    for size in (8, 12, 33):
        x = 1 - images(5, size).to(memory_format=torch.channels_last)
        with torch.no_grad():
            assert_close(folded(x), model(x))


def test_folded_network_is_frozen_and_in_evaluation_mode() -> None:
    model = randomize_norms(build("cam-net", CLASSES, SIZE)).train()
    x = images()
    folded = fold_batchnorm(model, x)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert not any(module.training for module in folded.modules())
    before = {name: tensor.clone() for name, tensor in folded.state_dict().items()}
    assert not folded(x).requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in folded.state_dict().items())


@pytest.mark.parametrize("name", ["resnet8", "wrn-16-4", "cam-net"])
def test_original_network_is_unchanged(name: str) -> None:
    model = randomize_norms(build(name, CLASSES, SIZE))
    before = copy.deepcopy(model)
    for number, module in enumerate(model.modules()):
        module.training = number % 3 == 0
    modes = [module.training for module in model.modules()]
    modules = list(model.modules())
    parameters = list(model.parameters())
    hook = model.register_forward_hook(lambda module, inputs, output: None)
    hooks = [dict(module._forward_hooks) for module in modules]
    with torch.no_grad():
        for parameter in fold_batchnorm(model, images()).parameters():
            parameter.fill_(7)
    assert [module.training for module in model.modules()] == modes
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b and a.requires_grad for a, b in zip(model.parameters(), parameters, strict=True))
    assert [dict(module._forward_hooks) for module in modules] == hooks
    hook.remove()
    state = before.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


# --- structures that can and cannot be folded


class Net(nn.Module):
    """The given layers, then ReLU, global average pooling and a classifier. Subclasses override `middle`."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.fc = nn.Linear(6, CLASSES)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


def conv(inputs: int = 3, **options: bool | int) -> nn.Conv2d:
    return nn.Conv2d(inputs, 6, 3, padding=1, **options)  # type: ignore[arg-type]


def check_folding(model: nn.Module, remaining_norms: int) -> nn.Module:
    """Fold the model, check outputs and number of remaining batch normalizations, and return the folded model."""
    x = images()
    folded = fold_batchnorm(randomize_norms(model), x)
    with torch.no_grad():
        assert_close(folded(x), model(x))
    assert num_norms(folded) == remaining_norms
    return folded


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_convolution_and_batchnorm_are_folded_into_one_convolution(bias: bool, affine: bool, groups: int) -> None:
    model = Net(conv=conv(bias=bias, groups=groups), norm=nn.BatchNorm2d(6, eps=0.1, affine=affine))
    folded = check_folding(model, 0)
    (convolution,) = (module for module in folded.modules() if isinstance(module, nn.Conv2d))
    assert convolution.bias is not None


class RepeatedConvNet(Net):
    def middle(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))  # type: ignore[operator]
        return self.norm2(self.conv(self.norm1(self.conv(x)).relu()))  # type: ignore[operator]


def test_convolution_called_twice_is_not_folded() -> None:
    norms = {"norm1": nn.BatchNorm2d(6), "norm2": nn.BatchNorm2d(6)}
    folded = check_folding(RepeatedConvNet(stem=conv(), first=nn.BatchNorm2d(6), conv=conv(6), **norms), 2)
    assert sum(isinstance(module, nn.Conv2d) for module in folded.modules()) == 2


class NormBeforeConvNet(Net):
    def middle(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))  # type: ignore[operator]


def test_batchnorm_before_a_convolution_is_not_folded() -> None:
    check_folding(NormBeforeConvNet(norm=nn.BatchNorm2d(3), conv=nn.Sequential(conv(), nn.BatchNorm2d(6))), 1)


class BranchNet(Net):
    def middle(self, x: Tensor) -> Tensor:
        y = self.conv(self.first(self.stem(x)))  # type: ignore[operator]
        return y - self.norm(y).relu()  # type: ignore[operator, no-any-return]


def test_convolution_whose_output_has_another_use_is_not_folded() -> None:
    check_folding(BranchNet(stem=conv(), first=nn.BatchNorm2d(6), conv=conv(6), norm=nn.BatchNorm2d(6)), 1)


class SharedNormNet(Net):
    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(self.other(x))  # type: ignore[operator, no-any-return]


def test_batchnorm_shared_by_two_convolutions_is_folded_into_both() -> None:
    check_folding(SharedNormNet(conv=conv(), other=conv(), norm=nn.BatchNorm2d(6)), 0)


def test_batchnorm_without_running_statistics_is_not_folded() -> None:
    stem = nn.Sequential(conv(), nn.BatchNorm2d(6), conv(6))
    check_folding(Net(conv=stem, norm=nn.BatchNorm2d(6, track_running_stats=False)), 1)


@pytest.mark.parametrize("between", [nn.ReLU, nn.Identity])
def test_batchnorm_that_does_not_follow_directly_is_not_folded(between: Callable[[], nn.Module]) -> None:
    check_folding(Net(conv=nn.Sequential(conv(), between()), norm=nn.BatchNorm2d(6)), 1)


class DataDependentNet(Net):
    def middle(self, x: Tensor) -> Tensor:
        y = super().middle(x)
        return y if x.sum() > 0 else -y


class LoopNet(Net):
    def middle(self, x: Tensor) -> Tensor:
        return torch.stack([super(LoopNet, self).middle(row[None])[0] for row in x])


class RaisingNet(Net):
    def middle(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            raise SystemError("tracing is not supported")
        return super().middle(x)


@pytest.mark.parametrize("net_class", [DataDependentNet, LoopNet, RaisingNet])
def test_network_that_cannot_be_traced_is_copied_without_folding(net_class: type[Net]) -> None:
    model = net_class(conv=conv(), norm=nn.BatchNorm2d(6))
    copied = check_folding(model, 1)
    assert type(copied) is net_class
    assert copied is not model
    assert not any(a is b for a in copied.parameters() for b in model.parameters())
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not fold_batchnorm(model.train(), images()).training
    assert model.training


def test_network_whose_output_changes_by_folding_is_copied_without_folding() -> None:
    model = Net(conv=conv(), norm=nn.BatchNorm2d(6))
    model.register_forward_hook(lambda module, inputs, output: 2 * output)  # tracing ignores hooks
    assert type(check_folding(model, 1)) is Net
