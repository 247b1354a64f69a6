"""Maps of networks of timm and torchvision against pytorch-grad-cam at the layer that a user would name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import transformers
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from camkd.cams import bias, form, predict
from camkd.cams.head_detection import detect_head
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
    "timm:vit_tiny_patch16_224": ("partial", "blocks.11.norm1", tokens(1, 4)),
    "timm:deit_tiny_distilled_patch16_224": ("partial", "blocks.11.norm1", tokens(2, 4)),
    "timm:swin_tiny_patch4_window7_224": ("exact", "norm", lambda x: x.permute(0, 3, 1, 2)),
    "torchvision:swin_t": ("exact", "norm", lambda x: x.permute(0, 3, 1, 2)),
    "torchvision:vit_b_32": ("partial", "encoder.layers.encoder_layer_11.ln_1", tokens(1, 2)),
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


# --- layers of other architectures

LAYERS = {
    "timm:repvit_m0_9": ("gradient", "stages", 128),
    "timm:efficientvit_m0": ("gradient", "stages", 128),
    "timm:shvit_s1": ("gradient", "stages", 128),
    "timm:cait_xxs24_224": ("gradient", "blocks", 64),
    "timm:xcit_nano_12_p16_224": ("gradient", "blocks.11", 64),
    "timm:volo_d1_224": ("gradient", "network.4", 64),
    "timm:convnext_atto": ("gradient", "norm_pre", 64),
}
"""Form, layer and image size, by network."""


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_features_are_the_last_layer_that_the_logits_need(name: str, training: bool) -> None:
    expected_form, layer, size = LAYERS[name]
    model = build(name, CLASSES, size, seed=1).train(training)
    x = torch.rand(2, 3, size, size)
    assert form(model, x) == expected_form
    assert detect_head(model, x).feature_call.layer is model.net.get_submodule(layer)


class HuggingFaceNet(torch.nn.Module):
    """A small image classifier of transformers that returns only the logits."""

    def __init__(self, family: str) -> None:
        super().__init__()
        config = getattr(transformers, f"{family}Config")(
            image_size=SIZE,
            patch_size=16,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=96,
            num_labels=CLASSES,
            use_mean_pooling=False,
        )
        self.net = getattr(transformers, f"{family}ForImageClassification")(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(pixel_values=x).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["ViT", "DeiT", "Beit"])
def test_features_of_hugging_face_transformers_are_the_first_norm_of_the_last_block(family: str) -> None:
    torch.manual_seed(0)
    model = HuggingFaceNet(family).eval()
    x = torch.rand(2, 3, SIZE, SIZE)
    layer = detect_head(model, x).feature_call.layer
    assert next(name for name, module in model.named_modules() if module is layer).endswith("2.layernorm_before")
    assert form(model, x) == "partial"


def test_maps_of_repvit_in_training_mode_are_the_own_gradients_of_the_images() -> None:
    model = build("timm:repvit_m0_9", CLASSES, 128, seed=1).train()
    x = torch.rand(8, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    call = detect_head(model, x).feature_call
    cams = predict(copy.deepcopy(model), x).cams
    assert cams is not None
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]

    def freeze(module: Any, inputs: tuple[Tensor, ...]) -> None:
        dims = [0, *range(2, inputs[0].ndim)]
        module.running_mean, module.running_var = inputs[0].mean(dims), inputs[0].var(dims, correction=0)
        module.eval()

    hooks = [norm.register_forward_pre_hook(freeze) for norm in norms]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    outputs: list[Tensor] = []
    call.layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    logits = model(x)
    maps = torch.zeros_like(cams)
    for n in range(len(x)):
        for k in range(CLASSES):
            (gradient,) = torch.autograd.grad(logits[n, k], outputs[0], retain_graph=True)
            maps[n, k] = (gradient * outputs[0])[n].sum(0)
    assert torch.corrcoef(torch.stack([cams.detach().flatten(), maps.flatten().detach()]))[0, 1] > 0.9999
