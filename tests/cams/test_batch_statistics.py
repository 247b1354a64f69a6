"""Gradient-based maps in training mode: each image's own gradient, with batch statistics held constant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams import form, predict

CLASSES, WIDTH = 3, 8


def images(count: int = 8, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class FrozenNorm(nn.Module):
    """Batch normalization by the statistics of its input, which count as constants."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.detach().mean(0), x.detach().var(0, correction=0)
        return (x - mean) / (var + self.norm.eps).sqrt() * self.norm.weight + self.norm.bias


class ManualNorm(nn.BatchNorm1d):
    """Batch normalization without the function of PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.var(0, correction=0) + self.eps).sqrt() * self.weight + self.bias


class UnitNorm(nn.BatchNorm1d):
    """Division by the norm over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=0) * self.weight + self.bias


class NormHeadNet(nn.Module):
    """Body, spatial mean, batch normalization, linear layer, as in RepViT and LeViT."""

    def __init__(self, norm: type[nn.BatchNorm1d] = nn.BatchNorm1d) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH), nn.Tanh())
        self.norm = norm(WIDTH)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.body(x).mean((2, 3))))


def make_net(norm: type[nn.BatchNorm1d] = nn.BatchNorm1d) -> NormHeadNet:
    torch.manual_seed(0)
    model = NormHeadNet(norm).double().train()
    nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    return model


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, ManualNorm])
def test_map_is_the_own_gradient_of_each_image(norm: type[nn.BatchNorm1d], grad: bool) -> None:
    model = make_net(norm)
    x = images()
    with torch.set_grad_enabled(grad):
        cams = predict(model, x).cams
    assert form(model, x) == "gradient"
    assert cams is not None
    features = model.body(x).detach().requires_grad_()
    logits = model.fc(FrozenNorm(model.norm)(features.mean((2, 3))))
    for n in range(len(x)):
        for k in range(CLASSES):
            (gradient,) = torch.autograd.grad(logits[n, k], features, retain_graph=True)
            expected = (features[n] * gradient[n]).sum(0) * features[0, 0].numel()
            torch.testing.assert_close(cams[n, k].detach(), expected.detach())


def test_logits_gradients_and_running_statistics_are_those_of_an_ordinary_forward_pass() -> None:
    model, twin = make_net(), make_net()
    x = images()
    labels = torch.arange(8) % CLASSES
    logits = predict(model, x).logits
    F.cross_entropy(logits, labels).backward()
    expected = twin(x)
    F.cross_entropy(expected, labels).backward()
    torch.testing.assert_close(logits, expected)
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)
    for (name, value), buffer in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(value, buffer), name


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, ManualNorm])
def test_loss_of_the_maps_is_differentiable_in_training_mode(norm: type[nn.BatchNorm1d]) -> None:
    model = make_net(norm)
    x = images(4, 8)
    weights = torch.rand(4, CLASSES, 4, 4, dtype=torch.float64)
    step = 1e-6

    def loss() -> Tensor:
        cams = predict(model, x).cams
        assert cams is not None
        return (cams.square() * weights).sum()

    loss().backward()
    for name, parameter in model.named_parameters():
        if name == "fc.bias" or name == "norm.bias" or parameter.grad is None:
            continue
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                before = parameter.flatten()[0].item()
                parameter.view(-1)[0] = before + sign * step
                values.append(loss().item())
                parameter.view(-1)[0] = before
        gradient = (values[0] - values[1]) / (2 * step)
        assert parameter.grad.flatten()[0].item() == pytest.approx(gradient, rel=1e-5, abs=1e-7), name


def test_norm_over_the_batch_is_held_constant() -> None:
    model = make_net(UnitNorm)
    x = images()
    cams = predict(model, x).cams
    assert cams is not None
    features = model.body(x).detach().requires_grad_()
    pooled = features.mean((2, 3))
    logits = model.fc(pooled / pooled.detach().norm(dim=0) * model.norm.weight + model.norm.bias)
    for k in range(CLASSES):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), features, retain_graph=True)
        torch.testing.assert_close(cams[:, k].detach(), (features * gradient).sum(1).detach() * 64)
