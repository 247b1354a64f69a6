"""Exact maps: ``logits = mean_xy(cams) + bias`` for the images and weights at hand, independent of earlier calls."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams import bias, form, predict
from camkd.models import build

CLASSES, WIDTH = 3, 8


def images(count: int = 8, size: int = 16, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def body() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH), nn.ReLU())


class PooledNet(nn.Module):
    """Body, spatial mean, a module between mean and linear layer, linear layer, a function of the logits."""

    def __init__(self, between: nn.Module, after: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.body = body()
        self.between = between
        self.fc = nn.Linear(WIDTH, CLASSES)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.fc(self.between(self.body(x).mean((2, 3)))))


class Residual(nn.Module):
    """Residual branch whose last layer is initialized to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


NONLINEAR_HEADS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: PooledNet(nn.BatchNorm1d(WIDTH)),
    "zero residual": lambda: PooledNet(Residual()),
    "relu6 cap": lambda: PooledNet(nn.ReLU6()),
    "tanh cap": lambda: PooledNet(Function(lambda x: 30 * torch.tanh(x / 30))),
    "cap of the logits": lambda: PooledNet(nn.Identity(), lambda x: 30 * torch.tanh(x / 30)),
    "temperature": lambda: PooledNet(nn.Identity(), lambda x: x / 2),
    "parameter scale": lambda: PooledNet(nn.Softplus(beta=1e4)),
    "relu in place on the pooled features": lambda: PooledNet(nn.ReLU(inplace=True)),
}


def train(model: nn.Module, steps: int = 20) -> None:
    """Train a model with SGD on random images and labels."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.rand(8, 3, 16, 16, generator=generator)
        labels = torch.randint(CLASSES, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NONLINEAR_HEADS)
def test_head_that_is_linear_only_by_its_initial_weights_is_not_exact(name: str, training: bool) -> None:
    torch.manual_seed(0)
    model = NONLINEAR_HEADS[name]().train(training)
    assert form(model, images()) == "gradient"
    train(model)
    model.train(training)
    assert form(model, images()) == form(copy.deepcopy(model), images()) == "gradient"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["cam-net", "resnet8", "resnet11", "dropout", "pooled by sum"])
def test_exact_maps_add_up_after_training(name: str, training: bool) -> None:
    torch.manual_seed(0)
    heads = {"dropout": nn.Dropout(0.5), "pooled by sum": Function(lambda x: x.float())}
    model = PooledNet(heads[name]) if name in heads else build(name, CLASSES, 16)
    x = images()
    predict(model, x)
    train(model)
    model.train(training)
    logits, cams, *_ = predict(model, x)
    assert form(model, x) == "exact"
    assert cams is not None
    torch.testing.assert_close(logits, cams.mean((2, 3)) + bias(model, x), rtol=1e-5, atol=1e-5)


def test_result_does_not_depend_on_earlier_predictions() -> None:
    torch.manual_seed(0)
    for name, make in NONLINEAR_HEADS.items():
        model = make().eval()
        predict(model, images())
        train(model)
        fresh = make().eval()
        fresh.load_state_dict(model.state_dict())
        model.eval()
        for value, expected in zip(predict(model, images())[:2], predict(fresh, images())[:2], strict=True):
            assert torch.equal(value, expected), name


def test_hook_that_is_added_later_counts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)).eval()
    x = images()
    assert form(model, x) == "exact"
    for module, hook in ((model[3], lambda m, i, o: o * 2), (model[1], lambda m, i, o: o.clamp(max=0.2))):
        handle = module.register_forward_hook(hook)
        logits, cams, *_ = predict(model, x)
        assert form(model, x) == "gradient"
        assert cams is not None
        assert torch.equal(logits, model(x))
        expected = torch.stack(
            [torch.autograd.grad(predict(model, x).logits[:, k].sum(), model[0][0].bias)[0] for k in range(3)]
        )
        assert expected.isfinite().all()
        handle.remove()
    assert form(model, x) == "exact"


class SwitchNet(PooledNet):
    """A head that is linear for bright images only."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.body(x).mean((2, 3))
        return self.fc(pooled if x.mean() > 0.4 else pooled.square())


def test_head_that_depends_on_the_images_is_exact_only_where_it_is_linear() -> None:
    torch.manual_seed(0)
    model = SwitchNet(nn.Identity()).eval()
    for x in (images(), 0.1 * images(), images()):
        logits, cams, features, _ = predict(model, x, features=True)
        assert cams is not None
        assert features is not None
        pooled = features[-1].mean((2, 3)).detach().requires_grad_()
        expected = model.fc(pooled if x.mean() > 0.4 else pooled.square())
        torch.testing.assert_close(logits, expected)
        for k in range(CLASSES):
            (gradient,) = torch.autograd.grad(expected[:, k].sum(), pooled, retain_graph=True)
            torch.testing.assert_close(cams[:, k], torch.einsum("nc,nchw->nhw", gradient, features[-1]))


class HeadNet(PooledNet):
    """Body, spatial mean, and a function of this module and the pooled features."""

    def __init__(self, head: Callable[[HeadNet, Tensor], Tensor]) -> None:
        super().__init__(nn.Identity())
        self.head = head
        self.heads = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(2))
        self.task = 0
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, self.body(x).mean((2, 3)))


CHANGED_LOGITS: dict[str, Callable[[HeadNet, Tensor], Tensor]] = {
    "fewer classes": lambda net, p: net.fc(p)[:, :2],
    "other order of the classes": lambda net, p: net.fc(p)[:, net.order],
    "shuffled by reshapes": lambda net, p: F.pad(net.fc(p), (0, 1)).view(-1, 2, 2).transpose(1, 2).reshape(-1, 4),
    "other order of the features": lambda net, p: net.fc(p[:, torch.arange(7, -1, -1)]),
    "other order of the images": lambda net, p: net.fc(p[torch.arange(len(p)).roll(1), :]),
}


@pytest.mark.parametrize("name", CHANGED_LOGITS)
def test_logits_that_are_changed_after_the_linear_layer_are_not_exact(name: str) -> None:
    torch.manual_seed(0)
    model = HeadNet(CHANGED_LOGITS[name]).eval()
    assert form(model, images()) != "exact"


def test_linear_layer_that_is_selected_in_the_forward_pass_has_its_own_maps() -> None:
    torch.manual_seed(0)
    model = HeadNet(lambda net, p: net.heads[net.task](p)).eval()
    for model.task in (0, 1, 0):
        _, cams, features, _ = predict(model, images(), features=True)
        assert cams is not None
        assert features is not None
        expected = torch.einsum("kc,nchw->nkhw", model.heads[model.task].weight, features[-1])
        torch.testing.assert_close(cams, expected)


def test_mean_that_is_off_by_little_is_not_exact_in_double_precision() -> None:
    class AlmostMean(PooledNet):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.body(x).sum((2, 3)) / (64 + 1e-4))

    torch.manual_seed(0)
    assert form(AlmostMean(nn.Identity()).double().eval(), images().double()) == "gradient"
