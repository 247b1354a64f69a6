"""Each map method against torchcam, captum, or its definition taken literally; and asking for a few classes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import Tensor, nn
from torchcam.methods import GradCAM, LayerCAM

from camkd.cams import MAP_METHODS, form, predict
from camkd.types import InputError

CLASSES = 3


class Net(nn.Module):
    """Two layers of features, then an average and one or two linear layers."""

    def __init__(self, hidden: bool, smooth: bool = False) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 4, 3, padding=1)
        self.late = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.act = nn.Tanh() if smooth else nn.LeakyReLU(0.3)
        self.head = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES)) if hidden else nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.late(torch.tanh(self.early(x)))).mean((2, 3)))


class Convolved(Net):
    """The linear layer as a 1x1 convolution before the average."""

    def __init__(self) -> None:
        super().__init__(hidden=False)
        self.head = nn.Conv2d(5, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.late(torch.tanh(self.early(x))))).mean((2, 3))


def net(hidden: bool = True, smooth: bool = False) -> Net:
    torch.manual_seed(4)
    return Net(hidden, smooth).double().eval()


def convolved() -> Net:
    torch.manual_seed(4)
    return Convolved().double().eval()


def pictures(count: int = CLASSES) -> Tensor:
    return torch.rand(count, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def own_class(cams: Tensor | None) -> Tensor:
    """Of picture n the map of class n."""
    assert cams is not None
    return torch.stack([cams[n, n] for n in range(CLASSES)]).detach()


@pytest.mark.parametrize("layer", ["late", "act", "early"])
@pytest.mark.parametrize(("method", "oracle"), [("gradcam", GradCAM), ("layercam", LayerCAM)])
def test_torchcam_draws_the_same(method: str, oracle: type, layer: str) -> None:
    model, x = net(), pictures()
    with oracle(model, layer) as extractor:
        theirs = extractor(list(range(CLASSES)), model(x), normalized=False)[0]
    ours = own_class(predict(model, x, method=method, layer=layer).cams)
    assert 0 < (ours > 0).double().mean() < 1, "a test that shows both sides of the rectifier"
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("k", range(CLASSES))
def test_captum_draws_the_same(k: int) -> None:
    model, x = net(), pictures()
    gradcam = LayerGradCam(model, model.late).attribute(x, target=k, relu_attributions=True)[:, 0]
    product = LayerGradientXActivation(model, model.late).attribute(x, target=k).sum(1)
    ours = {name: predict(model, x, method=name, layer="late").cams[:, k] for name in MAP_METHODS}  # type: ignore[index]
    torch.testing.assert_close(ours["gradcam"], gradcam)
    torch.testing.assert_close(ours["hirescam"], product)
    torch.testing.assert_close(ours["cam"], product * product[0].numel())


def test_gradcam_plus_plus_is_its_definition_with_second_and_third_derivatives() -> None:
    """With a linear head ``Y = exp(S)`` has the derivatives of the paper's eq. 5; autograd takes them one by one."""
    model, x, k = net(hidden=False), pictures(1), 1
    features = model.act(model.late(torch.tanh(model.early(x)))).detach()
    _, channels, height, width = features.shape
    expected = torch.zeros(height, width, dtype=torch.float64)
    for c in range(channels):
        leaf = features.clone().requires_grad_()
        score = model.head(leaf.mean((2, 3)))[0, k]
        scale = score.exp().item()
        first = torch.autograd.grad(score.exp(), leaf, create_graph=True)[0][0, c]
        weight = 0.0
        for cell in range(height * width):
            row, column = divmod(cell, width)
            second = torch.autograd.grad(first[row, column], leaf, create_graph=True)[0][0, c, row, column]
            third = torch.autograd.grad(second, leaf, retain_graph=True)[0][0, c, row, column]
            alpha = second / (2 * second + features[0, c].sum() * third)
            weight += (alpha * first[row, column].relu()).item() / scale  # the map is left without exp(S)
        expected += weight * features[0, c]
    ours = predict(model, x, method="gradcam++").cams
    assert ours is not None
    torch.testing.assert_close(ours[0, k].detach(), expected.relu())


