"""Map methods against torchcam, captum or a literal implementation, and the selection of classes."""

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
    """Two convolutions, then global average pooling and a linear or an MLP head."""

    def __init__(self, hidden: bool, smooth: bool = False) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 4, 3, padding=1)
        self.late = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.act = nn.Tanh() if smooth else nn.LeakyReLU(0.3)
        self.head = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES)) if hidden else nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.late(torch.tanh(self.early(x)))).mean((2, 3)))


class ConvHeadNet(Net):
    """Net with a 1x1 convolution before the global average pooling instead of a linear head."""

    def __init__(self) -> None:
        super().__init__(hidden=False)
        self.head = nn.Conv2d(5, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.late(torch.tanh(self.early(x))))).mean((2, 3))


def net(hidden: bool = True, smooth: bool = False) -> Net:
    torch.manual_seed(4)
    return Net(hidden, smooth).double().eval()


def conv_head_net() -> Net:
    torch.manual_seed(4)
    return ConvHeadNet().double().eval()


def images(count: int = CLASSES) -> Tensor:
    return torch.rand(count, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def diagonal_maps(cams: Tensor | None) -> Tensor:
    """Return the map of class n for image n."""
    assert cams is not None
    return torch.stack([cams[n, n] for n in range(CLASSES)]).detach()


@pytest.mark.parametrize("layer", ["late", "act", "early"])
@pytest.mark.parametrize(("method", "oracle"), [("gradcam", GradCAM), ("layercam", LayerCAM)])
def test_maps_equal_torchcam(method: str, oracle: type, layer: str) -> None:
    model = net()
    x = images()
    with oracle(model, layer) as extractor:
        expected = extractor(list(range(CLASSES)), model(x), normalized=False)[0]
    maps = diagonal_maps(predict(model, x, method=method, layer=layer).cams)
    assert 0 < (maps > 0).double().mean() < 1, "the maps must show both sides of the ReLU"
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("k", range(CLASSES))
def test_maps_equal_captum(k: int) -> None:
    model = net()
    x = images()
    gradcam = LayerGradCam(model, model.late).attribute(x, target=k, relu_attributions=True)[:, 0]
    product = LayerGradientXActivation(model, model.late).attribute(x, target=k).sum(1)
    maps = {name: predict(model, x, method=name, layer="late").cams[:, k] for name in MAP_METHODS}  # type: ignore[index]
    torch.testing.assert_close(maps["gradcam"], gradcam)
    torch.testing.assert_close(maps["hirescam"], product)
    torch.testing.assert_close(maps["cam"], product * product[0].numel())


def test_gradcam_plus_plus_equals_its_definition_by_second_and_third_derivatives() -> None:
    """For a linear head, ``Y = exp(S)`` has the derivatives of equation 5 of the paper; autograd computes each."""
    model = net(hidden=False)
    x = images(1)
    k = 1
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
            weight += (alpha * first[row, column].relu()).item() / scale  # the map leaves out exp(S)
        expected += weight * features[0, c]
    cams = predict(model, x, method="gradcam++").cams
    assert cams is not None
    torch.testing.assert_close(cams[0, k].detach(), expected.relu())


@pytest.mark.parametrize(("gradient", "weight"), [(2.0, 2 / (2 + 2 * 4)), (1.0, 1 / (2 + 1 * 4))])
def test_zero_gradients_have_zero_weight_in_gradcam_plus_plus(gradient: float, weight: float) -> None:
    features = torch.ones(1, 2, 2, 2)
    gradients = torch.zeros(1, 2, 2, 2)
    gradients[0, 0, 0, 0] = gradient  # only in the first channel, so the weight of the second is zero
    torch.testing.assert_close(MAP_METHODS["gradcam++"](features, gradients), torch.full((1, 2, 2), weight))


@pytest.mark.parametrize("method", MAP_METHODS)
@pytest.mark.parametrize(
    ("build_net", "expected_form"), [(lambda: net(hidden=False), "exact"), (conv_head_net, "exact"), (net, "gradient")]
)
def test_maps_of_selected_classes_equal_those_of_all(
    method: str, build_net: Callable[[], Net], expected_form: str
) -> None:
    model = build_net()
    x = images(4)
    assert form(model, x) == expected_form
    class_ids = torch.tensor([[2, 0], [1, 1], [0, 2], [2, 1]])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            all_classes = predict(model, x, method=method)
            given = predict(model, x, method=method, classes=class_ids)
            top2 = predict(model, x, method=method, top=2)
        assert all_classes.cams is not None
        assert all_classes.class_ids is None
        for selected in (given, top2):
            assert selected.class_ids is not None
            expected = all_classes.cams[torch.arange(4)[:, None], selected.class_ids]
            torch.testing.assert_close(selected.cams, expected)
        assert torch.equal(given.class_ids, class_ids)  # type: ignore[arg-type]
        assert torch.equal(top2.class_ids, all_classes.logits.topk(2).indices)  # type: ignore[arg-type]


def test_one_selected_class_takes_one_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: calls.append(1) or grad(*args, **kwargs))
    model = net()
    x = images()
    predict(model, x)
    calls.clear()
    predict(model, x, top=1)
    assert len(calls) == 1
    predict(net(hidden=False), x, top=1)
    assert len(calls) == 1, "a linear head needs no backward pass"


