"""`predict`: maps against values computed by hand, torchcam, captum, and a literal implementation of HiResCAM."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchcam.methods import CAM, GradCAM

from camkd.cams import bias, form, predict
from camkd.cli.listing import stored_costs
from camkd.models import MODELS, ImageClassifier, build
from camkd.models.resnet import BasicBlock, ResNet
from camkd.types import InputError, Prediction

CLASSES = 3


def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def images(count: int = 2, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def randomize_parameters(model: nn.Module) -> nn.Module:
    """Change normalization, biases and running statistics from their initial values."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.ndim == 1:
                value += 0.2 * torch.rand(value.shape, generator=generator)
            assert name
    return model


def small_mlp() -> ImageClassifier:
    """Build a small ResNet with an MLP head, like resnet50-mlp."""
    torch.manual_seed(3)
    return ResNet(BasicBlock, (8, 16), (1, 1), CLASSES, 16, hidden_features=32)


@pytest.fixture(scope="module")
def built_model() -> Callable[[str], ImageClassifier]:
    """Return a function that builds each network once, in evaluation mode. Tests must not change the networks."""
    models: dict[str, ImageClassifier] = {}

    def get(name: str) -> ImageClassifier:
        if name not in models:
            model = small_mlp() if name == "small-mlp" else build(name, CLASSES, 16, seed=3)
            models[name] = randomize_parameters(model).eval()  # type: ignore[assignment]
        return models[name]

    return get


# --- networks whose maps are computed by hand

R = tensor([1, 0], [0, 0])
G = tensor([0, 1], [0, 0])
B = tensor([0, 0], [1, 1])
IMAGE = torch.stack([R, G, B])[None]
#: body(IMAGE): relu(R - B) and relu(2 G + B)
A = tensor([[1, 0], [0, 0]], [[0, 2], [1, 1]])
#: W A with W = [[3, 1], [-1, 2]]
LINEAR_CAMS = tensor([[3, 2], [1, 1]], [[-1, 4], [2, 2]])


def with_weights(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight.view_as(layer.weight))
        if layer.bias is not None:
            assert bias is not None
            layer.bias.copy_(bias)
    return layer


def body(*after: nn.Module) -> nn.Sequential:
    convolution = nn.Conv2d(3, 2, 1, bias=False)
    return nn.Sequential(with_weights(convolution, tensor([1, 0, -1], [0, 2, 1])), *after)


def linear(bias: bool = True) -> nn.Module:
    return with_weights(nn.Linear(2, 2, bias=bias), tensor([3, 1], [-1, 2]), tensor(1, -2))


def one_by_one() -> nn.Module:
    return with_weights(nn.Conv2d(2, 2, 1), tensor([3, 1], [-1, 2]), tensor(1, -2))


def mlp() -> nn.Sequential:
    first = with_weights(nn.Linear(2, 3), tensor([4, 1], [0, -1], [-4, 2]), tensor(0, 0.5, 0))
    return nn.Sequential(first, nn.ReLU(), with_weights(nn.Linear(3, 2, bias=False), tensor([1, 5, 2], [-1, 1, 0.5])))


class Functional(nn.Module):
    """Body, spatial mean in ``forward()`` without a pooling layer, head."""

    def __init__(self, body: nn.Module, fc: nn.Module, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.body = body
        self.fc = fc
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.between(self.body(x)).mean((2, 3)))


class ConvHead(nn.Module):
    """Body, 1x1 convolution, spatial mean."""

    def __init__(self, body: nn.Module, head: nn.Module, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x))).mean((2, 3))


