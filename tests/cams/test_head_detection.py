"""Head detection: tokens and channels-last outputs against equal networks with channels first."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams import MAP_METHODS, bias, form, predict
from camkd.cams.head_detection import detect_head
from camkd.cams.layouts import FeatureLayout, candidate_layouts
from camkd.types import InputError

WIDTH, CLASSES = 6, 3


def images(height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 9), nn.GELU(), nn.Linear(9, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x))[:, None].chunk(3, -1)  # a single head, for which a fused kernel exists
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Vision transformer.

    Args:
        pool: input of the head: a class token (``token``), or the mean of the patches with the last norm before it
            (``norm before``) or after it (``norm after``).
        prefix: number of tokens before the patches.
    """

    def __init__(self, pool: str, prefix: int) -> None:
        super().__init__()
        self.pool = pool
        self.prefix = prefix
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.tokens = nn.Parameter(torch.randn(1, prefix, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.blocks(torch.cat([self.tokens.expand(len(x), -1, -1), x], 1))
        if self.pool == "token":
            return self.head(self.norm(x)[:, 0])
        if self.pool == "norm before":
            return self.head(self.norm(x)[:, self.prefix :].mean(1))
        return self.head(self.norm(x[:, self.prefix :].mean(1)))


def transformer(pool: str, prefix: int) -> Transformer:
    torch.manual_seed(1)
    return Transformer(pool, prefix).double().eval()


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_norm_before_the_mean_of_tokens_is_exact(prefix: int, size: tuple[int, int]) -> None:
    model = transformer("norm before", prefix)
    x = images(*size)
    with torch.no_grad():
        logits, cams, features, _ = predict(model, x, features=True)
        tokens = model.patches(x).flatten(2).transpose(1, 2)
        tokens = model.norm(model.blocks(torch.cat([model.tokens.expand(2, -1, -1), tokens], 1)))[:, prefix:]
    assert form(model, x) == "exact"
    assert cams is not None
    assert features is not None
    assert cams.shape == (2, CLASSES, size[0] // 4, size[1] // 4)
    for row in range(cams.shape[2]):
        for column in range(cams.shape[3]):
            token = tokens[:, row * cams.shape[3] + column]
            torch.testing.assert_close(cams[:, :, row, column], token @ model.head.weight.T)
            torch.testing.assert_close(features[-1][:, :, row, column], token)
    torch.testing.assert_close(logits, cams.mean((2, 3)) + bias(model, x))


@pytest.mark.parametrize("prefix", [0, 1])
def test_norm_after_the_mean_of_tokens_is_gradient_based(prefix: int) -> None:
    model = transformer("norm after", prefix)
    x = images()
    feature_call = detect_head(model, x).feature_call
    assert form(model, x) == "gradient"
    assert feature_call.layer is model.blocks or feature_call.layer is model.blocks[-1]
    assert feature_call.layout == FeatureLayout("tokens", (4, 4), prefix)


@pytest.mark.parametrize("prefix", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_features_of_a_class_token_head_are_the_first_norm_of_the_last_block(
    prefix: int, size: tuple[int, int]
) -> None:
    model = transformer("token", prefix)
    x = images(*size)
    feature_call = detect_head(model, x).feature_call
    assert feature_call.layer is model.blocks[1].norm1
    assert feature_call.layout == FeatureLayout("tokens", (size[0] // 4, size[1] // 4), prefix)
    outputs: list[Tensor] = []
    hook = feature_call.layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    logits = model(x)
    hook.remove()
    for k in range(CLASSES):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), outputs[0], retain_graph=True)
        expected = (outputs[0] * gradient).sum(2)[:, prefix:].view(2, *feature_call.layout.grid)
        cams = predict(model, x, method="hirescam", classes=torch.full((2, 1), k)).cams
        assert cams is not None
        torch.testing.assert_close(cams[:, 0], expected)


@pytest.mark.parametrize("method", MAP_METHODS)
def test_loss_of_transformer_maps_has_gradients(method: str) -> None:
    model = transformer("token", 1).float()
    x = images().float()
    cams = predict(model, x, method=method).cams
    assert cams is not None
    cams.square().sum().backward()
    assert model.patches.weight.grad is not None
    assert model.patches.weight.grad.any()


def test_head_with_zero_weights_is_detected() -> None:
    model = transformer("token", 1)
    nn.init.zeros_(model.head.weight)
    assert detect_head(model, images()).feature_call.layer is model.blocks[1].norm1


@pytest.mark.parametrize(
    ("grid", "image_size", "factor"),
    [
        ((3, 5), (12, 20), 1),
        ((55, 50), (100, 100), 1.1),
        ((50, 55), (100, 100), 1 / 1.1),
        ((50, 40), (100, 100), None),
        ((40, 50), (100, 100), None),
        ((2, 1), (32, 20), 1.25),  # 32 by 20 pixels are 1.6 by 1 cells; rounding is coarse for few cells
        ((3, 1), (32, 16), 1.5),
        ((1, 3), (16, 32), 1 / 1.5),
        ((4, 1), (32, 16), None),
    ],
)
def test_layout_matches_the_aspect_ratio_of_the_image_up_to_rounding(
    grid: tuple[int, int], image_size: tuple[int, int], factor: float | None
) -> None:
    layout = FeatureLayout("channels_first", grid)
    assert layout.matches(image_size) == (factor is not None)
    assert layout.aspect_error(image_size) == (math.inf if factor is None else pytest.approx(abs(math.log(factor))))


def test_layout_of_tokens_without_an_earlier_grid_follows_the_aspect_ratio_of_the_image() -> None:
    """Cases: a class token and 3 x 4 patches; fewer tokens than the largest prefix; two cells; a single cell."""
    assert next(candidate_layouts(torch.zeros(2, 13, 6), (12, 16))) == FeatureLayout("tokens", (3, 4), 1)
    assert next(candidate_layouts(torch.zeros(2, 4, 6), (8, 8))) == FeatureLayout("tokens", (2, 2))
    assert FeatureLayout("channels_first", (1, 2)) in candidate_layouts(torch.zeros(2, 5, 1, 2), (8, 16))
    assert not list(candidate_layouts(torch.zeros(2, 1, 1, 1), (8, 8)))


class LayoutNet(nn.Module):
    """Network with channels last after its first layer, or an equal network with channels first."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.stem = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.cells = nn.Linear(WIDTH, 7)
        self.act = nn.Tanh()
        self.head = nn.Sequential(nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.cells(self.stem(x).permute(0, 2, 3, 1))
        x = self.act(x) if self.channels_last else self.act(x.permute(0, 3, 1, 2))
        return self.head(x.mean((1, 2) if self.channels_last else (2, 3)))


@pytest.mark.parametrize("method", MAP_METHODS)
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_maps_with_channels_last_equal_those_with_channels_first(method: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    channels_last = LayoutNet(channels_last=True).double()
    channels_first = LayoutNet(channels_last=False).double()
    channels_first.load_state_dict(channels_last.state_dict())
    x = images(*size)
    assert detect_head(channels_last, x).feature_call.layout.kind == "channels_last"
    assert detect_head(channels_first, x).feature_call.layout.kind == "channels_first"
    prediction = predict(channels_last, x, method=method, features=True)
    expected = predict(channels_first, x, method=method, features=True)
    torch.testing.assert_close(prediction.cams, expected.cams)
    torch.testing.assert_close(prediction.features, expected.features)


class ReLUHeadNet(nn.Module):
    """1x1 convolution, ReLU, global average pooling, as in SqueezeNet."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.conv = nn.Conv2d(4, CLASSES, 1)
        self.act = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(self.body(x))).mean((2, 3))


@pytest.mark.parametrize("inplace", [True, False])
def test_relu_after_the_last_convolution_is_gradient_based(inplace: bool) -> None:
    torch.manual_seed(0)
    model = ReLUHeadNet(inplace).double()
    x = images()
    assert form(model, x) == "gradient"
    prediction = predict(model, x)
    assert prediction.cams is not None
    torch.testing.assert_close(prediction.logits, prediction.cams.mean((2, 3)))


# --- layouts are confirmed by a probe


def conv_body(channels: int = 16) -> nn.Sequential:
    """Body with as many channels as cells at 16 x 16 pixels, so that channels could be read as tokens."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, channels, 3, 2, 1), nn.BatchNorm2d(channels))


class TokenMixing(nn.Module):
    """Learned mixing of all cells as the last layer before the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.flatten(2)).transpose(1, 2)


class Mean(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


class Transposed(nn.Module):
    """Convolution over a plane of channels and rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, (2, 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2))


CHANNELS_AS_LOCATIONS: dict[str, list[nn.Module]] = {
    "average of flat cells, then linear": [nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3)],
    "average of flat cells, then MLP": [
        nn.Flatten(2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ],
    "learned pooling": [nn.Flatten(2), nn.Linear(16, 1), nn.Flatten(), nn.Linear(16, 3)],
    "learned pooling to several values": [nn.Flatten(2), nn.Linear(16, 5), Mean(1), nn.Linear(5, 3)],
    "conv1d over flat cells": [nn.Flatten(2), nn.Conv1d(16, 16, 16), nn.Flatten(), nn.Linear(16, 3)],
    "token mixing last": [TokenMixing(), Mean(1), nn.Linear(16, 3)],
    "convolution over channels and rows": [Transposed(), Mean(2, 3), nn.Linear(4, 3)],
}


@pytest.mark.parametrize("name", CHANNELS_AS_LOCATIONS)
def test_channels_are_not_read_as_locations(name: str) -> None:
    """The map is that of the last layer whose cells follow the image: rolling the image rolls the features."""
    torch.manual_seed(0)
    model = nn.Sequential(conv_body(), *CHANNELS_AS_LOCATIONS[name]).double().eval()
    call = detect_head(model, images()).feature_call
    assert call.layer is model[0] or call.layer in list(model[0])
    assert call.layout == FeatureLayout("channels_first", (4, 4))
    assert form(model, images()) == ("exact" if name == "average of flat cells, then linear" else "gradient")


@pytest.mark.parametrize("name", ["token mixing last", "learned pooling"])
def test_layer_without_positions_is_refused(name: str) -> None:
    model = nn.Sequential(conv_body(), *CHANNELS_AS_LOCATIONS[name]).double().eval()
    with pytest.raises(InputError, match=r"is spatially aligned with the image .*, got '1'"):
        predict(model, images(), layer="1")


def test_network_without_positions_is_refused() -> None:
    mixer = nn.Sequential(nn.Flatten(), nn.Linear(768, 96), nn.ReLU(), nn.Unflatten(1, (6, 4, 4)), nn.ReLU())
    model = nn.Sequential(mixer, Mean(2, 3), nn.Linear(6, 3)).double()
    with pytest.raises(InputError, match="a feature map that is spatially aligned with the image"):
        predict(model, images())


# --- the last layer that the logits need


class AttentionPool(nn.Module):
    """Attention pooling with one score per cell."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        self.body = conv_body()
        self.score = nn.Linear(16, 1) if tokens else nn.Conv2d(16, 1, 1)
        self.tokens = tokens
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        tokens = x.flatten(2).transpose(1, 2)
        scores = self.score(tokens) if self.tokens else self.score(x).flatten(2).transpose(1, 2)
        return self.fc((tokens * scores.softmax(1)).sum(1))


class VLAD(nn.Module):
    """NetVLAD: residuals to centers, weighted by a soft assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_body()
        self.assign = nn.Conv2d(16, 4, 1)
        self.centers = nn.Parameter(torch.randn(4, 16))
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        assignment = self.assign(x).softmax(1).flatten(2)
        residuals = torch.einsum("nkp,ncp->nkc", assignment, x.flatten(2)) - assignment.sum(2)[..., None] * self.centers
        return self.fc(F.normalize(residuals, dim=2).flatten(1))


class AuxiliaryHead(nn.Module):
    """A class from a pooled vector and the largest score of all cells, as in VOLO."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_body()
        self.head = nn.Linear(16, CLASSES)
        self.aux = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x.amax((2, 3))) + 0.5 * self.aux(x).amax((2, 3))


class ClassAttention(nn.Module):
    """Two class-attention layers over unchanged patch tokens, as in CaiT."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_body()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.keys = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.values = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.body(x).flatten(2).transpose(1, 2)
        token = self.token.expand(len(x), -1, -1)
        for key, value in zip(self.keys, self.values, strict=True):
            token = token + (token @ key(patches).transpose(1, 2)).softmax(-1) @ value(patches)
        return self.fc(token[:, 0])


@pytest.mark.parametrize(
    "build",
    [lambda: AttentionPool(tokens=False), lambda: AttentionPool(tokens=True), VLAD, AuxiliaryHead, ClassAttention],
)
def test_features_are_the_last_layer_that_cuts_the_logits_from_the_image(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().double().eval()
    x = images()
    call = detect_head(model, x).feature_call
    assert call.layer is model.body
    assert form(model, x) == "gradient"
    hook = call.layer.register_forward_hook(lambda module, inputs, output: output.detach())
    assert not model(x.clone().requires_grad_()).requires_grad or torch.autograd.grad(
        model(inputs := x.clone().requires_grad_()).sum(), inputs, allow_unused=True
    ) == (None,)
    hook.remove()


def test_map_of_attention_pooling_does_not_depend_on_a_constant_of_the_scores() -> None:
    torch.manual_seed(0)
    model = AttentionPool(tokens=False).double().eval()
    before = predict(model, images())
    with torch.no_grad():
        model.score.bias -= 5
    after = predict(model, images())
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.cams, before.cams)


def test_map_of_an_ensemble_is_partial() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList(
                nn.Sequential(conv_body(), Mean(2, 3), nn.Linear(16, CLASSES)) for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([member(x) for member in self.members]).mean(0)

    assert form(Ensemble().double(), images()) == "partial"


@pytest.mark.parametrize("separate", [True, False])
def test_queries_keys_and_values_are_not_features(separate: bool) -> None:
    """With separate linear layers, as in Hugging Face models, the values have the width of the tokens."""

    class SeparateBlock(Block):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            normed = self.norm1(x)
            q, k, v = (layer(normed)[:, None] for layer in (self.query, self.key, self.value))
            x = x + self.proj(F.scaled_dot_product_attention(q, k, v)[:, 0])
            return x + self.mlp(self.norm2(x))

    model = transformer("token", 1)
    if separate:
        model.blocks = nn.Sequential(SeparateBlock(), SeparateBlock()).double().eval()
    assert detect_head(model, images()).feature_call.layer is model.blocks[1].norm1
    assert form(model, images()) == "partial"


# --- the probe leaves the model unchanged


class OwnInputs(nn.Module):
    """A network with one context vector per image of its batch, set from outside."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.body = conv_body()
        self.context = torch.zeros(0, 16)
        self.fc = nn.Sequential(nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3)) if hidden else nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.body(x) * self.context[:, :, None, None]).mean((2, 3)))