@pytest.mark.parametrize(
    ("classes", "value"),
    [
        (0, "got 0"),
        (4, "got 4"),
        (torch.zeros(2, 1), r"got \(2, 1\)"),
        (torch.zeros(3, 1, dtype=torch.bool), r"got torch\.bool"),
        (torch.zeros(3, 1), r"got torch\.float32"),
        (torch.zeros(3, dtype=torch.int64), r"got \(3,\)"),
        (torch.tensor([[0], [3], [1]]), "got 3"),
        (torch.tensor([[2], [-1], [0]]), "got -1"),
    ],
)
def test_invalid_classes_raise(classes: int | Tensor, value: str) -> None:
    with pytest.raises(InputError, match=f"classes must .*{value}"):
        predict(net(), images(), classes=classes)


@pytest.mark.parametrize("method", MAP_METHODS)
def test_maps_of_every_method_are_differentiable(method: str) -> None:
    model = net(smooth=True)
    x = images(1).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        cams = predict(model, x, method=method).cams
        assert cams is not None
        return cams.square().sum()

    assert torch.autograd.gradcheck(loss, x, fast_mode=True)
    loss(x).backward()
    assert model.early.weight.grad is not None
    assert model.early.weight.grad.any()


@pytest.mark.parametrize("layer", ["act", "late", "early"])
def test_maps_of_a_named_layer_are_exact_only_if_the_head_receives_its_mean(layer: str) -> None:
    model = net(hidden=False)
    x = images()
    assert form(model, x, layer=layer) == ("exact" if layer == "act" else "gradient")
    if layer == "act":
        torch.testing.assert_close(predict(model, x, layer=layer).cams, predict(model, x).cams)


@pytest.mark.parametrize(
    ("method", "layer", "message"),
    [
        ("cam", "latest", r"layer of Net, got 'latest'.* early, late, act\."),
        ("cam", "head", r"the logits of Net depend on, got 'head'.* early, late, act\."),
        ("camcam", "act", r"one of cam, gradcam, hirescam, layercam, gradcam\+\+, got 'camcam'"),
    ],
)
def test_unknown_method_or_layer_raises_with_the_choices(method: str, layer: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict(net(), images(), method=method, layer=layer)


def test_message_for_a_layer_without_maps() -> None:
    with pytest.raises(InputError) as error:
        predict(net(), images(), layer="head")
    assert str(error.value) == (
        "layer must have a feature map that is spatially aligned with the image and that the logits of Net "
        "depend on, got 'head'. "
        "Choose another layer: early, late, act."
    )


class DetachedNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class TupleNet(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x, super().forward(x)


def test_networks_without_maps_raise() -> None:
    with pytest.raises(InputError, match=r"logits of DetachedNet .*gradient .*\(early, late, act\)"):
        predict(DetachedNet(hidden=True), images().float())
    with pytest.raises(InputError, match=r"TupleNet must return logits \(N, K\) in training mode, got a tuple"):
        predict(TupleNet(hidden=True), images().float())