class SharedReLU(nn.Module):
    """One ReLU module, called after the convolution and inside the head."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.body = body()
        self.relu = nn.ReLU(inplace=inplace)
        head = mlp()
        self.first = head[0]
        self.second = head[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.relu(self.first(self.relu(self.body(x)).mean((2, 3)))))


def pooled(*head: nn.Module) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head]


LINEAR_HEADS: dict[str, tuple[Callable[[], nn.Module], str, Tensor]] = {
    "linear": (lambda: Functional(body(nn.ReLU()), linear()), "exact", tensor(1, -2)),
    "linear without bias": (lambda: Functional(body(nn.ReLU()), linear(bias=False)), "exact", tensor(0, 0)),
    "linear after relu in place": (lambda: Functional(body(nn.ReLU(True)), linear()), "exact", tensor(1, -2)),
    "sequential": (lambda: nn.Sequential(*body(nn.ReLU()), *pooled(linear())), "exact", tensor(1, -2)),
    "average pooling over the whole map": (
        lambda: nn.Sequential(*body(nn.ReLU()), nn.AvgPool2d(2), nn.Flatten(), linear()),
        "exact",
        tensor(1, -2),
    ),
    "dropout": (lambda: nn.Sequential(*body(nn.ReLU()), *pooled(nn.Dropout(), linear())), "exact", tensor(1, -2)),
    "identity after the head": (
        lambda: nn.Sequential(*body(nn.ReLU(True)), *pooled(linear(), nn.Identity())),
        "exact",
        tensor(1, -2),
    ),
    "1x1 convolution": (lambda: ConvHead(body(nn.ReLU()), one_by_one()), "exact", tensor(1, -2)),
    "1x1 convolution, functional relu": (
        lambda: ConvHead(body(), one_by_one(), torch.relu),
        "exact",
        tensor(1, -2),
    ),
    "1x1 convolution, then layers": (
        lambda: nn.Sequential(*body(nn.ReLU(True)), one_by_one(), *pooled()),
        "exact",
        tensor(1, -2),
    ),
    "1x1 convolution after the average": (
        lambda: nn.Sequential(*body(nn.ReLU()), nn.AdaptiveAvgPool2d(1), one_by_one(), nn.Flatten()),
        "exact",
        tensor(1, -2),
    ),
    # the ReLU is not a module, so no layer outputs the averaged features; the gradient-based map is equal
    "linear, functional relu": (lambda: Functional(body(), linear(), torch.relu), "gradient", tensor(1, -2)),
    "linear, functional relu in place": (
        lambda: Functional(body(), linear(), nn.functional.relu_),
        "exact",
        tensor(1, -2),
    ),
    "linear, linear": (
        lambda: Functional(
            body(nn.ReLU()),
            nn.Sequential(with_weights(nn.Linear(2, 2), tensor([1, 1], [0, 1]), tensor(1, 0)), second_linear()),
        ),
        "gradient",
        tensor(4, -3),
    ),
}


def second_linear() -> nn.Module:
    """Build ``W [[1, 1], [0, 1]]^-1``, so that both layers together are W, with bias W (1, 0) + (1, -2)."""
    return with_weights(nn.Linear(2, 2), tensor([3, -2], [-1, 3]), tensor(1, -2))


@contextmanager
def gradient_mode(kind: str) -> Iterator[None]:
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[kind]
    with context():
        yield


@pytest.mark.parametrize("kind", ["grad", "no_grad", "inference"])
@pytest.mark.parametrize("head", LINEAR_HEADS)
def test_maps_of_linear_heads_equal_values_by_hand(head: str, kind: str) -> None:
    build_head, expected_form, bias = LINEAR_HEADS[head]
    model = build_head().eval()
    with gradient_mode(kind):
        logits, cams, *_ = predict(model, IMAGE)
    assert form(model, IMAGE) == expected_form
    assert cams is not None
    torch.testing.assert_close(cams.detach().clone(), LINEAR_CAMS[None])
    torch.testing.assert_close(logits.detach().clone(), (LINEAR_CAMS.mean((1, 2)) + bias)[None])


def test_maps_of_a_1x1_convolution_on_the_image_equal_values_by_hand() -> None:
    head = with_weights(nn.Conv2d(3, 2, 1), tensor([2, 0, -1], [0, 4, 1]), tensor(0.5, -1))
    logits, cams, *_ = predict(ConvHead(nn.Identity(), head), IMAGE)
    torch.testing.assert_close(cams, tensor([[[2, 0], [-1, -1]], [[0, 4], [1, 1]]]))
    torch.testing.assert_close(logits, tensor([0.5, 0.5]))


def test_dropout_in_training_mode_removes_channels_from_logits_and_maps_alike() -> None:
    model = LINEAR_HEADS["dropout"][0]().train()
    weight = tensor([3, 1], [-1, 2])
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        logits, cams, *_ = predict(model, IMAGE)
        torch.manual_seed(seed)
        assert torch.equal(logits, model(IMAGE))
        assert form(model, IMAGE) == "exact"
        assert cams is not None
        torch.testing.assert_close(logits[0], cams[0].mean((1, 2)) + tensor(1, -2))
        factors = [
            f
            for f in itertools.product((0, 2), repeat=2)
            if torch.equal(cams[0], torch.einsum("kc,chw->khw", weight * torch.tensor(f), A))
        ]
        assert len(factors) == 1
        seen.add(factors[0])
    assert len(seen) == 4


#: (build, logits, maps): d logit / d pooled is (-4, 5) and (-6, 0) for the MLP, whose second unit is inactive
OTHER_HEADS: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor]] = {
    "mlp": (
        lambda: Functional(body(nn.ReLU()), mlp()),
        tensor([4, -1.5]),
        tensor([[[-4, 10], [5, 5]], [[-6, 0], [0, 0]]]),
    ),
    "mlp, shared relu": (
        lambda: SharedReLU(inplace=False),
        tensor([4, -1.5]),
        tensor([[[-4, 10], [5, 5]], [[-6, 0], [0, 0]]]),
    ),
    "mlp, shared relu in place": (
        lambda: SharedReLU(inplace=True),
        tensor([4, -1.5]),
        tensor([[[-4, 10], [5, 5]], [[-6, 0], [0, 0]]]),
    ),
    "mlp, functional relu in place": (
        lambda: Functional(body(), mlp(), nn.functional.relu_),
        tensor([4, -1.5]),
        tensor([[[-4, 10], [5, 5]], [[-6, 0], [0, 0]]]),
    ),
    "max pooling": (
        lambda: nn.Sequential(*body(nn.ReLU()), nn.AdaptiveMaxPool2d(1), nn.Flatten(), linear()),
        tensor([6, 1]),
        tensor([[[12, 8], [0, 0]], [[-4, 16], [0, 0]]]),
    ),
}


@pytest.mark.parametrize("kind", ["grad", "no_grad", "inference"])
@pytest.mark.parametrize("head", OTHER_HEADS)
def test_maps_of_nonlinear_heads_equal_values_by_hand(head: str, kind: str) -> None:
    build_head, expected_logits, expected_cams = OTHER_HEADS[head]
    model = build_head().eval()
    with gradient_mode(kind):
        logits, cams, *_ = predict(model, IMAGE)
    assert form(model, IMAGE) == "gradient"
    assert cams is not None
    torch.testing.assert_close(logits.detach().clone(), expected_logits)
    torch.testing.assert_close(cams.detach().clone(), expected_cams)


def test_features_are_the_averaged_layer_and_only_returned_on_request() -> None:
    for head in ("linear", "1x1 convolution", "1x1 convolution after the average"):
        model = LINEAR_HEADS[head][0]()
        assert predict(model, IMAGE).features is None
        features = predict(model, IMAGE, features=True).features
        torch.testing.assert_close(features, (A[None],), msg=head)
    torch.testing.assert_close(predict(SharedReLU(True), IMAGE, features=True).features, (A[None],))


class Block(nn.Module):
    """Two convolutions, the second of stride 2. It is not an ``nn.Sequential``, so it counts as a single layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, inputs, 3, 1, 1)
        self.second = nn.Conv2d(inputs, outputs, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Staged(nn.Module):
    """Stages at resolutions 16, 8 and 4, two of them after a shared ReLU, with other layers around them."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.fc = head  # registered out of the order of execution
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = Block(6, 5)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
        self.block = nn.Sequential(Block(4, 6), nn.Conv2d(6, 6, 1))
        self.unused = nn.Conv2d(3, 3, 1)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.relu(self.stem(x))
        second = self.relu(self.block(first))
        return first, second, self.last(second)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.stages(x)[-1]).flatten(1))


@pytest.mark.parametrize("kind", ["grad", "no_grad", "inference"])
@pytest.mark.parametrize("hidden", [0, 7])
def test_stages_are_the_last_outputs_at_each_resolution(hidden: int, kind: str) -> None:
    head = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 2)) if hidden else nn.Linear(5, 2)
    model = Staged(head).eval()
    x = images()
    with gradient_mode(kind):
        expected = model.stages(x)
        prediction = predict(model, x, features=True)
    assert form(model, x) == ("gradient" if hidden else "exact")
    assert [stage.shape[1:] for stage in expected] == [(4, 16, 16), (6, 8, 8), (5, 4, 4)]
    assert prediction.features is not None
    for stage, expected_stage in zip(prediction.features, expected, strict=True):
        assert stage.requires_grad == (kind == "grad")
        torch.testing.assert_close(stage.detach().clone(), expected_stage.detach().clone())
    if kind == "grad":
        prediction.features[0].sum().backward()
        assert all(p.grad is not None for p in model.stem.parameters())
        assert all(p.grad is None for p in model.block.parameters())
    assert num_hooks(model) == 0
    torch.testing.assert_close(
        predict(nn.Sequential(model, nn.Identity()), x, features=True).features, prediction.features[-1:]
    )


def test_stages_are_hooked_only_on_request() -> None:
    hook_counts = []

    class CountingStaged(Staged):
        def forward(self, x: Tensor) -> Tensor:
            hook_counts.append(num_hooks(self))
            return super().forward(x)

    model = CountingStaged(nn.Linear(5, 2))
    x = images()
    predict(model, x)
    hook_counts.clear()
    predict(model, x)
    predict(model, x, features=True)
    assert hook_counts == [1, 2]  # the averaged layer; in addition the shared ReLU of the other two stages


STAGES = {
    "cam-net": ["body.7"],
    "cam-net-lite": ["body.5", "body.9"],
    "cam-net-large": ["body.2", "body.8"],
    "resnet8": ["layer1", "layer2", "layer3"],
    "resnet20": ["layer1", "layer2", "layer3"],
    "resnet56": ["layer1", "layer2", "layer3"],
    "resnet11": ["body.1", "body.4", "body.9"],
    "wrn-16-4": ["layers.0", "layers.1", "relu"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "resnet50-mlp": ["layer1", "layer2", "layer3", "layer4"],
}


@pytest.mark.parametrize("name", MODELS)
def test_stages_of_built_in_networks(name: str, built_model: Callable[[str], ImageClassifier]) -> None:
    model = built_model(name)
    outputs: dict[str, Tensor] = {}
    for layer in STAGES[name]:
        module = model.get_submodule(layer)
        module.register_forward_hook(
            lambda module, inputs, output, layer=layer: outputs.update({layer: output.clone()})
        )
    with torch.no_grad():
        features = predict(model, images(1), features=True).features
    for module in model.modules():
        module._forward_hooks.clear()
    assert features is not None
    torch.testing.assert_close(features, tuple(outputs[layer] for layer in STAGES[name]))


def test_subclass_of_linear_with_another_forward_is_not_exact() -> None:
    class Cosine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, nn.functional.normalize(self.weight, dim=1))

    model = Functional(body(nn.ReLU()), Cosine(2, 2))
    logits, cams, *_ = predict(model, IMAGE)
    assert form(model, IMAGE) == "gradient"
    assert cams is not None
    torch.testing.assert_close(cams.mean((2, 3)), logits)


# --- built-in networks


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_built_in_networks_are_mean_of_maps_plus_bias(
    name: str, built_model: Callable[[str], ImageClassifier]
) -> None:
    model = built_model(name)
    x = images(1)
    with torch.no_grad():
        logits, cams, features, _ = predict(model, x, features=True)
        torch.testing.assert_close(logits, model(x))
    assert cams is not None
    assert features is not None
    assert cams.shape[:2] == (1, CLASSES)
    assert cams.shape[2:] == features[-1].shape[2:]
    assert cams[0, 0].numel() > 1
    assert form(model, x) == stored_costs()[name]["map_form"]
    if form(model, x) == "gradient":
        return
    classifier = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    bias = torch.zeros(CLASSES) if classifier.bias is None else classifier.bias
    torch.testing.assert_close(logits, cams.mean((2, 3)) + bias, rtol=1e-4, atol=1e-4)
    weighted = torch.einsum("nchw,kc->nkhw", features[-1], classifier.weight.flatten(1))
    torch.testing.assert_close(cams, weighted, rtol=1e-4, atol=1e-4)


def hirescam(layer: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute equation 4 of Draelos and Carin 2020 times h w, image by image and class by class."""
    maps_of_images = []
    for features in layer.detach():
        leaf = features.clone().requires_grad_()
        logits = head(leaf[None])[0]
        maps = []
        for logit in logits:
            (gradient,) = torch.autograd.grad(logit, leaf, retain_graph=True)
            maps.append(sum(leaf[c] * gradient[c] for c in range(len(leaf))))
        maps_of_images.append(torch.stack(maps))  # type: ignore[arg-type]
    return (torch.stack(maps_of_images) * layer.shape[2] * layer.shape[3]).detach()


@pytest.mark.parametrize("grad", [True, False])
def test_maps_of_an_mlp_head_equal_hirescam(grad: bool, built_model: Callable[[str], ImageClassifier]) -> None:
    model = built_model("small-mlp")
    x = images(2)
    with torch.set_grad_enabled(grad):
        _, cams, features, _ = predict(model, x, features=True)
    assert cams is not None
    assert features is not None
    expected = hirescam(features[-1], lambda a: model.fc(a.mean((2, 3))))  # type: ignore[operator]
    torch.testing.assert_close(cams.detach(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def tiny(smooth: bool = True, hidden: int = 0) -> Functional:
    """Build a network in float64 with smooth activations, for finite differences."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh() if smooth else nn.ReLU(), nn.AvgPool2d(2))
    head: nn.Module = nn.Linear(4, CLASSES)
    if hidden:
        head = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES))
    return Functional(layers, head).double()


def test_gradient_maps_agree_with_finite_differences() -> None:
    model = tiny(hidden=5)
    x = images(1, 8).double()
    step = 1e-5
    with torch.no_grad():
        features = model.body(x)
        cams = predict(model, x).cams
        assert cams is not None
        expected = torch.zeros_like(cams)
        _, channels, height, width = features.shape
        for c in range(channels):
            for row in range(height):
                for column in range(width):
                    logits = []
                    for sign in (1, -1):
                        shifted = features.clone()
                        shifted[0, c, row, column] += sign * step
                        logits.append(model.fc(shifted.mean((2, 3))))
                    gradient = (logits[0] - logits[1])[0] / (2 * step)
                    expected[0, :, row, column] += features[0, c, row, column] * gradient * height * width
    torch.testing.assert_close(cams, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["resnet8", "wrn-16-4"])
def test_two_linear_layers_have_gradient_maps_equal_to_the_exact_maps(
    name: str, built_model: Callable[[str], ImageClassifier]
) -> None:
    model = built_model(name)
    x = images()
    hidden = copy.deepcopy(model)
    assert isinstance(hidden.fc, nn.Linear)
    inputs = hidden.fc.in_features
    rotation = torch.linalg.qr(torch.rand(inputs, inputs, generator=torch.Generator().manual_seed(2)))[0]
    hidden.fc = nn.Sequential(
        with_weights(nn.Linear(inputs, inputs, bias=False), rotation),
        with_weights(nn.Linear(inputs, CLASSES), hidden.fc.weight @ rotation.T, hidden.fc.bias),
    )
    with torch.no_grad():
        assert form(model, x) == "exact"
        assert form(hidden, x) == "gradient"
        torch.testing.assert_close(predict(hidden, x).cams, predict(model, x).cams, rtol=1e-4, atol=1e-4)


# --- other libraries


@pytest.mark.parametrize(("name", "layer"), [("resnet8", "layer3"), ("wrn-16-4", "relu")])
def test_exact_maps_equal_torchcam(name: str, layer: str, built_model: Callable[[str], ImageClassifier]) -> None:
    model = built_model(name)
    x = images(CLASSES)
    cams = predict(model, x).cams
    assert cams is not None
    with torch.no_grad(), CAM(model, layer, "fc") as extractor:
        model(x)
        expected = extractor(list(range(CLASSES)), normalized=False)[0]
    maps = torch.stack([cams[n, n] for n in range(CLASSES)])
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "layer"), [("resnet8", "layer3"), ("resnet20", "layer3")])
def test_torchcam_gradcam_is_the_positive_part_of_the_exact_maps(
    name: str, layer: str, built_model: Callable[[str], ImageClassifier]
) -> None:
    model = built_model(name)
    x = images(CLASSES)
    cams = predict(model, x).cams
    assert cams is not None
    with GradCAM(model, layer) as extractor:
        gradcam = extractor(list(range(CLASSES)), model(x), normalized=False)[0]
    maps = torch.stack([cams[n, n] for n in range(CLASSES)])
    assert (maps < 0).any()
    torch.testing.assert_close(maps.relu(), gradcam * cams[0, 0].numel(), rtol=1e-4, atol=1e-4)


def test_exact_maps_equal_captum_layer_gradcam_with_sign(built_model: Callable[[str], ImageClassifier]) -> None:
    model = built_model("resnet8")
    x = images()
    cams = predict(model, x).cams
    assert cams is not None
    oracle = LayerGradCam(model, model.layer3)
    for k in range(CLASSES):
        expected = oracle.attribute(x, target=k)[:, 0] * cams[0, 0].numel()
        torch.testing.assert_close(cams[:, k], expected, rtol=1e-4, atol=1e-4)


# --- gradients of the maps


@pytest.mark.parametrize("hidden", [0, 5])
def test_maps_are_differentiable_with_respect_to_the_image(hidden: int) -> None:
    model = tiny(hidden=hidden)
    x = images(1, 4).double().requires_grad_()
    assert form(model, x) == ("gradient" if hidden else "exact")
    assert torch.autograd.gradcheck(lambda x: predict(model, x).cams, x, fast_mode=True)


@pytest.mark.parametrize("hidden", [0, 5])
def test_maps_are_differentiable_with_respect_to_every_parameter(hidden: int) -> None:
    model = tiny(hidden=hidden)
    x = images(2, 4).double()
    step = 1e-6
    weights = torch.rand(2, CLASSES, 2, 2, dtype=torch.float64)

    def loss() -> Tensor:
        cams = predict(model, x).cams
        assert cams is not None
        return (cams.square() * weights).sum()

    loss().backward()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and name in ("fc.bias", "fc.2.bias"):
            assert parameter.grad is None or not parameter.grad.any(), "maps do not contain the bias"
            continue
        assert parameter.grad is not None, name
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                before = parameter.flatten()[0].item()
                parameter.view(-1)[0] = before + sign * step
                values.append(loss().item())
                parameter.view(-1)[0] = before
        gradient = (values[0] - values[1]) / (2 * step)
        assert parameter.grad.flatten()[0].item() == pytest.approx(gradient, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("kind", ["no_grad", "inference"])
def test_predictions_without_gradients_are_equal_and_have_no_graph(hidden: int, kind: str) -> None:
    model = tiny(hidden=hidden)
    x = images(2, 4).double()
    with_gradients = predict(model, x, features=True)
    with gradient_mode(kind):
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        without = predict(model, x.clone(), features=True)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.is_grad_enabled()
    assert without.features is not None
    assert with_gradients.features is not None
    tensors = (*without[:2], *without.features)
    tensors_with_gradients = (*with_gradients[:2], *with_gradients.features)
    for tensor, other in zip(tensors, tensors_with_gradients, strict=True):
        assert tensor is not None
        assert other is not None
        assert not tensor.requires_grad
        assert other.requires_grad
        torch.testing.assert_close(tensor.clone(), other.detach())
    assert all(parameter.grad is None for parameter in model.parameters())
    sum(value.sum() for value in predict(model, x) if value is not None).backward()  # type: ignore[union-attr]
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_maps_of_a_frozen_network() -> None:
    for hidden in (0, 5):
        model = tiny(hidden=hidden).requires_grad_(False)
        x = images(1, 4).double()
        cams = predict(model, x).cams
        assert cams is not None
        with torch.no_grad():
            torch.testing.assert_close(cams.detach(), predict(model, x).cams)


# --- the model is left unchanged


def num_hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def module_modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


class FailingIdentity(nn.Module):
    """Identity that raises for images whose first value is ``value``; for every image if ``value`` is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.value: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.value is not None and (math.isnan(self.value) or float(x.detach().flatten()[0]) == self.value):
            raise ZeroDivisionError("failing call")
        return x


@pytest.mark.parametrize("kind", ["grad", "no_grad", "inference"])
@pytest.mark.parametrize("call", ["none", "detection", "prediction"])
@pytest.mark.parametrize("hidden", [0, 5])
def test_hooks_modes_and_gradient_mode_are_restored(hidden: int, call: str, kind: str) -> None:
    """Also if the network raises during head detection or during the prediction."""
    model = tiny(hidden=hidden)
    failing = FailingIdentity()
    model.body = nn.Sequential(failing, *model.body)
    model.train()
    model.body[2].eval()  # a mixed state, as for frozen normalization
    own_hook = model.body[1].register_forward_hook(lambda module, inputs, output: None)
    before = (num_hooks(model), module_modes(model))
    x = images(2, 4).double()
    with gradient_mode(kind):
        state = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        failing.value = {"none": None, "detection": math.nan, "prediction": float(x[0, 0, 0, 0])}[call]
        if call != "none":
            with pytest.raises(ZeroDivisionError, match="failing call"):
                predict(model, x)
        else:
            predict(model, x)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == state
        assert (num_hooks(model), module_modes(model)) == before
        failing.value = None
        predict(model, x)
    assert (num_hooks(model), module_modes(model)) == before
    own_hook.remove()
    assert num_hooks(model) == 0


@pytest.mark.parametrize("kind", ["no_grad", "inference"])
def test_image_is_unchanged_if_the_maps_are_computed_from_it(kind: str) -> None:
    """The first layer is an identity. Tensors created under ``inference_mode`` cannot be differentiated."""
    head = with_weights(nn.Conv2d(3, 2, 1), tensor([2, 0, -1], [0, 4, 1]), tensor(0.5, -1))
    model = ConvHead(nn.Identity(), head)
    expected = predict(model, IMAGE, method="hirescam").cams
    assert expected is not None
    with gradient_mode(kind):
        x = IMAGE + 0
        cams = predict(model, x, method="hirescam").cams
        assert not x.requires_grad
        assert torch.equal(x, IMAGE)
    torch.testing.assert_close(cams, expected.detach())


def test_head_detection_leaves_running_statistics_and_random_state_unchanged() -> None:
    model = build("resnet8", CLASSES, 16).train()
    x = images()
    twin = copy.deepcopy(model)
    random_state = torch.get_rng_state()
    predict(model, x)
    twin(x)
    assert torch.equal(torch.get_rng_state(), random_state)
    for (name, value), expected in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def test_the_cache_of_heads_does_not_keep_a_network_alive() -> None:
    model = tiny()
    predict(model, images(1, 4).double())
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


# --- batches, precisions and sizes


@pytest.mark.parametrize("name", ["cam-net", "resnet8", "small-mlp"])
def test_maps_do_not_depend_on_the_batch(name: str, built_model: Callable[[str], ImageClassifier]) -> None:
    model = built_model(name)
    x = images(3)
    with torch.no_grad():
        batch = predict(model, x)
        for n in range(3):
            single = predict(model, x[n : n + 1])
            for batch_value, single_value in zip(batch[:2], single[:2], strict=True):
                assert batch_value is not None
                torch.testing.assert_close(batch_value[n : n + 1], single_value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["cam-net", "resnet8", "small-mlp"])
def test_maps_under_autocast_are_close_to_those_in_fp32(
    name: str, grad: bool, built_model: Callable[[str], ImageClassifier]
) -> None:
    model = copy.deepcopy(built_model(name))
    x = images()
    if name == "small-mlp":  # rounding may switch a ReLU unit near zero, whose gradient jumps, and change the map
        model.fc[1] = nn.Tanh()  # type: ignore[index, operator]
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        cams = predict(model, x).cams
        assert form(model, x) == ("gradient" if name.endswith("-mlp") else "exact")
    cams_fp32 = predict(model, x).cams
    assert cams is not None
    assert cams_fp32 is not None
    # the mean, because a hidden unit near zero may switch in bf16 and change the map of one image
    assert (cams.float() - cams_fp32).abs().mean() < 0.1 * cams_fp32.abs().mean()
    if grad:
        cams.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_dtypes_have_exact_maps(dtype: torch.dtype) -> None:
    model = copy.deepcopy(LINEAR_HEADS["linear"][0]()).to(dtype)
    logits, cams, *_ = predict(model, IMAGE.to(dtype))
    assert form(model, IMAGE.to(dtype)) == "exact"
    assert cams is not None
    assert logits.dtype == cams.dtype == dtype
    torch.testing.assert_close(cams, LINEAR_CAMS[None].to(dtype))


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), nn.Sequential(*pooled(), nn.Linear(3, 2))]
)
def test_network_without_a_spatial_layer_raises(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"Sequential must have a layer with a spatial output .* got none at 4 x 4"):
        predict(model, images(1, 4))
    assert num_hooks(model) == 0


