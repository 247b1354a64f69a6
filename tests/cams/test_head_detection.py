"""Maps of tokens and of channels-last outputs, against the same networks written with channels first."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams import MAP_METHODS, bias, form, predict
from camkd.cams.head_detection import FeatureLayout, candidate_layouts, detect_head

WIDTH, CLASSES = 6, 3


def pictures(height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Block(nn.Module):
    """Attention and a hidden layer, both after a norm, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 9), nn.GELU(), nn.Linear(9, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x))[:, None].chunk(3, -1)  # one head: only so is there a fused kernel
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """``pool``: a class token decides, or the patches' average before or after the norm."""

    def __init__(self, pool: str, prefix: int) -> None:
        super().__init__()
        self.pool, self.prefix = pool, prefix
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.tokens = nn.Parameter(torch.randn(1, prefix, WIDTH))
        self.blocks, self.norm = nn.Sequential(Block(), Block()), nn.LayerNorm(WIDTH)
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
def test_a_norm_before_the_average_of_tokens_is_exact(prefix: int, size: tuple[int, int]) -> None:
    model, x = transformer("norm before", prefix), pictures(*size)
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
def test_a_norm_after_the_average_is_said_to_be_by_gradients(prefix: int) -> None:
    model, x = transformer("norm after", prefix), pictures()
    place = detect_head(model, x).place
    assert form(model, x) == "gradient"
    assert place.layer is model.blocks or place.layer is model.blocks[-1]
    assert place.layout == FeatureLayout("tokens", (4, 4), prefix)


@pytest.mark.parametrize("prefix", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_where_a_class_token_decides_the_last_blocks_first_norm_is_looked_at(
    prefix: int, size: tuple[int, int]
) -> None:
    model, x = transformer("token", prefix), pictures(*size)
    place = detect_head(model, x).place
    assert place.layer is model.blocks[1].norm1
    assert place.layout == FeatureLayout("tokens", (size[0] // 4, size[1] // 4), prefix)
    kept: list[Tensor] = []
    hook = place.layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(x)
    hook.remove()
    for k in range(CLASSES):
        (slope,) = torch.autograd.grad(logits[:, k].sum(), kept[0], retain_graph=True)
        expected = (kept[0] * slope).sum(2)[:, prefix:].view(2, *place.layout.grid)
        ours = predict(model, x, method="hirescam", classes=torch.full((2, 1), k)).cams
        assert ours is not None
        torch.testing.assert_close(ours[:, 0], expected)


@pytest.mark.parametrize("method", MAP_METHODS)
def test_a_loss_of_a_transformers_maps_has_gradients(method: str) -> None:
    model, x = transformer("token", 1).float(), pictures().float()
    cams = predict(model, x, method=method).cams
    assert cams is not None
    cams.square().sum().backward()
    assert model.patches.weight.grad is not None
    assert model.patches.weight.grad.any()


def test_a_head_that_starts_at_nought_has_a_layer_all_the_same() -> None:
    model, x = transformer("token", 1), pictures()
    nn.init.zeros_(model.head.weight)
    assert detect_head(model, x).place.layer is model.blocks[1].norm1


@pytest.mark.parametrize(
    ("grid", "picture", "factor"),
    [
        ((3, 5), (12, 20), 1),
        ((55, 50), (100, 100), 1.1),
        ((50, 55), (100, 100), 1 / 1.1),
        ((50, 40), (100, 100), None),
        ((40, 50), (100, 100), None),
        ((2, 1), (32, 20), 1.25),  # 32 by 20 pixels are 1.6 cells by 1: few cells are rounded much
        ((3, 1), (32, 16), 1.5),
        ((1, 3), (16, 32), 1 / 1.5),
        ((4, 1), (32, 16), None),
    ],
)
def test_cells_have_the_pictures_proportions_but_for_rounding(
    grid: tuple[int, int], picture: tuple[int, int], factor: float | None
) -> None:
    layout = FeatureLayout("first", grid)
    assert layout.suits(picture) == (factor is not None)
    assert layout.misfit(picture) == (math.inf if factor is None else pytest.approx(abs(math.log(factor))))


def test_tokens_without_a_grid_before_them_are_read_by_the_pictures_proportions() -> None:
    """One token of a class and 3 x 4 of patches; four tokens, fewer than a prefix may have; two cells are a map."""
    assert next(candidate_layouts(torch.zeros(2, 13, 6), (12, 16))) == FeatureLayout("tokens", (3, 4), 1)
    assert next(candidate_layouts(torch.zeros(2, 4, 6), (8, 8))) == FeatureLayout("tokens", (2, 2))
    assert FeatureLayout("first", (1, 2)) in candidate_layouts(torch.zeros(2, 5, 1, 2), (8, 16))
    assert not list(candidate_layouts(torch.zeros(2, 1, 1, 1), (8, 8)))


class Turned(nn.Module):
    """The same network with channels first, or with channels last behind its first layer."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last
        self.stem, self.cells = nn.Conv2d(3, WIDTH, 4, stride=4), nn.Linear(WIDTH, 7)
        self.act, self.head = nn.Tanh(), nn.Sequential(nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.cells(self.stem(x).permute(0, 2, 3, 1))
        x = self.act(x) if self.last else self.act(x.permute(0, 3, 1, 2))
        return self.head(x.mean((1, 2) if self.last else (2, 3)))


@pytest.mark.parametrize("method", MAP_METHODS)
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_channels_last_gives_the_maps_of_channels_first(method: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    last = Turned(True).double()
    first, x = Turned(False).double(), pictures(*size)
    first.load_state_dict(last.state_dict())
    kinds = [detect_head(model, x).place.layout.kind for model in (last, first)]
    assert kinds == ["last", "first"]
    ours, theirs = (predict(model, x, method=method, features=True) for model in (last, first))
    torch.testing.assert_close(ours.cams, theirs.cams)
    torch.testing.assert_close(ours.features, theirs.features)


class Squeezed(nn.Module):
    """A rectifier after the last convolution, in place."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.body, self.conv, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, CLASSES, 1), nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(self.body(x))).mean((2, 3))


@pytest.mark.parametrize("inplace", [True, False])
def test_a_rectifier_after_the_last_convolution_is_not_linear(inplace: bool) -> None:
    torch.manual_seed(0)
    model, x = Squeezed(inplace).double(), pictures()
    assert form(model, x) == "gradient"
    answer = predict(model, x)
    assert answer.cams is not None
    torch.testing.assert_close(answer.logits, answer.cams.mean((2, 3)))
