"""Maps of networks of timm and torchvision against pytorch-grad-cam at the layer that a user would name."""

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


def identity(x: Tensor) -> Tensor:
    return x


NETWORKS: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "timm:resnet18": ("exact", "layer4", identity),
    "timm:regnety_002": ("exact", "final_conv", identity),
    "timm:efficientnet_b0": ("exact", "bn2", identity),
    "torchvision:mobilenet_v2": ("exact", "features", identity),
    "timm:densenet121": ("exact", "features", identity),
    "timm:convnext_atto": ("gradient", "stages", identity),
    "timm:vit_tiny_patch16_224": ("gradient", "blocks.11.norm1", tokens(1, 4)),
    "timm:deit_tiny_distilled_patch16_224": ("gradient", "blocks.11.norm1", tokens(2, 4)),
    "timm:swin_tiny_patch4_window7_224": ("exact", "norm", lambda x: x.permute(0, 3, 1, 2)),
    "torchvision:swin_t": ("exact", "norm", lambda x: x.permute(0, 3, 1, 2)),
    "torchvision:vit_b_32": ("gradient", "encoder.layers.encoder_layer_11.ln_1", tokens(1, 2)),
}
"""Form, layer, and conversion of the layer's output to ``(N, C, h, w)``, by network."""
GRAD_CAM_CLASSES = {"cam": "HiResCAM", "gradcam": "GradCAM", "layercam": "LayerCAM", "gradcam++": "GradCAMPlusPlus"}
"""The class of pytorch-grad-cam, by map method."""
LOGIT_SCALE = 1e5
"""Factor of the logits for Grad-CAM++, as pytorch-grad-cam adds 1e-6 to a denominator."""


def randomize_parameters(model: Any) -> Any:
    """Change parameters that are initialized to zero or one, and return the frozen model in float64."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1 or not value.any():
                value += 0.2 * torch.rand(value.shape, generator=generator).to(value)
    return model.double().eval().requires_grad_(False)


class ScaledLogits(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return LOGIT_SCALE * self.net(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_equal_pytorch_grad_cam(name: str) -> None:
    expected_form, layer, reshape = NETWORKS[name]
    model = randomize_parameters(build(name, CLASSES, SIZE, seed=1))
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double()
    assert form(model, x) == expected_form
    with torch.no_grad():
        logits, cams, *_ = predict(model, x)
    assert cams is not None
    offset = bias(model, x)
    if offset is not None:
        torch.testing.assert_close(logits, cams.mean((2, 3)) + offset)
    for method, class_name in GRAD_CAM_CLASSES.items():
        network = ScaledLogits(model) if method == "gradcam++" else model
        extractor_class = getattr(pytorch_grad_cam, class_name)
        extractor = extractor_class(network, [model.net.get_submodule(layer)], reshape_transform=reshape)
        target = ClassifierOutputTarget(1)
        recorder = extractor.activations_and_grads
        outputs = recorder(x.clone().requires_grad_())
        sum(target(output) for output in outputs).backward()  # type: ignore[union-attr]
        features = recorder.activations[0].numpy()
        gradients = recorder.gradients[0].numpy()
        expected = np.array(extractor.get_cam_image(x, None, [target] * 2, features, gradients, False))
        recorder.release()
        expected = expected * expected[0].size if method == "cam" else np.maximum(expected, 0)
        with torch.no_grad():
            maps = predict(network, x, method=method, classes=torch.ones(2, 1, dtype=torch.long)).cams
        assert maps is not None
        atol = 1e-4 * float(np.abs(expected).max())
        torch.testing.assert_close(maps[:, 0], torch.from_numpy(expected), rtol=1e-5, atol=atol)
