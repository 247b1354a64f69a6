"""Class activation maps against maps worked out on paper, torchcam, captum, and a literal HiResCAM."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torchcam.methods import CAM, GradCAM

from camkd.cams import bias, form, predict
from camkd.cli.listing import stored_costs
from camkd.models import MODELS, ImageClassifier, build
from camkd.models.resnet import BasicBlock, ResNet
from camkd.types import InputError

CLASSES = 3


def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def pictures(count: int = 2, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def shaken(model: nn.Module) -> nn.Module:
    """Give normalisation, biases and statistics values that are nobody's default."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.ndim == 1:
                value += 0.2 * torch.rand(value.shape, generator=generator)
            assert name
    return model


def small_mlp() -> ImageClassifier:
    """What resnet50-mlp is, much smaller."""
    torch.manual_seed(3)
    return ResNet(BasicBlock, (8, 16), (1, 1), CLASSES, 16, hidden=32)


@pytest.fixture(scope="module")
def built() -> Callable[[str], ImageClassifier]:
    """Each built-in network once, in evaluation mode; leave it as it is."""
    made: dict[str, ImageClassifier] = {}

    def get(name: str) -> ImageClassifier:
        if name not in made:
            model = small_mlp() if name == "small-mlp" else build(name, CLASSES, 16, seed=3)
            made[name] = shaken(model).eval()  # type: ignore[assignment]
        return made[name]

    return get


# --- networks small enough for paper

R, G, B = tensor([1, 0], [0, 0]), tensor([0, 1], [0, 0]), tensor([0, 0], [1, 1])
PICTURE = torch.stack([R, G, B])[None]
#: body(PICTURE): relu(R - B) and relu(2 G + B)
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
    """Body, mean over the picture without a layer of its own, head."""

    def __init__(self, body: nn.Module, fc: nn.Module, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.body, self.fc, self.between = body, fc, between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.between(self.body(x)).mean((2, 3)))


class ConvHead(nn.Module):
    """Body, 1x1 convolution, mean over the picture."""

    def __init__(self, body: nn.Module, head: nn.Module, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.body, self.head, self.between = body, head, between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x))).mean((2, 3))