INVALID_IMAGES: list[tuple[object, str]] = [
    ((255 * images()).byte(), r"got a uint8 tensor \(2, 3, 16, 16\)"),
    (images()[0], r"got a float32 tensor \(3, 16, 16\)"),
    (images()[:, :1], r"got a float32 tensor \(2, 1, 16, 16\)"),
    (images().numpy(), "got a ndarray"),
]


@pytest.mark.parametrize("function", [predict, form, bias])
@pytest.mark.parametrize(("x", "value"), INVALID_IMAGES)
def test_invalid_images_raise(x: Tensor, value: str, function: Callable[[nn.Module, Tensor], object]) -> None:
    model = build("cam-net", CLASSES, 16)
    with pytest.raises(InputError, match=rf"x must be a floating-point tensor of images \(N, 3, H, W\).* {value}"):
        function(model, x)
    function(model, images())
    with pytest.raises(InputError, match=value):  # also with a cached head
        function(model, x)


def test_other_networks_may_take_any_number_of_channels() -> None:
    model = Functional(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Linear(4, 2))
    logits, cams, *_ = predict(model, images()[:, :1])
    assert cams is not None
    torch.testing.assert_close(logits, cams.mean((2, 3)) + model.fc.bias)


@pytest.mark.parametrize("size", [1, 2])
def test_channels_last_output_of_a_single_cell_is_not_spatial(size: int) -> None:
    """Layer normalization has channels last: its output (N, 1, 1, 64) is one cell of 64 channels, not 1x64 cells."""
    with pytest.raises(InputError, match=f"got none at {size} x {size}"):
        predict(build("cam-net", CLASSES, 16), images(1, size))


