"""Head detection: tokens and channels-last outputs against equal networks with channels first."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams import MAP_METHODS, bias, form, predict
from camkd.cams.head_detection import FeatureLayout, candidate_layouts, detect_head

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
