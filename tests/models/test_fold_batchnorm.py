"""A folded network says what the network says, and the network never knows."""

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


def pictures(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module) -> nn.Module:
    """Statistics, scales and shifts as after training: all different."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is not None and module.running_var is not None:
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.2)
                nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def close(ours: Tensor, theirs: Tensor) -> None:
    scale = float(theirs.abs().max())
    assert 0 < scale < 1e4
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=1e-4, atol=2e-5)


LEFT = {"wrn-16-4": 5 + 1}
"""Batch normalisations that stay: before a convolution."""
NONE = {"cam-net", "cam-net-lite"}


@pytest.mark.parametrize("name", MODELS)
def test_every_network_folded_gives_the_same_logits_and_maps(name: str) -> None:
    model, x = trained(build(name, CLASSES, SIZE, seed=2)), pictures()
    quick = fold_batchnorm(model, x)
    assert norms(quick) == LEFT.get(name, 0)
    assert (norms(model) == 0) == (name in NONE)
    assert form(quick, x) == form(model, x)
    with torch.no_grad():
        ours, theirs = predict(quick, x), predict(model, x)
    close(ours.logits, theirs.logits)
    assert ours.cams is not None
    assert theirs.cams is not None
    close(ours.cams, theirs.cams)


def test_other_pictures_than_those_it_was_tried_on_and_other_sizes() -> None:
    model = trained(build("resnet8", CLASSES, 16))
    quick = fold_batchnorm(model, pictures(2))
    for size in (8, 12, 33):
        x = 1 - pictures(5, size).to(memory_format=torch.channels_last)
        with torch.no_grad():
            close(quick(x), model(x))


def test_it_is_frozen_and_in_evaluation_mode() -> None:
    model = trained(build("cam-net", CLASSES, SIZE)).train()
    quick, x = fold_batchnorm(model, pictures()), pictures()
    assert not any(parameter.requires_grad for parameter in quick.parameters())
    assert not any(module.training for module in quick.modules())
    before = {name: tensor.clone() for name, tensor in quick.state_dict().items()}
    assert not quick(x).requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in quick.state_dict().items())


@pytest.mark.parametrize("name", ["resnet8", "wrn-16-4", "cam-net"])
def test_the_network_stays_as_it_was(name: str) -> None:
    model = trained(build(name, CLASSES, SIZE))
    before = copy.deepcopy(model)
    for number, module in enumerate(model.modules()):
        module.training = number % 3 == 0
    modes = [module.training for module in model.modules()]
    modules, parameters = list(model.modules()), list(model.parameters())
    hook = model.register_forward_hook(lambda module, inputs, output: None)
    hooks = [dict(module._forward_hooks) for module in modules]
    with torch.no_grad():
        for parameter in fold_batchnorm(model, pictures()).parameters():
            parameter.fill_(7)
    assert [module.training for module in model.modules()] == modes
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b and a.requires_grad for a, b in zip(model.parameters(), parameters, strict=True))
    assert [dict(module._forward_hooks) for module in modules] == hooks
    hook.remove()
    theirs = before.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in model.state_dict().items())


# --- what cannot be folded


class Net(nn.Module):
    """A stem and a classifier around what a test is about."""

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


def check(model: nn.Module, left: int) -> nn.Module:
    """Folds to ``left`` normalisations, and to the same answers."""
    x = pictures()
    quick = fold_batchnorm(trained(model), x)
    with torch.no_grad():
        close(quick(x), model(x))
    assert norms(quick) == left
    return quick


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_convolution_and_its_normalisation_are_one_convolution(bias: bool, affine: bool, groups: int) -> None:
    layers = Net(conv=conv(bias=bias, groups=groups), norm=nn.BatchNorm2d(6, eps=0.1, affine=affine))
    quick = check(layers, 0)
    (one,) = (module for module in quick.modules() if isinstance(module, nn.Conv2d))
    assert one.bias is not None


class Twice(Net):
    def middle(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))  # type: ignore[operator]
        return self.norm2(self.conv(self.norm1(self.conv(x)).relu()))  # type: ignore[operator]


def test_a_convolution_that_is_used_twice_is_not_folded() -> None:
    norms_ = {"norm1": nn.BatchNorm2d(6), "norm2": nn.BatchNorm2d(6)}
    quick = check(Twice(stem=conv(), first=nn.BatchNorm2d(6), conv=conv(6), **norms_), 2)
    assert sum(isinstance(module, nn.Conv2d) for module in quick.modules()) == 2


class Before(Net):
    def middle(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))  # type: ignore[operator]


def test_a_normalisation_before_a_convolution_is_not_folded() -> None:
    check(Before(norm=nn.BatchNorm2d(3), conv=nn.Sequential(conv(), nn.BatchNorm2d(6))), 1)


class Beside(Net):
    def middle(self, x: Tensor) -> Tensor:
        y = self.conv(self.first(self.stem(x)))  # type: ignore[operator]
        return y - self.norm(y).relu()  # type: ignore[operator, no-any-return]


def test_a_convolution_whose_output_is_used_elsewhere_is_not_folded() -> None:
    check(Beside(stem=conv(), first=nn.BatchNorm2d(6), conv=conv(6), norm=nn.BatchNorm2d(6)), 1)


class Shared(Net):
    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(self.other(x))  # type: ignore[operator, no-any-return]


def test_a_normalisation_that_two_convolutions_share_is_folded_into_both() -> None:
    check(Shared(conv=conv(), other=conv(), norm=nn.BatchNorm2d(6)), 0)


def test_a_normalisation_without_statistics_is_not_folded() -> None:
    stem = nn.Sequential(conv(), nn.BatchNorm2d(6), conv(6))
    check(Net(conv=stem, norm=nn.BatchNorm2d(6, track_running_stats=False)), 1)


@pytest.mark.parametrize("between", [nn.ReLU, nn.Identity])
def test_a_normalisation_that_does_not_follow_at_once(between: Callable[[], nn.Module]) -> None:
    check(Net(conv=nn.Sequential(conv(), between()), norm=nn.BatchNorm2d(6)), 1)


class Undecided(Net):
    def middle(self, x: Tensor) -> Tensor:
        y = super().middle(x)
        return y if x.sum() > 0 else -y


class Looped(Net):
    def middle(self, x: Tensor) -> Tensor:
        return torch.stack([super(Looped, self).middle(row[None])[0] for row in x])


class Strange(Net):
    def middle(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            raise SystemError("no tracing here")
        return super().middle(x)


@pytest.mark.parametrize("kind", [Undecided, Looped, Strange])
def test_a_network_that_cannot_be_traced_is_copied_as_it_is(kind: type[Net]) -> None:
    model = kind(conv=conv(), norm=nn.BatchNorm2d(6))
    copied = check(model, 1)
    assert type(copied) is kind
    assert copied is not model
    assert not any(a is b for a in copied.parameters() for b in model.parameters())
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not fold_batchnorm(model.train(), pictures()).training
    assert model.training


def test_a_network_that_says_something_else_when_it_is_folded_is_copied_as_it_is() -> None:
    model = Net(conv=conv(), norm=nn.BatchNorm2d(6))
    model.register_forward_hook(lambda module, inputs, output: 2 * output)  # a trace does not see it
    assert type(check(model, 1)) is Net