# --- changes of the network after head detection


def test_replaced_classifier_is_detected() -> None:
    model = Functional(body(nn.ReLU()), linear())
    predict(model, IMAGE)
    model.fc = with_weights(nn.Linear(2, 2), tensor([0, 1], [1, 0]), tensor(0, 0))
    torch.testing.assert_close(predict(model, IMAGE).cams, A.flip(0)[None])
    model.fc = with_weights(nn.Linear(2, 1), tensor([1, 1]), tensor(5))
    logits, cams, *_ = predict(model, IMAGE)
    torch.testing.assert_close(cams, A.sum(0)[None, None])
    torch.testing.assert_close(logits, tensor([1.25 + 5]))
    model.fc = mlp()
    assert form(model, IMAGE) == "gradient"
    torch.testing.assert_close(predict(model, IMAGE).cams, OTHER_HEADS["mlp"][2])
    model.fc = linear()
    assert form(model, IMAGE) == "exact"
    torch.testing.assert_close(predict(model, IMAGE).cams, LINEAR_CAMS[None])


def test_replaced_body_and_changed_weights_are_detected() -> None:
    model = Functional(body(nn.ReLU()), linear())
    predict(model, IMAGE)
    model.body = nn.Identity()
    model.fc = with_weights(nn.Linear(3, 2, bias=False), tensor([1, 2, 3], [0, 0, 1]))
    torch.testing.assert_close(predict(model, IMAGE).cams, torch.stack([R + 2 * G + 3 * B, B])[None])
    with torch.no_grad():
        model.fc.weight.mul_(2)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(predict(model, IMAGE).cams, 2 * torch.stack([R + 2 * G + 3 * B, B])[None])