class OneRectifier(nn.Module):
    """The same ReLU after the convolution and inside the head."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.body, self.relu, head = body(), nn.ReLU(inplace=inplace), mlp()
        self.first, self.second = head[0], head[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.relu(self.first(self.relu(self.body(x)).mean((2, 3)))))


def pooled(*head: nn.Module) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head]


LINEAR_HEADS: dict[str, tuple[Callable[[], nn.Module], str, Tensor]] = {
    "linear": (lambda: Functional(body(nn.ReLU()), linear()), "exact", tensor(1, -2)),
    "linear without bias": (lambda: Functional(body(nn.ReLU()), linear(bias=False)), "exact", tensor(0, 0)),
    "linear after relu in place": (lambda: Functional(body(nn.ReLU(True)), linear()), "exact", tensor(1, -2)),
    "sequential": (lambda: nn.Sequential(*body(nn.ReLU()), *pooled(linear())), "exact", tensor(1, -2)),
    "average of the map's size": (
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
    # the rectifier is no layer, so the features are not seen; the map is the same all the same
    "linear, functional relu": (lambda: Functional(body(), linear(), torch.relu), "gradient", tensor(1, -2)),
    "linear, functional relu in place": (
        lambda: Functional(body(), linear(), nn.functional.relu_),
        "exact",
        tensor(1, -2),
    ),
    "linear, linear": (
        lambda: Functional(
            body(nn.ReLU()),
            nn.Sequential(with_weights(nn.Linear(2, 2), tensor([1, 1], [0, 1]), tensor(1, 0)), two_steps()),
        ),
        "gradient",
        tensor(4, -3),
    ),
}


def two_steps() -> nn.Module:
    """``W [[1, 1], [0, 1]]^-1``, so that both layers together are W; with bias W (1, 0) + (1, -2)."""
    return with_weights(nn.Linear(2, 2), tensor([3, -2], [-1, 3]), tensor(1, -2))


@contextmanager
def gradients(kind: str) -> Iterator[None]:
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[kind]
    with context():
        yield


@pytest.mark.parametrize("kind", ["grad", "no_grad", "inference"])
@pytest.mark.parametrize("head", LINEAR_HEADS)
def test_a_linear_head_gives_the_map_worked_out_on_paper(head: str, kind: str) -> None:
    make, expected_form, bias = LINEAR_HEADS[head]
    model = make().eval()
    with gradients(kind):
        logits, cams, *_ = predict(model, PICTURE)
    assert form(model, PICTURE) == expected_form
    assert cams is not None
    torch.testing.assert_close(cams.detach().clone(), LINEAR_CAMS[None])
    torch.testing.assert_close(logits.detach().clone(), (LINEAR_CAMS.mean((1, 2)) + bias)[None])


def test_the_maps_of_a_1x1_convolution_on_the_picture_itself() -> None:
    head = with_weights(nn.Conv2d(3, 2, 1), tensor([2, 0, -1], [0, 4, 1]), tensor(0.5, -1))
    logits, cams, *_ = predict(ConvHead(nn.Identity(), head), PICTURE)
    torch.testing.assert_close(cams, tensor([[[2, 0], [-1, -1]], [[0, 4], [1, 1]]]))
    torch.testing.assert_close(logits, tensor([0.5, 0.5]))


def test_dropout_in_training_changes_the_logits_and_not_the_map() -> None:
    model = LINEAR_HEADS["dropout"][0]().train()
    drawn = [predict(model, PICTURE) for _ in range(20)]
    assert len({tuple(logits[0].tolist()) for logits, *_ in drawn}) > 1
    for _, cams, *_ in drawn:
        torch.testing.assert_close(cams, LINEAR_CAMS[None])


#: (make, logits, maps): d logit / d pooled is (-4, 5) and (-6, 0) for the MLP, whose second unit is off
OTHER_HEADS: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor]] = {
    "mlp": (
        lambda: Functional(body(nn.ReLU()), mlp()),
        tensor([4, -1.5]),
        tensor([[[-4, 10], [5, 5]], [[-6, 0], [0, 0]]]),
    ),
    "mlp, one rectifier for all": (
        lambda: OneRectifier(inplace=False),
        tensor([4, -1.5]),
        tensor([[[-4, 10], [5, 5]], [[-6, 0], [0, 0]]]),
    ),
    "mlp, one rectifier for all, in place": (
        lambda: OneRectifier(inplace=True),
        tensor([4, -1.5]),
        tensor([[[-4, 10], [5, 5]], [[-6, 0], [0, 0]]]),
    ),
    "mlp, functional relu in place": (
        lambda: Functional(body(), mlp(), nn.functional.relu_),
        tensor([4, -1.5]),
        tensor([[[-4, 10], [5, 5]], [[-6, 0], [0, 0]]]),
    ),
    "largest instead of average": (
        lambda: nn.Sequential(*body(nn.ReLU()), nn.AdaptiveMaxPool2d(1), nn.Flatten(), linear()),
        tensor([6, 1]),
        tensor([[[12, 8], [0, 0]], [[-4, 16], [0, 0]]]),
    ),
}


@pytest.mark.parametrize("kind", ["grad", "no_grad", "inference"])
@pytest.mark.parametrize("head", OTHER_HEADS)
def test_another_head_gives_the_gradient_map_worked_out_on_paper(head: str, kind: str) -> None:
    make, expected_logits, expected_cams = OTHER_HEADS[head]
    model = make().eval()
    with gradients(kind):
        logits, cams, *_ = predict(model, PICTURE)
    assert form(model, PICTURE) == "gradient"
    assert cams is not None
    torch.testing.assert_close(logits.detach().clone(), expected_logits)
    torch.testing.assert_close(cams.detach().clone(), expected_cams)


def test_features_are_the_averaged_layer_and_only_where_asked_for() -> None:
    for head in ("linear", "1x1 convolution", "1x1 convolution after the average"):
        model = LINEAR_HEADS[head][0]()
        assert predict(model, PICTURE).features is None
        features = predict(model, PICTURE, features=True).features
        torch.testing.assert_close(features, (A[None],), msg=head)
    torch.testing.assert_close(predict(OneRectifier(True), PICTURE, features=True).features, (A[None],))


class Block(nn.Module):
    """Halves the resolution between two convolutions; not an ``nn.Sequential``, so one layer to the outside."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, inputs, 3, 1, 1), nn.Conv2d(inputs, outputs, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Staged(nn.Module):
    """Resolutions 16, 8 and 4, a rectifier for two of them, and what is not a stage before, within and after."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.fc, self.pool = head, nn.AdaptiveAvgPool2d(1)  # not in the order in which they run
        self.last = Block(6, 5)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
        self.block = nn.Sequential(Block(4, 6), nn.Conv2d(6, 6, 1))
        self.unused = nn.Conv2d(3, 3, 1)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = self.relu(self.stem(x))
        two = self.relu(self.block(one))
        return one, two, self.last(two)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.stages(x)[-1]).flatten(1))


@pytest.mark.parametrize("kind", ["grad", "no_grad", "inference"])
@pytest.mark.parametrize("hidden", [0, 7])
def test_a_stage_is_the_last_output_at_its_resolution(hidden: int, kind: str) -> None:
    head = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 2)) if hidden else nn.Linear(5, 2)
    model, x = Staged(head).eval(), pictures()
    with gradients(kind):
        expected = model.stages(x)
        answer = predict(model, x, features=True)
    assert form(model, x) == ("gradient" if hidden else "exact")
    assert [stage.shape[1:] for stage in expected] == [(4, 16, 16), (6, 8, 8), (5, 4, 4)]
    assert answer.features is not None
    for found, stage in zip(answer.features, expected, strict=True):
        assert found.requires_grad == (kind == "grad")
        torch.testing.assert_close(found.detach().clone(), stage.detach().clone())
    if kind == "grad":
        answer.features[0].sum().backward()
        assert all(p.grad is not None for p in model.stem.parameters())
        assert all(p.grad is None for p in model.block.parameters())
    assert hooks(model) == 0
    torch.testing.assert_close(
        predict(nn.Sequential(model, nn.Identity()), x, features=True).features, answer.features[-1:]
    )


def test_nobody_looks_at_the_stages_that_nobody_asked_for() -> None:
    counts = []

    class Counting(Staged):
        def forward(self, x: Tensor) -> Tensor:
            counts.append(hooks(self))
            return super().forward(x)

    model, x = Counting(nn.Linear(5, 2)), pictures()
    predict(model, x)
    counts.clear()
    predict(model, x)
    predict(model, x, features=True)
    assert counts == [1, 2]  # the averaged layer; the rectifier of both other stages beside it


STAGES = {
    "cam-net": ["body.7"],
    "cam-net-lite": ["body.5", "body.9"],
    "resnet8": ["layer1", "layer2", "layer3"],
    "resnet20": ["layer1", "layer2", "layer3"],
    "resnet56": ["layer1", "layer2", "layer3"],
    "resnet11": ["body.1", "body.4", "body.9"],
    "wrn-16-4": ["layers.0", "layers.1", "relu"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "resnet50-mlp": ["layer1", "layer2", "layer3", "layer4"],
}


@pytest.mark.parametrize("name", MODELS)
def test_the_stages_of_a_built_in_network(name: str, built: Callable[[str], ImageClassifier]) -> None:
    model, x, seen = built(name), pictures(1), {}
    for layer in STAGES[name]:
        module = model.get_submodule(layer)
        module.register_forward_hook(lambda module, inputs, output, layer=layer: seen.update({layer: output.clone()}))
    with torch.no_grad():
        found = predict(model, x, features=True).features
    for module in model.modules():
        module._forward_hooks.clear()
    assert found is not None
    torch.testing.assert_close(found, tuple(seen[layer] for layer in STAGES[name]))


def test_a_linear_layer_that_computes_something_else_is_not_taken_for_linear() -> None:
    class Cosine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, nn.functional.normalize(self.weight, dim=1))

    model = Functional(body(nn.ReLU()), Cosine(2, 2))
    logits, cams, *_ = predict(model, PICTURE)
    assert form(model, PICTURE) == "gradient"
    assert cams is not None
    torch.testing.assert_close(cams.mean((2, 3)), logits)


# --- the built-in networks


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_built_in_network_are_its_maps_average_and_the_bias(
    name: str, built: Callable[[str], ImageClassifier]
) -> None:
    model, x = built(name), pictures(1)
    with torch.no_grad():
        logits, cams, features, _ = predict(model, x, features=True)
        torch.testing.assert_close(logits, model(x))
    assert cams is not None
    assert features is not None
    assert cams.shape[:2] == (1, CLASSES)
    assert cams.shape[2:] == features[-1].shape[2:]
    assert cams[0, 0].numel() > 1
    assert form(model, x) == stored_costs()[name]["form"]
    if form(model, x) == "gradient":
        return
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    bias = torch.zeros(CLASSES) if last.bias is None else last.bias
    torch.testing.assert_close(logits, cams.mean((2, 3)) + bias, rtol=1e-4, atol=1e-4)
    weighted = torch.einsum("nchw,kc->nkhw", features[-1], last.weight.flatten(1))
    torch.testing.assert_close(cams, weighted, rtol=1e-4, atol=1e-4)


def hirescam(layer: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Draelos and Carin 2020, equation 4, picture by picture and class by class, times h w."""
    pictures = []
    for features in layer.detach():
        leaf = features.clone().requires_grad_()
        logits = head(leaf[None])[0]
        maps = []
        for logit in logits:
            (slope,) = torch.autograd.grad(logit, leaf, retain_graph=True)
            maps.append(sum(leaf[c] * slope[c] for c in range(len(leaf))))
        pictures.append(torch.stack(maps))  # type: ignore[arg-type]
    return (torch.stack(pictures) * layer.shape[2] * layer.shape[3]).detach()


