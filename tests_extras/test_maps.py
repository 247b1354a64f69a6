"""Maps of other people's networks against pytorch-grad-cam on the layer one would name oneself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from camkd.cams import bias, form, predict
from camkd.models import build

CLASSES, SIZE = 3, 64


def tokens(prefix: int, side: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x[:, prefix:].reshape(len(x), side, side, -1).permute(0, 3, 1, 2)


def as_it_is(x: Tensor) -> Tensor:
    return x


NETWORKS: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "timm:resnet18": ("exact", "layer4", as_it_is),
    "timm:regnety_002": ("exact", "final_conv", as_it_is),
    "timm:efficientnet_b0": ("exact", "bn2", as_it_is),
    "torchvision:mobilenet_v2": ("exact", "features", as_it_is),
    "timm:densenet121": ("exact", "features", as_it_is),
    "timm:convnext_atto": ("gradient", "stages", as_it_is),
    "timm:vit_tiny_patch16_224": ("gradient", "blocks.11.norm1", tokens(1, 4)),
    "timm:deit_tiny_distilled_patch16_224": ("gradient", "blocks.11.norm1", tokens(2, 4)),
    "timm:swin_tiny_patch4_window7_224": ("exact", "norm", lambda x: x.permute(0, 3, 1, 2)),
    "torchvision:swin_t": ("exact", "norm", lambda x: x.permute(0, 3, 1, 2)),
    "torchvision:vit_b_32": ("gradient", "encoder.layers.encoder_layer_11.ln_1", tokens(1, 2)),
}
THEIRS = {"cam": "HiResCAM", "gradcam": "GradCAM", "layercam": "LayerCAM", "gradcam++": "GradCAMPlusPlus"}
LOUDER = 1e5  # their Grad-CAM++ adds 1e-6 to a denominator


def shaken(model: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1 or not value.any():
                value += 0.2 * torch.rand(value.shape, generator=generator).to(value)
    return model.double().eval().requires_grad_(False)


class Louder(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return LOUDER * self.net(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_those_of_pytorch_grad_cam(name: str) -> None:
    expected_form, layer, spatial = NETWORKS[name]
    model = shaken(build(name, CLASSES, SIZE, seed=1))
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double()
    assert form(model, x) == expected_form
    with torch.no_grad():
        logits, cams, *_ = predict(model, x)
    assert cams is not None
    offset = bias(model, x)
    if offset is not None:
        torch.testing.assert_close(logits, cams.mean((2, 3)) + offset)
    for method, theirs in THEIRS.items():
        asked = Louder(model) if method == "gradcam++" else model
        draw = getattr(pytorch_grad_cam, theirs)(asked, [model.net.get_submodule(layer)], reshape_transform=spatial)
        target = ClassifierOutputTarget(1)
        outputs = draw.activations_and_grads(x.clone().requires_grad_())
        sum(target(output) for output in outputs).backward()  # type: ignore[union-attr]
        seen = [
            part[0].numpy() for part in (draw.activations_and_grads.activations, draw.activations_and_grads.gradients)
        ]
        maps = np.array(draw.get_cam_image(x, None, [target] * 2, *seen, False))
        draw.activations_and_grads.release()
        maps = maps * maps[0].size if method == "cam" else np.maximum(maps, 0)
        with torch.no_grad():
            ours = predict(asked, x, method=method, classes=torch.ones(2, 1, dtype=torch.long)).cams
        assert ours is not None
        torch.testing.assert_close(ours[:, 0], torch.from_numpy(maps), rtol=1e-5, atol=1e-4 * float(np.abs(maps).max()))