def test_another_image_size_has_its_own_head() -> None:
    """At 4 pixels the last layer has a single cell, so the maps come from an earlier layer; at 16 they do not."""
    model = Functional(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1)), nn.Linear(4, 2))
    assert form(model, images(1, 4)) == "gradient"
    logits, cams, *_ = predict(model, images(1, 16))
    assert form(model, images(1, 16)) == "exact"
    assert cams is not None
    assert cams.shape == (1, 2, 4, 4)
    torch.testing.assert_close(logits, cams.mean((2, 3)) + model.fc.bias)
    assert predict(model, images(1, 4)).cams.shape == (1, 2, 2, 2)  # type: ignore[union-attr]


# --- classes


def test_top_selects_the_most_probable_classes_and_classes_selects_by_index(
    built_model: Callable[[str], ImageClassifier],
) -> None:
    for name in ("resnet8", "small-mlp"):
        model = built_model(name)
        x = images()
        with torch.no_grad():
            everything = predict(model, x)
            top = predict(model, x, top=2)
            ones = predict(model, x, classes=torch.ones(2, 1, dtype=torch.long))
        assert everything.cams is not None
        assert top.class_ids is not None
        assert torch.equal(top.class_ids, everything.logits.topk(2).indices)
        expected = torch.stack([everything.cams[n, top.class_ids[n]] for n in range(2)])
        torch.testing.assert_close(top.cams, expected)
        torch.testing.assert_close(ones.cams, everything.cams[:, 1:2])