@pytest.mark.parametrize("grad", [True, False])
def test_an_mlp_teachers_map_is_hirescam(grad: bool, built: Callable[[str], ImageClassifier]) -> None:
    model, x = built("small-mlp"), pictures(2)
    with torch.set_grad_enabled(grad):
        _, cams, features, _ = predict(model, x, features=True)
    assert cams is not None
    assert features is not None
    expected = hirescam(features[-1], lambda a: model.fc(a.mean((2, 3))))  # type: ignore[operator]
    torch.testing.assert_close(cams.detach(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def tiny(smooth: bool = True, hidden: int = 0) -> Functional:
    """A network of doubles with smooth rectifiers, for finite differences."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh() if smooth else nn.ReLU(), nn.AvgPool2d(2))
    head: nn.Module = nn.Linear(4, CLASSES)
    if hidden:
        head = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES))
    return Functional(layers, head).double()


def test_the_gradient_map_agrees_with_finite_differences() -> None:
    model, x, step = tiny(hidden=5), pictures(1, 8).double(), 1e-5
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
                        moved = features.clone()
                        moved[0, c, row, column] += sign * step
                        logits.append(model.fc(moved.mean((2, 3))))
                    slope = (logits[0] - logits[1])[0] / (2 * step)
                    expected[0, :, row, column] += features[0, c, row, column] * slope * height * width
    torch.testing.assert_close(cams, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["resnet8", "wrn-16-4"])
def test_hidden_linearity_gives_the_exact_map_by_gradients(name: str, built: Callable[[str], ImageClassifier]) -> None:
    model, x = built(name), pictures()
    hidden = copy.deepcopy(model)
    assert isinstance(hidden.fc, nn.Linear)
    inputs = hidden.fc.in_features
    turn = torch.linalg.qr(torch.rand(inputs, inputs, generator=torch.Generator().manual_seed(2)))[0]
    hidden.fc = nn.Sequential(
        with_weights(nn.Linear(inputs, inputs, bias=False), turn),
        with_weights(nn.Linear(inputs, CLASSES), hidden.fc.weight @ turn.T, hidden.fc.bias),
    )
    with torch.no_grad():
        assert (form(model, x), form(hidden, x)) == ("exact", "gradient")
        torch.testing.assert_close(predict(hidden, x).cams, predict(model, x).cams, rtol=1e-4, atol=1e-4)


# --- other people's programs


@pytest.mark.parametrize(("name", "layer"), [("resnet8", "layer3"), ("wrn-16-4", "relu")])
def test_torchcam_draws_the_same_exact_map(name: str, layer: str, built: Callable[[str], ImageClassifier]) -> None:
    model, x = built(name), pictures(CLASSES)
    cams = predict(model, x).cams
    assert cams is not None
    with torch.no_grad(), CAM(model, layer, "fc") as extractor:
        model(x)
        theirs = extractor(list(range(CLASSES)), normalized=False)[0]
    ours = torch.stack([cams[n, n] for n in range(CLASSES)])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "layer"), [("resnet8", "layer3"), ("resnet20", "layer3")])
def test_gradcam_is_the_exact_maps_positive_part(
    name: str, layer: str, built: Callable[[str], ImageClassifier]
) -> None:
    model, x = built(name), pictures(CLASSES)
    cams = predict(model, x).cams
    assert cams is not None
    with GradCAM(model, layer) as extractor:
        theirs = extractor(list(range(CLASSES)), model(x), normalized=False)[0]
    ours = torch.stack([cams[n, n] for n in range(CLASSES)])
    assert (ours < 0).any()
    torch.testing.assert_close(ours.relu(), theirs * cams[0, 0].numel(), rtol=1e-4, atol=1e-4)


def test_captums_layer_gradcam_is_the_exact_map_with_its_sign(built: Callable[[str], ImageClassifier]) -> None:
    model, x = built("resnet8"), pictures()
    cams = predict(model, x).cams
    assert cams is not None
    oracle = LayerGradCam(model, model.layer3)
    for k in range(CLASSES):
        theirs = oracle.attribute(x, target=k)[:, 0] * cams[0, 0].numel()
        torch.testing.assert_close(cams[:, k], theirs, rtol=1e-4, atol=1e-4)


# --- gradients through the maps


@pytest.mark.parametrize("hidden", [0, 5])
def test_maps_can_be_differentiated_by_the_picture(hidden: int) -> None:
    model, x = tiny(hidden=hidden), pictures(1, 4).double().requires_grad_()
    assert form(model, x) == ("gradient" if hidden else "exact")
    assert torch.autograd.gradcheck(lambda x: predict(model, x).cams, x, fast_mode=True)


@pytest.mark.parametrize("hidden", [0, 5])
def test_maps_can_be_differentiated_by_every_parameter(hidden: int) -> None:
    model, x, step = tiny(hidden=hidden), pictures(2, 4).double(), 1e-6
    weights = torch.rand(2, CLASSES, 2, 2, dtype=torch.float64)

    def loss() -> Tensor:
        cams = predict(model, x).cams
        assert cams is not None
        return (cams.square() * weights).sum()

    loss().backward()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and name in ("fc.bias", "fc.2.bias"):
            assert parameter.grad is None or not parameter.grad.any(), "the map does not hold the bias"
            continue
        assert parameter.grad is not None, name
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                before = parameter.flatten()[0].item()
                parameter.view(-1)[0] = before + sign * step
                values.append(loss().item())
                parameter.view(-1)[0] = before
        slope = (values[0] - values[1]) / (2 * step)
        assert parameter.grad.flatten()[0].item() == pytest.approx(slope, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("kind", ["no_grad", "inference"])
def test_without_gradients_the_numbers_are_the_same_and_nothing_is_recorded(hidden: int, kind: str) -> None:
    model, x = tiny(hidden=hidden), pictures(2, 4).double()
    with_gradients = predict(model, x, features=True)
    with gradients(kind):
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        without = predict(model, x.clone(), features=True)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.is_grad_enabled()
    assert without.features is not None
    assert with_gradients.features is not None
    parts, others = (*without[:2], *without.features), (*with_gradients[:2], *with_gradients.features)
    for part, other in zip(parts, others, strict=True):
        assert part is not None
        assert other is not None
        assert not part.requires_grad
        assert other.requires_grad
        torch.testing.assert_close(part.clone(), other.detach())
    assert all(parameter.grad is None for parameter in model.parameters())
    sum(part.sum() for part in predict(model, x) if part is not None).backward()  # type: ignore[union-attr]
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_a_frozen_networks_maps_need_no_gradient_of_it() -> None:
    for hidden in (0, 5):
        model, x = tiny(hidden=hidden).requires_grad_(False), pictures(1, 4).double()
        cams = predict(model, x).cams
        assert cams is not None
        with torch.no_grad():
            torch.testing.assert_close(cams.detach(), predict(model, x).cams)


# --- nothing left behind


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


class Fuse(nn.Module):
    """Passes its input on, and fails from the call on that it was set to."""

    def __init__(self) -> None:
        super().__init__()
        self.left = -1

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise ZeroDivisionError("blown")
        return x


@pytest.mark.parametrize("kind", ["grad", "no_grad", "inference"])
@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("hidden", [0, 5])
def test_hooks_modes_and_gradients_are_as_before(hidden: int, call: int, kind: str) -> None:
    """Also where the network fails, in the dry run (1) or after it (2); 0 is without failure."""
    model, fuse = tiny(hidden=hidden), Fuse()
    model.fc = nn.Sequential(fuse, model.fc)
    model.train()
    model.body[1].eval()  # a mixed state, as for frozen normalisation
    mine = model.body[0].register_forward_hook(lambda module, inputs, output: None)
    before = (hooks(model), modes(model))
    x = pictures(2, 4).double()
    with gradients(kind):
        state = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        fuse.left = call or -1
        if call:
            with pytest.raises(ZeroDivisionError, match="blown"):
                predict(model, x)
        else:
            predict(model, x)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == state
        assert (hooks(model), modes(model)) == before
        fuse.left = -1
        predict(model, x)  # and it still works
    assert (hooks(model), modes(model)) == before
    mine.remove()
    assert hooks(model) == 0


@pytest.mark.parametrize("kind", ["no_grad", "inference"])
def test_the_picture_is_left_as_it_was_where_it_is_what_the_map_is_made_of(kind: str) -> None:
    """The network's first layer hands it on; what is made under ``inference_mode`` cannot be differentiated."""
    head = with_weights(nn.Conv2d(3, 2, 1), tensor([2, 0, -1], [0, 4, 1]), tensor(0.5, -1))
    model = ConvHead(nn.Identity(), head)
    expected = predict(model, PICTURE, method="hirescam").cams
    assert expected is not None
    with gradients(kind):
        x = PICTURE + 0
        cams = predict(model, x, method="hirescam").cams
        assert not x.requires_grad
        assert torch.equal(x, PICTURE)
    torch.testing.assert_close(cams, expected.detach())


def test_finding_the_head_touches_neither_statistics_nor_random_numbers() -> None:
    model, x = build("resnet8", CLASSES, 16).train(), pictures()
    twin = copy.deepcopy(model)
    random = torch.get_rng_state()
    predict(model, x)
    twin(x)
    assert torch.equal(torch.get_rng_state(), random)
    for (name, ours), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_network_is_not_kept_alive() -> None:
    model = tiny()
    predict(model, pictures(1, 4).double())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# --- each picture for itself, any precision, any size


@pytest.mark.parametrize("name", ["cam-net", "resnet8", "small-mlp"])
def test_a_pictures_map_does_not_depend_on_its_batch(name: str, built: Callable[[str], ImageClassifier]) -> None:
    model, x = built(name), pictures(3)
    with torch.no_grad():
        together = predict(model, x)
        for n in range(3):
            alone = predict(model, x[n : n + 1])
            for whole, part in zip(together[:2], alone[:2], strict=True):
                assert whole is not None
                torch.testing.assert_close(whole[n : n + 1], part, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["cam-net", "resnet8", "small-mlp"])
def test_autocast_gives_the_same_map_coarsely(name: str, grad: bool, built: Callable[[str], ImageClassifier]) -> None:
    model, x = copy.deepcopy(built(name)), pictures()
    if name == "small-mlp":  # a rectifier's slope jumps: a rounded unit near nought changes the map by far more
        model.fc[1] = nn.Tanh()  # type: ignore[index, operator]
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        cams = predict(model, x).cams
        assert form(model, x) == ("gradient" if name.endswith("-mlp") else "exact")
    fine = predict(model, x).cams
    assert cams is not None
    assert fine is not None
    # the mean: a hidden unit of the MLP head near zero may switch in bf16 and move one picture's map
    assert (cams.float() - fine).abs().mean() < 0.1 * fine.abs().mean()
    if grad:
        cams.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_number_format_keeps_its_exact_form(dtype: torch.dtype) -> None:
    model = copy.deepcopy(LINEAR_HEADS["linear"][0]()).to(dtype)
    logits, cams, *_ = predict(model, PICTURE.to(dtype))
    assert form(model, PICTURE.to(dtype)) == "exact"
    assert cams is not None
    assert logits.dtype == cams.dtype == dtype
    torch.testing.assert_close(cams, LINEAR_CAMS[None].to(dtype))


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), nn.Sequential(*pooled(), nn.Linear(3, 2))]
)
def test_a_network_without_a_spatial_layer_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match="Sequential has no layer with a spatial"):
        predict(model, pictures(1, 4))
    assert hooks(model) == 0