@pytest.mark.parametrize(("slope", "weight"), [(2.0, 2 / (2 + 2 * 4)), (1.0, 1 / (2 + 1 * 4))])
def test_a_slope_of_nought_has_no_part_in_gradcam_plus_plus(slope: float, weight: float) -> None:
    features, slopes = torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    slopes[0, 0, 0, 0] = slope  # of the first channel; the weight of the second is nought
    torch.testing.assert_close(MAP_METHODS["gradcam++"](features, slopes), torch.full((1, 2, 2), weight))


@pytest.mark.parametrize("method", MAP_METHODS)
@pytest.mark.parametrize(
    ("make", "expected"), [(lambda: net(hidden=False), "exact"), (convolved, "exact"), (net, "gradient")]
)
def test_asked_classes_are_a_part_of_all(method: str, make: Callable[[], Net], expected: str) -> None:
    model, x = make(), pictures(4)
    assert form(model, x) == expected
    which = torch.tensor([[2, 0], [1, 1], [0, 2], [2, 1]])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            everything = predict(model, x, method=method)
            some, likeliest = (predict(model, x, method=method, classes=asked) for asked in (which, 2))
        assert everything.cams is not None
        assert everything.class_ids is None
        for answer in (some, likeliest):
            assert answer.class_ids is not None
            expected = everything.cams[torch.arange(4)[:, None], answer.class_ids]
            torch.testing.assert_close(answer.cams, expected)
        assert torch.equal(some.class_ids, which)  # type: ignore[arg-type]
        assert torch.equal(likeliest.class_ids, everything.logits.topk(2).indices)  # type: ignore[arg-type]


def test_one_class_of_many_costs_one_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    model, x = net(), pictures()
    predict(model, x)
    calls.clear()
    predict(model, x, classes=1)
    assert len(calls) == 1
    predict(net(hidden=False), x, classes=1)
    assert len(calls) == 1, "a linear head needs none"


@pytest.mark.parametrize(
    "classes",
    [
        0,
        4,
        torch.zeros(2, 1),
        torch.zeros(2, 1, dtype=torch.bool),
        torch.zeros(3, dtype=torch.int64),
        torch.tensor([[0], [3], [1]]),
        torch.tensor([[2], [-1], [0]]),
    ],
)
def test_classes_that_cannot_be_asked_for(classes: int | Tensor) -> None:
    with pytest.raises(InputError, match="classes"):
        predict(net(), pictures(), classes=classes)


@pytest.mark.parametrize("method", MAP_METHODS)
def test_every_method_can_be_differentiated(method: str) -> None:
    model, x = net(smooth=True), pictures(1).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        cams = predict(model, x, method=method).cams
        assert cams is not None
        return cams.square().sum()

    assert torch.autograd.gradcheck(loss, x, fast_mode=True)
    loss(x).backward()
    assert model.early.weight.grad is not None
    assert model.early.weight.grad.any()


@pytest.mark.parametrize("layer", ["act", "late", "early"])
def test_a_named_layers_map_is_exact_where_its_average_is_what_the_head_sees(layer: str) -> None:
    model, x = net(hidden=False), pictures()
    assert form(model, x, layer=layer) == ("exact" if layer == "act" else "gradient")
    if layer == "act":
        torch.testing.assert_close(predict(model, x, layer=layer).cams, predict(model, x).cams)


REFUSALS: list[tuple[Callable[[], nn.Module], str, str, str]] = [
    (net, "cam", "latest", "Net has no layer 'latest': choose one .*, like early, late, act."),
    (net, "cam", "head", "the layer 'head' of Net has no spatial output .* like early, late, act."),
    (net, "camcam", "act", "there is no map method 'camcam': choose one of cam, gradcam, hirescam, layercam, "),
]


@pytest.mark.parametrize(("make", "method", "layer", "sentence"), REFUSALS)
def test_what_is_not_there_is_refused_with_what_is(
    make: Callable[[], nn.Module], method: str, layer: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        predict(make(), pictures(), method=method, layer=layer)


class Cut(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Two(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x, super().forward(x)


def test_networks_without_maps_are_refused() -> None:
    with pytest.raises(InputError, match=r"no gradient leads from the logits of Cut .*\(early, late, act\)"):
        predict(Cut(hidden=True), pictures().float())
    with pytest.raises(InputError, match="Two answers with a tuple"):
        predict(Two(hidden=True), pictures().float())