@pytest.mark.parametrize("name", ["resnet8", "small-mlp"])
@pytest.mark.parametrize("method", ["cam", "hirescam"])
def test_contrast_is_the_difference_of_maps(
    name: str, method: str, built_model: Callable[[str], ImageClassifier]
) -> None:
    model = built_model(name)
    x = images()
    against = torch.tensor([[0, 2], [1, 2]])
    with torch.no_grad():
        everything = predict(model, x, method=method).cams
        assert everything is not None
        reference = torch.stack([everything[n, against[n]].mean(0) for n in range(2)])[:, None]
        for gamma in (1.0, 0.6):
            contrast = predict(model, x, method=method, against=against, gamma=gamma)
            torch.testing.assert_close(contrast.cams, everything - gamma * reference, rtol=1e-4, atol=1e-4)
            top = predict(model, x, method=method, top=1, against=against, gamma=gamma)
            assert top.class_ids is not None
            expected = torch.stack([everything[n, top.class_ids[n]] for n in range(2)]) - gamma * reference
            torch.testing.assert_close(top.cams, expected, rtol=1e-4, atol=1e-4)


def test_mean_of_a_contrast_map_is_the_difference_of_the_logits(
    built_model: Callable[[str], ImageClassifier],
) -> None:
    for model in (built_model("cam-net"), built_model("resnet8"), LINEAR_HEADS["1x1 convolution"][0]().eval()):
        x = images(2) if isinstance(model, ImageClassifier) else IMAGE
        zeros = torch.zeros(len(x), 1, dtype=torch.long)
        with torch.no_grad():
            logits, cams, *_ = predict(model, x, against=zeros)
        offset = bias(model, x)
        assert cams is not None
        assert offset is not None
        evidence = logits - offset
        torch.testing.assert_close(cams.mean((2, 3)), evidence - evidence[:, :1], rtol=1e-4, atol=1e-4)