NO_PICTURES: list[tuple[object, str]] = [
    ((255 * pictures()).byte(), r"x is a uint8 tensor \(2, 3, 16, 16\)"),
    (pictures()[0], r"x is a float32 tensor \(3, 16, 16\)"),
    (pictures()[:, :1], r"x is a float32 tensor \(2, 1, 16, 16\)"),
    (pictures().numpy(), "x is a ndarray"),
]


@pytest.mark.parametrize("ask", [predict, form, bias])
@pytest.mark.parametrize(("x", "said"), NO_PICTURES)
def test_what_are_no_pictures_is_refused(x: Tensor, said: str, ask: Callable[[nn.Module, Tensor], object]) -> None:
    model = build("cam-net", CLASSES, 16)
    with pytest.raises(InputError, match=f"{said}, but pictures are a floating tensor"):
        ask(model, x)
    ask(model, pictures())
    with pytest.raises(InputError, match=said):  # whatever is known by now
        ask(model, x)


def test_a_network_of_ones_own_takes_as_many_channels_as_it_likes() -> None:
    model = Functional(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Linear(4, 2))
    logits, cams, *_ = predict(model, pictures()[:, :1])
    assert cams is not None
    torch.testing.assert_close(logits, cams.mean((2, 3)) + model.fc.bias)


