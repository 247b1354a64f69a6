"""CAM-Net: budgets at every size, exact maps, and the network of small images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from camkd.cams import form, predict
from camkd.export.checks import compare_with_pytorch
from camkd.export.onnx_graph import write_onnx
from camkd.models import build
from camkd.models.cam_net import MIN_PHOTO_SIZE, CamNet, Variant, num_halvings
from camkd.models.io import ModelInfo
from camkd.models.profile import Profile, profile

SIZES = range(MIN_PHOTO_SIZE, 225)

every_variant = pytest.mark.parametrize("variant", ["default", "lite", "large"])


def cost(size: int, variant: Variant) -> Profile:
    with torch.device("meta"):
        return profile(CamNet(10, size, variant=variant), size)


# --- budgets


@pytest.mark.parametrize("size", SIZES)
def test_default_variant_keeps_its_budgets_at_every_size(size: int) -> None:
    params, macs, map_size = cost(size, "default")
    assert params <= 96_000
    assert macs <= (30e6 if size <= 96 else 60e6)
    assert map_size[0] == map_size[1]
    assert 8 <= map_size[0] <= 14


@pytest.mark.parametrize("size", [48, 56, 57, 64, 96, 112, 113, 128, 224])
def test_lite_and_large_variants_keep_their_budgets(size: int) -> None:
    lite, default, large = (cost(size, variant) for variant in ("lite", "default", "large"))
    assert lite.params <= default.params
    assert lite.macs <= 0.75 * default.macs
    assert 450_000 <= large.params <= 550_000
    assert large.macs <= (200e6 if size <= 96 else 300e6)
    assert lite.map_size == default.map_size == large.map_size


@pytest.mark.parametrize("size", [225, 448, 1000])
def test_cost_of_larger_images_is_bounded(size: int) -> None:
    params, macs, map_size = cost(size, "default")
    assert params <= 96_000
    assert macs <= 60e6
    assert 8 <= min(map_size) <= max(map_size) <= 14


@pytest.mark.parametrize(("size", "halvings"), [(48, 2), (56, 2), (57, 3), (112, 3), (113, 4), (224, 4), (225, 5)])
def test_map_has_at_least_eight_cells(size: int, halvings: int) -> None:
    assert num_halvings(size) == halvings
    assert -(-size // 2**halvings) >= 8
    assert -(-size // 2 ** (halvings + 1)) < 8


# --- small images


def small_image_state(lite: bool) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the parameters for images below 48 pixels, written out from the description."""
    stem, last = (48, 80) if lite else (64, 64)
    shapes: dict[str, tuple[int, ...]] = {"mean": (1, 3, 1, 1), "std": (1, 3, 1, 1)}

    def conv(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    def norm(name: str, channels: int) -> None:
        conv(f"{name}.norm", channels)

    def block(index: int, channels: int) -> None:
        name, quarter = f"body.{index}", channels // 4
        shapes[f"{name}.keep"] = (channels,)
        for layer, kernel in (("near", 3), ("mid", 5), ("far", 7)):
            conv(f"{name}.{layer}", quarter, 1, kernel, kernel)
        norm(f"{name}.norm", channels)
        for layer in ("gate", "value", "narrow"):
            conv(f"{name}.{layer}", channels, channels, 1, 1)

    conv("body.0", stem, 3, 3, 3)
    norm("body.1", stem)
    for index in range(4 if lite else 6):
        block(2 + index, stem)
    if lite:
        conv("body.6", last, stem, 2, 2)
        norm("body.7", last)
        block(8, last)
        block(9, last)
    conv("head", 10, last, 1, 1)
    return shapes


@pytest.mark.parametrize("size", [8, 32, 47])
@pytest.mark.parametrize("variant", ["default", "lite"])
def test_network_of_small_images_keeps_its_parameters(variant: Variant, size: int) -> None:
    with torch.device("meta"):
        model = CamNet(10, size, variant=variant)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == small_image_state(
        variant == "lite"
    )
    assert cost(32, variant).macs == {"default": 20_617_216, "lite": 11_588_224}[variant]


# --- maps


@every_variant
@pytest.mark.parametrize("size", [32, 48, 57, 63, 81, 113])
def test_maps_are_exact(variant: Variant, size: int) -> None:
    model = CamNet(5, size, variant=variant).double().eval()
    x = torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        logits, cams, *_ = predict(model, x)
    assert cams is not None
    assert form(model, x) == "exact"
    assert model.head.bias is not None
    torch.testing.assert_close(logits, cams.mean((2, 3)) + model.head.bias, rtol=0, atol=1e-12)


def test_registry_builds_the_network_for_the_image_size() -> None:
    assert set(build("cam-net", 10, 64).state_dict()) == set(CamNet(10, 64).state_dict())
    assert set(build("cam-net-lite", 10, 32).state_dict()) == set(CamNet(10, 32, variant="lite").state_dict())
    assert set(build("cam-net-large", 10, 224).state_dict()) == set(CamNet(10, 224, variant="large").state_dict())


# --- export


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "size"), [("default", 51), ("lite", 63), ("large", 57), ("default", 117)])
def test_exported_network_equals_pytorch(variant: Variant, size: int, tmp_path: Path) -> None:
    """Sides that no stride divides: every pooling and every strided convolution has an incomplete window."""
    model = CamNet(3, size, variant=variant).eval()
    info = ModelInfo("cam-net", ("a", "b", "c"), size, 1, 1, "student", "plain", "", "", 0)
    write_onnx(model, info, tmp_path / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    differences = compare_with_pytorch(model, tmp_path / "model.onnx", images)
    assert max(differences) < 1e-4