def test_maps_of_many_classes_from_gradients_warn() -> None:
    model = Functional(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 101)))
    with pytest.warns(UserWarning, match="of all 101 classes take 101 backward passes"):
        predict(model, images())
    predict(model, images(), top=1)
    predict(Functional(nn.Conv2d(3, 4, 3), nn.Linear(4, 101)), images())


# --- one sentence for wrong input


def with_nan(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = math.nan
    return model


def traced(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, images())  # type: ignore[no-any-return, no-untyped-call]


def compiled(model: nn.Module) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(model)


def checkpointed(model: nn.Module) -> nn.Module:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model.body
            self.fc = model.fc

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(checkpoint(self.body, x, use_reentrant=True).mean((2, 3)))

    return Checkpointed()


def inference_weights() -> nn.Module:
    with torch.inference_mode():
        return tiny(hidden=5).float()


INVALID_MODELS: dict[str, tuple[Callable[[], object], str]] = {
    "no module": (lambda: "resnet8", "model must be a torch.nn.Module, got a str"),
    "NaN weights": (
        lambda: with_nan(tiny(hidden=5).float()),
        r"must be finite, got NaN or infinity in body\.0\.weight",
    ),
    "traced": (lambda: traced(tiny(hidden=5).float()), "got the scripted or traced .*Pass the uncompiled module"),
    "compiled": (lambda: compiled(tiny().float()), "got the compiled OptimizedModule.*Pass the uncompiled module"),
    "exported": (
        lambda: torch.export.export(tiny().float(), (images(),)).module(),
        "got the exported GraphModule.*Pass the uncompiled module",
    ),
    "exported program": (lambda: torch.export.export(tiny().float(), (images(),)), "got a ExportedProgram"),
    "weights made under inference mode": (inference_weights, r"outside of torch\.inference_mode\(\)"),
    "gradient checkpointing": (lambda: checkpointed(tiny(hidden=5).float()), "gradient checkpointing must be off"),
    "softmax": (lambda: nn.Sequential(tiny().float(), nn.Softmax(1)), "must return logits, got probabilities"),
    "vector": (lambda: nn.Sequential(tiny().float(), nn.Flatten(0)), r"must return logits \(N, K\)"),
    "tuple": (lambda: TupleInTraining(), r"must return logits \(N, K\) in training mode, got a tuple"),
}


class TupleInTraining(nn.Module):
    """Logits in evaluation mode, logits and auxiliary logits in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny().float()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.net(x)
        return (logits, logits) if self.training else logits


@pytest.mark.parametrize("name", INVALID_MODELS)
def test_invalid_model_raises(name: str) -> None:
    make, message = INVALID_MODELS[name]
    with pytest.raises(InputError, match=message):
        predict(make(), images())  # type: ignore[arg-type]


def test_model_that_returns_a_tuple_in_training_mode_has_maps_in_evaluation_mode() -> None:
    model = TupleInTraining().eval()
    assert predict(model, images()).logits.shape == (2, CLASSES)
    with pytest.raises(InputError, match="in training mode, got a tuple"):
        predict(model.train(), images())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [1, 2]}, r"classes must be a tensor of class indices \(N, k\), got \[1, 2\]"),
        ({"classes": 1}, "classes must be a tensor .*, got 1"),
        ({"against": 1}, "against must be a tensor .*, got 1"),
        ({"against": torch.tensor([[3], [0]])}, "against must be between 0 and 2, got 3"),
        ({"top": 0}, "top must be a positive integer, got 0"),
        ({"top": 4}, "top must be between 1 and the model's 3 classes, got 4"),
        ({"top": 1, "classes": torch.zeros(2, 1, dtype=torch.long)}, "only one of classes and top"),
        ({"classes": torch.zeros(2, 0, dtype=torch.long)}, r"classes must have the shape .* got \(2, 0\)"),
        ({"against": torch.zeros(2, 0, dtype=torch.long)}, r"against must have the shape .* got \(2, 0\)"),
        ({"gamma": math.nan}, "gamma must be a finite number, got nan"),
        ({"gamma": "a"}, "gamma must be a finite number, got 'a'"),
        ({"method": ["cam"]}, r"method must be one of .*, got \['cam'\]"),
        ({"layer": ["a"]}, r"layer must be the dotted name of one layer, got \['a'\]"),
    ],
)
@pytest.mark.parametrize("hidden", [0, 5])
def test_invalid_option_raises(options: dict[str, Any], message: str, hidden: int) -> None:
    with pytest.raises(InputError, match=message):
        predict(tiny(hidden=hidden).float(), images(), **options)


@pytest.mark.parametrize("hidden", [0, 5])
def test_images_of_another_dtype_or_range_raise(hidden: int) -> None:
    model = tiny(hidden=hidden).float()
    predict(model, images())
    with pytest.raises(InputError, match="x must have the dtype float32 of the weights, got float64"):
        predict(model, images().double())
    with pytest.raises(InputError, match=r"x must be RGB in 0\.\.1, got values up to 25\d"):
        predict(model, images() * 255)


# --- threads


def flatten(prediction: Prediction) -> list[Tensor]:
    return [value for value in (*prediction[:2], *(prediction.features or ())) if value is not None]


@pytest.mark.parametrize("kind", ["grad", "no_grad", "inference"])
@pytest.mark.parametrize("name", ["resnet8", "small-mlp"])
def test_threads_get_the_maps_of_their_own_images(
    name: str, kind: str, built_model: Callable[[str], ImageClassifier]
) -> None:
    model = copy.deepcopy(built_model(name))
    batches = [torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(40)]
    expected = [predict(built_model(name), x, features=True) for x in batches]
    before = num_hooks(model)

    def check(n: int) -> None:
        with gradient_mode(kind):
            prediction = predict(model, batches[n], features=True)
        for value, other in zip(flatten(prediction), flatten(expected[n]), strict=True):
            torch.testing.assert_close(value.detach().clone(), other.detach(), rtol=1e-4, atol=1e-4)

    with ThreadPoolExecutor(4) as executor:
        for future in [executor.submit(check, n) for n in (*range(40), *range(40))]:
            future.result()
    assert num_hooks(model) == before


def test_attention_setting_is_restored_after_threads() -> None:
    before = [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()]
    model = tiny(hidden=5).float()
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda n: predict(model, images()), range(40)))
    assert [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()] == before


def test_data_parallel_has_the_maps_of_its_module(built_model: Callable[[str], ImageClassifier]) -> None:
    for name in ("resnet8", "small-mlp"):
        model = built_model(name)
        expected = predict(model, images())
        for value, other in zip(predict(nn.DataParallel(model), images())[:2], expected[:2], strict=True):
            torch.testing.assert_close(value, other)