@pytest.mark.parametrize("size", [1, 2])
def test_channels_of_a_single_cell_are_not_cells(size: int) -> None:
    """A layer normalisation puts channels last: one cell of 64 channels, no 1x64 cells."""
    with pytest.raises(InputError, match="no layer with a spatial"):
        predict(build("cam-net", CLASSES, 16), pictures(1, size))


# --- a network that changes


def test_a_replaced_classifier_is_seen() -> None:
    model = Functional(body(nn.ReLU()), linear())
    predict(model, PICTURE)
    model.fc = with_weights(nn.Linear(2, 2), tensor([0, 1], [1, 0]), tensor(0, 0))
    torch.testing.assert_close(predict(model, PICTURE).cams, A.flip(0)[None])
    model.fc = with_weights(nn.Linear(2, 1), tensor([1, 1]), tensor(5))
    logits, cams, *_ = predict(model, PICTURE)
    torch.testing.assert_close(cams, A.sum(0)[None, None])
    torch.testing.assert_close(logits, tensor([1.25 + 5]))
    model.fc = mlp()
    assert form(model, PICTURE) == "gradient"
    torch.testing.assert_close(predict(model, PICTURE).cams, OTHER_HEADS["mlp"][2])
    model.fc = linear()
    assert form(model, PICTURE) == "exact"
    torch.testing.assert_close(predict(model, PICTURE).cams, LINEAR_CAMS[None])