@pytest.mark.parametrize("hidden", [True, False])
def test_network_with_inputs_of_its_own_is_probed_with_the_batch_size_of_the_images(hidden: bool) -> None:
    model = OwnInputs(hidden).eval()
    x = torch.rand(7, 3, 16, 16)
    model.context = torch.rand(7, 16)
    logits, cams, *_ = predict(model, x)
    torch.testing.assert_close(logits, model(x))
    assert cams is not None
    assert cams.shape == (7, 3, 4, 4)


class OwnStatistics(nn.Module):
    """Running statistics that are replaced by new tensors, changed in place, and counted by an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scale", torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        batch_mean = x.detach().mean((0, 2, 3))
        self.mean = 0.9 * self.mean + 0.1 * batch_mean
        self.count += 1
        self.scale.lerp_(batch_mean, 0.1)
        return (x - self.mean[:, None, None]) * self.scale[:, None, None]


@pytest.mark.parametrize("hidden", [True, False])
def test_probe_leaves_buffers_of_any_kind_unchanged(hidden: bool) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3)) if hidden else nn.Linear(16, 3)
    model = nn.Sequential(conv_body(), OwnStatistics(), nn.Dropout(0.3), Mean(2, 3), head).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    detect_head(model, torch.rand(4, 3, 16, 16, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


class OwnAttributes(nn.Module):
    """A lazy cache of a parameter, a counter, and a tensor that is not a buffer and changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 16, 1, 1))
        self.cache: Tensor | None = None
        self.num_calls = 0
        self.memory = torch.zeros(16)

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = 2 * self.position.detach()
        self.num_calls += 1
        self.memory.mul_(0.9).add_(x.detach().mean((0, 2, 3)))
        return x + self.cache + self.memory[:, None, None]