def test_a_replaced_body_and_changed_weights_are_seen() -> None:
    model = Functional(body(nn.ReLU()), linear())
    predict(model, PICTURE)
    model.body = nn.Identity()
    model.fc = with_weights(nn.Linear(3, 2, bias=False), tensor([1, 2, 3], [0, 0, 1]))
    torch.testing.assert_close(predict(model, PICTURE).cams, torch.stack([R + 2 * G + 3 * B, B])[None])
    with torch.no_grad():
        model.fc.weight.mul_(2)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(predict(model, PICTURE).cams, 2 * torch.stack([R + 2 * G + 3 * B, B])[None])


def test_another_picture_size_is_looked_at_anew() -> None:
    """At 4 pixels the last layer has one cell, so the map comes from an earlier one; larger pictures shall not."""
    model = Functional(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1)), nn.Linear(4, 2))
    assert form(model, pictures(1, 4)) == "gradient"
    logits, cams, *_ = predict(model, pictures(1, 16))
    assert form(model, pictures(1, 16)) == "exact"
    assert cams is not None
    assert cams.shape == (1, 2, 4, 4)
    torch.testing.assert_close(logits, cams.mean((2, 3)) + model.fc.bias)
    assert predict(model, pictures(1, 4)).cams.shape == (1, 2, 2, 2)  # type: ignore[union-attr]