def test_probe_leaves_ordinary_attributes_unchanged() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv_body(), OwnAttributes(), Mean(2, 3), nn.Linear(16, 3)).eval()
    detect_head(model, torch.rand(4, 3, 16, 16))
    assert model[1].cache is None
    assert model[1].num_calls == 0
    assert not model[1].memory.any()
    predict(model, torch.rand(4, 3, 16, 16))
    assert torch.equal(model[1].cache, 2 * model[1].position.detach())
    assert model[1].num_calls == 1


@pytest.mark.parametrize("order", ["columns first", "windows"])
def test_tokens_in_another_order_are_not_read_as_locations(order: str) -> None:
    class Reordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
            self.norm = nn.LayerNorm(8)
            self.fc = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            if order == "columns first":
                tokens = x.transpose(2, 3).flatten(2).transpose(1, 2)
            else:
                tokens = x.view(len(x), 8, 4, 4, 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(len(x), 256, 8)
            return self.fc(self.norm(tokens).mean(1))

    torch.manual_seed(0)
    model = Reordered().eval()
    call = detect_head(model, torch.rand(2, 3, 64, 64)).feature_call
    assert call.layer is model.body
    assert call.layout == FeatureLayout("channels_first", (16, 16))


class CachedScale(nn.Module):
    """Scale of channels that is cached in a container in evaluation mode, as attention biases in timm."""

    def __init__(self, container: dict[str, list[Tensor]] | list[Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)
        self.container = container

    def forward(self, x: Tensor) -> Tensor:
        cached = self.container.setdefault("cpu", []) if isinstance(self.container, dict) else self.container
        if not cached:
            cached.append(self.scale * 1)
        return x * cached[0]


@pytest.mark.parametrize("container", [{}, {"cpu": []}, []], ids=["dict", "nested", "list"])
def test_detection_leaves_values_that_a_layer_caches_in_a_container(container: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), CachedScale(container), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    ).eval()
    reference = copy.deepcopy(model)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = reference(x)
        torch.testing.assert_close(predict(model, x).logits, expected)
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(predict(model, x).logits, expected)
